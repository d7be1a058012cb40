"""Measure peak memory and time of `visionattn.predict` on one large image: loading, windows, mask, overlay.

python tools/large_image.py --limit 1.86                               # van_b0 + segformer, 150 classes: below 2 GB
python tools/large_image.py --backbone eca_resnet18 --head unet --classes 2 "model.args={width: 32}"

The model has random weights, which affects neither time nor memory.
"""

from __future__ import annotations

import argparse
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import visionattn
from visionattn.console import Console
from visionattn.runs.checkpoint import save_checkpoint
from visionattn.tasks import load_config, task_of


def peak_gib() -> float:
    """Peak resident memory of this process so far; `ru_maxrss` would include the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def write_image(path: Path, height: int, width: int) -> None:
    """Write an image with coarse and fine structure."""
    small = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="van_b0")
    parser.add_argument("--head", default="segformer")
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--device", choices=("auto", "cpu"), default="cpu")
    parser.add_argument("--limit", type=float, help="peak memory in GiB above which the exit code is 1")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings of the config")
    args = parser.parse_args()

    torch.manual_seed(0)
    names = [str(number) for number in range(args.classes)]
    settings = [
        f"model.name={args.backbone}",
        f"model.head.name={args.head}",
        f"model.img_size={args.window}",
        f"train.device={args.device}",
    ]
    config = load_config(None, ["task=segment", "train.precision=fp32", *settings, *args.settings])
    model = task_of(config).build_model(config, {"classes": names})
    with tempfile.TemporaryDirectory() as folder:
        meta = {"step": 0, "epoch": 0, "best": None, "target": {"classes": names}, "config": config.model_dump(mode="json")}
        save_checkpoint(Path(folder), model=model.state_dict(), ema=None, state={}, meta=meta)
        del model
        image = Path(folder, "image.jpg")
        write_image(image, args.height, args.width)
        before, start = peak_gib(), time.perf_counter()
        found, _ = visionattn.predict(Path(folder, "last"), [image], out=Path(folder, "out"), save=["mask", "overlay"], console=Console())
        seconds, peak = time.perf_counter() - start, peak_gib()
        classes = len(np.unique(found[0].class_map()))
    print(f"{args.width} x {args.height}, {args.classes} classes, {args.backbone} + {args.head}, windows of {args.window}, {args.device}")
    print(f"classes found {classes}, {seconds:.1f} s, peak {peak:.2f} GiB, before the prediction {before:.2f} GiB")
    if args.limit is not None and peak > args.limit:
        sys.exit(f"above the limit of {args.limit} GiB")


if __name__ == "__main__":
    main()

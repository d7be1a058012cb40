"""Measure the CPU time to decode and augment one training image on one core: ours against torchvision v1 and v2."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from measure import add_common, csv_path, finish, paired, summary
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from visionattn.data.images.settings import AugmentConfig, ImageDataConfig
from visionattn.data.images.transforms import train_transform
from visionattn.data.readers import read_image
from visionattn.models.speed import interleave, machine

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224
JITTER = 0.4
GOALS = {"v1": 2.0, "v2": 1.6}


def write_images(folder: Path, number: int) -> list[Path]:
    """Write JPEG files of 500 x 375, quality 90, with as much detail as photographs: 40 to 65 kB each.

    Raises:
        ValueError: a file has another size, which would change the ratio of decoding to augmentation.
    """
    generator = np.random.default_rng(0)
    paths = []
    for index in range(number):
        pixels = np.full((375, 500, 3), 128.0, np.float32)
        for cells, strength in ((3, 45.0), (8, 24.0), (24, 13.0), (75, 7.0)):
            colours = generator.normal(0, strength, (cells, cells * 4 // 3, 3)).astype(np.float32)
            pixels += cv2.resize(colours, (500, 375), interpolation=cv2.INTER_CUBIC)
        pixels += generator.normal(0, 5.0, (375, 500, 1)).astype(np.float32)  # the same grain in all channels
        path = folder / f"{index:03d}.jpg"
        Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path, quality=90)
        if not 40_000 <= path.stat().st_size <= 65_000:
            raise ValueError(f"{path.name}: expected a file of 40 to 65 kB, got {path.stat().st_size:,} bytes")
        paths.append(path)
    return paths


def ours(color_jitter: float) -> Callable[[Path], torch.Tensor]:
    """Load and augment with visionattn; crop and flip are on by default."""
    transform = train_transform(AugmentConfig(color_jitter=color_jitter), (SIZE, SIZE), MEAN, STD)
    settings, seeds = ImageDataConfig(), count()
    return lambda path: transform(read_image(path, settings=settings, in_chans=3), next(seeds))


def torchvision_v1(jitter: tuple[float, ...], mode: InterpolationMode) -> Callable[[Path], torch.Tensor]:
    """Load and augment with PIL and torchvision.transforms."""
    colour = [v1.ColorJitter(*jitter)] if jitter else []
    crop = v1.RandomResizedCrop(SIZE, interpolation=mode, antialias=True)
    transform = v1.Compose([crop, v1.RandomHorizontalFlip(), *colour, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    return lambda path: transform(open_rgb(path))


def torchvision_v2(jitter: tuple[float, ...], mode: InterpolationMode) -> Callable[[Path], torch.Tensor]:
    """Load and augment with PIL and torchvision.transforms.v2."""
    colour = [v2.ColorJitter(*jitter)] if jitter else []
    crop = v2.RandomResizedCrop(SIZE, interpolation=mode, antialias=True)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), *colour, *to_tensor, v2.Normalize(MEAN, STD)])
    return lambda path: transform(open_rgb(path))


def open_rgb(path: Path) -> Image.Image:
    """Load an image like torchvision's image folders."""
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def milliseconds(pipeline: Callable[[Path], torch.Tensor], paths: Sequence[Path]) -> float:
    """Measure the CPU time of this thread per image."""
    started = time.thread_time()
    for path in paths:
        pipeline(path)
    return 1000 * (time.thread_time() - started) / len(paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_common(parser, "data", rounds=25)
    parser.add_argument("--images", type=int, default=48, help="files, each read once per side and round (default %(default)s)")
    args = parser.parse_args()
    rounds, number = (2, 4) if args.quick else (args.rounds, args.images)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    torch.manual_seed(0)

    bicubic, bilinear = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
    full, no_hue = (JITTER, JITTER, JITTER, JITTER / 4), (JITTER, JITTER, JITTER)
    # Label, then the settings of ours and torchvision; only the first has goals.
    cases: list[tuple[str, float, tuple[float, ...], InterpolationMode]] = [
        ("crop, flip, jitter 0.4", JITTER, full, bicubic),
        ("no jitter on either side", 0.0, (), bicubic),
        ("torchvision without hue", JITTER, no_hue, bicubic),
        ("torchvision bilinear", JITTER, full, bilinear),
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), number)
        sides = {}
        for label, strength, jitter, mode in cases:
            pipelines = {"ours": ours(strength), "v1": torchvision_v1(jitter, mode), "v2": torchvision_v2(jitter, mode)}
            for name, pipeline in pipelines.items():
                if tuple(pipeline(paths[0]).shape) != (3, SIZE, SIZE):  # also triggers late imports
                    raise RuntimeError(f"{label}, {name}: not a {SIZE} px image")
                sides[f"{label}/{name}"] = lambda pipeline=pipeline: milliseconds(pipeline, paths)
        values = interleave(sides, rounds)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000

    rows, missed = [], []
    for index, (label, *_) in enumerate(cases):
        own, old, new = (values[f"{label}/{name}"] for name in ("ours", "v1", "v2"))
        row = {"case": label, **summary("ours_ms", own), **summary("v1_ms", old), **summary("v2_ms", new)}
        row |= {**summary("v1/ours", paired(old, own)), **summary("v2/ours", paired(new, own))}
        rows.append(row)
        if index == 0:
            ratios = {name: row[f"{name}/ours"] for name in GOALS}
            missed = [f"{label}: {ratios[name]:.2f}x of {name}, goal {goal}x" for name, goal in GOALS.items() if not ratios[name] >= goal]
    facts = {**machine(torch.device("cpu")), "rounds": rounds, "images": number, "kB per image": round(kilobytes, 1)}
    title = f"Decode and augment to {SIZE} px, CPU ms per image: median (min-max)"
    return finish(title, rows, facts, csv_path(args, "data"), missed)


if __name__ == "__main__":
    sys.exit(main())

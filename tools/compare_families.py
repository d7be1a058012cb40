"""Train a narrow network of every family from scratch under one budget; draw accuracy against time.

`python tools/compare_families.py CIFAR10` trains each network of FAMILIES with each seed, one after another on one thread, and tests it. A
line per run goes to docs/benchmarks/families.csv; runs whose line is there are not repeated. `--table` prints the table of
docs/comparison.md and draws docs/comparison.png from that file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from measure import RESULTS

import visionattn as va
from visionattn.files import csv_text
from visionattn.models.speed import cpu_name

# 2.1 to 2.7 million parameters each with ten classes; as many blocks in the third stage as the families usually have there.
_WIDTHS: dict[str, Any] = {"depths": [2, 2, 3, 2], "embed_dims": [28, 56, 112, 224], "num_heads": [1, 2, 4, 8]}
_WIDTH: dict[str, Any] = {"depths": [2, 2, 3, 2], "embed_dim": 32, "num_heads": [1, 2, 4, 8]}
_WINDOWS: dict[str, Any] = {"depths": [2, 2, 2, 2], "embed_dim": 32, "num_heads": [1, 2, 4, 8], "window_size": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ECA-ResNet": ("eca_resnet18", {"width": 30}),
    "ELA-ResNet": ("ela_resnet18", {"width": 30}),
    "Swin": ("swin_tiny", _WINDOWS),
    "NAT": ("nat_mini", _WIDTH),
    "DiNAT": ("dinat_mini", {**_WIDTH, "kernel_size": 3, "dilations": [[1, 4], [1, 2], [1, 1, 1], [1, 1]]}),
    "DaViT": ("davit_tiny", {**_WIDTH, "depths": [1, 1, 3, 1], "embed_dim": 28, "window_size": 4}),
    "VAN": ("van_b0", {"depths": [2, 2, 3, 2], "embed_dims": [28, 56, 136, 224]}),
    "BiFormer": ("biformer_tiny", {"depths": [2, 2, 3, 2], "embed_dim": 32}),
    "TransNeXt": ("transnext_micro", {**_WIDTH, "embed_dim": 28, "num_heads": [2, 4, 8, 16]}),
    "RMT": ("rmt_tiny", {**_WIDTHS, "embed_dims": [32, 64, 128, 256]}),
    "RAVLT": ("ravlt_tiny", _WIDTHS),
    "CAS-ViT": ("casvit_xsmall", {"depths": [2, 2, 3, 2], "embed_dims": [44, 56, 112, 216]}),
    "LITv2": ("litv2_small", _WIDTH),
    "Agent-Swin": ("agent_swin_tiny", _WINDOWS),
    "CrossFormer": ("crossformer_tiny", {"depths": [1, 1, 4, 1], "embed_dim": 32, "num_heads": [1, 2, 4, 8]}),
    "InLine-PVT": ("inline_pvt_tiny", {**_WIDTHS, "depths": [2, 2, 2, 2], "embed_dims": [36, 72, 144, 216]}),
}
BUDGET = (
    *("model.weights=none", "model.img_size=48", "train.epochs=5", "train.batch_size=32", "train.precision=fp32"),
    *("optim.lr=1e-3", "schedule.warmup_epochs=1", "augment.random_resized_crop.scale=[0.35,1]", "data.workers=0"),
)
RESULT = RESULTS / "families.csv"


def run(data: Path, name: str, arguments: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Train and test; CPU time is that of the training process, start and validation included."""
    command = [sys.executable, "-m", "visionattn", "train", "--data", str(data), "--model", name, *BUDGET, f"seed={seed}"]
    settings = [f"model.args={json.dumps(arguments)}", f"output.dir={folder}", "output.name=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *settings], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}, seed {seed}: the training failed; its message is above")
    trained = folder / "run" / "001"
    subprocess.run([sys.executable, "-m", "visionattn", "eval", str(trained), "--split", "test"], check=True, stdout=subprocess.DEVNULL)
    scores = json.loads((trained / "eval" / "test" / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    with torch.device("meta"):
        model = va.create_model(name, num_classes=10, img_size=48, **arguments)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"params": params, "cpu_s": usage.ru_utime + usage.ru_stime, "test_top1": 100 * scores["top1"]}


def read_rows() -> list[dict[str, str]]:
    """Lines of the result file."""
    return list(csv.DictReader(RESULT.read_text(encoding="utf-8").splitlines())) if RESULT.is_file() else []


def add_row(row: Mapping[str, Any]) -> None:
    """Append a line to the result file, in one write: several of these programs may run at once."""
    with RESULT.open("a", encoding="utf-8", newline="") as file:
        lines = csv_text(list(row), [list(row.values())])
        file.write(lines if not RESULT.stat().st_size else lines.split("\n", 1)[1])


def show() -> None:
    """Print the table, best first, and draw the plot."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_rows()
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = sorted((row for row in rows if row["family"] == family), key=lambda row: int(row["seed"]))
        scores = [float(row["test_top1"]) for row in mine]
        lines.append((family, int(mine[0]["params"]) / 1e6, mean(float(row["cpu_s"]) for row in mine) / 60, scores))
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    print("| family | parameters | CPU minutes | test top-1, mean | each seed |\n|---|---:|---:|---:|---|")
    for family, params, minutes, scores in sorted(lines, key=lambda line: -mean(line[3])):
        print(f"| {family} | {params:.2f} M | {minutes:.1f} | {mean(scores):.1f} | {', '.join(f'{score:.1f}' for score in scores)} |")
        axes.plot([minutes] * len(scores), scores, color="#9db7d5", zorder=1)
        axes.scatter(minutes, mean(scores), color="#1f5c99", s=24, zorder=2)
        axes.annotate(family, (minutes, mean(scores)), xytext=(5, 3), textcoords="offset points", fontsize=9)
    axes.set(xlabel="CPU minutes of a training", ylabel="test top-1, %")
    axes.margins(x=0.12)  # room for the last name
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS.parent / "comparison.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder of the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--table", action="store_true", help="only print the table and draw the plot")
    args = parser.parse_args()
    if args.table:
        return show()
    if args.data is None:
        parser.error("name the folder of the images")
    for seed in args.seeds:
        for family in args.families:
            if any((row["family"], row["seed"]) == (family, str(seed)) for row in read_rows()):
                continue
            name, arguments = FAMILIES[family]
            with tempfile.TemporaryDirectory() as folder:
                row = run(args.data, name, arguments, seed, Path(folder))
            add_row({"family": family, "seed": seed, "model": name, **row, "device": cpu_name(), "torch": torch.__version__})
            print(f"{family:12} seed {seed}: {row['test_top1']:.2f} % in {row['cpu_s'] / 60:.1f} CPU minutes", flush=True)


if __name__ == "__main__":
    main()

"""Draw docs/quickstart.png from a run of the quick start: accuracy per epoch, and held-out digits with their predictions.

visionattn train --config quickstart
visionattn eval runs/quickstart/001 --split test
python tools/draw_quickstart.py runs/quickstart/001
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from visionattn.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
ROWS, COLUMNS = 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = RunFolder.open(parser.parse_args().run)
    with (run.path / "eval" / "test" / "per_image.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["prediction"] for row in rows)
    # The mistakes first, then the least certain of the others.
    rows.sort(key=lambda row: (row["label"] == row["prediction"], float(row["probability"])))
    images = load_digits().images

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    subfigures: Any = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    left, pictures = subfigures
    epochs = [line for line in run.read_metrics() if line["kind"] == "epoch"]
    axes = left.add_subplot()
    axes.plot([line["epoch"] for line in epochs], [100 * line["val_top1"] for line in epochs], marker=".", color="tab:blue")
    axes.set(xlabel="epoch", ylabel="validation top-1, %", ylim=(None, 101), title="20 epochs, a minute on two CPU cores")
    axes.axhline(98, color="grey", lw=0.8, ls=":")
    axes.grid(alpha=0.3)
    pictures.suptitle(f"test: {right} of {len(rows)} right; the {ROWS * COLUMNS} least certain", fontsize="medium")
    for axes, row in zip(pictures.subplots(ROWS, COLUMNS).flat, rows, strict=False):
        number = re.search(r"\d+", row["id"])
        assert number is not None
        axes.imshow(images[int(number[0])], cmap="gray_r")
        wrong = row["label"] != row["prediction"]
        title = f"{row['prediction']} (is {row['label']})" if wrong else f"{row['prediction']}  {100 * float(row['probability']):.0f} %"
        axes.set_title(title, fontsize=8, color="tab:red" if wrong else "black", pad=2)
        axes.axis("off")
    figure.savefig(ROOT / "docs" / "quickstart.png", dpi=110)


if __name__ == "__main__":
    main()

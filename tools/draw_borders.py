"""Draw docs/kernels/neighborhood_borders.png: the keys that a query sees, from the index tables of the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch

from visionattn.kernels.neighborhood.reference import Border, axis_table

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

SIDE, KERNEL = 12, 5
PANELS: tuple[tuple[str, Border, int], ...] = (
    ('border "shift"', "shift", 1),
    ('border "mask"', "mask", 1),
    ('border "shift", dilation 2', "shift", 2),
)
QUERIES = (((0, 1), "tab:orange"), ((8, 8), "tab:blue"))  # row and column


def cell(axes: Axes, row: float, col: float, **style: Any) -> None:
    axes.add_patch(Rectangle((col, row), 1, 1, **style))


def panel(axes: Axes, title: str, border: Border, dilation: int) -> None:
    for row in range(SIDE):
        for col in range(SIDE):
            cell(axes, row, col, facecolor="white", edgecolor="0.8", linewidth=0.6)
    keys, _, inside = axis_table(SIDE, KERNEL, dilation, border, torch.device("cpu"))
    half = KERNEL // 2
    for (row, col), colour in QUERIES:
        for i in range(KERNEL):
            for j in range(KERNEL):
                if inside[row, i] and inside[col, j]:
                    cell(axes, int(keys[row, i]), int(keys[col, j]), facecolor=colour, alpha=0.4, edgecolor="none")
                else:
                    cell(axes, row + i - half, col + j - half, facecolor="none", edgecolor=colour, linestyle=":", linewidth=1)
        cell(axes, row, col, facecolor=colour, edgecolor="black", linewidth=1)
    axes.set(xlim=(-1.3, SIDE + 0.2), ylim=(SIDE + 0.2, -2.3), aspect="equal", title=title)
    axes.axis("off")


def main() -> None:
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(9, 3.8), layout="constrained")
    for one, what in zip(axes, PANELS, strict=True):
        panel(one, *what)
    path = Path(__file__).resolve().parents[1] / "docs" / "kernels" / "neighborhood_borders.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})
    print(path)


if __name__ == "__main__":
    main()

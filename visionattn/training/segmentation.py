"""What a person sees of segmentation. A `View`, see `training/view.py`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from visionattn.data.segmentation import MaskDataset
from visionattn.training.evaluation import Evaluation
from visionattn.training.pictures import Panel, Shown, picture_grid, unnormalise

CURVES = ("miou", "mdice", "aacc", "dice")
WORST_CAPTION = "image, with its mean IoU"


def batch_figure(batch: dict[str, Any], classes: list[str], cfg: dict[str, Any], count: int) -> Figure | None:
    """A training batch as the network sees it; None where nothing of it could be read."""
    pictures = [unnormalise(image, cfg) for image in batch["image"][:count]]
    return picture_grid(pictures, ["" for _ in pictures]) if pictures else None


def predictions_figure(evaluation: Evaluation, dataset: MaskDataset, classes: list[str], count: int) -> Figure:
    return Figure()


def panels(evaluation: Evaluation, classes: list[str]) -> list[Panel]:
    return []


def worst(evaluation: Evaluation, dataset: MaskDataset, classes: list[str], count: int) -> list[Shown]:
    return []


def image_rows(evaluation: Evaluation, classes: list[str]) -> list[dict[str, Any]]:
    """Rows of per_image.csv."""
    return evaluation.scores.per_image

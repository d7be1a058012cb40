"""What a person sees of a task: one module per task, with the functions of `View`."""

from __future__ import annotations

from typing import Any, Protocol

from matplotlib.figure import Figure

from visionattn.training import classification
from visionattn.training.evaluation import Evaluation
from visionattn.training.pictures import Panel, Shown


class View(Protocol):
    """Functions of a task's module; `dataset` is the evaluated one, `count` the most images to show.

    Attributes:
        CURVES: validation metrics drawn over the epochs.
        WORST_CAPTION: what the titles of the worst images say.
    """

    @property
    def CURVES(self) -> tuple[str, ...]: ...

    @property
    def WORST_CAPTION(self) -> str: ...

    def batch_figure(self, batch: dict[str, Any], classes: list[str], cfg: dict[str, Any], count: int) -> Figure | None:
        """A training batch as the network sees it."""

    def predictions_figure(self, evaluation: Evaluation, dataset: Any, classes: list[str], count: int) -> Figure:
        """Images spread over the split, with what was predicted."""

    def panels(self, evaluation: Evaluation, classes: list[str]) -> list[Panel]:
        """Figures of the whole split."""

    def worst(self, evaluation: Evaluation, dataset: Any, classes: list[str], count: int) -> list[Shown]:
        """The images that went most wrong, worst first."""

    def image_rows(self, evaluation: Evaluation, classes: list[str]) -> list[dict[str, Any]]:
        """Rows of per_image.csv: `index`, then what is told of each image."""


_VIEWS: dict[str, View] = {"classify": classification}


def view_of(task: str) -> View:
    """The module of a task, by the name that configs have for it."""
    return _VIEWS[task]

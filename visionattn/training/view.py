"""What a person sees of a task: one module per task, with the functions of `View`."""

from __future__ import annotations

from typing import Any, Protocol

from matplotlib.figure import Figure

from visionattn.data.sets import Samples
from visionattn.tasks import Task
from visionattn.tasks.base import Batch
from visionattn.training import classification, segmentation
from visionattn.training.evaluation import Evaluation
from visionattn.training.pictures import Panel, Shown, TensorBoard, curves_figure


class View(Protocol):
    """Functions of a task's module; `dataset` is the evaluated one, `count` the most images to show.

    Attributes:
        CLASS_CURVES: columns of the table per class that TensorBoard draws over the epochs.
        WORST_COLUMNS: how many of the worst images are beside each other in the report.
        CURVES: validation metrics drawn over the epochs.
        WORST_CAPTION: what the titles of the worst images say.
    """

    @property
    def CURVES(self) -> tuple[str, ...]: ...

    @property
    def CLASS_CURVES(self) -> tuple[str, ...]: ...

    @property
    def WORST_CAPTION(self) -> str: ...

    @property
    def WORST_COLUMNS(self) -> int: ...

    def batch_figure(self, batch: dict[str, Any], task: Any, cfg: dict[str, Any], count: int) -> Figure | None:
        """A training batch as the network sees it."""

    def predictions_figure(self, evaluation: Evaluation, dataset: Any, classes: list[str], count: int) -> Figure:
        """Images spread over the split, with what was predicted."""

    def panels(self, evaluation: Evaluation, classes: list[str]) -> list[Panel]:
        """Figures of the whole split."""

    def worst(self, evaluation: Evaluation, dataset: Any, classes: list[str], count: int) -> list[Shown]:
        """The images that went most wrong, worst first."""

    def image_rows(self, evaluation: Evaluation, classes: list[str]) -> list[dict[str, Any]]:
        """Rows of per_image.csv: `index`, then what is told of each image."""


_VIEWS: dict[str, View] = {"classify": classification, "segment": segmentation}


def view_of(task: str) -> View:
    """The module of a task, by the name that configs have for it."""
    return _VIEWS[task]


def show_batch(board: TensorBoard, task: Task, batch: Batch, cfg: dict[str, Any], count: int) -> None:
    """The first training batch in TensorBoard."""
    figure = view_of(task.name).batch_figure(batch, task, cfg, count)
    if figure is not None:
        board.figure("train/augmented_batch", figure, 0)


def show_scores(board: TensorBoard, evaluation: Evaluation, step: int) -> None:
    """Metrics of an evaluation in TensorBoard."""
    board.scalars("val", evaluation.metrics, step)
    for column in view_of(evaluation.task).CLASS_CURVES:
        board.scalars(f"val_{column}", {row["class"]: row[column] for row in evaluation.scores.per_class}, step)


def show_evaluation(
    board: TensorBoard, task: Task, evaluation: Evaluation, dataset: Samples, history: list[dict[str, Any]], count: int
) -> None:
    """Predictions, the task's figures and the curves in TensorBoard, at the last step of `history`."""
    view, step = view_of(task.name), history[-1]["step"]
    if count:
        board.figure("val/predictions", view.predictions_figure(evaluation, dataset, task.classes, count), step)
    for panel in view.panels(evaluation, task.classes):
        board.figure(f"val/{panel.title.lower().replace(' ', '_')}", panel.figure, step)
    board.figure("learning_curves", curves_figure(history, view.CURVES), step)

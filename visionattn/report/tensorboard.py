"""TensorBoard events of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter

from visionattn.errors import UserError
from visionattn.figures import curves_figure
from visionattn.names import fitted, shown
from visionattn.tasks.base import Dataset, Display, Evaluation, Pictures
from visionattn.tasks.batch import Batch


class TensorBoard:
    """Scalars and pictures in the run's `tb/`.

    Args:
        folder: of the events.
        display: which metrics are drawn.
        pictures: the task's figures.
        count: most pictures per panel.
        purge_step: events from this step on are hidden, because the resumed run writes them again.

    Raises:
        UserError: VA-R007, a folder that TensorBoard cannot write in.
    """

    def __init__(self, folder: Path, display: Display, pictures: Pictures, count: int, *, purge_step: int | None) -> None:
        if shown(str(folder)) != str(folder):
            fix = "another output.dir, or log.tensorboard=false"
            raise UserError("VA-R007", "TensorBoard needs a folder whose name is printable UTF-8", where=str(folder), fix=fix)
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self.display, self.pictures, self.count = display, pictures, count

    def scalars(self, group: str, values: Mapping[str, float | None], step: int) -> None:
        """Values that are defined, as `group/name`."""
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{group}/{fitted(shown(name))}", value, step)

    def show_batch(self, model: nn.Module, batch: Batch) -> None:
        """The first training batch."""
        figure = self.pictures.batch_figure(model, batch, self.count)
        if figure is not None:
            self.writer.add_figure("train/augmented_batch", figure, 0)

    def show_scores(self, evaluation: Evaluation, step: int) -> None:
        """Metrics of an evaluation."""
        self.scalars("val", evaluation.metrics, step)
        for column in self.display.class_curves:
            self.scalars(f"val_{column}", {row["class"]: row[column] for row in evaluation.scores.per_class}, step)

    def show_evaluation(self, evaluation: Evaluation, dataset: Dataset, history: list[dict[str, Any]]) -> None:
        """Predictions, the task's figures and the curves, at the last step of `history`."""
        step = history[-1]["step"]
        if self.count and (figure := self.pictures.predictions_figure(evaluation, dataset, self.count)) is not None:
            self.writer.add_figure("val/predictions", figure, step)
        for panel in self.pictures.panels(evaluation):
            self.writer.add_figure(f"val/{fitted(shown(panel.title)).lower().replace(' ', '_')}", panel.figure, step)
        self.writer.add_figure("learning_curves", curves_figure(history, self.display.curves), step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

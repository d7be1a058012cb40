"""What a task is to training, evaluation and prediction: all that differs between tasks is behind these names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

Metrics = dict[str, float | None]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """What a split came to.

    Attributes:
        metrics: fractions from 0 to 1 unless the name says otherwise; None where not defined.
        per_class: a row per class.
        per_image: a row per image, in the order of the split: `index`, then what the task tells of it.
        intervals: 95 % interval by the name of its metric.
        details: what only the task's own pictures and files need.
    """

    metrics: Metrics
    per_class: list[dict[str, Any]]
    per_image: list[dict[str, Any]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    details: Any = None


class Meter(Protocol):
    """Collects predictions of one process; states of several are merged before the result is taken."""

    def update(self, prediction: torch.Tensor, batch: Batch) -> None:
        """Take in a batch; `batch` is on the device of the prediction."""

    def state(self) -> Any:
        """What was collected, picklable."""

    def merge(self, states: list[Any]) -> None:
        """Add what other meters collected."""

    def result(self) -> Scores:
        """The scores of everything collected; every image counts once."""


class Task(Protocol):
    """Loss, prediction and metrics, which must agree on activation, ignored labels and resolution.

    Attributes:
        name: as configs have it under `task`.
        classes: names in the order of the model's outputs.
        monitor: metric of the best checkpoint unless the config names another; higher is better.
        shown: metrics printed after an epoch, where they are defined.
        meta: what a checkpoint says of the task besides its classes; plain values.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> list[str]: ...

    @property
    def shown(self) -> tuple[str, ...]: ...

    @property
    def meta(self) -> dict[str, Any]: ...

    @property
    def monitor(self) -> str: ...

    def mix(self, batch: Batch) -> Batch:
        """Augmentation across the images of a training batch; may leave images out."""

    def loss(self, output: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss` and its named parts, float32 and averaged over the batch.

        Args:
            output: what the model returned in training, or what `predict` returned.
            batch: with `label` on the output's device.
        """

    def predict(self, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """Logits `[B, K]` of images or `[B, K, H, W]` of pixels from a model in evaluation mode: what the meter and `loss` take."""

    def meter(self) -> Meter:
        """A new, empty meter."""


def ratio(part: float, whole: float) -> float | None:
    """A share, or None of nothing."""
    return float(part / whole) if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are defined, or None."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None

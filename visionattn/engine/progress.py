"""How far a run is, and whether it is to end before its last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from visionattn.config.schema import TrainConfig
from visionattn.console import duration


@dataclass
class Progress:
    """What a run carries from step to step besides its model and its optimizer.

    Attributes:
        step: optimizer steps done.
        best: metric, value and epoch of the best evaluation.
        values: what eval.best was after each epoch that was evaluated.
        lr: learning rate of the last step.
        losses, updates: sum and number of the losses of the epoch so far; steps that updated nothing are not among them.
        seconds: time of the epoch so far.
        elapsed: time of the run until the last save, with its evaluations.
        closed: step whose evaluation is done and saved, of the last epoch that was trained or the part that there was time for.
        skipped: steps left out in a row because of `train.on_nan`.
        rollbacks: returns to a checkpoint because of it.
    """

    step: int = 0
    best: dict[str, Any] | None = None
    values: list[float | None] = field(default_factory=list)
    lr: float = 0.0
    losses: float = 0.0
    updates: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    closed: int = 0
    skipped: int = 0
    rollbacks: int = 0


def evaluations_without_gain(values: Sequence[float | None], min_delta: float) -> int:
    """Evaluations since the last one that was better, by more than `min_delta`, than the last one that was better before."""
    best, waited = None, 0
    for value in values:
        if value is not None and (best is None or value > best + min_delta):
            best, waited = value, 0
        else:
            waited += 1
    return waited


def why_enough(train: TrainConfig, values: Sequence[float | None], elapsed: float, monitor: str) -> str:
    """Why a run ends before its last step; empty as long as it goes on."""
    if elapsed >= train.max_seconds:
        return f"train.max_time={train.max_time}: {duration(elapsed)} are over"
    waited = evaluations_without_gain(values, train.min_delta)
    if train.patience is not None and waited >= train.patience:
        gain = f" by more than {train.min_delta:g}" if train.min_delta else ""
        return f"train.patience={train.patience}: {monitor} has not risen{gain} in {waited} evaluation{'s' * (waited != 1)}"
    return ""

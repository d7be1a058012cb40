"""What a run trains with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from visionattn.config.schema import RunConfig
from visionattn.tasks.base import Dataset, Objective, Target, Task


@dataclass(frozen=True)
class Setup:
    """Everything a run trains with, built from its config.

    Attributes:
        config: of the run.
        task: its task.
        target: meaning of the outputs.
        model: a backbone with a head, on the CPU.
        objective: the loss.
        train_set, val_set: checked samples.
        classes: of the training samples, if `data.sampler` balances them.
    """

    config: RunConfig
    task: Task
    target: Target
    model: nn.Module
    objective: Objective
    train_set: Dataset
    val_set: Dataset
    classes: Sequence[int] | None = None

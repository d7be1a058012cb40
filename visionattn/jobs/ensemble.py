"""One model or several as one: the samples that each of them takes, and the mean of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visionattn.tasks.base import Dataset, Member, Predictor, Task
from visionattn.tasks.batch import Batch, EnsembleDataset, member_batch


@dataclass(frozen=True)
class Ensemble:
    """Models that are used together; all of them are in memory, the samples of one batch at a time.

    Attributes:
        task: of all models.
        members: the models; the settings of the first are those of the ensemble.
        dataset: what is loaded.
        places: for each model, which part of a batch of the dataset it takes.
    """

    task: Task
    members: Sequence[Member]
    dataset: Dataset
    places: Sequence[int]

    @classmethod
    def of(cls, task: Task, members: Sequence[Member], datasets: Sequence[Dataset]) -> Ensemble:
        """Combine models with the samples that each of them takes; folds of one run take the same ones.

        Args:
            datasets: one per model, with the same samples in the same order.
        """
        if len(members) == 1:
            return cls(task, members, datasets[0], [0])
        ways = [_loading(member) for member in members]
        first = [ways.index(way) for way in ways]
        kinds = sorted(set(first))
        places = [kinds.index(number) for number in first]
        distinct = [datasets[number] for number in kinds]
        return cls(task, members, distinct[0] if len(distinct) == 1 else EnsembleDataset(distinct), places)

    def to(self, device: torch.device) -> nn.Module:
        """All models on a device, as one module."""
        return nn.ModuleList([member.model for member in self.members]).to(device)

    def predictor(self, build: Callable[[Member], Predictor]) -> Predictor:
        """The inference of all models: outputs as those of one.

        Args:
            build: makes the inference of a model.
        """
        predictors = [build(member) for member in self.members]
        if len(predictors) == 1:
            return predictors[0]

        def predict(batch: Batch) -> Any:
            parts = zip(predictors, self.places, strict=True)
            return self.task.average(self.members[0].config, [one(member_batch(batch, place)) for one, place in parts])

        return predict


def _loading(member: Member) -> Any:
    """What samples depend on, and more: models for which it is equal take the same ones."""
    config = member.config.model_copy(update={"seed": 0, "data": member.config.data.at("")})
    fitted = {"eval": {"temperature", "threshold"}}  # of outputs; each fold has its own
    return config.model_dump(mode="json", exclude=fitted), getattr(member.model, "pretrained_cfg", None)

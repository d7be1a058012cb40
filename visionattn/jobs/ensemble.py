"""One model or several as one: the samples that each of them takes, and the mean of their outputs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
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
        """Combine models with the samples that each of them takes; models that take equal ones share them.

        Args:
            datasets: one per model, with the same samples in the same order.
        """
        if len(members) == 1:
            return cls(task, members, datasets[0], [0])
        kinds: dict[bytes, int] = {}
        places = [kinds.setdefault(_digest(dataset), len(kinds)) for dataset in datasets]
        distinct = [datasets[places.index(place)] for place in range(len(kinds))]
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


def _digest(dataset: Dataset) -> bytes:
    """A hash of what a dataset loads and how; one that cannot be pickled equals no other."""

    class Hash:
        def __init__(self) -> None:
            self.state = blake2b()

        def write(self, part: Any) -> int:
            self.state.update(part)
            return memoryview(part).nbytes

    into = Hash()
    try:
        pickle.Pickler(into, protocol=5).dump(dataset)
    except Exception:  # whatever a dataset of a plug-in holds
        return str(id(dataset)).encode()
    return into.state.digest()

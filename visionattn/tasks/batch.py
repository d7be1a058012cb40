"""A batch: an envelope that the engine reads, around values that only the task knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from visionattn.data.readers import UnreadableFile
from visionattn.data.sampling import derive_seed


@dataclass(frozen=True)
class Batch:
    """Samples on their way to a model.

    Attributes:
        data: the task's own values; `batch["image"]` is short for `batch.data["image"]`.
        indices: position of each sample in its split.
        ids: name of each sample.
        cases: case that each sample belongs to: a patient, a volume, an image.
        unreadable: id and reason of samples that are missing because they could not be read.
    """

    data: dict[str, Any]
    indices: list[int]
    ids: list[str]
    cases: list[str]
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def with_data(self, **values: Any) -> Batch:
        """The same samples with other values."""
        return replace(self, data={**self.data, **values})

    def to(self, device: torch.device) -> Batch:
        """All tensors on a device."""
        fast = device.type == "cuda"  # elsewhere a copy that is not waited for may be read too early
        moved = {key: value.to(device, non_blocking=fast) if isinstance(value, torch.Tensor) else value for key, value in self.data.items()}
        return replace(self, data=moved)

    def pin_memory(self) -> Batch:
        """All tensors in page-locked memory; the loader calls this."""
        pinned = {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in self.data.items()}
        return replace(self, data=pinned)

    def take(self, start: int, stop: int) -> Batch:
        """Samples from `start` to before `stop`; tensors and lists are cut along their first axis."""
        cut = {key: value[start:stop] if isinstance(value, (torch.Tensor, list)) else value for key, value in self.data.items()}
        return Batch(cut, self.indices[start:stop], self.ids[start:stop], self.cases[start:stop])

    def split(self, parts: int) -> list[Batch]:
        """Cut into `parts` of nearly equal size, the larger ones first; into fewer if there are fewer samples."""
        bounds = np.cumsum([0, *(len(chunk) for chunk in np.array_split(np.arange(len(self)), min(parts, len(self))))])
        return [self.take(int(start), int(stop)) for start, stop in pairwise(bounds)]

    def finite(self) -> bool:
        """Whether all floating-point values are finite."""
        tensors = [value for value in self.data.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stack tensors, arrays and numbers of samples; other values become lists.

    Unreadable samples are left out, never replaced. If none is readable, `data` is empty.
    """
    read = [sample for sample in samples if "unreadable" not in sample]
    keys = [key for key in (read[0] if read else ()) if key not in ("index", "id", "case")]
    return Batch(
        {key: _stacked([sample[key] for sample in read]) for key in keys},
        [sample["index"] for sample in read],
        [sample["id"] for sample in read],
        [sample["case"] for sample in read],
        [(sample["id"], sample["unreadable"]) for sample in samples if "unreadable" in sample],
    )


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    if isinstance(values[0], (np.ndarray, np.generic, int, float)):
        return torch.from_numpy(np.asarray(values))
    return values


class SampleDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples by index; a task defines `load`.

    Args:
        ids: unique name of each sample.
        seed: of a training set, whose keys are `(epoch, index)`; None for evaluation, where keys are indices.
        cases: case of each sample; its id by default.
    """

    def __init__(self, ids: list[str], seed: int | None = None, cases: list[str] | None = None) -> None:
        self.ids, self.cases, self.seed = ids, cases or ids, seed
        self.collate = collate

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        """The values of a sample.

        Args:
            seed: of everything random in it; None where nothing is.

        Raises:
            UnreadableFile: the sample is left out and reported.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key if self.seed is None else key[1]
        sample = {"index": index, "id": self.ids[index], "case": self.cases[index]}
        try:
            return sample | self.load(index, None if self.seed is None else derive_seed(self.seed, key[0], index))
        except UnreadableFile as error:
            return sample | {"unreadable": error.reason}


class GappedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """A training set with gaps, whose samples are reported as unreadable; all others keep their place, and so their randomness.

    Args:
        dataset: with a stand-in at each gap.
        gaps: id by position.
    """

    def __init__(self, dataset: Any, gaps: dict[int, str]) -> None:
        self.dataset, self.gaps, self.collate = dataset, gaps, dataset.collate
        self.ids = [gaps.get(index, name) for index, name in enumerate(dataset.ids)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        name = self.gaps.get(key[1])
        if name is None:
            return dict(self.dataset[key])
        return {"index": key[1], "id": name, "case": name, "unreadable": "it was removed since the run began"}


class EnsembleDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples as several models take them; one that any of them cannot have is unreadable.

    Args:
        datasets: one per way of loading; all have the same samples in the same order.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets, self.ids = datasets, datasets[0].ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        samples = [dataset[key] for dataset in self.datasets]
        broken = [sample for sample in samples if "unreadable" in sample]
        return broken[0] if broken else samples[0] | {"samples": samples}

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """A batch of the first dataset, with the values of the others beside its own."""
        missing = [(sample["id"], sample["unreadable"]) for sample in samples if "unreadable" in sample]
        read = [sample["samples"] for sample in samples if "unreadable" not in sample]
        if not read:
            return Batch({}, [], [], [], missing)
        first, *others = [dataset.collate(list(part)) for dataset, part in zip(self.datasets, zip(*read, strict=True), strict=True)]
        beside = {f"{number}.{key}": value for number, other in enumerate(others, 1) for key, value in other.data.items()}
        return replace(first, data={**first.data, **beside}, unreadable=missing)


def member_batch(batch: Batch, number: int) -> Batch:
    """The part of a batch of an `EnsembleDataset` that came from one of its datasets."""
    if not number:
        return batch
    prefix = f"{number}."
    return replace(batch, data={key.removeprefix(prefix): value for key, value in batch.data.items() if key.startswith(prefix)})

"""Images with labels as the package hands them around: splits, the dataset a loader reads, the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from visionattn.config import ImageDataConfig
from visionattn.data.images import ImageFacts, UnreadableImage, array_facts, image_facts, read_array, read_image
from visionattn.data.sampling import mix


@dataclass(frozen=True)
class Note:
    """One line of the data check; `code` is empty where a line only informs."""

    level: Literal["info", "warning", "error"]
    code: str
    text: str


class Images(Protocol):
    """Images by position: small and picklable, so that loader processes get it cheaply."""

    @property
    def settings(self) -> ImageDataConfig: ...

    @property
    def in_chans(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Height x width x in_chans; raises UnreadableImage."""

    def content(self, index: int) -> bytes:
        """The bytes that identify the image; raises UnreadableImage."""

    def facts(self, index: int) -> ImageFacts: ...

    def path(self, index: int) -> str | None: ...

    def take(self, indices: Sequence[int]) -> Images: ...


@dataclass(frozen=True)
class FileImages:
    """Images in files."""

    paths: tuple[str, ...]
    settings: ImageDataConfig
    in_chans: int
    _cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        image = read_image(Path(self.paths[index]), settings=self.settings, in_chans=self.in_chans)
        if self.settings.cache == "ram":
            self._cache[index] = image
        return image

    def content(self, index: int) -> bytes:
        try:
            return Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise UnreadableImage(self.paths[index], error.strerror or str(error)) from error

    def facts(self, index: int) -> ImageFacts:
        return image_facts(Path(self.paths[index]), max_pixels=self.settings.max_pixels)

    def path(self, index: int) -> str:
        return self.paths[index]

    def take(self, indices: Sequence[int]) -> FileImages:
        return FileImages(tuple(self.paths[index] for index in indices), self.settings, self.in_chans)


@dataclass(frozen=True)
class ArrayImages:
    """Images in one array (N, H, W) or (N, H, W, C)."""

    array: np.ndarray
    settings: ImageDataConfig
    in_chans: int

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> np.ndarray:
        return read_array(np.asarray(self.array[index]), settings=self.settings, in_chans=self.in_chans)

    def content(self, index: int) -> bytes:
        image: np.ndarray = self.array[index]
        return image.tobytes()

    def facts(self, index: int) -> ImageFacts:
        return array_facts(self.array[index])

    def path(self, index: int) -> None:
        return None

    def take(self, indices: Sequence[int]) -> ArrayImages:
        return ArrayImages(self.array[list(indices)], self.settings, self.in_chans)


@dataclass(frozen=True)
class TorchvisionImages:
    """Images of a torchvision data set, at the given positions of it."""

    source: Any
    indices: tuple[int, ...]
    settings: ImageDataConfig
    in_chans: int

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> np.ndarray:
        return read_image(self._picture(index), settings=self.settings, in_chans=self.in_chans)

    def content(self, index: int) -> bytes:
        pixels: np.ndarray = np.asarray(self._picture(index))
        return pixels.tobytes()

    def facts(self, index: int) -> ImageFacts:
        return image_facts(self._picture(index), max_pixels=self.settings.max_pixels)

    def path(self, index: int) -> None:
        return None

    def take(self, indices: Sequence[int]) -> TorchvisionImages:
        return replace(self, indices=tuple(self.indices[index] for index in indices))

    def _picture(self, index: int) -> Any:
        return self.source[self.indices[index]][0]


@dataclass(frozen=True)
class ImageSet:
    """One split.

    Labels are int64 (N,), or float32 (N, classes) of zeros and ones for several classes per image. Ids are paths
    relative to data.root, or `train[7]` where there are no files. Groups are what data.group_by gives, or None.
    """

    name: str
    images: Images
    labels: np.ndarray
    ids: list[str]
    groups: list[str] | None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int], name: str | None = None) -> ImageSet:
        """The images at these positions."""
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        positions = np.asarray(indices, dtype=np.int64)
        return ImageSet(name or self.name, self.images.take(indices), self.labels[positions], [self.ids[i] for i in indices], groups)

    def class_counts(self, num_classes: int) -> list[int]:
        """Images per class."""
        if self.labels.ndim == 2:
            return [int(count) for count in self.labels.sum(0)]
        return [int(count) for count in np.bincount(self.labels, minlength=num_classes)]


@dataclass(frozen=True)
class Data:
    """All that a run reads: class names in the order of the model's outputs, and the splits."""

    name: str
    classes: list[str]
    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    notes: list[Note]

    @property
    def sets(self) -> list[ImageSet]:
        """The splits there are."""
        return [part for part in (self.train, self.val, self.test) if part is not None]


class Samples(Protocol):
    """What a task's loader reads: samples by index, or by `(epoch, index)` in training.

    Attributes:
        ids: name of each image for people.
        collate: makes a batch of samples: `image`, `label`, `index`, and `unreadable` for those that have no image.
    """

    @property
    def ids(self) -> list[str]: ...

    @property
    def collate(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> dict[str, Any]: ...


class ClassificationDataset(Dataset[dict[str, Any]]):
    """Samples of an image set: `image` C x H x W, `label`, `index`; or `index` and `unreadable`, the reason.

    Args:
        transform: with `seed`, `transform(image, sample_seed)`; without, `transform(image)`.
        seed: for training, where keys are `(epoch, index)`; None for evaluation, where they are indices.
    """

    def __init__(self, image_set: ImageSet, transform: Callable[..., torch.Tensor], seed: int | None = None) -> None:
        self.image_set, self.transform, self.seed = image_set, transform, seed
        self.ids, self.collate = image_set.ids, collate

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key if self.seed is None else key[1]
        try:
            image = self.image_set.images.read(index)
        except UnreadableImage as error:
            return {"index": index, "unreadable": error.reason}
        tensor = self.transform(image) if self.seed is None else self.transform(image, mix(self.seed, key[0], index))
        return {"image": tensor, "label": self.image_set.labels[index], "index": index}


class ImageDataset(Dataset[dict[str, Any]]):
    """Images without labels: `image` C x H x W, `size` (height and width before the transform), `index`; or `unreadable`."""

    def __init__(self, images: Images, ids: list[str], transform: Callable[[np.ndarray], torch.Tensor]) -> None:
        self.images, self.ids, self.transform = images, ids, transform
        self.collate = collate

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = self.images.read(index)
        except UnreadableImage as error:
            return {"index": index, "unreadable": error.reason}
        return {"image": self.transform(image), "size": image.shape[:2], "index": index}


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the samples: `image` (B, C, H, W), `label` (B,), (B, classes) or (B, H, W), `size` (B, 2), `index` (B,).

    Unreadable ones are left out, never replaced, and listed as `(index, reason)` in `unreadable`; B may be 0, then
    `image` has shape (0,) and there is nothing else.
    """
    samples = [sample for sample in batch if "unreadable" not in sample]
    given = [key for key in ("label", "size") if samples and key in samples[0]]
    return {
        "image": torch.stack([sample["image"] for sample in samples]) if samples else torch.empty(0),
        **{key: torch.from_numpy(np.asarray([sample[key] for sample in samples])) for key in given},
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "unreadable": [(sample["index"], sample["unreadable"]) for sample in batch if "unreadable" in sample],
    }


class ManifestRow(NamedTuple):
    """One image of a run: the columns of manifest.csv."""

    path: str
    label: str
    split: str
    bytes: int
    hash16: str


def content_hash(content: bytes) -> str:
    """The first 16 hexadecimal digits of BLAKE2b."""
    return blake2b(content).hexdigest()[:16]


def manifest(data: Data, hashes: Mapping[str, str] | None = None) -> list[ManifestRow]:
    """All images with label names (joined by ';') and content hashes.

    Args:
        hashes: by id, from the data check; files that it lacks are read.
    """
    rows = []
    for part in data.sets:
        for index, name in enumerate(part.ids):
            label = part.labels[index]
            names = [data.classes[label]] if part.labels.ndim == 1 else [data.classes[number] for number in np.flatnonzero(label)]
            path = part.images.path(index)
            if path is not None and hashes is not None and name in hashes:
                size, digest = os.path.getsize(path), hashes[name]
            else:
                content = part.images.content(index)
                size, digest = len(content), content_hash(content)
            rows.append(ManifestRow(name, ";".join(names), part.name, size, digest))
    return rows


def manifest_hash(rows: Sequence[ManifestRow]) -> str:
    """16 hexadecimal digits that change with any image, label, split or order."""
    return content_hash("\n".join("\t".join(map(str, row)) for row in rows).encode())

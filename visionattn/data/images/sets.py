"""Images with labels: splits and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionattn.data.sources import Images
from visionattn.data.splits import Data


@dataclass(frozen=True)
class ImageSet:
    """One split.

    Labels are int64 (N,), or float32 (N, classes) of zeros and ones for several classes per image. Ids are paths
    relative to data.root, or `train[7]` if there are no files. Groups come from data.group_by, or are None.
    """

    name: str
    images: Images
    labels: np.ndarray
    ids: list[str]
    groups: list[str] | None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int], name: str | None = None) -> ImageSet:
        """Select the images at these positions."""
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        positions = np.asarray(indices, dtype=np.int64)
        return ImageSet(name or self.name, self.images.take(indices), self.labels[positions], [self.ids[i] for i in indices], groups)

    def class_counts(self, num_classes: int) -> list[int]:
        """Count images per class."""
        if self.labels.ndim == 2:
            return [int(count) for count in self.labels.sum(0)]
        return [int(count) for count in np.bincount(self.labels, minlength=num_classes)]


@dataclass(frozen=True)
class LabelledData(Data[ImageSet]):
    """Splits of images with labels; `classes` are in the order of the model's outputs."""

    classes: list[str]

    def label_text(self, part: ImageSet, index: int) -> str:
        """Join the class names by ';'."""
        label = part.labels[index]
        names = [self.classes[label]] if part.labels.ndim == 1 else [self.classes[number] for number in np.flatnonzero(label)]
        return ";".join(names)

    def class_counts(self, part: ImageSet) -> dict[str, int]:
        """Count images per class name."""
        return dict(zip(self.classes, part.class_counts(len(self.classes)), strict=True))

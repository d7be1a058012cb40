"""Random logits, images and labels of three classes, as batches."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from visionattn.data.masks.settings import IGNORE
from visionattn.tasks.batch import Batch

CLASSES = ["background", "cell", "wall"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 0) -> torch.Tensor:
    label = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))
    label[..., 0] = IGNORE
    return label


def upsampled(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def batch(first: int = 0, **values: torch.Tensor) -> Batch:
    """Samples that are numbered from `first`."""
    indices = list(range(first, first + len(next(iter(values.values())))))
    names = [f"{index}.png" for index in indices]
    return Batch(values, indices, names, names)

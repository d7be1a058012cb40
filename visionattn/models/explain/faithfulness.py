"""How well a map tells which pixels mattered: deletion and insertion scores.

Paper: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", arXiv 1806.07421, section 4.2. Differences:
deleted pixels get the mean colour of the training data instead of black, and the inserted image is blurred in proportion to its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

Probability = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Faithfulness:
    """Probability of the class while pixels are changed in the order of a map, the highest first.

    Attributes:
        deleted: after each step of deleting them, from none to all; `inserted`: of inserting them into a blurred image.
        deletion: area under `deleted`, the lower the better; `insertion`: under `inserted`, the higher the better.
    """

    deleted: list[float]
    inserted: list[float]

    @property
    def deletion(self) -> float:
        return area(self.deleted)

    @property
    def insertion(self) -> float:
        return area(self.inserted)


def area(values: Sequence[float]) -> float:
    """Area under values at equal steps from 0 to 1, by trapezoids."""
    return (sum(values) - (values[0] + values[-1]) / 2) / (len(values) - 1)


@torch.no_grad()
def faithfulness(
    model: nn.Module, image: torch.Tensor, saliency: np.ndarray, probability: Probability, *, steps: int, batch: int = 8
) -> Faithfulness:
    """Change the pixels of an image in the order of a map.

    Args:
        model: in evaluation mode.
        image: `[1, C, H, W]`, normalised: 0 is the mean of the training data.
        saliency: `[H, W]`; pixels of equal value keep their order.
        probability: that of the class, `[B]` of the outputs of the model.
        steps: parts of equal size that the pixels are changed in.
        batch: images per forward pass.
    """
    order = torch.from_numpy(np.argsort(-saliency, axis=None, kind="stable").copy())
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel())
    rank = rank.view(saliency.shape).to(image.device)
    counts = torch.linspace(0, rank.numel(), steps + 1, device=image.device).round()
    changed = rank < counts[:, None, None, None]  # steps + 1, 1, H, W
    blurred = blur(image)

    def curve(before: torch.Tensor, after: torch.Tensor) -> list[float]:
        values: list[float] = []
        for part in changed.split(batch):
            values += probability(model(torch.where(part, after, before))).float().cpu().tolist()
        return values

    return Faithfulness(curve(image, torch.zeros_like(image)), curve(blurred, image))


def blur(image: torch.Tensor) -> torch.Tensor:
    """Blur an image, with a deviation of 10 px at 224 px."""
    sigma = 10 * min(image.shape[2:]) / 224
    kernel = 2 * min(math.ceil(2 * sigma), (min(image.shape[2:]) - 1) // 2) + 1
    return gaussian_blur(image, [kernel, kernel], [sigma, sigma])  # type: ignore[no-any-return]


def random_maps(size: tuple[int, int], grid: tuple[int, int], count: int, seed: int = 0) -> list[np.ndarray]:
    """Maps `[H, W]` to compare with: random values of a grid, as coarse as the map in question, resized bilinearly."""
    values = torch.rand(count, 1, *grid, generator=torch.Generator().manual_seed(seed))
    return list(F.interpolate(values, size=size, mode="bilinear")[:, 0].numpy())

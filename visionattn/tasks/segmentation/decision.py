"""From logits of pixels to classes, with thresholds, and to how sure they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from visionattn.data.masks.annotations.records import is_background
from visionattn.data.masks.sets import resize_labels
from visionattn.errors import UserError
from visionattn.spill import room
from visionattn.tasks.thresholds import class_thresholds
from visionattn.tasks.windows import Block, class_dtype, most_likely


class ImageMaps(NamedTuple):
    """Prediction for the pixels of one image.

    Attributes:
        classes: `[H, W]`.
        confidence: probability of the class of each pixel, `[H, W]`, uint8 from 0 to 255; None unless it is wanted.
        probabilities: `[K, H, W]`, float16; None unless they are wanted.
    """

    classes: np.ndarray
    confidence: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def resized(self, size: tuple[int, int]) -> ImageMaps:
        """The same of an image of another size: each pixel has what the nearest one has."""
        if self.classes.shape == size:
            return self
        probabilities = None
        if self.probabilities is not None:
            probabilities = room((len(self.probabilities), *size), np.float16)
            for number, plane in enumerate(self.probabilities):
                probabilities[number] = resize_labels(plane.astype(np.float32), size)
        confidence = None if self.confidence is None else resize_labels(self.confidence, size)
        return ImageMaps(resize_labels(self.classes, size), confidence, probabilities)


def pixel_thresholds(given: float | Mapping[str, float] | None, classes: Sequence[str]) -> torch.Tensor | None:
    """The threshold of each class, infinite for a class without; None if none is set.

    Args:
        given: `eval.threshold`; a number is that of all classes but the background.

    Raises:
        UserError: VA-C002, a name that is not a class, or no class without a threshold.
    """
    found = class_thresholds(given, [classes], unnamed=np.inf)
    if found is None:
        return None
    if not isinstance(given, Mapping):
        found[[is_background(name) for name in classes]] = np.inf
    if np.isfinite(found).all():
        why = "pixels that reach no threshold get the most probable class without one"
        fix = "give thresholds by name, and none to the class that is left"
        raise UserError("VA-C002", "eval.threshold: every class has a threshold", why=why, fix=fix)
    return torch.from_numpy(found)


def thresholded(logits: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Classes of logits `[K, ...]`: the most probable that reaches its threshold, else the most probable without a threshold."""
    return _chosen(pixel_probabilities(logits), thresholds)


def pixel_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities `[K, ...]` of logits `[K, ...]`; a single logit is that of the second of two classes."""
    if len(logits) > 1:
        return logits.softmax(0)
    found = logits.sigmoid()
    return torch.cat([1 - found, found])


def image_maps(
    blocks: Iterable[Block], size: tuple[int, int], num_classes: int, thresholds: torch.Tensor | None, formats: Collection[str]
) -> ImageMaps:
    """Put an image together from the logits of its blocks.

    Args:
        formats: what is wanted of it: "confidence", "probs".
    """
    classes = torch.empty(size, dtype=class_dtype(num_classes))
    confidence = np.empty(size, np.uint8) if "confidence" in formats else None
    probabilities = room((num_classes, *size), np.float16) if "probs" in formats else None
    for place, logits in blocks:
        if thresholds is None and confidence is None and probabilities is None:
            classes[place] = most_likely(logits).to("cpu", classes.dtype)
            continue
        found = pixel_probabilities(logits)
        chosen = most_likely(logits).long() if thresholds is None else _chosen(found, thresholds)
        classes[place] = chosen.to("cpu", classes.dtype)
        if confidence is not None:
            confidence[place] = (found.gather(0, chosen[None])[0] * 255).round().byte().cpu().numpy()
        if probabilities is not None:
            probabilities[:, place[0], place[1]] = found.half().cpu().numpy()
    return ImageMaps(classes.numpy(), confidence, probabilities)


def _chosen(found: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Classes of probabilities `[K, ...]`."""
    limits = thresholds.to(found.device).view(-1, *(1,) * (found.ndim - 1))
    none = found.new_tensor(-1.0)
    reached = torch.where(found >= limits, found, none).max(0)
    others = torch.where(limits.isinf(), found, none).argmax(0)
    return torch.where(reached.values >= 0, reached.indices, others)

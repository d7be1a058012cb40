"""Weights of classes in a loss."""

from __future__ import annotations

import numpy as np
import torch

from visionattn.errors import UserError


def class_weights(setting: str | list[float], labels: np.ndarray, num_classes: int) -> torch.Tensor | None:
    """Weight of each class by loss.class_weights: given, or by inverse frequency; None without any.

    Args:
        labels: class indices `[N]`, or zeros and ones `[N, classes]`.

    Raises:
        UserError: VA-C002, weights that do not fit the classes.
    """
    if setting == "none":
        return None
    if isinstance(setting, list):
        if len(setting) != num_classes:
            raise UserError("VA-C002", f"loss.class_weights: expected {num_classes} numbers, one per class, got {len(setting)}")
        return torch.tensor(setting, dtype=torch.float32)
    if labels.ndim == 2:  # negatives per positive
        positives = labels.sum(0)
        return torch.tensor((len(labels) - positives) / np.maximum(positives, 1), dtype=torch.float32)
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(counts.sum() / (num_classes * np.maximum(counts, 1)), dtype=torch.float32)

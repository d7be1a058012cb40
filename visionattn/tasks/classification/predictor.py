"""Inference of classification: logits, averaged over flips and scales of the images, and their temperature."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import nn

from visionattn.heads import resize_to
from visionattn.tasks.base import Predictor
from visionattn.tasks.batch import Batch
from visionattn.tasks.classification.settings import ClassifyConfig
from visionattn.tasks.means import mean_logits

_FLIPPED = {"none": (), "horizontal": (-1,), "both": (-1, -2)}


class ClassPredictor:
    """Predict logits `[B, classes]`, float32, divided by the temperature.

    Args:
        model: in evaluation mode, on `device`.
    """

    def __init__(self, config: ClassifyConfig, model: nn.Module, device: torch.device) -> None:
        self.model, self.device, self.multi_label = model, device, config.data.multi_label
        self.settings = config.eval

    def __call__(self, batch: Batch) -> torch.Tensor:
        image, settings = batch["image"].to(self.device), self.settings
        outputs = (self.model(view).float() / settings.temperature for view in self.views(image))
        if settings.flips == "none" and not settings.scales:
            return next(outputs)
        if settings.average == "probabilities":
            return mean_logits(outputs, independent=self.multi_label)
        total, count = next(outputs), 1
        for logits in outputs:
            total, count = total + logits, count + 1
        return total / count

    def views(self, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """The images `[B, C, H, W]` at each scale and in each flip, one at a time."""
        height, width = image.shape[2:]
        axes = _FLIPPED[self.settings.flips]
        for scale in self.settings.scales or [1.0]:
            resized = image if scale == 1 else resize_to(image, (round(height * scale), round(width * scale)))
            for chosen in product((False, True), repeat=len(axes)):
                flipped = [axis for axis, flip in zip(axes, chosen, strict=True) if flip]
                yield resized.flip(flipped) if flipped else resized


def pooled_features(model: Any, device: torch.device) -> Predictor:
    """What the linear layer of the classifier sees: the last map after norm and pooling, `[B, C]`."""
    return lambda batch: model.forward_head(model.forward_features(batch["image"].to(device)), pre_logits=True)

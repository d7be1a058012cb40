"""The loss of classification, with mixup and CutMix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup

from visionattn.config.schema import chosen
from visionattn.tasks.base import Objective
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_weights import class_weights
from visionattn.tasks.classification.settings import ClassifyConfig


class ClassificationObjective(Objective):
    """Cross-entropy over classes; binary cross-entropy per class with `data.multi_label`.

    Args:
        dataset: labelled images, from which balanced class weights are counted.

    Raises:
        UserError: VA-C002, class weights that do not fit the classes.
    """

    def __init__(self, config: ClassifyConfig, num_classes: int, dataset: Any) -> None:
        self.multi_label = config.data.multi_label
        self.label_smoothing = chosen(config.loss.label_smoothing, "loss.label_smoothing")
        self.class_weights = class_weights(config.loss.class_weights, dataset.image_set.labels, num_classes)
        self.mixup = None
        if config.augment.mixup or config.augment.cutmix:
            self.mixup = Mixup(config.augment.mixup, config.augment.cutmix, label_smoothing=self.label_smoothing, num_classes=num_classes)

    def mix(self, batch: Batch) -> Batch:
        """Mixup or CutMix on a batch of even size; draws from numpy's global generator."""
        if self.mixup is None:
            return batch
        even = batch.take(0, len(batch) // 2 * 2)
        if not len(even):
            return even
        image, label = self.mixup(even["image"], even["label"])
        return even.with_data(image=image, label=label)

    def loss(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss` of logits `[B, classes]`, in float32, averaged over the batch."""
        logits = outputs.float()
        label: torch.Tensor = batch["label"].to(logits.device)
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.multi_label:
            target = label.float() * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            return {"loss": F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)}
        smoothing = 0.0 if label.is_floating_point() else self.label_smoothing  # mixup has smoothed already
        return {"loss": F.cross_entropy(logits, label, weight=weight, label_smoothing=smoothing)}

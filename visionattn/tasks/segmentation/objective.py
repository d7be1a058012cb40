"""Segmentation loss: weighted terms over all outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from visionattn.errors import UserError
from visionattn.heads.base import HeadOutput, resize_to
from visionattn.tasks.base import Objective
from visionattn.tasks.batch import Batch
from visionattn.tasks.losses import DeepSupervision, bind_loss, nearest_label, output_weights
from visionattn.tasks.segmentation.settings import SegmentConfig

# Logits (classes x pixels) per image above which the evaluation loss uses fewer pixels: 256 MiB, of which several copies exist.
LOSS_VALUES = 2**26


class SegmentationObjective(Objective):
    """Weighted sum of the losses of all outputs.

    Two classes may share one logit, that of the second class.

    Args:
        num_classes: classes of the labels.
        losses: name (see `losses.LOSSES`), weight and arguments of each term. `class_weights` may be "none", "balanced" or numbers.
        pixel_counts: pixels of each class in the training set, `[classes]`, for balanced class weights.
        deep_supervision: rule for auxiliary outputs. "upsample_logits" resizes them to the label and adds their
            losses to that of the main output (mmsegmentation); "downsample_label" takes the nearest labels and divides the
            weights of all outputs by their sum (nnU-Net).

    Raises:
        UserError: VA-C002, one class alone, an unknown loss, arguments it does not take, or a loss given twice.
    """

    def __init__(
        self,
        num_classes: int,
        losses: Sequence[tuple[str, float, Mapping[str, Any]]] = (("cross_entropy", 1.0, {}),),
        *,
        pixel_counts: np.ndarray | None = None,
        deep_supervision: DeepSupervision = "upsample_logits",
    ) -> None:
        if not 2 <= num_classes <= 255:
            raise UserError("VA-C002", f"segmentation takes 2 to 255 classes, got {num_classes}", fix="name the background as a class too")
        self.deep_supervision = deep_supervision
        self.losses = {name: (weight, bind_loss(name, arguments, num_classes, pixel_counts)) for name, weight, arguments in losses}
        if len(self.losses) < len(losses):
            raise UserError("VA-C002", f"a loss is given twice: {', '.join(name for name, _, _ in losses)}")

    def loss(self, outputs: HeadOutput | torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute `loss` and the unweighted losses of the main output by name, with the regularizers of the head.

        `aux` is the share of auxiliary outputs in `loss`.

        Losses are computed at the label's size. In evaluation (logits, not a `HeadOutput`), with more than `LOSS_VALUES` logits at
        that size, they are computed on a smaller nearest-pixel label to bound memory.
        """
        output = outputs if isinstance(outputs, HeadOutput) else HeadOutput(outputs)
        label: torch.Tensor = batch["label"].to(output.logits.device)
        if not isinstance(outputs, HeadOutput):
            label = _bounded_label(label, outputs.shape[1])
        weight, *aux_weights = output_weights([aux.weight for aux in output.aux], self.deep_supervision)
        parts = self._losses(resize_to(output.logits.float(), label.shape[1:]), label)
        total = weight * self._weighted(parts)
        if output.aux:
            parts["aux"] = torch.zeros_like(total)
        for aux, aux_weight in zip(output.aux, aux_weights, strict=True):
            if self.deep_supervision == "upsample_logits":
                logits, target = resize_to(aux.logits.float(), label.shape[1:]), label
            else:
                logits, target = aux.logits, nearest_label(label, aux.logits.shape[2:])
            parts["aux"] = parts["aux"] + aux_weight * self._weighted(self._losses(logits, target))
        if output.aux:
            total = total + parts["aux"]
        for regularizer in output.regularizers:
            parts[regularizer.name] = regularizer.value
            total = total + regularizer.weight * regularizer.value
        return {"loss": total, **parts}

    def _losses(self, logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: loss(logits, label) for name, (_, loss) in self.losses.items()}

    def _weighted(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([weight * parts[name] for name, (weight, _) in self.losses.items()]).sum()


def build_objective(config: SegmentConfig, num_classes: int, dataset: Any) -> SegmentationObjective:
    """Build the objective of a config.

    Args:
        dataset: masked images, whose pixels are counted for balanced class weights.

    Raises:
        UserError: VA-C002, also for argument values that a loss cannot be computed with.
    """
    balanced = any(term.args.get("class_weights") == "balanced" for term in config.loss)
    objective = SegmentationObjective(
        num_classes,
        [(term.name, term.weight, term.args) for term in config.loss],
        pixel_counts=dataset.pixel_counts(num_classes) if balanced else None,
        deep_supervision=config.model.head.aux.rule,
    )
    try:  # report wrong values before the run starts
        objective.loss(torch.zeros(1, num_classes, 2, 2), Batch({"label": torch.zeros(1, 2, 2, dtype=torch.int64)}, [0], [""], [""]))
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{term.name} {term.args}" for term in config.loss)
        raise UserError("VA-C002", f"loss: not computable with {given}", why=str(error)) from error
    return objective


def _bounded_label(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Subsample labels that need more than `LOSS_VALUES` logits."""
    excess = num_classes * label[0].numel() / LOSS_VALUES
    return label if excess <= 1 else nearest_label(label, [max(1, int(side / excess**0.5)) for side in label.shape[1:]])

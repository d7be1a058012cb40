"""Loss of volumes: weighted terms over all outputs of a network, of exclusive classes or of regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from visionattn.data.masks.settings import IGNORE
from visionattn.errors import UserError
from visionattn.heads.base import HeadOutput
from visionattn.tasks.base import Objective
from visionattn.tasks.batch import Batch
from visionattn.tasks.losses import bind_loss, nearest_label, output_weights
from visionattn.tasks.volumes.predictor import VolumePrediction
from visionattn.tasks.volumes.settings import VolumesConfig

# Values (classes x voxels) of a volume above which the loss of an evaluation takes every second voxel of each axis, and so on.
LOSS_VALUES = 2**26


class VolumeObjective(Objective):
    """Weighted sum of losses, of coarser outputs with labels of their size (nnU-Net's deep supervision).

    Args:
        config: its `loss`.
        num_classes: outputs of the network.
        regions: for each region the label positions in it; empty for exclusive classes.

    Raises:
        UserError: VA-C002, an unknown loss, one given twice, or arguments that it cannot be computed with.
    """

    def __init__(self, config: VolumesConfig, num_classes: int, regions: Sequence[Sequence[int]]) -> None:
        self.regions = [list(places) for places in regions]
        known = 2 if self.regions else num_classes  # each region is a class against all else
        if any(term.args.get("class_weights") == "balanced" for term in config.loss):
            fix = "class_weights: [1, 5, 5], one for each class; augment.foreground chooses the patches"
            raise UserError("VA-C002", "loss: balanced class weights are not counted for volumes", fix=fix)
        self.losses = {term.name: (term.weight, bind_loss(term.name, term.args, known, None)) for term in config.loss}
        if len(self.losses) < len(config.loss):
            raise UserError("VA-C002", f"a loss is given twice: {', '.join(term.name for term in config.loss)}")
        try:  # report wrong values before the run starts
            self._losses(torch.zeros(1, num_classes, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.int64))
        except (TypeError, ValueError, RuntimeError) as error:
            given = ", ".join(f"{term.name} {term.args}" for term in config.loss)
            raise UserError("VA-C002", f"loss: not computable with {given}", why=str(error)) from error

    def loss(self, outputs: HeadOutput | VolumePrediction, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute `loss` and the unweighted losses of the finest output by name; of predictions, on the grid of the first model."""
        if isinstance(outputs, VolumePrediction):
            return self._evaluation_loss(outputs, batch)
        label = batch["label"].flatten(0, 1).to(outputs.logits.device, torch.int64)  # volumes and their patches
        weight, *aux_weights = output_weights([aux.weight for aux in outputs.aux], "downsample_label")
        parts = self._losses(outputs.logits, label)
        total = weight * self._weighted(parts)
        for aux, aux_weight in zip(outputs.aux, aux_weights, strict=True):
            total = total + aux_weight * self._weighted(self._losses(aux.logits, nearest_label(label, aux.logits.shape[2:])))
        return {"loss": total, **parts}

    def _evaluation_loss(self, outputs: VolumePrediction, batch: Batch) -> dict[str, torch.Tensor]:
        probabilities, label = outputs.parts[0], batch["prepared"][0].to(torch.int64)
        step = max(1, math.ceil((probabilities.numel() / LOSS_VALUES) ** (1 / 3)))
        every = slice(None, None, step)
        small = probabilities[:, every, every, every].float()
        tiny = torch.finfo(torch.float32).eps
        logits = small.logit(tiny) if self.regions else small.clamp_min(tiny).log()
        parts = self._losses(logits[None], label[None, every, every, every])
        return {"loss": self._weighted(parts), **parts}

    def _losses(self, logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.regions:
            inside = torch.stack([in_region(label, places) for places in self.regions], 1)
            label = inside.long().where((label != IGNORE).unsqueeze(1), IGNORE).flatten(0, 1)
            logits = logits.flatten(0, 1).unsqueeze(1)
        return {name: loss(logits.float(), label) for name, (_, loss) in self.losses.items()}

    def _weighted(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([weight * parts[name] for name, (weight, _) in self.losses.items()]).sum()


def in_region(label: Any, places: Sequence[int]) -> Any:
    """Whether labels, an array or a tensor, are among the positions of a region."""
    inside = label == places[0]
    for place in places[1:]:
        inside = inside | (label == place)
    return inside

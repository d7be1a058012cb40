"""Several segmenters as one model, so that windows, flips, scales and bounded memory are those of a single one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import nn

from visionattn.errors import UserError
from visionattn.tasks.base import Member
from visionattn.tasks.means import mean_logits


class EnsembleSegmenter(nn.Module):
    """The logits whose probabilities are the mean of those of several segmenters, each with its own normalisation.

    Args:
        models: the images are normalised for the first of them.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.pretrained_cfg, self.num_classes = models[0].pretrained_cfg, models[0].num_classes
        for number, model in enumerate(models):
            scale, shift = _normalisation(self.pretrained_cfg, model.pretrained_cfg)
            self.register_buffer(f"scale{number}", scale)
            self.register_buffer(f"shift{number}", shift)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return mean_logits(map(self._one, range(len(self.models)), repeat(image)), independent=self.num_classes == 1)

    def _one(self, number: int, image: torch.Tensor) -> torch.Tensor:
        if number:
            image = image * getattr(self, f"scale{number}") + getattr(self, f"shift{number}")
        logits: torch.Tensor = self.models[number](image)
        return logits


def one_segmenter(members: Sequence[Member]) -> Member:
    """The models as one, with the config of the first.

    Raises:
        UserError: VA-M004, they load images in different ways, or have other outputs.
    """
    ways = {
        "model.in_chans": [member.config.model.channels for member in members],
        "data.range": [member.config.data.range for member in members],
        "data.alpha_background": [member.config.data.alpha_background for member in members],
        "augment.resize": [_resize(member.config) for member in members],
        "logits per pixel": [member.model.num_classes for member in members],
    }
    for name, values in ways.items():
        if different := [value for value in values if value != values[0]]:
            what = f"the models differ in {name}: {values[0]} and {different[0]}"
            raise UserError("VA-M004", what, why="segmenters of an ensemble get the same pixels", fix="use them one at a time")
    return Member(members[0].config, EnsembleSegmenter([member.model for member in members]).eval())


def _resize(config: Any) -> Any:
    return config.model.size if config.augment.resize == "fixed" else config.augment.resize


def _normalisation(given: dict[str, Any], wanted: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and offset from images of one mean and deviation to those of another."""
    (mean, std), (other_mean, other_std) = ([torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std")] for cfg in (given, wanted))
    return std / other_std, (mean - other_mean) / other_std

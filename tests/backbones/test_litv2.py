"""LITv2: positions of the deformable convolution."""

from __future__ import annotations

import torch

import visionattn as va
from tests.tiny import TINY


def test_offsets_that_are_not_finite_reach_the_logits() -> None:
    """A training that diverges is reported by its loss: it does not end at an index out of range."""
    name, args = TINY["LITv2"]
    model = va.create_model(name, num_classes=3, **args).train()
    for bad in (float("nan"), float("inf"), 1e30):
        with torch.no_grad():
            model.backbone.stages[1].downsample.offset.bias.fill_(bad)
        logits = model(torch.randn(2, 3, 64, 64))
        logits.sum().backward()
        assert torch.isfinite(logits).all() == (bad == 1e30)

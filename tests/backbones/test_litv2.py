"""LITv2: the deformable convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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


def test_deformable_convolutions_begin_as_ordinary_ones() -> None:
    name, args = TINY["LITv2"]
    model = va.create_model(name, **args)
    merging = model.backbone.stages[2].downsample.eval()
    x = torch.randn(2, 6, 8, merging.conv.in_channels)
    want = F.gelu(merging.norm(merging.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
    with torch.no_grad():
        assert torch.allclose(merging(x), want, atol=1e-6)

"""InLine: predicted convolutions, and files of another image size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import visionattn as va
from tests.tiny import TINY
from visionattn.backbones.inline_attention import convolve_each
from visionattn.backbones.inline_deit import InLineDeiT
from visionattn.backbones.inline_pvt import InLinePVT


@pytest.mark.parametrize("traced", [False, True])
def test_each_image_and_channel_is_convolved_by_its_kernel(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    x, kernels = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 4, 9, dtype=torch.float64)
    rows = x.permute(0, 3, 1, 2).reshape(1, 8, 3, 5)  # images and channels, each a group
    want = F.conv2d(rows, kernels.reshape(8, 1, 3, 3), padding=1, groups=8).view(2, 4, 3, 5).permute(0, 2, 3, 1)
    assert torch.allclose(convolve_each(x, kernels), want, atol=1e-12)


@pytest.mark.parametrize("family", ["InLineDeiT", "InLinePVT"])
def test_position_tables_of_a_file_are_resized(family: str) -> None:
    name, args = TINY[family]
    small, large = (va.create_model(name, num_classes=3, img_size=size, **args).eval() for size in (64, (64, 96)))
    report = va.load_checkpoint(large, small.state_dict())
    assert len(report.reshaped) == (1 if family == "InLineDeiT" else 4) and all("position table" in line for line in report.reshaped)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert large(torch.randn(1, 3, 64, 96)).shape == (1, 3)
        assert torch.isfinite(large(image)).all()


@pytest.mark.parametrize(("cls", "name"), [(InLineDeiT, "inline_deit_tiny"), (InLinePVT, "inline_pvt_tiny")])
def test_a_file_tells_its_image_size(cls: Any, name: str) -> None:
    upstream = {"pos_embed": torch.empty(1, 1 + 64, 8), "pos_embed1": torch.empty(1, 32 * 32, 8)}
    assert cls.infer_args(upstream) == {"img_size": 128}
    with torch.device("meta"):
        ours = va.create_model(name, img_size=128).state_dict()
    assert cls.infer_args(ours) == {"img_size": 128}
    assert cls.infer_args({}) == {}

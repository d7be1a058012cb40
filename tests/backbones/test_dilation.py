"""Stages that are dilated instead of strided: the maps are finer, and what they had before is a part of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torchvision.models.resnet import Bottleneck

import visionattn as va
from tests.parity import relative_error
from tests.tiny import TINY

# Gates that average over a map see other positions when it is finer, so they are left out.
DILATED: dict[str, tuple[str, dict[str, Any]]] = {
    "NAT": (TINY["NAT"][0], {**TINY["NAT"][1], "kernel_size": 3}),
    "DiNATS": (TINY["DiNATS"][0], {**TINY["DiNATS"][1], "kernel_size": 3}),
    "basic": ("eca_resnet18", {"depths": (1, 1, 2, 2), "width": 8, "attn": "none"}),
    "bottleneck": ("eca_resnet50", {"depths": (1, 1, 2, 2), "width": 8, "attn": "none"}),
    "MobileNetV2": ("eca_mobilenetv2", {"attn": "none"}),
}


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("family", list(DILATED))
def test_a_dilated_map_holds_the_strided_one(family: str, output_stride: int) -> None:
    name, args = DILATED[family]
    torch.manual_seed(0)
    strided = va.create_model(name, features_only=True, **args).double().eval()
    dilated = va.create_model(name, features_only=True, output_stride=output_stride, **args).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 64, 128, dtype=torch.float64)
    with torch.no_grad():
        maps, expected = dilated(image), strided(image)
    assert dilated.strides == tuple(min(stride, output_stride) for stride in strided.strides)
    assert dilated.feature_info.reduction() == list(dilated.strides)
    for found, wanted, stride in zip(maps, expected, strided.strides, strict=True):
        step = max(stride // output_stride, 1)
        assert found.shape[2:] == (64 * step // stride, 128 * step // stride)
        assert torch.allclose(found[:, :, ::step, ::step], wanted, rtol=0, atol=1e-9)
    odd = dilated(torch.randn(1, 3, 49, 75, dtype=torch.float64))
    assert [tuple(item.shape[2:]) for item in odd] == [(-(-49 // stride), -(-75 // stride)) for stride in dilated.strides]
    image.requires_grad_()
    dilated(image)[-1].sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in dilated.parameters())


def test_a_dilated_resnet_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.ResNet(Bottleneck, [1, 2, 2, 2], replace_stride_with_dilation=[False, True, True]).eval()
    ours = va.create_model("eca_resnet50", features_only=True, output_stride=8, depths=(1, 2, 2, 2), attn="none").eval()
    va.load_checkpoint(ours, theirs.state_dict(), allow=())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for layer, found in zip((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), ours(image), strict=True):
            x = layer(x)
            assert relative_error(found, x.numpy()) < 1e-5


def test_other_families_name_what_works() -> None:
    name, args = TINY["Swin"]
    with pytest.raises(ValueError, match=r"encoder_output_stride=32, or encoder_depth=4, encoder_output_stride=16"):
        va.create_model(name, features_only=True, output_stride=16, **args)
    assert va.create_model(name, features_only=True, output_stride=16, out_indices=(0, 1, 2), **args).strides == (4, 8, 16)
    with pytest.raises(ValueError, match="expected one of"):
        va.create_model("eca_resnet18", features_only=True, output_stride=4, **{**TINY["ECAResNet"][1]}).dilate(2)

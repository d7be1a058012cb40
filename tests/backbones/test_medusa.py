"""MEDUSA against a slow version, and under a name that a plug-in gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import visionattn as va
from visionattn.backbones.eca import ECAResNet
from visionattn.backbones.medusa import Medusa
from visionattn.backbones.registry import _VARIANTS

SMALL: dict[str, Any] = {"depths": (1, 1, 1), "width": 4, "body_width": 2, "body_depth": 3}


def tiny(**args: Any) -> Medusa:
    torch.manual_seed(0)
    return Medusa(**{**SMALL, **args})


def by_hand(model: Medusa, image: torch.Tensor) -> list[torch.Tensor]:
    """From the tensors of a model in evaluation: three levels, three stages."""
    state = model.state_dict()

    def conv(name: str, x: torch.Tensor, stride: int = 1, parts: tuple[str, str] = ("0", "1")) -> torch.Tensor:
        weight, bias, mean, variance = (state[f"{name}.{parts[1]}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        y = F.conv2d(x, state[f"{name}.{parts[0]}.weight"], stride=stride, padding=1)
        y = (y - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]
        return y.clamp(min=0)

    first = conv("body.down.0", image, 2)
    second = conv("body.down.1", first, 2)
    third = conv("body.down.2", second, 2)
    for index, skip in ((1, second), (0, first)):
        third = conv(f"body.up.{index}", torch.cat([skip, F.interpolate(third, skip.shape[2:], mode="bilinear")], 1))
    x, maps = model.stem(image), []
    for index, stage in enumerate(model.stages):
        for block in stage:
            x = block(x)
        factors = conv(f"heads.{index}", F.adaptive_avg_pool2d(third, x.shape[2:]), parts=("conv", "norm"))
        weight, bias = state[f"heads.{index}.gate.weight"].flatten(1), state[f"heads.{index}.gate.bias"]
        x = x * (torch.einsum("oc,bchw->bohw", weight, factors) + bias[:, None, None]).sigmoid()
        maps.append(x)
    return maps


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
@torch.no_grad()
def test_maps_by_hand(size: tuple[int, int]) -> None:
    model = tiny(in_chans=2).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value)  # type: ignore[arg-type]
    for head in model.heads:
        nn.init.normal_(head.gate.weight)  # type: ignore[union-attr, arg-type]
    image = torch.randn(2, 2, *size).double()
    for got, want in zip(model.eval()(image), by_hand(model, image), strict=True):
        assert torch.allclose(got, want)
    assert [tuple(x.shape[1:]) for x in model(image)] == [
        (channels, *(-(-side // stride) for side in size)) for channels, stride in zip(model.channels, model.strides, strict=True)
    ]


@torch.no_grad()
def test_it_starts_as_a_resnet() -> None:
    model, plain = tiny().eval(), ECAResNet(depths=(1, 1, 1), width=4, kernel_sizes=(3, 3, 3), attn="none").eval()
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith(("body.", "heads."))}
    plain.load_state_dict(kept)
    image = torch.randn(1, 3, 40, 33)
    for index, (got, want) in enumerate(zip(model(image), plain(image), strict=True), 1):
        assert torch.allclose(got, want * 0.9526**index, rtol=0.2, atol=0.02)  # sigmoid(3) per stage
    for head in model.heads:
        nn.init.zeros_(head.gate.weight)  # type: ignore[union-attr, arg-type]
        nn.init.constant_(head.gate.bias, 50.0)  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(got, want) for got, want in zip(model(image), plain(image), strict=True))


def test_training_under_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.backbones.registry._VARIANTS", dict(_VARIANTS))
    va.register_backbone(Medusa, {"medusa_tiny": SMALL})
    model = va.create_model("medusa_tiny", num_classes=3, in_chans=1)
    grads = []
    for enable in (False, True):
        model.backbone.set_grad_checkpointing(enable)
        model.zero_grad()
        model.train()(torch.ones(2, 1, 48, 40).cumsum(3) / 40).square().sum().backward()
        grads.append({name: value.grad for name, value in model.named_parameters()})
    assert all(value is not None and value.isfinite().all() for value in grads[0].values())
    assert all(torch.allclose(value, grads[1][name], atol=1e-6) for name, value in grads[0].items() if value is not None)  # type: ignore[arg-type]
    assert all(grads[0][name].any() for name in ("backbone.body.down.2.0.weight", "backbone.heads.0.gate.weight"))  # type: ignore[union-attr]
    short = va.create_model("medusa_tiny", features_only=True, out_indices=(0, 1))
    assert len(short.heads) == 2 and len(short(torch.randn(1, 3, 32, 32))) == 2
    with torch.device("meta"):
        empty = Medusa(**SMALL)
    empty.to_empty(device="cpu")
    for value in empty.parameters():
        nn.init.constant_(value, float("nan"))
    empty.init_weights()
    assert all(value.isfinite().all() for value in empty.parameters())

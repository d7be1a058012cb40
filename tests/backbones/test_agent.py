"""Agent-Swin, -PVT and -DeiT: images of another size, the averages that are agents, the class token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import visionattn as va
from tests.parity import Record
from tests.tiny import TINY
from visionattn.backbones.agent_attention import pool_to
from visionattn.errors import UserError
from visionattn.models.weights.recognise import recognise


def tiny(family: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    name, args = TINY[family]
    return va.create_model(name, **args, num_classes=5, **arguments).eval()


@pytest.mark.parametrize(("size", "side"), [((7, 14), 7), ((5, 8), 3), ((2, 3), 7), ((56, 1), 3)])
def test_agents_are_adaptive_averages(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, *size, 3, 4, dtype=torch.float64)
    want = F.adaptive_avg_pool2d(x.flatten(3).permute(0, 3, 1, 2), side).permute(0, 2, 3, 1).unflatten(3, (3, 4))
    assert torch.allclose(pool_to(x, side), want, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "lines"),
    [
        ("AgentSwin", {f"position biases {side} -> {3 * side // 2}, linear (2 tables)" for side in (16, 8, 4)}),
        ("AgentPVT", {"position table 16x16 -> 16x24, bilinear", "position biases 2 -> 3, linear (2 tables)"}),
        ("AgentDeiT", {"position table 4x4 -> 4x6, bicubic", "position biases 4 -> 6, linear (6 tables)"}),
    ],
)
def test_files_for_another_size_of_image(family: str, lines: set[str]) -> None:
    """Tables are resized as the network resizes them for an image that they were not made for."""
    source, target = tiny(family, img_size=64), tiny(family, img_size=(64, 96))
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.endswith(("_bias", "pos_embed", "fc.weight")):
                parameter.normal_()
    report = va.load_checkpoint(target, source.state_dict())
    assert lines <= set(report.reshaped)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(target(image), source(image), atol=1e-5)
        assert not torch.allclose(source(image), source(image.flip(3)), atol=1e-3)


@pytest.mark.parametrize("family", ["AgentSwin", "InLineSwin"])
@pytest.mark.parametrize(("size", "lines"), [((96, 192), {"11x11", "5x5"}), ((256, 256), set())])
def test_windows_of_a_network_built_for_another_size(family: str, size: tuple[int, int], lines: set[str]) -> None:
    """They shrink and shift as those of a network that only gets images of this size."""
    name, args = TINY[family]
    args = {**args, "depths": (1, 1, 2, 2), "num_classes": 5}
    source, target = (va.create_model(name, img_size=built, **args).eval() for built in (224, size))
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.2)
    report = va.load_checkpoint(target, source.state_dict())
    tables = [line.split()[5].rstrip(",") for line in report.reshaped if line.startswith("relative position tables 13x13 -> ")]
    assert set(tables) == lines
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.allclose(target(image), source(image), atol=1e-4)


def test_bias_tables_of_another_window() -> None:
    """Resized bicubically, as Swin's."""
    source, target = tiny("InLineSwin"), tiny("InLineSwin", img_size=384, window_size=12)
    report = va.load_checkpoint(target, source.state_dict())
    assert report.reshaped == ["relative position tables 13x13 -> 23x23, bicubic (2 tables)"]
    with pytest.raises(UserError, match="VA-W003"):
        va.load_checkpoint(target, source.state_dict(), allow=("classifier",))


@pytest.mark.parametrize(("name", "model"), [("agent_pvt_t__128x128", "agent_pvt_tiny"), ("agent_swin_t__128x128", "agent_swin_tiny")])
def test_the_size_of_the_image_is_in_the_authors_tables(name: str, model: str) -> None:
    found = recognise({key: torch.empty(shape, device="meta") for key, shape in Record("agent_attention", name).keys})
    assert found is not None and found.names == (model,) and found.args["img_size"] == 128


def test_the_class_token_is_the_mean_of_the_last_map() -> None:
    model = tiny("AgentDeiT")
    image = torch.randn(2, 3, 40, 64)
    tokens: list[torch.Tensor] = []
    model.backbone.stages[3][0].register_forward_hook(lambda module, given, out: tokens.append(out))
    with torch.no_grad():
        maps, logits = model.backbone(image), model(image)
        first = F.layer_norm(tokens[0][:, 0], (16,), model.head.norm.weight, model.head.norm.bias, 1e-6)
        assert torch.allclose(logits, model.head.fc(first), atol=1e-5)
    places = tokens[0][:, 1:].transpose(1, 2).unflatten(2, (3, 4))
    shift = maps[3] - places
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5)

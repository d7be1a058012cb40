"""Attention modules by name: in the blocks of the CNN families, in the skips and the bottleneck of the U-Net, and one of a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import visionattn as va
from tests.tiny import initialised
from visionattn.attention import ATTENTION, ECA, ELA
from visionattn.errors import UserError
from visionattn.heads.unet import BOTTLENECKS, SKIPS
from visionattn.models import segmenter_from_file

EXAMPLES = Path(__file__).parents[2] / "examples"
CNNS: dict[str, dict[str, Any]] = {
    "eca_resnet18": {"width": 8},
    "eca_resnet50": {"width": 8, "depths": (1, 1, 1, 1)},
    "eca_mobilenetv2": {},
    "ela_resnet18": {"width": 8},
    "ela_resnet50": {"width": 8, "depths": (1, 1, 1, 1)},
    "ela_mobilenetv2": {},
}


class Scaled(nn.Module):
    """Convolutions with biases, a norm, and a parameter of its own: all that an initialisation can miss."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.factor = Factor()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor(x * self.convs(x).sigmoid())  # type: ignore[no-any-return]


class Factor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.value, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value


@pytest.fixture(autouse=True)
def scaled() -> Iterator[None]:
    before = dict(ATTENTION)
    va.register_attention("scaled", Scaled)
    yield
    ATTENTION.clear()
    ATTENTION.update(before)


def cnn(name: str, attn: str, **args: Any) -> Any:
    torch.manual_seed(0)
    return va.create_model(name, num_classes=3, attn=attn, **CNNS.get(name, {"width": 8}), **args)


@pytest.mark.parametrize(
    ("name", "attn"),
    [(name, attn) for name in CNNS for attn in ("none", "eca", "ela_b", "ela_s", "scaled")] + [("resnet18", attn) for attn in ATTENTION],
)
def test_blocks_take_any_module(name: str, attn: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = cnn(name, attn)
    model = initialised(model)
    assert all(part.value == 0.5 for part in model.modules() if isinstance(part, Factor))

    image = torch.randn(2, 3, 49, 64)
    model.train()(image).square().sum().backward()
    missed = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missed
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = cnn(name, attn)
    report = va.load_checkpoint(again, tmp_path / "model.pth", allow=())
    assert report.reshaped == report.skipped == []
    with torch.no_grad():
        assert torch.equal(again.eval()(image), model.eval()(image))


@pytest.mark.parametrize("name", CNNS)
def test_the_module_takes_the_place_of_the_familys_own(name: str) -> None:
    family = name.partition("_")[0]
    own, other = (ECA, ELA) if family == "eca" else (ELA, ECA)
    usual = va.create_model(name, num_classes=3, **CNNS[name])
    foreign = cnn(name, "ela_b" if family == "eca" else "eca")
    ours, theirs = ([key for key, part in net.named_modules() if isinstance(part, cls)] for net, cls in ((usual, own), (foreign, other)))
    assert ours and [key.replace(f".{family}", ".attn") for key in ours] == theirs
    assert not any(isinstance(part, own) for part in foreign.modules())


def test_without_attention_the_trunk_is_torchvisions() -> None:
    from torchvision.models import mobilenet_v2, resnet18

    image = torch.randn(1, 3, 64, 64)
    for name, build in (("resnet18", resnet18), ("eca_resnet18", resnet18), ("eca_mobilenetv2", mobilenet_v2)):
        theirs = build(num_classes=3).eval()
        ours: Any = va.create_model(name, num_classes=3, attn="none").eval()
        va.load_checkpoint(ours, theirs.state_dict(), allow=())
        with torch.no_grad():
            assert torch.allclose(ours(image), theirs(image), atol=1e-5)


def test_a_plain_resnet_starts_one_with_modules() -> None:
    plain, gated = va.create_model("resnet18", width=8, num_classes=3), va.create_model("resnet18", width=8, num_classes=3, attn="cbam")
    modules = {key: value.clone() for key, value in gated.state_dict().items() if ".attn." in key}
    assert len(modules) == 8 * 10
    report = va.load_checkpoint(gated, plain.state_dict())
    assert report.reshaped == ["no attention modules in the file: they start anew"]
    state = gated.state_dict()
    assert all(torch.equal(state[key], value) for key, value in {**plain.state_dict(), **modules}.items())
    with pytest.raises(UserError, match="does not fit"):
        va.load_checkpoint(plain, gated.state_dict())


def test_unknown_names_are_answered_with_the_choices() -> None:
    cases = {
        "attn": (lambda: va.create_model("resnet18", attn="ecaa"), ["none"]),
        "skip": (lambda: va.create_segmenter("van_b0", "unet", 2, skip="ecaa"), SKIPS),
        "bottleneck": (lambda: va.create_segmenter("van_b0", "unet", 2, bottleneck="ecaa"), BOTTLENECKS),
    }
    for argument, (build, own) in cases.items():
        with pytest.raises(UserError, match=f'unknown {argument} "ecaa"') as caught:
            build()
        assert caught.value.code == "VA-M002" and "Did you mean eca" in caught.value.fix
        assert caught.value.fix.endswith(f"Expected one of: {', '.join([*own, *ATTENTION])}")


def unet(skip: str, bottleneck: str) -> Any:
    torch.manual_seed(0)
    args = {"skip": skip, "bottleneck": bottleneck, "stem_channels": (4, 8), "max_channels": 24}
    return va.create_segmenter("eca_resnet18", "unet", 2, backbone_args={"width": 8}, **args)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*ATTENTION, "scaled"])
def test_skips_and_bottleneck_take_any_module(name: str) -> None:
    model, image = unet(name, name), torch.randn(2, 3, 50, 65)
    levels = [level.attention is not None for level in model.decode_head.levels]
    assert levels == [False, False, True, True, True]
    model.train()(image).logits.square().sum().backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None and ".out_norms." not in key]
    again = unet(name, name)
    va.load_checkpoint(again, model.state_dict(), allow=())
    with torch.no_grad():
        assert torch.equal(again.eval()(image), model.eval()(image))


def test_names_of_the_tensors() -> None:
    state = unet("eca", "ela_b").decode_head.state_dict()
    assert state["levels.2.attention.module.conv.weight"].shape == (1, 1, 3)
    assert state["bottleneck.0.conv.weight"].shape == (24, 64, 3, 3)
    assert state["bottleneck.1.conv.weight"].shape == (24, 1, 7)


PAIRS = [*zip([*SKIPS, *ATTENTION, "scaled"], [*ATTENTION, *BOTTLENECKS, "scaled"], strict=False)]


@pytest.mark.parametrize(("skip", "bottleneck"), PAIRS)
def test_a_file_tells_its_skips_and_bottleneck(skip: str, bottleneck: str) -> None:
    head = unet(skip, bottleneck).decode_head
    told = type(head).infer_args(head.state_dict())
    assert (told["skip"], told["bottleneck"]) == (skip, bottleneck)


def test_a_published_file_with_a_module_is_built_again(tmp_path: Path) -> None:
    model: Any = va.create_segmenter("eca_resnet18", "unet", 2, skip="ela_s", bottleneck="eca")
    torch.save(model.state_dict(), tmp_path / "eca_resnet18.pth")
    again = segmenter_from_file(tmp_path / "eca_resnet18.pth").model
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())

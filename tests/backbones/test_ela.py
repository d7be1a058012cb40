"""ELA: the recorded gates, the first author's MobileNetV2, group counts that do not divide the width."""

from __future__ import annotations

import math

import pytest
import torch

import visionattn as va
from tests.parity import Record, fill, image_batch, record_names, relative_error
from visionattn.attention import ELA
from visionattn.errors import UserError


@pytest.mark.parametrize("name", record_names("ela"))
def test_recorded_gates(name: str) -> None:
    record = Record("ela", name)
    gate = ELA(64, record.facts["gate"].lower())
    gate.load_state_dict(record.state())
    assert sum(parameter.numel() for parameter in gate.parameters()) == record.facts["params"]
    image = record.image()
    rows, columns = (torch.from_numpy(record.arrays[key]) for key in ("gate_h", "gate_w"))
    with torch.no_grad():
        out = gate(image)
    assert record.stage_error(0, out) < 1e-5
    assert relative_error(out, (image * rows[:, :, :, None] * columns[:, :, None, :]).numpy()) < 1e-5


def official_mobilenetv2() -> dict[str, torch.Tensor]:
    """A state dict in the names of the first author's classifier with the L gate, filled by the rule of the records."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(key: str, width: int) -> None:
        shapes.update({f"{key}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    shapes["features.0.0.weight"] = (32, 3, 3, 3)
    norm("features.0.1", 32)
    chans, number = 32, 1
    for expansion, out_chans, depth in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(depth):
            block, hidden = f"features.{number}.conv", expansion * chans
            if expansion == 1:
                depthwise, project = 0, 3
            else:
                shapes[f"{block}.0.weight"] = (hidden, chans, 1, 1)
                norm(f"{block}.1", hidden)
                shapes |= {f"{block}.6.conv.weight": (hidden, 8, 7), f"{block}.6.gn.weight": (hidden,), f"{block}.6.gn.bias": (hidden,)}
                depthwise, project = 3, 7
            shapes[f"{block}.{depthwise}.weight"] = (hidden, 1, 3, 3)
            norm(f"{block}.{depthwise + 1}", hidden)
            shapes[f"{block}.{project}.weight"] = (out_chans, hidden, 1, 1)
            norm(f"{block}.{project + 1}", out_chans)
            chans, number = out_chans, number + 1
    shapes["conv.0.weight"] = (1280, 320, 1, 1)
    norm("conv.1", 1280)
    shapes |= {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}
    return {key: torch.from_numpy(fill(key, shape)) for key, shape in shapes.items()}


# Every 200th logit of mbv2_ela72 (Xuwei86/ELA_Code, commit cd4594d) with these weights, in float64.
RECORDED = [
    [0.4048147637622972, -0.04426768043253295, -0.3335392287397767, 0.06187206341146792, 0.6564944378267057],
    [0.4322480121857182, -0.011242037452963191, -0.33003715461980204, 0.04786201592206546, 0.5785296114173379],
]


def test_mobilenetv2_is_that_of_the_first_author() -> None:
    model = va.create_model("ela_mobilenetv2").double().eval()
    state = {f"module.{key}": value for key, value in official_mobilenetv2().items()}
    report = va.load_checkpoint(model, {"epoch": 1, "state_dict": state}, allow=())
    assert report.reason == "310 of 310 tensors loaded"
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_916_904
    with torch.no_grad():
        logits = model(torch.from_numpy(image_batch((2, 3, 64, 64), 0)).double())
    assert torch.allclose(logits[:, ::200], torch.tensor(RECORDED, dtype=torch.float64), atol=1e-9)


PARAMS = {  # with the gate of the variant; the trunk without gates, and what the gates add
    "ela_resnet18": 11_689_512 + 17_280,
    "ela_resnet34": 21_797_672 + 33_984,
    "ela_resnet50": 25_557_032 + 33_984,
    "ela_resnet101": 44_549_160 + 73_152,
    "ela_resnet152": 60_192_808 + 107_712,
    "ela_mobilenetv2": 3_504_872 + 412_032,
}


def params(name: str, **arguments: str) -> int:
    with torch.device("meta"):
        model = va.create_model(name, **arguments)
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_every_trunk_and_gate() -> None:
    assert {name: params(name) for name in va.list_models(family="ela")} == PARAMS
    added = [params("ela_resnet50", attn=f"ela_{gate}") - 25_557_032 for gate in "tbsl"]
    assert added == [26_432, 33_984, 158_592, 219_008]


@pytest.mark.parametrize("gate", "tbsl")
def test_group_counts_that_do_not_divide_the_width(gate: str) -> None:
    """The greatest common divisor is taken, which is the paper's number where that divides."""
    paper = {"t": 32, "b": 16, "s": 16, "l": 16}[gate]
    for channels in (3, 12, 16, 20, 24, 28, 64, 144, 960):
        module = ELA(channels, gate)
        assert module.gn.num_groups == math.gcd(paper, channels)
        assert channels % module.conv.groups == 0
        if channels % 8 == 0:
            assert module.conv.weight.shape[1] == (1 if gate in "tb" else 8)
        assert module(torch.randn(1, channels, 5, 4)).shape == (1, channels, 5, 4)
    mobile = va.create_model("ela_mobilenetv2", attn=f"ela_{gate}", num_classes=3).eval()
    narrow = va.create_model("ela_resnet18", attn=f"ela_{gate}", width=20, num_classes=3).eval()
    with torch.no_grad():
        assert mobile(torch.randn(1, 3, 64, 32)).shape == narrow(torch.randn(1, 3, 64, 32)).shape == (1, 3)


def test_where_the_gates_stand() -> None:
    def widths(name: str) -> list[tuple[str, int]]:
        with torch.device("meta"):
            model = va.create_model(name, features_only=True)
        return [(key, module.conv.out_channels) for key, module in model.named_modules() if isinstance(module, ELA)]

    assert widths("ela_resnet18")[::2] == [
        ("stages.0.0.ela", 64),
        ("stages.1.0.ela", 128),
        ("stages.2.0.ela", 256),
        ("stages.3.0.ela", 512),
    ]
    assert [width for _, width in widths("ela_resnet50")] == [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    assert [width for _, width in widths("ela_mobilenetv2")] == [96, 144, 144, 192, 192, 192, *[384] * 4, *[576] * 3, *[960] * 3]


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(UserError, match='unknown attn "ela_x"') as caught:
        va.create_model("ela_resnet18", attn="ela_x")
    assert caught.value.code == "VA-M002" and "ela_t, ela_b, ela_s, ela_l" in caught.value.fix


def test_torchvision_names_with_gates() -> None:
    source, model = (va.create_model("ela_resnet50", depths=(1, 1, 1, 1), num_classes=3) for _ in range(2))
    state = {}
    for key, value in source.state_dict().items():
        for ours, theirs in (("backbone.stem.0.", "conv1."), ("backbone.stem.1.", "bn1."), ("head.fc.", "fc.")):
            key = key.replace(ours, theirs)
        for index in range(4):
            key = key.replace(f"backbone.stages.{index}.", f"layer{index + 1}.")
        state[key] = value
    va.load_checkpoint(model, state, allow=())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())

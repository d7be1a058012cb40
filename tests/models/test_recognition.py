"""Files are recognised by their content: family, variant, head, channels, windows."""

from __future__ import annotations

import math

import pytest
import torch

import visionattn as va
from tests.parity import FAMILIES, Record, record_names
from visionattn.models.weights.load import tensors_of
from visionattn.models.weights.recognise import Recognised, recognise

# One record of each network; other sizes of the image hold the same tensors.
RECORDS = {Record(family, name).facts["state"]: (family, name) for family in FAMILIES for name in record_names(family)}
# What no tensor tells: dilations, the size of training images.
ALIKE = {
    "nat_mini": ("dinat_mini", "nat_mini"),
    "nat_tiny": ("dinat_tiny", "nat_tiny"),
    "dinat_mini": ("dinat_mini", "nat_mini"),
    "dinat_base": ("dinat_base", "nat_base"),
    "dinat_large": ("dinat_large", "dinat_large_384"),
    "dinat_isotropic_small": ("dinat_isotropic_small", "nat_isotropic_small"),
    "nat_isotropic_small": ("dinat_isotropic_small", "nat_isotropic_small"),
    "transnext_small": ("transnext_small", "transnext_small_384"),
    "transnext_base": ("transnext_base", "transnext_base_384"),
}


def shapes(family: str, name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in Record(family, name).keys}


@pytest.mark.parametrize(("family", "name"), RECORDS.values(), ids=list(RECORDS))
def test_the_authors_files(family: str, name: str) -> None:
    facts = Record(family, name).facts
    found = recognise(shapes(family, name))
    dense = facts["args"].get("features_only", False)
    classes = 0 if dense else facts["args"].get("num_classes", 1000)
    args = {"out_norm": True} if dense and facts["model"].startswith("swin") else {}
    if facts["model"].startswith(("litv2", "overlock")):
        args = facts["args"]
    if facts["model"].startswith("agent_") and facts["args"]:  # the size of the image, and windows as large as its last map
        args = {**facts["args"], **({"window_size": 4} if facts["model"] == "agent_swin_tiny" else {})}
    assert found == Recognised(ALIKE.get(facts["model"], (facts["model"],)), args, classes, 3, 1.0)


def test_prefixes_and_our_own_layout() -> None:
    given = shapes("eca", "eca_resnet18_k3577__64x64")
    assert recognise(tensors_of({"state_dict": {f"module.{key}": value for key, value in given.items()}}).state) == recognise(given)
    with torch.device("meta"):
        ours = va.create_model("van_b1", num_classes=7, in_chans=4).state_dict()
    assert recognise(ours) == Recognised(("van_b1",), {}, 7, 4, 1.0)


def test_another_window() -> None:
    with torch.device("meta"):
        wide = va.create_model("swin_tiny", window_size=12, num_classes=10).state_dict()
    assert recognise(wide) == Recognised(("swin_tiny",), {"window_size": 12}, 10, 3, 1.0)


def test_windows_of_swin_v2_are_in_its_tables_of_coordinates() -> None:
    def table(window: int, pretrained: int) -> torch.Tensor:
        offsets = torch.arange(1.0 - window, window) * 8 / (pretrained - 1)
        values = offsets.sign() * torch.log2(1 + offsets.abs()) / math.log2(8)
        return torch.stack(torch.meshgrid(values, values, indexing="ij"), -1)[None]

    with torch.device("meta"):
        ours = va.create_model("swinv2_base_window16").state_dict()
    theirs = {key.removeprefix("backbone.").replace("stages.", "layers."): value for key, value in ours.items()}
    tuned = {f"layers.{i}.blocks.0.attn.relative_coords_table": table(*pair) for i, pair in enumerate([(16, 12)] * 3 + [(8, 6)])}
    scratch = {f"layers.{i}.blocks.0.attn.relative_coords_table": table(*pair) for i, pair in enumerate([(16, 16)] * 3 + [(8, 8)])}
    assert va_names(theirs | tuned) == ("swinv2_base_window12to16",)
    assert va_names(theirs | scratch) == ("swinv2_base_window16",)
    assert len(va_names(theirs)) == 5  # without the tables nothing tells


def va_names(given: dict[str, torch.Tensor]) -> tuple[str, ...]:
    found = recognise(given)
    assert found is not None and found.fit == 1.0
    return found.names


def test_a_foreign_network_is_not_recognised() -> None:
    import timm

    with torch.device("meta"):
        transformer, squeezed, residual = (timm.create_model(name) for name in ("vit_tiny_patch16_224", "seresnet18", "resnet18"))
    assert recognise(transformer.state_dict()) is recognise(squeezed.state_dict()) is None
    state = residual.state_dict()
    assert va_names(state) == ("resnet18",)
    near = recognise({f"other.{key}" if key.startswith(("layer1.0.conv", "layer1.0.bn1")) else key: value for key, value in state.items()})
    assert near is not None and near.fit < 0.95

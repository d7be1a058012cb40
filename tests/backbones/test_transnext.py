"""What is particular to TransNeXt: tables that follow the map, sizes it was trained at, the authors' key names."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import visionattn as va
from tests.parity import Record
from visionattn.backbones.transnext import Geometry, PositionBias, TransNeXt, axis_distances, log_key_count, relative_positions

CPU = torch.device("cpu")
PARAMS = {
    "transnext_micro": 12_809_304,
    "transnext_tiny": 28_258_960,
    "transnext_small": 49_741_564,
    "transnext_base": 89_721_496,
    "transnext_small_384": 49_741_564,
    "transnext_base_384": 89_721_496,
    "transnext_micro_aaaa": 13_114_008,
}


def shallow(**arguments):
    torch.manual_seed(0)
    return va.create_model("transnext_micro", features_only=True, depths=(1, 1, 1, 1), **arguments).eval()


def maps(model, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return model(image)


def test_parameter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransNeXt, "init_weights", lambda self: None)  # slow on the meta device
    assert sorted(PARAMS) == va.list_models(family="transnext")
    for name, count in PARAMS.items():
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in va.create_model(name).parameters()) == count, name


@pytest.mark.parametrize(("queries", "keys"), [(56, 7), (16, 2), (17, 2), (25, 3), (9, 4), (7, 7), (1, 1), (5, 1), (12, 3)])
def test_distances_to_pooled_positions(queries: int, keys: int) -> None:
    distance, index = axis_distances(queries, keys, CPU)
    position = torch.arange(queries, dtype=torch.float32)
    centres = F.adaptive_avg_pool1d(position[None], keys)[0]
    assert torch.equal(distance[index], position[:, None] - centres[None, :])
    assert len(distance.unique()) == len(distance) and index.min() == 0 and index.max() == len(distance) - 1
    if queries % keys == 0:
        assert len(distance) == len(index.unique())  # none that does not occur


def test_relative_positions_pair_by_pair() -> None:
    coords, index = relative_positions((6, 10), (3, 5), (14, 7), CPU)
    assert index.shape == (6, 10, 3, 5)
    for row, col, pool_row, pool_col in itertools.product(range(6), range(10), range(3), range(5)):
        offsets = ((row - 2 * pool_row - 0.5) / 13 * 8, (col - 2 * pool_col - 0.5) / 6 * 8)
        want = [math.copysign(math.log2(1 + abs(offset)) / 3, offset) for offset in offsets]
        assert coords[index[row, col, pool_row, pool_col]].tolist() == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_number_of_keys() -> None:
    counts = log_key_count((3, 4), (2, 2), local=True, device=CPU).exp()[..., 0, 0]
    assert torch.allclose(counts, torch.tensor([[4.0, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]) + 4)
    assert torch.allclose(log_key_count((1, 1), (1, 1), local=True, device=CPU).exp(), torch.tensor(2.0))
    assert torch.allclose(log_key_count((3, 4), (3, 4), local=False, device=CPU).exp(), torch.full((3, 4, 1, 1), 12.0))


def test_pretrain_size_follows_the_image_size() -> None:
    for name, arguments, side in (
        ("transnext_micro", {}, (224, 224)),
        ("transnext_micro", {"img_size": (64, 96)}, (64, 96)),
        ("transnext_micro", {"img_size": 64, "pretrain_size": 128}, (128, 128)),
        ("transnext_small_384", {}, (224, 224)),
        ("transnext_small_384", {"img_size": 512}, (224, 224)),
        ("transnext_micro_aaaa", {}, (256, 256)),
    ):
        assert va.create_model(name, depths=(1, 1, 1, 1), **arguments).backbone.pretrain_size == side
    image = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(maps(shallow(), image)[0], maps(shallow(img_size=64), image)[0])
    assert all(torch.isfinite(feature).all() for feature in maps(shallow(img_size=32), torch.randn(1, 3, 32, 32)))


def test_interpolation_resizes_the_bias_of_the_image_size() -> None:
    image = torch.randn(1, 3, 96, 160)
    there = maps(shallow(img_size=(96, 160), pretrain_size=224), image)
    same = maps(shallow(img_size=(96, 160), pretrain_size=224, position_mode="interpolation"), image)
    other = maps(shallow(img_size=128, pretrain_size=224, position_mode="interpolation"), image)
    for one, two, three in zip(there, same, other, strict=True):
        assert torch.equal(one, two)
        assert not torch.allclose(one, three) and one.shape == three.shape
    with pytest.raises(ValueError, match="position_mode"):
        shallow(position_mode="bilinear")


def test_interpolated_bias_by_hand() -> None:
    """A query half way between two trained ones, and a pooled position half way too, have the mean of four biases."""
    bias = PositionBias(2)
    coords, index = relative_positions((4, 4), (2, 2), (4, 4), CPU)
    with torch.no_grad():
        trained = (bias.fc2(F.relu(bias.fc1(coords))))[index]  # H W Hp Wp heads
        got = bias((2, 2), Geometry((1, 1), torch.empty(0), coords, index))
    want = trained.mean((2, 3)).view(2, 2, 2, 2, 2).mean((1, 3)).flatten(0, 1).T[..., None]
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", ["transnext_micro", "transnext_micro_aaaa"])
@pytest.mark.parametrize("size", [(32, 32), (33, 95), (64, 200)])
def test_pooled_maps_are_never_empty(name: str, size: tuple[int, int]) -> None:
    model = va.create_model(name, features_only=True, depths=(1, 1, 1, 1)).eval()
    assert all(torch.isfinite(feature).all() for feature in maps(model, torch.randn(1, 3, *size)))


def test_maps_are_normed_with_and_without_out_norm() -> None:
    model, image = shallow(), torch.randn(2, 3, 64, 64)
    dense = shallow(out_norm=True)
    assert list(model.state_dict()) == list(dense.state_dict())
    for one, two in zip(maps(model, image), maps(dense, image), strict=True):
        assert torch.equal(one, two)
        assert float(one.mean(1).abs().max()) < 1e-4  # a fresh norm: mean 0 and variance 1 over the channels
        assert torch.allclose(one.var(1, unbiased=False), torch.tensor(1.0), atol=1e-2)


def test_position_bias_of_the_last_stage_cannot_see_a_constant() -> None:
    """Its output bias shifts all scores of a softmax alike; it is kept because files have it."""
    model, image = shallow(), torch.randn(1, 3, 96, 96)
    before = maps(model, image)
    with torch.no_grad():
        model.stages[3].blocks[0].attn.position_bias.fc2.bias += 1
    assert torch.allclose(maps(model, image)[3], before[3], atol=1e-4)
    with torch.no_grad():
        model.stages[2].blocks[0].attn.position_bias.fc2.bias += 1
    assert not torch.allclose(maps(model, image)[2], before[2], atol=1e-4)


def test_files_of_the_authors() -> None:
    state = Record("transnext", "transnext_micro__64x64").state()
    model = va.create_model("transnext_micro")
    assert va.load_checkpoint(model, {"model": state}, allow=()).matched == len(state)
    assert va.load_checkpoint(model, state, allow=()).matched == len(state)
    key = "stages.2.blocks.14.attn.position_bias.fc2.weight"
    assert torch.equal(model.backbone.state_dict()[key], state["block3.14.attn.cpb_fc2.weight"])
    # The backbone inside the authors' dense models.
    dense = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("head.")}
    backbone = va.create_model("transnext_micro", features_only=True, out_norm=True)
    assert va.load_checkpoint(backbone, {"state_dict": dense}, allow=()).matched == len(dense) == len(state) - 2


def test_weight_decay_as_upstream() -> None:
    model = shallow()
    spared = {name.partition("attn.")[2] for name in model.no_weight_decay()}
    bias = {f"position_bias.fc{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}
    assert spared == {"temperature", "query_embedding", "relative_pos_bias_local", *bias}

"""SG-Former: significance, runs of positions in its order, files for images of another size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import visionattn as va
from tests.parity import Record
from tests.tiny import TINY
from visionattn.backbones.sgformer import attend_everywhere, attend_in_windows, in_order, join, sinusoids
from visionattn.models.weights.recognise import recognise


def tiny(**arguments: Any) -> Any:
    torch.manual_seed(0)
    name, args = TINY["SGFormer"]
    return va.create_model(name, num_classes=5, **{**args, **arguments}).eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("width", [9, 14])
def test_significance_is_the_attention_that_a_position_receives(width: int) -> None:
    """Of windows that the border cuts off, only positions that exist attend, and only to such."""
    q, k, v = draw(3, 2, 7, width, 2, 4).unbind(0)
    out, received = attend_in_windows(q, k, v)
    for left, right in ((0, 7), (7, width)):
        cell = [x[:, :, left:right] for x in (q, k, v)]
        want, of_cell = attend_everywhere(*cell)
        assert torch.allclose(out[:, :, left:right], want, atol=1e-12)
        assert torch.allclose(received[:, :, left:right], of_cell, atol=1e-12)
        assert torch.allclose(of_cell.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    keys, values = (x[:, :2, :3] for x in (k, v))
    weights = torch.einsum("byxhd,bijhd->bhyxij", q, keys).flatten(4).div(2).softmax(-1)
    assert torch.allclose(attend_everywhere(q, keys, values)[1], weights.mean((1, 2, 3)).unflatten(1, (2, 3)), atol=1e-12)


def test_runs_in_the_order_of_significance() -> None:
    tokens, run = draw(2, 7, 3), nn.Linear(3, 1).double()
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    ordered = in_order(tokens, order)
    assert torch.equal(ordered[1, 4], tokens[1, order[1, 4]])
    joined = join(ordered, run)
    assert joined.shape == (2, 3, 3)  # the first run has two zeros and a position
    assert torch.allclose(joined[:, 0], run.weight[0, 2] * ordered[:, 0] + run.bias)
    assert torch.allclose(joined[1, 2], torch.einsum("f,fc->c", run.weight[0], ordered[1, 4:]) + run.bias)


def test_the_order_decides_what_is_joined() -> None:
    attn = tiny().backbone.stages[2].blocks[1].attn
    x, significance = torch.randn(1, 4, 4, 48), torch.rand(1, 4, 4)
    with torch.no_grad():
        one, none = attn(x, significance)
        assert none is None and torch.equal(attn(x, 3 * significance + 1)[0], one)
        assert not torch.allclose(attn(x, -significance)[0], one, atol=1e-5)


def test_positions_start_as_sinusoids() -> None:
    column, row = (torch.tensor([place, place / 100]) for place in (4.0, 2.0))  # frequencies of 1 and 1 / 100
    want = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()])
    assert torch.allclose(sinusoids(3, 5, 8)[2, 4], want, atol=1e-6)
    assert torch.equal(tiny(img_size=(12, 20)).backbone.patch_embed.pos_embed.detach(), sinusoids(3, 5, 16))


def test_files_for_another_size_of_image() -> None:
    source, target = tiny(img_size=64), tiny(img_size=(64, 96))
    nn.init.normal_(source.backbone.patch_embed.pos_embed)
    report = va.load_checkpoint(target, source.state_dict())
    assert report.reshaped == ["position table 16x16 -> 16x24, bilinear"]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(target(image), source(image), atol=1e-5)


def test_the_size_of_the_image_is_in_the_authors_table() -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in Record("sgformer", "sgformer_s__224x224").keys}
    found = recognise(state)
    assert found is not None and (found.names, found.args) == (("sgformer_small",), {})
    state["pos_embed"] = torch.empty(1, 64**2, 64, device="meta")
    found = recognise(state)
    assert found is not None and (found.names, found.args) == (("sgformer_small",), {"img_size": 256})

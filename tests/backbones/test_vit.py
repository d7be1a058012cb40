"""The kinds of attention of the plain ViT, against slow definitions in float64, and its positions."""

from __future__ import annotations

import math

import pytest
import torch

import visionattn as va
from visionattn.backbones.vit import ATTENTIONS, PositionedPatches
from visionattn.errors import UserError


def draw(*shape: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(3)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def slow_sigmoid(q: list[list[float]], k: list[list[float]], v: list[list[float]]) -> list[list[float]]:
    """One head of arXiv 2409.04431: each weight is a sigmoid of the score and the bias -log N."""
    out = []
    for query in q:
        weights = [sigmoid(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query)) - math.log(len(k))) for key in k]
        out.append([sum(weight * value[channel] for weight, value in zip(weights, v, strict=True)) for channel in range(len(v[0]))])
    return out


def slow_flow(q: list[list[float]], k: list[list[float]], v: list[list[float]]) -> list[list[float]]:
    """One head of arXiv 2202.06258: capacities from all pairs of queries and keys, one by one."""
    n, dims = len(q), range(len(q[0]))
    q, k = ([[sigmoid(value) for value in row] for row in rows] for rows in (q, k))
    flow = [[sum(query[c] * key[c] for c in dims) for key in k] for query in q]  # capacity of each pair
    incoming = [sum(flow[i][j] for j in range(n)) for i in range(n)]
    outgoing = [sum(flow[i][j] for i in range(n)) for j in range(n)]
    conserved_in = [sum(flow[i][j] / outgoing[j] for j in range(n)) for i in range(n)]
    conserved_out = [sum(flow[i][j] / incoming[i] for i in range(n)) for j in range(n)]
    total = sum(math.exp(value) for value in conserved_out)
    competition = [n * math.exp(value) / total for value in conserved_out]
    out = []
    for i in range(n):
        allocation = sigmoid(conserved_in[i])
        row = [sum(flow[i][j] * competition[j] * v[j][c] for j in range(n)) / incoming[i] * allocation for c in range(len(v[0]))]
        out.append(row)
    return out


def slow_softmax(q: list[list[float]], k: list[list[float]], v: list[list[float]]) -> list[list[float]]:
    out = []
    for query in q:
        scores = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query))) for key in k]
        out.append([sum(s * value[c] for s, value in zip(scores, v, strict=True)) / sum(scores) for c in range(len(v[0]))])
    return out


SLOW = {"softmax": slow_softmax, "sigmoid": slow_sigmoid, "flow": slow_flow}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_each_attention_is_its_definition(name: str) -> None:
    q, k, v = draw(2, 3, 7, 4)
    found = ATTENTIONS[name](q, k, v)
    for image in range(2):
        for head in range(3):
            wanted = torch.tensor(SLOW[name](*(x[image, head].tolist() for x in (q, k, v))), dtype=torch.float64)
            assert torch.allclose(found[image, head], wanted, rtol=0, atol=1e-12)
    low = ATTENTIONS[name](*(x.bfloat16() for x in (q, k, v)))
    assert low.dtype == torch.bfloat16 and (low.double() - found).abs().max() < 0.03 * found.abs().max()
    inputs = tuple(x.requires_grad_() for x in draw(1, 2, 3, 4))
    assert torch.autograd.gradcheck(ATTENTIONS[name], inputs, fast_mode=True)


def test_positions_tell_patches_apart() -> None:
    embed = PositionedPatches(3, 16, 16)
    with torch.no_grad():
        embed.norm.weight.zero_()
        grid = embed(torch.zeros(1, 3, 48, 80))[0]  # positions only
    assert grid.shape == (3, 5, 16) and len({tuple(row.tolist()) for row in grid.flatten(0, 1)}) == 15
    assert torch.allclose(grid[2, 3, 0], torch.tensor(2.0).sin()) and torch.allclose(grid[2, 3, 8], torch.tensor(3.0).sin())


def test_an_unknown_attention_is_named() -> None:
    with pytest.raises(UserError, match='unknown attn "sigmoidal"') as caught:
        va.create_model("vit_small", attn="sigmoidal")
    assert caught.value.fix == "Did you mean sigmoid? Expected one of: softmax, sigmoid, flow"

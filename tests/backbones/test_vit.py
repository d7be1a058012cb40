"""The kinds of attention of the plain ViT, against slow definitions in float64, and its positions."""

from __future__ import annotations

import copy
import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import visionattn as va
from visionattn.attention import attention_diversification
from visionattn.backbones.vit import (
    ATTENTIONS,
    MixtureOfHeads,
    MultiHead,
    PositionedPatches,
    Subsampled,
    TokenAware,
    flow_attention,
    newton_inverse,
    sigmoid_attention,
    soft_attention,
    softmax_attention,
)
from visionattn.errors import UserError
from visionattn.layers import mean_regularizer

Rows = list[list[float]]


def draw(*shape: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(3)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def slow_sigmoid(q: Rows, k: Rows, v: Rows) -> Rows:
    """One head of arXiv 2409.04431: each weight is a sigmoid of the score and the bias -log N."""
    out = []
    for query in q:
        weights = [sigmoid(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query)) - math.log(len(k))) for key in k]
        out.append([sum(weight * value[channel] for weight, value in zip(weights, v, strict=True)) for channel in range(len(v[0]))])
    return out


def slow_flow(q: Rows, k: Rows, v: Rows) -> Rows:
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


def slow_softmax(q: Rows, k: Rows, v: Rows) -> Rows:
    out = []
    for query in q:
        scores = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query))) for key in k]
        out.append([sum(s * value[c] for s, value in zip(scores, v, strict=True)) / sum(scores) for c in range(len(v[0]))])
    return out


def product(a: Rows, b: Rows) -> Rows:
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def slow_soft(q: Rows, v: Rows, height: int, width: int) -> Rows:
    """One head of arXiv 2110.11945, normalised as in arXiv 2207.03341: landmarks from bins, Newton's iteration step by step."""
    d = len(q[0])

    def bins(length: int) -> list[range]:
        count = min(length, 7)
        return [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]

    def kernel(a: Rows, b: Rows) -> Rows:
        return [[math.exp(-sum((x - y) ** 2 for x, y in zip(one, two, strict=True)) / (2 * math.sqrt(d))) for two in b] for one in a]

    cells = [[row * width + column for row in rows for column in columns] for rows in bins(height) for columns in bins(width)]
    landmarks = [[sum(q[place][c] for place in cell) / len(cell) for c in range(d)] for cell in cells]
    seen, among = kernel(q, landmarks), kernel(landmarks, landmarks)
    sums = [sum(row) for row in among]
    inverse = [[value / max(sums) ** 2 for value in row] for row in among]
    for _ in range(20):
        again = product(product(inverse, among), inverse)
        inverse = [[2 * x - y for x, y in zip(row, other, strict=True)] for row, other in zip(inverse, again, strict=True)]
    middle = [[value / math.sqrt(one * two) for value, two in zip(row, sums, strict=True)] for row, one in zip(inverse, sums, strict=True)]
    return product(product(seen, middle), product([list(column) for column in zip(*seen, strict=True)], v))


@pytest.mark.parametrize(
    ("attend", "slow"), [(softmax_attention, slow_softmax), (sigmoid_attention, slow_sigmoid), (flow_attention, slow_flow)]
)
def test_each_attention_is_its_definition(attend: Any, slow: Any) -> None:
    q, k, v = draw(2, 3, 7, 4)
    found = attend(q, k, v)
    for image in range(2):
        for head in range(3):
            wanted = torch.tensor(slow(*(x[image, head].tolist() for x in (q, k, v))), dtype=torch.float64)
            assert torch.allclose(found[image, head], wanted, rtol=0, atol=1e-12)
    low = attend(*(x.bfloat16() for x in (q, k, v)))
    assert low.dtype == torch.bfloat16 and (low.double() - found).abs().max() < 0.03 * found.abs().max()
    inputs = tuple(x.requires_grad_() for x in draw(1, 2, 3, 4))
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("size", [(9, 2), (2, 3), (1, 1)])
def test_softmax_free_attention_is_its_definition(size: tuple[int, int]) -> None:
    q, v, _ = draw(2, 2, size[0] * size[1], 4)
    found = soft_attention(q, v, size)
    for image in range(2):
        for head in range(2):
            wanted = torch.tensor(slow_soft(q[image, head].tolist(), v[image, head].tolist(), *size), dtype=torch.float64)
            assert torch.allclose(found[image, head], wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))
    low = soft_attention(q.bfloat16(), v.bfloat16(), size)
    rounded = soft_attention(q.bfloat16().double(), v.bfloat16().double(), size)
    assert low.dtype == torch.bfloat16 and (low.double() - rounded).abs().max() < 0.01 * rounded.abs().max()
    with torch.autocast("cpu", torch.bfloat16):  # in which products of float32 are computed in half precision
        assert (soft_attention(q.float(), v.float(), size).double() - found).abs().max() < 1e-3 * found.abs().max()
    inputs = tuple(x[:1, :1].requires_grad_() for x in draw(1, 1, 6, 4)[:2])
    assert torch.autograd.gradcheck(lambda q, v: soft_attention(q, v, (2, 3)), inputs, fast_mode=True)


def test_newtons_iteration_inverts() -> None:
    (rows, *_) = draw(3, 5, 5)
    kernel = rows @ rows.transpose(1, 2) + torch.eye(5)
    assert torch.allclose(newton_inverse(kernel), kernel.inverse(), atol=1e-10)
    assert torch.allclose(newton_inverse(torch.ones(1, 4, 4).double()), torch.full((1, 4, 4), 1 / 16).double())  # all landmarks the same


def heads_of(module: MultiHead, x: torch.Tensor) -> tuple[list[Rows], ...]:
    """Queries, keys and values of the heads of one image `[N, C]`."""
    parts = F.linear(x, module.qkv.weight, module.qkv.bias).chunk(3, -1)
    return tuple(
        [part[:, head].tolist() for head in range(module.num_heads)] for part in (p.unflatten(1, (module.num_heads, -1)) for p in parts)
    )


def test_heads_are_mixed_as_defined() -> None:
    """Equations 3 to 6 of arXiv 2410.11842, position by position, with the factors that the module states."""
    torch.manual_seed(0)
    module = MixtureOfHeads(10, 5, shared_heads=2, routed_heads=2).double()
    x = torch.randn(2, 2, 3, 10, dtype=torch.float64)
    found = module(x)
    times, chances = [0] * 3, [0.0] * 3
    for image in range(2):
        tokens = x[image].flatten(0, 1)
        heads = [slow_softmax(q, k, v) for q, k, v in zip(*heads_of(module, tokens), strict=True)]
        for place, token in enumerate(tokens):
            scores = (module.router.weight @ token).tolist()
            shared, others, groups = (
                [math.exp(s) / sum(map(math.exp, part)) for s in part] for part in (scores[:2], scores[2:5], scores[5:])
            )
            best = sorted(range(3), key=lambda head: -others[head])[:2]
            weights = [2 * 2 * groups[0] * w for w in shared] + [2 * 3 * groups[1] * others[h] if h in best else 0.0 for h in range(3)]
            joined = torch.tensor([weight * value for weight, head in zip(weights, heads, strict=True) for value in head[place]])
            wanted = F.linear(joined.double(), module.proj.weight, module.proj.bias)
            assert torch.allclose(found[image].flatten(0, 1)[place], wanted, atol=1e-6)
            for head in range(3):
                times[head] += head in best
                chances[head] += others[head]
    balance = 3 * sum((t / 12) * (c / 12) for t, c in zip(times, chances, strict=True))
    assert module.regularizer is not None and math.isclose(module.regularizer.item(), 0.01 * balance, rel_tol=1e-12)
    module.regularizer.backward()  # a router alone learns from it
    assert {name for name, parameter in module.named_parameters() if parameter.grad is not None} == {"router.weight"}
    module.eval()(x)
    assert module.regularizer is None


def test_a_quarter_of_the_keys_in_training_and_all_after() -> None:
    torch.manual_seed(0)
    module, whole = Subsampled(6, 2).double(), MultiHead(6, 2).double()
    whole.load_state_dict(module.state_dict())
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64).expand(20, -1, -1, -1)
    q, k, v = heads_of(module, x[0].flatten(0, 1))
    pairs = list(combinations(range(8), 2))
    possible = []
    for pair in pairs:
        rows = [slow_softmax(q[head], [k[head][i] for i in pair], [v[head][i] for i in pair]) for head in range(2)]
        possible.append(F.linear(torch.tensor(rows).double().transpose(0, 1).flatten(1), module.proj.weight, module.proj.bias))
    near = (module(x).flatten(1, 2)[:, None] - torch.stack(possible)).abs().amax((2, 3)) < 1e-6
    assert (near.sum(1) == 1).all()  # each image has two keys of its own, for all heads the same
    assert {key for drawn in near.float().argmax(1) for key in pairs[drawn]} == set(range(8))
    assert torch.equal(module.eval()(x), whole(x))
    assert Subsampled(6, 2)(torch.randn(1, 1, 1, 6)).shape == (1, 1, 1, 6)


def test_pooled_tokens_attend_and_their_maps_are_kept_apart() -> None:
    torch.manual_seed(0)
    module, plain = TokenAware(6, 2).double(), MultiHead(6, 2).double()
    with torch.no_grad():
        module.qkv.weight.mul_(20)  # for weights above the threshold of the loss
    plain.load_state_dict({key: value for key, value in module.state_dict().items() if not key.startswith("tap.")})
    module.tap.eval()  # statistics of the batch would differ from those of the running mean
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    pooled = module.tap(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(module(x), plain(pooled), atol=1e-12)
    assert module.regularizer is not None and module.regularizer > 0.1
    tensors = [torch.tensor(part).double() for part in zip(*(heads_of(module, image.flatten(0, 1)) for image in pooled), strict=True)]
    q, k, _ = tensors
    weights = torch.tensor(
        [[slow_softmax(q[i, h].tolist(), k[i, h].tolist(), torch.eye(12).tolist()) for h in range(2)] for i in range(2)],
        dtype=torch.float64,
    )
    assert torch.allclose(module.regularizer, attention_diversification([weights]), atol=1e-6)
    assert torch.allclose(module.eval()(x), plain(pooled), atol=1e-12) and module.regularizer is None


def test_regularizers_are_averaged_once() -> None:
    model = nn.Sequential(MixtureOfHeads(8, 4), nn.Sequential(MixtureOfHeads(8, 4)), MultiHead(8, 2))
    assert mean_regularizer(model) == 0.0
    model(torch.randn(1, 2, 2, 8))
    values = [model[0].regularizer, model[1][0].regularizer]
    assert mean_regularizer(model) == sum(values) / 2 and mean_regularizer(model) == 0.0


@pytest.mark.parametrize("attn", ["soft", "moh", "ssa", "tap"])
def test_networks_of_each_kind(attn: str) -> None:
    """Sizes that are odd, one image, half precision, recomputed activations, a whole graph, and gradients everywhere."""
    torch.manual_seed(0)
    model: Any = va.create_model("vit_small", attn=attn, embed_dim=24, num_heads=3, depths=(1,), num_classes=3)
    image = torch.randn(1, 3, 33, 65)
    state = torch.random.get_rng_state()
    model(image).sum().backward()
    first = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(grad.isfinite().all() for grad in first.values())
    model.zero_grad()
    model.set_grad_checkpointing()
    torch.random.set_rng_state(state)
    model(image).sum().backward()
    assert all(torch.allclose(parameter.grad, first[name], atol=1e-6) for name, parameter in model.named_parameters())
    model.set_grad_checkpointing(False)
    torch.compile(model, backend="eager", fullgraph=True)(image)
    assert isinstance(mean_regularizer(model), torch.Tensor) == (attn in ("moh", "tap"))
    wanted = model.eval()(image)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(image), wanted, atol=1e-6)
    graph = torch.export.export(model, (image,)).module()
    assert torch.allclose(graph(image), wanted, atol=1e-5)
    assert (model.bfloat16()(image.bfloat16()).float() - wanted).abs().max() < 0.05 * wanted.abs().max().clamp_min(0.1)


@pytest.mark.parametrize("attn", ["moh", "tap"])
def test_checkpointing_has_the_same_gradients_and_leaves_nothing_that_cannot_be_copied(attn: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = va.create_model(f"vit_small_{attn}", num_classes=3, depths=(1, 1), embed_dim=24, num_heads=3).train()
        model.set_grad_checkpointing(checkpointing)
        (model(torch.randn(2, 3, 48, 48)).square().mean() + mean_regularizer(model)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert mean_regularizer(copy.deepcopy(model)) == 0.0
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_positions_tell_patches_apart() -> None:
    embed = PositionedPatches(3, 16, 16)
    with torch.no_grad():
        embed.norm.weight.zero_()
        grid = embed(torch.zeros(1, 3, 48, 80))[0]  # positions only
    assert grid.shape == (3, 5, 16) and len({tuple(row.tolist()) for row in grid.flatten(0, 1)}) == 15
    assert torch.allclose(grid[2, 3, 0], torch.tensor(2.0).sin()) and torch.allclose(grid[2, 3, 8], torch.tensor(3.0).sin())


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match='unknown attn "sigmoidal"') as caught:
        va.create_model("vit_small", attn="sigmoidal")
    assert caught.value.fix == f"Did you mean sigmoid? Expected one of: {', '.join(ATTENTIONS)}"
    for args, what, fix in (
        ({"num_heads": 5}, "embed_dim 384 does not fit 5 heads", "embed_dim a multiple of 20"),
        ({"shared_heads": 2}, "are for attn moh, not softmax", "leave them out, or take moh"),
        ({"attn": "moh", "num_heads": 1}, "cannot share 1 and choose 1 of 1 heads", "for example 2 and 2 of 6 heads"),
        ({"attn": "moh", "shared_heads": 4, "routed_heads": 3}, "cannot share 4 and choose 3 of 6 heads", ""),
        ({"attn": "moh", "routed_heads": 0}, "cannot share 2 and choose 0 of 6 heads", ""),
    ):
        with torch.device("meta"), pytest.raises(UserError, match=what) as caught:
            va.create_model("vit_small", **args)  # type: ignore[arg-type]
        assert caught.value.code == "VA-M002" and fix in (caught.value.fix or "")
    with torch.device("meta"):
        model: Any = va.create_model("vit_small", attn="moh", shared_heads=1, routed_heads=5)
    assert model.backbone.stages[0][0].attn.routed_heads == 5

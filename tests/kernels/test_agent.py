"""Agent attention against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import agent_attention
from visionattn.kernels.selftest import draw_qkv


def inputs(shape: tuple[int, ...], side: tuple[int, int]) -> list[torch.Tensor]:
    """q, k, v, agents and both biases in float64."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width, heads, dim = shape
    count = side[0] * side[1]
    agents = torch.randn((batch, *side, heads, dim), generator=generator, dtype=torch.float64) / 2
    sizes = ((heads, count, height * width), (heads, height * width, count))
    biases = [torch.rand(size, generator=generator, dtype=torch.float64) - 0.5 for size in sizes]
    return [*draw_qkv(shape, generator), agents, *biases]


def call(*given: torch.Tensor, backend: str) -> torch.Tensor:
    named = dict(zip(("agent_bias", "query_bias"), given[4:], strict=False))
    return agent_attention(*given[:4], **named, backend=backend)


@pytest.mark.parametrize(("shape", "side"), [((2, 7, 9, 3, 16), (3, 3)), ((1, 1, 6, 2, 5), (1, 2)), ((1, 2, 1, 1, 8), (7, 7))])
@pytest.mark.parametrize("biases", [0, 1, 2])
def test_accuracy(shape: tuple[int, ...], side: tuple[int, int], biases: int) -> None:
    check_accuracy(call, inputs(shape, side)[: 4 + biases])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_definition_by_hand(backend: str) -> None:
    q, k, v, agents, of_agents, of_queries = inputs((2, 2, 3, 2, 4), (1, 2))
    out = call(q, k, v, agents, of_agents, of_queries, backend=backend)
    for image in range(2):
        for head in range(2):
            keys, values = (x[image, :, :, head].flatten(0, 1) for x in (k, v))
            gathered = []
            for agent in range(2):
                scores = keys @ agents[image, 0, agent, head] / 2 + of_agents[head, agent]
                gathered.append(scores.softmax(0) @ values)
            for row in range(2):
                for col in range(3):
                    scores = agents[image, 0, :, head] @ q[image, row, col, head] / 2 + of_queries[head, 3 * row + col]
                    assert torch.allclose(out[image, row, col, head], scores.softmax(0) @ torch.stack(gathered), atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((1, 2, 2, 2, 2), (1, 2))]
    assert torch.autograd.gradcheck(lambda *given: call(*given, backend=backend), tensors)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_views_and_meta(backend: str) -> None:
    q, k, v = torch.randn(2, 5, 7, 3, 2, 8).unbind(3)
    agents = q[:, ::2, ::3]
    got = agent_attention(q, k, v, agents, backend=backend)
    whole = agent_attention(*(x.contiguous() for x in (q, k, v, agents)), backend=backend)
    assert torch.allclose(got, whole, atol=1e-6)
    assert agent_attention(*(x.to("meta") for x in (q, k, v, agents)), backend=backend).shape == q.shape


def test_wrong_shapes() -> None:
    q, k, v, agents, of_agents, of_queries = inputs((2, 3, 4, 2, 5), (1, 2))
    for wrong in ((q[..., :3], k, v, agents), (q, k, v, agents[:1]), (q, k, v, agents[..., :1, :]), (q[0], k[0], v[0], agents)):
        with pytest.raises(ValueError, match="agent_attention: q, k and v must have one shape"):
            agent_attention(*wrong)
    with pytest.raises(ValueError, match=r"agent_bias must be \[heads, Ha \* Wa, H \* W\] = \[2, 2, 12\], got \[2, 12, 2\]"):
        agent_attention(q, k, v, agents, agent_bias=of_queries)
    with pytest.raises(ValueError, match=r"query_bias must be \[heads, H \* W, Ha \* Wa\] = \[2, 12, 2\], got \[2, 2, 12\]"):
        agent_attention(q, k, v, agents, query_bias=of_agents)
    with pytest.raises(RuntimeError, match="agent_attention: backend 'triton' cannot run: it has no such backend"):
        agent_attention(q, k, v, agents, backend="triton")


@pytest.mark.slow
def test_compiles_and_exports_with_any_batch() -> None:
    check_traced(call, [tensor.float() for tensor in inputs((2, 3, 5, 2, 8), (2, 2))], (0, 1, 2, 3))

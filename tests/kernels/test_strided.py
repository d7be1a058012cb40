"""Strided attention against its definition: distant groups, and groups that the border cuts off."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import strided_attention, window_attention
from visionattn.kernels.selftest import draw_qkv
from visionattn.kernels.strided.fast import parts


def inputs(shape: tuple[int, ...], group: tuple[int, int]) -> list[torch.Tensor]:
    """q, k, v and the bias in float64."""
    generator = torch.Generator().manual_seed(0)
    area = group[0] * group[1]
    return [*draw_qkv(shape, generator), torch.rand((shape[3], area, area), generator=generator, dtype=torch.float64) - 0.5]


CASES = [  # batch, height, width, heads, dim; group, interval
    ((2, 14, 14, 3, 16), (7, 7), (2, 2)),
    ((1, 9, 14, 2, 8), (2, 3), (2, 1)),
    ((2, 11, 7, 2, 8), (3, 2), (3, 2)),  # a rest on both axes
    ((1, 3, 5, 1, 4), (4, 4), (4, 1)),  # less than a group; some groups are padding alone
]


@pytest.mark.parametrize(("shape", "group", "interval"), CASES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_accuracy(shape: tuple[int, ...], group: tuple[int, int], interval: tuple[int, int], with_bias: bool) -> None:
    def call(*given: torch.Tensor, backend: str) -> torch.Tensor:
        bias = given[3] if with_bias else None
        return strided_attention(*given[:3], group_size=group, interval=interval, bias=bias, backend=backend)

    check_accuracy(call, inputs(shape, group)[: 3 + with_bias])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_definition_by_hand(backend: str) -> None:
    """A position sees those of its area whose row and column differ from its own by multiples of the interval."""
    (gh, gw), (ih, iw) = group, interval = (2, 3), (3, 2)
    q, k, v, bias = inputs((1, 8, 9, 1, 4), group)
    out = strided_attention(q, k, v, group_size=group, interval=interval, bias=bias, backend=backend)
    for row in range(8):
        for col in range(9):
            scores, values = [], []
            slot = row // ih % gh * gw + col // iw % gw
            for i in range(8):
                for j in range(9):
                    same_area = (row // (gh * ih), col // (gw * iw)) == (i // (gh * ih), j // (gw * iw))
                    if same_area and (i - row) % ih == 0 and (j - col) % iw == 0:
                        other = i // ih % gh * gw + j // iw % gw
                        scores.append(q[0, row, col, 0] @ k[0, i, j, 0] / 2 + bias[0, slot, other])
                        values.append(v[0, i, j, 0])
            assert torch.allclose(out[0, row, col, 0], torch.stack(scores).softmax(0) @ torch.stack(values), atol=1e-12)


def test_neighbours_are_windows() -> None:
    q, k, v, bias = inputs((2, 8, 12, 2, 8), (4, 6))
    want = window_attention(q, k, v, window_size=(4, 6), bias=bias)
    assert torch.allclose(strided_attention(q, k, v, group_size=(4, 6), bias=bias), want, atol=1e-12)


def test_an_axis_is_whole_groups_and_a_rest() -> None:
    assert parts(14, 7, 2) == [(0, 14, 7)]
    assert parts(17, 7, 2) == [(0, 14, 7), (14, 17, 2)]
    assert parts(5, 7, 2) == [(0, 5, 3)]


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((1, 3, 5, 1, 2), (2, 2))]

    def call(*given: torch.Tensor) -> torch.Tensor:
        return strided_attention(*given[:3], group_size=(2, 2), interval=(2, 1), bias=given[3], backend=backend)

    assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_padding_leaves_no_nan_in_half_precision(backend: str) -> None:
    q, k, v = (x.half().requires_grad_() for x in inputs((1, 3, 5, 1, 4), (4, 4))[:3])
    out = strided_attention(q, k, v, group_size=(4, 4), interval=(4, 1), backend=backend)
    out.sum().backward()
    assert all(torch.isfinite(x).all() for x in (out, q.grad, k.grad, v.grad))


def test_views_meta_and_wrong_arguments() -> None:
    q, k, v = torch.randn(2, 5, 7, 3, 2, 8).unbind(3)
    size = {"group_size": (2, 2), "interval": (2, 3)}
    whole = strided_attention(q.contiguous(), k.contiguous(), v.contiguous(), **size)
    assert torch.allclose(strided_attention(q, k, v, **size), whole, atol=1e-6)
    assert strided_attention(*(x.to("meta") for x in (q, k, v)), **size).shape == q.shape
    with pytest.raises(ValueError, match="strided_attention: q, k and v must have one shape"):
        strided_attention(q, k[:, :4], v, **size)
    with pytest.raises(ValueError, match=r"bias must be \[heads, N, N\] = \[2, 4, 4\], got \[2, 9, 9\]"):
        strided_attention(q, k, v, bias=torch.zeros(2, 9, 9), **size)
    with pytest.raises(ValueError, match=r"must be at least 1, got \(2, 2\) and \(0, 1\)"):
        strided_attention(q, k, v, group_size=(2, 2), interval=(0, 1))
    with pytest.raises(RuntimeError, match="strided_attention: backend 'triton' cannot run: it has no such backend"):
        strided_attention(q, k, v, backend="triton", **size)


@pytest.mark.slow
def test_compiles_and_exports_with_any_batch() -> None:
    def call(*given: torch.Tensor, backend: str) -> torch.Tensor:
        return strided_attention(*given[:3], group_size=(2, 2), interval=(2, 1), bias=given[3], backend=backend)

    check_traced(call, [tensor.float() for tensor in inputs((2, 5, 4, 2, 8), (2, 2))], (0, 1, 2))

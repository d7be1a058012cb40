"""Window attention against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import window_attention
from visionattn.kernels.selftest import draw_qkv


def inputs(batch: int, height: int, width: int, heads: int, dim: int, window: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    area = window[0] * window[1]
    q, k, v = (tensor.to(dtype) for tensor in draw_qkv((batch, height, width, heads, dim), generator))
    return [q, k, v, torch.rand(heads, area, area, generator=generator, dtype=dtype) - 0.5]


CASES = [  # batch, height, width, heads, dim, window, shift
    (2, 14, 14, 3, 32, (7, 7), (0, 0)),
    (1, 14, 21, 2, 24, (7, 7), (3, 3)),
    (1, 8, 12, 2, 8, (4, 6), (2, 3)),
    (1, 7, 14, 1, 16, (7, 7), (3, 3)),
    (3, 6, 6, 2, 8, (3, 2), (0, 1)),
]


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "window", "shift"), CASES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_accuracy(batch, height, width, heads, dim, window, shift, with_bias) -> None:
    q, k, v, bias = inputs(batch, height, width, heads, dim, window, torch.float64)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None, *, backend: str) -> torch.Tensor:
        return window_attention(q, k, v, window_size=window, shift=shift, bias=bias, backend=backend)

    check_accuracy(call, [q, k, v, bias] if with_bias else [q, k, v])


def test_definition_by_hand() -> None:
    """Every query looks at the keys of its shifted window that lie on its side of the border."""
    q, k, v, bias = inputs(1, 4, 6, 1, 4, (2, 2), torch.float64)
    out = window_attention(q, k, v, window_size=(2, 2), shift=(1, 1), bias=bias)
    for row in range(4):
        for column in range(6):
            cell = ((row - 1) % 4 // 2, (column - 1) % 6 // 2)
            seen, scores = [], []
            for other_row in range(4):
                for other_column in range(6):
                    same_window = cell == ((other_row - 1) % 4 // 2, (other_column - 1) % 6 // 2)
                    if same_window and abs(other_row - row) < 2 and abs(other_column - column) < 2:
                        place = [((r - 1) % 4 % 2) * 2 + (c - 1) % 6 % 2 for r, c in ((row, column), (other_row, other_column))]
                        scores.append(q[0, row, column, 0] @ k[0, other_row, other_column, 0] / 2 + bias[0, place[0], place[1]])
                        seen.append(v[0, other_row, other_column, 0])
            want = torch.stack(scores).softmax(0) @ torch.stack(seen)
            assert torch.allclose(out[0, row, column, 0], want, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, 4, 4, 2, 3, (2, 2), torch.float64)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return window_attention(*given[:3], window_size=(2, 2), shift=(1, 1), bias=given[3], backend=backend)

    assert torch.autograd.gradcheck(run, tensors)


def test_views_of_one_projection_and_a_wrong_size() -> None:
    qkv = torch.randn(2, 8, 8, 3, 2, 16)
    q, k, v = qkv.unbind(3)
    got = window_attention(q, k, v, window_size=(4, 4), shift=(2, 2))
    assert torch.equal(got, window_attention(q.contiguous(), k.contiguous(), v.contiguous(), window_size=(4, 4), shift=(2, 2)))
    with pytest.raises(ValueError, match="pad it first"):
        window_attention(q, k, v, window_size=(3, 4))
    for shift in ((4, 0), (0, -1)):
        with pytest.raises(ValueError, match=r"shift must be less than the window of 4x4, got"):
            window_attention(q, k, v, window_size=(4, 4), shift=shift)


def test_no_weight_is_below_the_normal_range() -> None:
    """Positions that do not see each other have a weight of zero, not a tiny one: those are slow on CPUs."""
    q = torch.zeros(1, 4, 4, 1, 4)
    v = torch.zeros_like(q)
    v[0, 0, 0] = 1e30  # multiplied with a weight of e^-100 it would show
    for backend in ("torch", "reference"):
        out = window_attention(q, q, v, window_size=(2, 2), shift=(1, 1), backend=backend)
        assert out[0, 0, 0, 0, 0] == 1e30 and out.count_nonzero() == 4


@pytest.mark.slow
@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_compiles_and_exports_with_any_batch(shift: tuple[int, int]) -> None:
    tensors = inputs(2, 6, 9, 2, 8, (3, 3), torch.float32)

    def call(*given: torch.Tensor, backend: str) -> torch.Tensor:
        return window_attention(*given[:3], window_size=(3, 3), shift=shift, bias=given[3], backend=backend)

    check_traced(call, tensors, (0, 1, 2))

"""Window attention against its definition."""

from __future__ import annotations

import pytest
import torch

from visionattn.kernels import window_attention
from visionattn.kernels.window import reference


def inputs(batch: int, height: int, width: int, heads: int, dim: int, window: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    area = window[0] * window[1]
    q, k, v = (torch.randn(batch, height, width, heads, dim, generator=generator, dtype=dtype) for _ in range(3))
    return [q, k, v, torch.randn(heads, area, area, generator=generator, dtype=dtype)]


CASES = [  # batch, height, width, heads, dim, window, shift
    (2, 14, 14, 3, 32, (7, 7), (0, 0)),
    (1, 14, 21, 2, 24, (7, 7), (3, 3)),
    (1, 8, 12, 2, 8, (4, 6), (2, 3)),
    (1, 7, 14, 1, 16, (7, 7), (3, 3)),
    (3, 6, 6, 2, 8, (3, 2), (0, 1)),
]


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "window", "shift"), CASES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_definition(batch, height, width, heads, dim, window, shift, with_bias, training) -> None:
    tensors = inputs(batch, height, width, heads, dim, window, torch.float64)
    bias = tensors[3] if with_bias else None
    arguments = {"window_size": window, "shift": shift, "bias": bias}

    def errors(dtype: torch.dtype) -> tuple[float, float]:
        """Of the operation and of its definition in this dtype: largest difference from float64 over the largest output."""
        q, k, v, table = (tensor.to(dtype) for tensor in tensors)
        given = {**arguments, "bias": None if bias is None else table}
        exact = {**arguments, "bias": None if bias is None else table.double()}
        want = reference.window_attention(q.double(), k.double(), v.double(), scale=dim**-0.5, **exact)
        plain = reference.window_attention(q, k, v, scale=dim**-0.5, **given)
        with torch.set_grad_enabled(training):
            got = window_attention(q, k, v, **given)
        assert got.dtype == dtype
        return tuple(float((out.double() - want).abs().max() / want.abs().max()) for out in (got, plain))

    for dtype, floor in ((torch.float64, 1e-14), (torch.float32, 5e-7), (torch.bfloat16, 5e-3)):
        error, definition = errors(dtype)
        assert error <= max(floor, 1.5 * definition), dtype


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


def test_gradients_in_float64() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, 4, 4, 2, 3, (2, 2), torch.float64)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return window_attention(*given[:3], window_size=(2, 2), shift=(1, 1), bias=given[3])

    assert torch.autograd.gradcheck(run, tensors)


def test_views_of_one_projection_and_a_wrong_size() -> None:
    qkv = torch.randn(2, 8, 8, 3, 2, 16)
    q, k, v = qkv.unbind(3)
    got = window_attention(q, k, v, window_size=(4, 4), shift=(2, 2))
    assert torch.equal(got, window_attention(q.contiguous(), k.contiguous(), v.contiguous(), window_size=(4, 4), shift=(2, 2)))
    with pytest.raises(ValueError, match="pad it first"):
        window_attention(q, k, v, window_size=(3, 4))

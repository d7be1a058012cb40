"""Aggregated attention against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import aggregated_attention
from visionattn.kernels.aggregated import fast

NAMES = ("q", "k", "v", "k_pool", "v_pool", "local_bias", "pool_bias", "local_weight")


def inputs(
    batch: int, height: int, width: int, pool: tuple[int, ...], heads: int, dim: int, kernel_size: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """In the order of NAMES."""
    generator = torch.Generator().manual_seed(0)
    area, pooled = kernel_size**2, int(torch.tensor(pool).prod())
    shapes = [(batch, height, width, heads, dim)] * 3 + [(batch, *pool, heads, dim)] * 2
    shapes += [(heads, area), (heads, height * width, pooled), (batch, height, width, heads, area)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    # q carries its scale, as in the network. Without it one key takes all the weight, and gradients are what is left of 1 - 1.
    return [tensors[0] * dim**-0.5, *tensors[1:]]


def call(*tensors: torch.Tensor, kernel_size: int = 3, backend: str | None = None) -> torch.Tensor:
    named = dict(zip(NAMES[5:], tensors[5:], strict=True))
    return aggregated_attention(*tensors[:5], **named, kernel_size=kernel_size, backend=backend)


CASES = [  # batch, height, width, pool, heads, dim, kernel_size
    (2, 8, 8, (2, 2), 3, 24, 3),
    (1, 7, 5, (3, 2), 2, 8, 3),
    (3, 1, 1, (1, 1), 2, 24, 3),
    (1, 2, 9, (4,), 1, 16, 5),
    (1, 4, 6, (2, 3), 2, 8, 1),
]


def by_hand(q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, kernel_size: int) -> torch.Tensor:
    """One query position at a time."""
    _, height, width, heads, dim = q.shape
    k_pool, v_pool = k_pool.reshape(len(q), -1, heads, dim), v_pool.reshape(len(q), -1, heads, dim)
    out = torch.empty_like(q)
    for row in range(height):
        for col in range(width):
            square = [(row + i - kernel_size // 2, col + j - kernel_size // 2) for i in range(kernel_size) for j in range(kernel_size)]
            seen = [index for index, (y, x) in enumerate(square) if 0 <= y < height and 0 <= x < width]
            rows, cols = [square[index][0] for index in seen], [square[index][1] for index in seen]
            keys = torch.cat([k[:, rows, cols], k_pool], 1)  # B n+P heads dim
            values = torch.cat([v[:, rows, cols], v_pool], 1)
            bias = torch.cat([local_bias[:, seen], pool_bias[:, row * width + col]], 1)  # heads n+P
            weights = (torch.einsum("bhd,bnhd->bhn", q[:, row, col], keys) + bias).softmax(-1)
            weights = torch.cat([weights[..., : len(seen)] + local_weight[:, row, col, :, seen], weights[..., len(seen) :]], -1)
            out[:, row, col] = torch.einsum("bhn,bnhd->bhd", weights, values)
    return out


@pytest.mark.parametrize(("batch", "height", "width", "pool", "heads", "dim", "kernel_size"), CASES)
def test_accuracy(batch, height, width, pool, heads, dim, kernel_size) -> None:
    tensors = inputs(batch, height, width, pool, heads, dim, kernel_size, torch.float64)
    want = by_hand(*tensors, kernel_size)
    assert torch.allclose(call(*tensors, kernel_size=kernel_size, backend="reference"), want, atol=1e-12)
    check_accuracy(lambda *given, backend: call(*given, kernel_size=kernel_size, backend=backend), tensors)


def test_chunks_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time and all at once, also where the last chunk is smaller."""
    tensors = inputs(3, 5, 7, (2, 3), 2, 8, 3, torch.float64)
    for numbers in (1, 2 * 5 * 7 * 2 * 8, 2**20):
        monkeypatch.setattr(fast, "_CHUNK", numbers)
        check_accuracy(call, tensors, ["torch"], [torch.float64])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 3, 2, (2, 1), 2, 3, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: call(*given, backend=backend), tensors)


def test_gradients_to_some_and_under_autocast() -> None:
    tensors = inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32)
    tensors[2].requires_grad_()
    want = torch.autograd.grad(call(*tensors, backend="reference").square().sum(), tensors[2])[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(call(*tensors).square().sum(), tensors[2])[0]
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)  # float32 inside


def test_the_border_is_left_out() -> None:
    """With equal scores a corner shares its attention among 4 neighbours and the pool, the middle among 9 and the pool."""
    zeros = [torch.zeros_like(tensor) for tensor in inputs(1, 3, 3, (1, 1), 1, 1, 3, torch.float64)]
    zeros[2] += 1  # the neighbours' values are 1, the pool's 0
    out = call(*zeros)[0, :, :, 0, 0]
    expected = torch.tensor([[4 / 5, 6 / 7, 4 / 5], [6 / 7, 9 / 10, 6 / 7], [4 / 5, 6 / 7, 4 / 5]], dtype=torch.float64)
    assert torch.allclose(out, expected)
    # A weight of one for each neighbour counts those inside the map, no others.
    zeros[7] += 1
    inside = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]])
    assert torch.allclose(call(*zeros)[0, :, :, 0, 0], expected + inside)


def test_views_of_one_projection_and_either_shape_of_the_pool() -> None:
    tensors = inputs(2, 6, 4, (3, 2), 2, 8, 3, torch.float32)
    k, v = torch.randn(2, 6, 4, 2, 2, 8).unbind(3)
    k_pool, v_pool = torch.randn(2, 2, 3, 2, 2, 8).transpose(1, 2).unbind(3)
    views = [tensors[0].transpose(1, 2).contiguous().transpose(1, 2), k, v, k_pool, v_pool, *tensors[5:]]
    assert not any(view.is_contiguous() for view in views[:5])
    got = call(*views)
    assert torch.allclose(got, call(*(view.contiguous() for view in views)), atol=1e-6)
    flat = [*views[:3], k_pool.flatten(1, 2), v_pool.flatten(1, 2), *views[5:]]
    assert torch.equal(got, call(*flat))


def test_meta_tensors_have_shapes() -> None:
    tensors = [tensor.to("meta") for tensor in inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32)]
    assert call(*tensors).shape == (2, 5, 7, 2, 8)


@pytest.mark.slow
def test_compiles_and_exports_with_any_batch() -> None:
    check_traced(call, inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32), (0, 1, 2, 3, 4, 7))


def test_wrong_shapes() -> None:
    tensors = inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        call(*tensors, kernel_size=4)
    for index, message in ((5, r"local_bias must be \[2, 9\]"), (6, r"pool_bias must be \[2, 35, 6\]"), (7, "local_weight must be")):
        wrong = [tensor[:1] if place == index else tensor for place, tensor in enumerate(tensors)]
        with pytest.raises(ValueError, match=message):
            call(*wrong)

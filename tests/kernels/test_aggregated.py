"""Aggregated attention against its definition."""

from __future__ import annotations

import pytest
import torch

from visionattn.kernels import aggregated_attention
from visionattn.kernels.aggregated import reference

NAMES = ("q", "k", "v", "k_pool", "v_pool", "local_bias", "pool_bias", "local_weight")


def inputs(
    batch: int, height: int, width: int, pool: tuple[int, ...], heads: int, dim: int, kernel_size: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """In the order of NAMES."""
    generator = torch.Generator().manual_seed(0)
    area, pooled = kernel_size**2, int(torch.tensor(pool).prod())
    shapes = [(batch, height, width, heads, dim)] * 3 + [(batch, *pool, heads, dim)] * 2
    shapes += [(heads, area), (heads, height * width, pooled), (batch, height, width, heads, area)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def call(function, tensors, kernel_size: int = 3) -> torch.Tensor:
    return function(*tensors[:5], **dict(zip(NAMES[5:], tensors[5:], strict=True)), kernel_size=kernel_size)


CASES = [  # batch, height, width, pool, heads, dim, kernel_size
    (2, 8, 8, (2, 2), 3, 24, 3),
    (1, 7, 5, (3, 2), 2, 8, 3),
    (3, 1, 1, (1, 1), 2, 24, 3),
    (1, 2, 9, (4,), 1, 16, 5),
    (1, 4, 6, (2, 3), 2, 8, 1),
]


@pytest.mark.parametrize(("batch", "height", "width", "pool", "heads", "dim", "kernel_size"), CASES)
def test_equals_the_definition(batch, height, width, pool, heads, dim, kernel_size) -> None:
    tensors = inputs(batch, height, width, pool, heads, dim, kernel_size, torch.float64)
    for dtype, floor in ((torch.float64, 1e-14), (torch.float32, 5e-7), (torch.bfloat16, 1e-2)):
        given = [tensor.to(dtype) for tensor in tensors]
        want = call(reference.aggregated_attention, [tensor.double() for tensor in given], kernel_size)
        got, plain = (call(op, given, kernel_size) for op in (aggregated_attention, reference.aggregated_attention))
        assert got.dtype == dtype
        error, definition = (float((out.double() - want).abs().max() / want.abs().max()) for out in (got, plain))
        assert error <= max(floor, 1.5 * definition), dtype


def test_gradients_equal_those_of_the_definition() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float64)]
    weight = torch.randn(tensors[0].shape, dtype=torch.float64)
    got = torch.autograd.grad((call(aggregated_attention, tensors) * weight).sum(), tensors)
    want = torch.autograd.grad((call(reference.aggregated_attention, tensors) * weight).sum(), tensors)
    for name, one, two in zip(NAMES, got, want, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12), name


def test_gradients_in_float64() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, 3, 2, (2, 1), 2, 3, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: call(aggregated_attention, given), tensors)


def test_the_border_is_left_out() -> None:
    """With equal scores a corner shares its attention among 4 neighbours and the pool, the middle among 9 and the pool."""
    zeros = [torch.zeros_like(tensor) for tensor in inputs(1, 3, 3, (1, 1), 1, 1, 3, torch.float64)]
    zeros[2] += 1  # the neighbours' values are 1, the pool's 0
    out = call(aggregated_attention, zeros)[0, :, :, 0, 0]
    expected = torch.tensor([[4 / 5, 6 / 7, 4 / 5], [6 / 7, 9 / 10, 6 / 7], [4 / 5, 6 / 7, 4 / 5]], dtype=torch.float64)
    assert torch.allclose(out, expected)
    # A weight of one for each neighbour counts those inside the map, no others.
    zeros[7] += 1
    inside = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]])
    assert torch.allclose(call(aggregated_attention, zeros)[0, :, :, 0, 0], expected + inside)


def test_views_of_one_projection_and_either_shape_of_the_pool() -> None:
    tensors = inputs(2, 6, 4, (3, 2), 2, 8, 3, torch.float32)
    k, v = torch.randn(2, 6, 4, 2, 2, 8).unbind(3)
    k_pool, v_pool = torch.randn(2, 2, 3, 2, 2, 8).transpose(1, 2).unbind(3)
    views = [tensors[0].transpose(1, 2).contiguous().transpose(1, 2), k, v, k_pool, v_pool, *tensors[5:]]
    assert not any(view.is_contiguous() for view in views[:5])
    got = call(aggregated_attention, views)
    assert torch.allclose(got, call(aggregated_attention, [view.contiguous() for view in views]), atol=1e-6)
    flat = [*views[:3], k_pool.flatten(1, 2), v_pool.flatten(1, 2), *views[5:]]
    assert torch.equal(got, call(aggregated_attention, flat))


def test_meta_tensors_have_shapes() -> None:
    tensors = [tensor.to("meta") for tensor in inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32)]
    assert call(aggregated_attention, tensors).shape == (2, 5, 7, 2, 8)


@pytest.mark.slow
def test_compile_and_export() -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return call(aggregated_attention, tensors)

    tensors = inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32)
    batch = torch.export.Dim("batch", min=1, max=8)
    shapes = [{0: batch} if index in (0, 1, 2, 3, 4, 7) else None for index in range(len(tensors))]
    exported = torch.export.export(Module(), tuple(tensors), dynamic_shapes=(tuple(shapes),)).module()
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    for count in (2, 3):
        given = inputs(count, 5, 7, (2, 3), 2, 8, 3, torch.float32)
        want = call(aggregated_attention, given)
        assert torch.allclose(exported(*given), want, atol=1e-6)
        assert torch.allclose(compiled(*given), want, atol=1e-6)


def test_wrong_shapes() -> None:
    tensors = inputs(2, 5, 7, (2, 3), 2, 8, 3, torch.float32)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        call(aggregated_attention, tensors, kernel_size=4)
    for index, message in ((5, r"local_bias must be \[2, 9\]"), (6, r"pool_bias must be \[2, 35, 6\]"), (7, "local_weight must be")):
        wrong = [tensor[:1] if place == index else tensor for place, tensor in enumerate(tensors)]
        with pytest.raises(ValueError, match=message):
            call(aggregated_attention, wrong)

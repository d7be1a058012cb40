"""Routed attention and its routes against their definitions."""

from __future__ import annotations

import pytest
import torch

from visionattn.kernels import region_routes, routed_attention
from visionattn.kernels.routing import reference


def inputs(
    batch: int, height: int, width: int, heads: int, dim: int, region: tuple[int, int], topk: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(batch, height, width, heads, dim, generator=generator, dtype=dtype) for _ in range(3)]
    count = height // region[0] * (width // region[1])
    return qkv, torch.rand(batch, count, count, generator=generator).argsort(-1)[..., :topk]


CASES = [  # batch, height, width, heads, dim, region, topk
    (2, 14, 14, 3, 32, (2, 2), 16),
    (1, 14, 21, 2, 24, (2, 3), 4),
    (1, 15, 7, 2, 8, (5, 1), 1),
    (3, 6, 8, 1, 5, (3, 4), 4),  # topk is all of them
    (2, 7, 7, 2, 16, (1, 1), 16),
]


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "region", "topk"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_definition(batch, height, width, heads, dim, region, topk, training) -> None:
    qkv, routes = inputs(batch, height, width, heads, dim, region, topk, torch.float64)
    for dtype, floor in ((torch.float64, 1e-14), (torch.float32, 5e-7), (torch.bfloat16, 5e-3)):
        low = [tensor.to(dtype).requires_grad_(training) for tensor in qkv]
        exact = [tensor.detach().double() for tensor in low]
        want = reference.routed_attention(*exact, routes, region, scale=dim**-0.5)
        plain = reference.routed_attention(*low, routes, region, scale=dim**-0.5)
        got = routed_attention(*low, routes, region)
        assert got.dtype == dtype
        error, definition = (float((out.detach().double() - want).abs().max() / want.abs().max()) for out in (got, plain))
        assert error <= max(floor, 1.5 * definition), dtype


def test_gradients_equal_those_of_the_definition() -> None:
    given, routes = inputs(2, 6, 9, 2, 8, (2, 3), 4, torch.float64)
    gradients = []
    for run in (routed_attention, reference.routed_attention):
        qkv = [tensor.clone().requires_grad_() for tensor in given]
        run(*qkv, routes, (2, 3), scale=0.2).square().sum().backward()
        gradients.append([tensor.grad for tensor in qkv])
    assert all(torch.allclose(got, want, atol=1e-12) for got, want in zip(*gradients, strict=True))


def test_gradients_in_float64() -> None:
    qkv, routes = inputs(2, 4, 6, 2, 3, (2, 3), 2, torch.float64)
    routes[0, 0] = routes[0, 0, 0]  # a region named twice
    qkv = [tensor.requires_grad_() for tensor in qkv]
    assert torch.autograd.gradcheck(lambda *given: routed_attention(*given, routes, (2, 3), scale=0.3), qkv)


def test_regions_are_numbered_row_by_row() -> None:
    """With equal keys the output is the mean of the values of the regions named."""
    v = torch.arange(24.0).view(1, 4, 6, 1, 1)
    routes = torch.tensor([[[5], [4], [3], [2], [1], [0]]])  # a 2x3 grid of regions of 2x2
    out = routed_attention(torch.randn_like(v), torch.zeros_like(v), v, routes, (2, 2))
    means = [[v[0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].mean() for col in range(3)] for row in range(2)]
    for row in range(4):
        for col in range(6):
            assert torch.isclose(out[0, row, col, 0, 0], means[1 - row // 2][2 - col // 2])


def test_views_of_one_projection_and_an_image_alone() -> None:
    qkv = torch.randn(3, 8, 12, 3, 2, 16)
    q, k, v = qkv.unbind(3)
    routes = region_routes(q, k, (2, 4), 3)
    got = routed_attention(q, k, v, routes, (2, 4))
    assert torch.equal(got, routed_attention(q.contiguous(), k.contiguous(), v.contiguous(), routes, (2, 4)))
    alone = routed_attention(q[1:2], k[1:2], v[1:2], routes[1:2], (2, 4))
    assert torch.allclose(alone, got[1:2], atol=1e-6)


@pytest.mark.parametrize(("region", "topk"), [((2, 2), 1), ((4, 2), 5), ((1, 3), 16)])
def test_routes_are_the_largest_products_of_means(region, topk) -> None:
    (q, k, _), _ = inputs(2, 8, 12, 2, 8, region, topk, torch.float64)
    routes = region_routes(q, k, region, topk)
    rows, cols = 8 // region[0], 12 // region[1]
    assert routes.dtype == torch.int64 and routes.shape == (2, rows * cols, topk)

    def mean(x: torch.Tensor, image: int, number: int) -> torch.Tensor:
        row, col = region[0] * (number // cols), region[1] * (number % cols)
        return x[image, row : row + region[0], col : col + region[1]].mean((0, 1)).flatten()

    for image in range(2):
        for number in range(rows * cols):
            scores = [float(mean(q, image, number) @ mean(k, image, other)) for other in range(rows * cols)]
            best = sorted(range(rows * cols), key=lambda other: -scores[other])[:topk]
            assert routes[image, number].tolist() == best


def test_routes_have_no_gradient_and_meta_tensors_pass() -> None:
    q = torch.randn(1, 4, 4, 2, 8, requires_grad=True)
    assert not region_routes(q, q, (2, 2), 2).requires_grad
    q = torch.empty(2, 14, 21, 3, 8, device="meta")
    routes = region_routes(q, q, (2, 3), 4)
    assert routes.shape == (2, 49, 4)
    assert routed_attention(q, q, q, routes, (2, 3)).shape == q.shape


def test_wrong_arguments_are_named() -> None:
    (q, k, v), routes = inputs(2, 6, 8, 2, 4, (3, 2), 2, torch.float32)
    with pytest.raises(ValueError, match=r"routed_attention: a region of 4x2 does not divide the map of 6x8; pad it first"):
        routed_attention(q, k, v, routes, (4, 2))
    with pytest.raises(ValueError, match=r"one shape, got \[2, 6, 8, 2, 4\], \[2, 6, 6, 2, 4\]"):
        routed_attention(q, k[:, :, :6], v, routes, (3, 2))
    for wrong in (routes[:1], routes[:, :4], routes[0], routes.int()):
        with pytest.raises(ValueError, match=r"routes must be int64 \[2, 8, topk\]"):
            routed_attention(q, k, v, wrong, (3, 2))
    with pytest.raises(ValueError, match="region_routes: a region of 3x3"):
        region_routes(q, k, (3, 3), 2)
    for topk in (0, 9):
        with pytest.raises(ValueError, match="number of regions, 8, got"):
            region_routes(q, k, (3, 2), topk)


def test_compiles_and_exports_with_any_batch() -> None:
    class Routed(torch.nn.Module):
        def forward(self, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = qkv.unbind(3)
            return routed_attention(q, k, v, region_routes(q, k, (2, 3), 4), (2, 3))

    model, qkv = Routed(), torch.randn(2, 6, 9, 3, 2, 8)
    exported = torch.export.export(model, (qkv,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (1, 2, 5):
        qkv = torch.randn(batch, 6, 9, 3, 2, 8)
        assert torch.allclose(exported(qkv), model(qkv), atol=1e-6)
        assert torch.allclose(compiled(qkv), model(qkv), atol=1e-6)

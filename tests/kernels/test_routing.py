"""Routed attention and its routes against their definitions."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy
from visionattn.kernels import region_routes, routed_attention
from visionattn.kernels.routing import fast
from visionattn.kernels.selftest import draw_qkv


def inputs(
    batch: int, height: int, width: int, heads: int, dim: int, region: tuple[int, int], topk: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = [tensor.to(dtype) for tensor in draw_qkv((batch, height, width, heads, dim), generator)]
    count = height // region[0] * (width // region[1])
    return qkv, torch.rand(batch, count, count, generator=generator).argsort(-1)[..., :topk]


CASES = [  # batch, height, width, heads, dim, region, topk
    (2, 14, 14, 3, 32, (2, 2), 16),
    (2, 14, 14, 3, 32, (2, 2), 4),
    (1, 14, 21, 2, 24, (2, 3), 16),  # a quarter of the regions or more: dense
    (1, 15, 7, 2, 8, (5, 1), 1),
    (3, 6, 8, 1, 5, (3, 4), 4),  # topk is all of them
    (2, 7, 7, 2, 16, (1, 1), 16),
    (1, 36, 32, 1, 8, (6, 8), 1),
]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int]) -> torch.Tensor:
    """One region at a time."""
    (rh, rw), cols = region, q.shape[2] // region[1]

    def place(number: int) -> tuple[slice, slice]:
        row, col = number // cols, number % cols
        return slice(row * rh, (row + 1) * rh), slice(col * rw, (col + 1) * rw)

    out = torch.empty_like(q)
    for image, of_image in enumerate(routes.tolist()):
        for number, seen in enumerate(of_image):
            query = q[image][place(number)]  # rh rw heads d
            keys, values = (torch.cat([x[image][place(other)].flatten(0, 1) for other in seen]) for x in (k, v))
            scores = torch.einsum("ijhd,nhd->ijhn", query * q.shape[-1] ** -0.5, keys)
            out[image][place(number)] = torch.einsum("ijhn,nhd->ijhd", scores.softmax(-1), values)
    return out


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "region", "topk"), CASES)
def test_accuracy(batch, height, width, heads, dim, region, topk) -> None:
    qkv, routes = inputs(batch, height, width, heads, dim, region, topk, torch.float64)
    routes[:, 0, -1] = routes[:, 0, 0]  # a region named twice counts twice
    want = by_hand(*qkv, routes, region)
    assert torch.allclose(routed_attention(*qkv, routes, region, backend="reference"), want, atol=1e-12)
    check_accuracy(lambda *given, backend: routed_attention(*given, routes, region, backend=backend), qkv)


def test_too_many_positions_for_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query sees half of the map, but in rows."""
    qkv, routes = inputs(1, 9, 12, 2, 8, (3, 4), 4, torch.float64)
    monkeypatch.setattr(fast, "_DENSE_POSITIONS", 100)
    monkeypatch.setattr(fast, "_masked", None)
    check_accuracy(lambda *given, backend: routed_attention(*given, routes, (3, 4), backend=backend), qkv)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("topk", [1, 2])
def test_gradients_in_float64(topk: int, backend: str) -> None:
    qkv, routes = inputs(2, 4, 9, 2, 3, (2, 1) if topk == 1 else (2, 3), topk, torch.float64)
    region = (2, 1) if topk == 1 else (2, 3)  # read by rows; through a mask
    routes[0, 0] = routes[0, 0, 0]  # a region named twice
    qkv = [tensor.requires_grad_() for tensor in qkv]
    assert torch.autograd.gradcheck(lambda *given: routed_attention(*given, routes, region, scale=0.3, backend=backend), qkv)


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


@pytest.mark.parametrize("topk", [1, 4])  # read by rows; through a mask
def test_compiles_and_exports_with_any_batch(topk: int) -> None:
    class Routed(torch.nn.Module):
        def forward(self, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = qkv.unbind(3)
            return routed_attention(q, k, v, region_routes(q, k, (2, 3), topk), (2, 3), backend="torch")

    model, qkv = Routed(), torch.randn(2, 6, 9, 3, 2, 8)
    exported = torch.export.export(model, (qkv,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (1, 2, 5):
        qkv = torch.randn(batch, 6, 9, 3, 2, 8)
        assert torch.allclose(exported(qkv), model(qkv), atol=1e-6)
        assert torch.allclose(compiled(qkv), model(qkv), atol=1e-6)
    given = [qkv.clone().requires_grad_() for _ in range(2)]
    for run, tensor in zip((compiled, model), given, strict=True):
        run(tensor).square().sum().backward()
    assert torch.allclose(given[0].grad, given[1].grad, atol=1e-5)

"""Decayed attention against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import decayed_attention
from visionattn.kernels.selftest import draw_qkv

ALONG = pytest.mark.parametrize("along", ["map", "rows", "columns"])


def inputs(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """q, k, v and a decay in float64."""
    generator = torch.Generator().manual_seed(0)
    return [*draw_qkv(shape, generator), -torch.rand(shape[3], generator=generator, dtype=torch.float64)]


@ALONG
@pytest.mark.parametrize("shape", [(2, 7, 9, 3, 16), (1, 1, 6, 2, 5), (1, 6, 1, 1, 8)])
def test_accuracy(shape: tuple[int, ...], along: str) -> None:
    check_accuracy(lambda *given, backend: decayed_attention(*given, along=along, backend=backend), inputs(shape))


@ALONG
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_definition_by_hand(backend: str, along: str) -> None:
    q, k, v, decay = inputs((2, 3, 4, 2, 5))
    out = decayed_attention(q, k, v, decay, along=along, scale=0.7, backend=backend)
    for row in range(3):
        for col in range(4):
            rows, cols = range(3) if along != "rows" else [row], range(4) if along != "columns" else [col]
            places = [(y, x) for y in rows for x in cols]
            scores = torch.stack(
                [0.7 * (q[:, row, col] * k[:, y, x]).sum(-1) + decay * (abs(y - row) + abs(x - col)) for y, x in places], -1
            )
            values = torch.stack([v[:, y, x] for y, x in places], -2)
            assert torch.allclose(out[:, row, col], torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), values), atol=1e-12)


@ALONG
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str, along: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((1, 2, 3, 2, 2))]
    assert torch.autograd.gradcheck(lambda *given: decayed_attention(*given, along=along, backend=backend), tensors)


@ALONG
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_views_and_meta(backend: str, along: str) -> None:
    q, k, v = torch.randn(2, 5, 7, 3, 2, 8).unbind(3)
    decay = torch.tensor([-0.1, -0.5])
    got = decayed_attention(q, k, v, decay, along=along, backend=backend)
    assert torch.allclose(got, decayed_attention(q.contiguous(), k.contiguous(), v.contiguous(), decay, along=along), atol=1e-6)
    assert decayed_attention(*(x.to("meta") for x in (q, k, v, decay)), along=along, backend=backend).shape == q.shape


def test_wrong_shapes() -> None:
    q, k, v, decay = inputs((2, 3, 4, 2, 5))
    for wrong in ((q[..., :3], k, v), (q, k[:, :2], v), (q[0], k[0], v[0])):
        with pytest.raises(ValueError, match=r"decayed_attention: q, k and v must have one shape \[B, H, W, heads, dim\], got"):
            decayed_attention(*wrong, decay)
    with pytest.raises(ValueError, match=r"decay must be \[heads\] = \[2\], got \[3\]"):
        decayed_attention(q, k, v, torch.zeros(3))
    with pytest.raises(ValueError, match="along must be map, rows or columns, got 'diagonals'"):
        decayed_attention(q, k, v, decay, along="diagonals")
    with pytest.raises(RuntimeError, match="decayed_attention: backend 'triton' cannot run: it has no such backend"):
        decayed_attention(q, k, v, decay, backend="triton")


@pytest.mark.slow
def test_compiles_and_exports_with_any_batch() -> None:
    for along in ("map", "rows", "columns"):
        check_traced(
            lambda *given, backend, along=along: decayed_attention(*given, along=along, backend=backend),
            [tensor.float() for tensor in inputs((2, 3, 5, 2, 8))],
            (0, 1, 2),
        )

"""Dense attention against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import dense_attention
from visionattn.kernels.selftest import draw_qkv

# Batch; height and width of queries and of keys; heads (None: without their axis); dim of keys and of values.
CASES = [
    (2, (7, 7), (7, 7), 3, 32, 32),
    (1, (5, 9), (5, 9), 2, 24, 24),
    (2, (1, 1), (1, 36), 8, 8, 8),
    (1, (3, 5), (4, 2), 1, 6, 10),
    (2, (5, 3), (5, 3), None, 4, 16),
    (1, (2, 7), (3, 3), None, 7, 7),
]
SIZES = pytest.mark.parametrize(("batch", "size", "key_size", "heads", "dim", "value_dim"), CASES)


def inputs(batch, size, key_size, heads, dim, value_dim) -> list[torch.Tensor]:
    """q, k, v and a bias in float64."""
    generator = torch.Generator().manual_seed(0)
    inner = () if heads is None else (heads,)
    q = draw_qkv((batch, *size, *inner, dim), generator)[0]
    k = draw_qkv((batch, *key_size, *inner, dim), generator)[1]
    v = draw_qkv((batch, *key_size, *inner, value_dim), generator)[2]
    bias = torch.rand((*inner, size[0] * size[1], key_size[0] * key_size[1]), generator=generator, dtype=torch.float64) - 0.5
    return [q, k, v, bias]


def call(*given: torch.Tensor, backend: str) -> torch.Tensor:
    return dense_attention(*given[:3], bias=given[3] if len(given) == 4 else None, backend=backend)


@SIZES
@pytest.mark.parametrize("with_bias", [True, False])
def test_accuracy(batch, size, key_size, heads, dim, value_dim, with_bias) -> None:
    tensors = inputs(batch, size, key_size, heads, dim, value_dim)
    check_accuracy(call, tensors if with_bias else tensors[:3])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_definition_by_hand(backend: str) -> None:
    q, k, v, bias = inputs(2, (2, 3), (3, 2), 2, 4, 5)
    out = dense_attention(q, k, v, bias=bias, scale=0.7, backend=backend)
    assert out.shape == (2, 2, 3, 2, 5)
    for image in range(2):
        for head in range(2):
            keys, values = k[image, :, :, head].flatten(0, 1), v[image, :, :, head].flatten(0, 1)
            for row in range(2):
                for col in range(3):
                    scores = 0.7 * keys @ q[image, row, col, head] + bias[head, 3 * row + col]
                    assert torch.allclose(out[image, row, col, head], scores.softmax(0) @ values, atol=1e-12)


def test_one_head_with_and_without_its_axis() -> None:
    q, k, v, bias = inputs(2, (5, 3), (2, 4), None, 4, 16)
    with_axis = dense_attention(q.unsqueeze(3), k.unsqueeze(3), v.unsqueeze(3), bias=bias[None])
    assert torch.allclose(dense_attention(q, k, v, bias=bias), with_axis.squeeze(3), atol=1e-12)


def test_torch_form_is_pytorch_s_operation() -> None:
    """To the bit, in forward and backward pass: networks that called it before still have the same numbers."""
    for dtype in (torch.float32, torch.bfloat16):
        given = [tensor.to(dtype).requires_grad_() for tensor in inputs(2, (5, 7), (5, 7), 2, 16, 16)]
        q, k, v, bias = given
        q_, k_, v_ = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        want = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=bias[None], scale=1.0).transpose(1, 2).reshape(q.shape)
        got = dense_attention(q, k, v, bias=bias, scale=1.0)
        assert torch.equal(got, want)
        factors = torch.randn_like(want)
        for one, two in zip(*(torch.autograd.grad((out * factors).sum(), given) for out in (got, want)), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("heads", [2, None])
def test_gradients_in_float64(backend: str, heads: int | None) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, (2, 3), (3, 1), heads, 3, 4)]
    assert torch.autograd.gradcheck(lambda *given: call(*given, backend=backend), tensors)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_views_and_meta(backend: str) -> None:
    q, k, v = torch.randn(2, 5, 7, 3, 2, 16).unbind(3)
    got = dense_attention(q, k, v, backend=backend)
    assert torch.allclose(got, dense_attention(q.contiguous(), k.contiguous(), v.contiguous(), backend=backend), atol=1e-6)
    transposed = (tensor.transpose(1, 2) for tensor in (q, k, v))  # the order of positions does not matter
    assert torch.allclose(dense_attention(*transposed, backend=backend), got.transpose(1, 2), atol=1e-6)
    assert dense_attention(q.to("meta"), k.to("meta"), v.to("meta"), backend=backend).shape == q.shape


def test_wrong_shapes_and_backends() -> None:
    q, k, v, bias = inputs(2, (2, 3), (4, 3), 2, 4, 5)
    for wrong in ((q[..., :3], k, v), (q, k[:, :2], v), (q[:1], k, v), (q, k[:, :, :, 0], v), (q[0], k[0], v[0, ..., 0])):
        with pytest.raises(ValueError, match=r"dense_attention: q, k and v must be \[B, H, W, heads, dim\] with one B, heads and dim, got"):
            dense_attention(*wrong)
    with pytest.raises(ValueError, match=r"bias must be \[heads, H \* W, Hk \* Wk\] = \[2, 6, 12\], got \[2, 12, 6\]"):
        dense_attention(q, k, v, bias=bias.transpose(1, 2))
    with pytest.raises(RuntimeError, match="dense_attention: backend 'triton' cannot run: it has no such backend"):
        dense_attention(q, k, v, backend="triton")
    with pytest.raises(ValueError, match="got 'cuda'"):
        dense_attention(q, k, v, backend="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, None])
def test_compiles_and_exports_with_any_batch(heads: int | None) -> None:
    tensors = [tensor.float() for tensor in inputs(2, (3, 5), (3, 5), heads, 8, 8)]
    check_traced(call, tensors, (0, 1, 2))

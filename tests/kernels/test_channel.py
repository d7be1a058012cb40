"""Channel attention against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy
from visionattn.kernels import channel_attention


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # The sum over positions is not divided by their number; keys of this size keep the softmax from saturating.
    factors = (1.0, (shape[1] * shape[2]) ** -0.5, 1.0)
    return [factor * torch.randn(shape, generator=generator, dtype=dtype) for factor in factors]


SHAPES = [(2, 14, 14, 3, 32), (1, 7, 9, 2, 24), (3, 5, 4, 1, 8), (1, 1, 1, 4, 3), (2, 1, 6, 2, 2)]  # batch, height, width, heads, dim


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_accuracy(shape: tuple[int, ...], scale: float | None) -> None:
    check_accuracy(lambda *given, backend: channel_attention(*given, scale=scale, backend=backend), inputs(shape))


def test_definition_by_hand() -> None:
    """Every channel of the output is an average of the query's channels, the same at every position."""
    q, k, v = inputs((1, 2, 3, 2, 3))
    out = channel_attention(q, k, v)
    for head in range(2):
        for channel in range(3):
            scores = [
                sum(float(k[0, row, col, head, channel] * v[0, row, col, head, other]) for row in range(2) for col in range(3)) / 3**0.5
                for other in range(3)
            ]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            for row in range(2):
                for col in range(3):
                    want = sum(weights[other] * q[0, row, col, head, other] for other in range(3))
                    assert torch.allclose(out[0, row, col, head, channel], want, atol=1e-12)


def test_gradients_in_float64() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((2, 3, 2, 2, 3))]
    assert torch.autograd.gradcheck(channel_attention, tensors)


def test_views_meta_and_wrong_shapes() -> None:
    qkv = torch.randn(2, 5, 7, 3, 2, 16)
    q, k, v = qkv.unbind(3)
    assert torch.allclose(channel_attention(q, k, v), channel_attention(q.contiguous(), k.contiguous(), v.contiguous()), atol=1e-6)
    transposed = (tensor.transpose(1, 2) for tensor in (q, k, v))  # the order of positions does not matter
    assert torch.allclose(channel_attention(*transposed), channel_attention(q, k, v).transpose(1, 2), atol=1e-5)
    assert channel_attention(q.to("meta"), k.to("meta"), v.to("meta")).shape == q.shape
    with pytest.raises(ValueError, match=r"one shape \[B, H, W, heads, dim\], got \[2, 5, 7, 2, 16\], \[2, 5, 7, 2, 8\]"):
        channel_attention(q, k[..., :8], v)
    with pytest.raises(ValueError, match="one shape"):
        channel_attention(q[0], k[0], v[0])

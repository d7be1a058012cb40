"""InLine attention against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import inline_attention
from visionattn.kernels.linear import fast
from visionattn.kernels.selftest import draw_qkv


def inputs(shape: tuple[int, ...]) -> list[torch.Tensor]:
    return draw_qkv(shape, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 7, 9, 3, 16), (1, 1, 6, 2, 5), (1, 5, 2, 1, 8)])
def test_accuracy(shape: tuple[int, ...]) -> None:
    check_accuracy(inline_attention, inputs(shape))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_definition_by_hand(backend: str) -> None:
    """A weight for each pair: what its product exceeds the average of the query by, and 1, over the number of keys."""
    q, k, v = inputs((2, 3, 4, 2, 5))
    out = inline_attention(q, k, v, scale=0.7, backend=backend)
    keys, values = k.flatten(1, 2), v.flatten(1, 2)
    for row in range(3):
        for col in range(4):
            products = torch.stack([(q[:, row, col] * keys[:, place]).sum(-1) for place in range(12)], 1)  # B N heads
            weights = (1 + 0.7 * (products - products.mean(1, keepdim=True))) / 12
            want = sum(weights[:, place, :, None] * values[:, place] for place in range(12))
            assert torch.allclose(out[:, row, col], want, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_weights_sum_to_one_and_distinguish_lengths(backend: str) -> None:
    q, k, v = inputs((1, 2, 3, 1, 4))
    assert torch.allclose(inline_attention(q, k, torch.ones_like(v), backend=backend), torch.ones_like(v))
    assert not torch.allclose(inline_attention(2 * q, k, v, backend=backend), inline_attention(q, k, v, backend=backend))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((1, 2, 2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *given: inline_attention(*given, backend=backend), tensors)


def test_values_of_a_large_map_do_not_vanish_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "emulated", lambda x: False)  # as on a GPU
    q, k, v = inputs((1, 96, 96, 1, 8))
    given = [10 * q, k, 0.01 * v]
    want = inline_attention(*given)
    got = inline_attention(*(tensor.half() for tensor in given))
    assert (got - want).abs().max() < 2e-3 * want.abs().max()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_views_and_meta(backend: str) -> None:
    q, k, v = torch.randn(2, 5, 7, 3, 2, 8).unbind(3)
    got = inline_attention(q, k, v, backend=backend)
    assert torch.allclose(got, inline_attention(q.contiguous(), k.contiguous(), v.contiguous(), backend=backend), atol=1e-6)
    assert inline_attention(*(x.to("meta") for x in (q, k, v)), backend=backend).shape == q.shape


def test_wrong_shapes() -> None:
    q, k, v = inputs((2, 3, 4, 2, 5))
    for wrong in ((q[..., :3], k, v), (q, k[:, :2], v), (q[0], k[0], v[0])):
        with pytest.raises(ValueError, match=r"inline_attention: q, k and v must have one shape \[B, H, W, heads, dim\], got"):
            inline_attention(*wrong)
    with pytest.raises(RuntimeError, match="inline_attention: backend 'triton' cannot run: it has no such backend"):
        inline_attention(q, k, v, backend="triton")


@pytest.mark.slow
def test_compiles_and_exports_with_any_batch() -> None:
    check_traced(inline_attention, [tensor.float() for tensor in inputs((2, 3, 5, 2, 8))], (0, 1, 2))

"""Rank-augmented linear attention against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import rank_augmented_attention, rotate_pairs
from visionattn.kernels.selftest import draw_qkv, rank_augmented


def inputs(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """q, k, v and angles in float64; small angles, since sums of terms of both signs are not as exact as the limits ask."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = draw_qkv(shape, generator)
    return [q, k / 2, v, torch.rand((*shape[1:3], shape[4] // 2), generator=generator, dtype=torch.float64) - 0.5]


@pytest.mark.parametrize("shape", [(2, 7, 9, 3, 16), (1, 1, 6, 2, 4), (1, 5, 1, 1, 2)])
def test_accuracy(shape: tuple[int, ...]) -> None:
    check_accuracy(rank_augmented, inputs(shape))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_definition_by_hand(backend: str) -> None:
    """Every output is a sum over keys: rotated products times the weight of the key, over the same sum without rotation."""
    q, k, v, angle = inputs((2, 2, 3, 2, 4))
    out = rank_augmented(q, k, v, angle, backend=backend)
    positive_q, positive_k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    places = [(row, col) for row in range(2) for col in range(3)]
    for image in range(2):
        for head in range(2):
            queries, keys, values = (x[image, :, :, head].flatten(0, 1) for x in (positive_q, positive_k, v))
            weights = 6 * (keys @ queries.mean(0) / 2).softmax(0)
            keys = keys * weights[:, None]
            for index, at in enumerate(places):
                normaliser = queries[index] @ keys.mean(0) + 1e-6
                want = torch.zeros(4, dtype=torch.float64)
                for other, there in enumerate(places):
                    product = 0.0
                    for pair in range(2):
                        turn = float(angle[(*at, pair)] - angle[(*there, pair)])
                        a, b = queries[index, 2 * pair : 2 * pair + 2].tolist()
                        c, d = keys[other, 2 * pair : 2 * pair + 2].tolist()
                        product += (a * c + b * d) * math.cos(turn) + (a * d - b * c) * math.sin(turn)
                    want += product * values[other] / 6
                assert torch.allclose(out[image, at[0], at[1], head], want / normaliser, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((1, 2, 2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *given: rank_augmented(*given, backend=backend), tensors)


def test_rotation_keeps_products_of_equal_positions_apart_by_their_difference() -> None:
    x, y = torch.randn(1, 1, 1, 1, 8), torch.randn(1, 1, 1, 1, 8)
    angle, step = torch.rand(1, 1, 4), torch.rand(1, 1, 4)

    def turned(z: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return rotate_pairs(z, (by.cos(), by.sin()))

    near = (turned(x, angle) * turned(y, angle + step)).sum()
    assert torch.allclose(near, (x * turned(y, step)).sum(), atol=1e-5)
    assert torch.allclose(turned(x, angle).norm(), x.norm())


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_views_and_meta(backend: str) -> None:
    q, k, v = torch.randn(2, 5, 7, 3, 2, 8).unbind(3)
    angle = torch.rand(5, 7, 4)
    got = rank_augmented(q, k, v, angle, backend=backend)
    assert torch.allclose(got, rank_augmented(q.contiguous(), k.contiguous(), v.contiguous(), angle, backend=backend), atol=1e-5)
    assert rank_augmented(*(x.to("meta") for x in (q, k, v, angle)), backend=backend).shape == q.shape


def test_wrong_shapes() -> None:
    q, k, v, angle = inputs((2, 3, 4, 2, 6))
    for wrong in ((q[..., :4], k, v), (q, k[:, :2], v), (q[0], k[0], v[0]), (q[..., :3], k[..., :3], v[..., :3])):
        with pytest.raises(ValueError, match="rank_augmented_attention: q, k and v must have one shape"):
            rank_augmented_attention(*wrong, rotation=(angle, angle))
    with pytest.raises(ValueError, match=r"rotation must be \[H, W, dim / 2\] = \[3, 4, 3\] twice, got \[3, 4, 3\], \[3, 4, 2\]"):
        rank_augmented_attention(q, k, v, rotation=(angle, angle[..., :2]))
    with pytest.raises(RuntimeError, match="rank_augmented_attention: backend 'triton' cannot run: it has no such backend"):
        rank_augmented_attention(q, k, v, rotation=(angle, angle), backend="triton")


@pytest.mark.slow
def test_compiles_and_exports_with_any_batch() -> None:
    check_traced(rank_augmented, [tensor.float() for tensor in inputs((2, 3, 5, 2, 8))], (0, 1, 2))

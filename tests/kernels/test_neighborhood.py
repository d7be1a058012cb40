"""Neighborhood attention against a loop over queries and keys."""

from __future__ import annotations

import pytest
import torch

from visionattn.kernels import neighborhood_aggregate, neighborhood_attention, neighborhood_scores


def keys_of(position: int, length: int, kernel: int, dilation: int, border: str) -> list[int | None]:
    """The keys of a position along one axis, None for those outside."""
    centred = [position + (tap - kernel // 2) * dilation for tap in range(kernel)]
    if border == "mask":
        return [key if 0 <= key < length else None for key in centred]
    while centred[0] < 0:
        centred = [key + dilation for key in centred]
    while centred[-1] >= length:
        centred = [key - dilation for key in centred]
    return list(centred)


def by_hand(q, k, v, kernel, dilation, bias, scale, border) -> torch.Tensor:
    """The definition, one query after the other."""
    out = torch.empty_like(v)
    _, height, width, heads, _ = q.shape
    for row in range(height):
        for col in range(width):
            rows = keys_of(row, height, kernel[0], dilation[0], border)
            cols = keys_of(col, width, kernel[1], dilation[1], border)
            pairs = [(r, c) for r in rows for c in cols if r is not None and c is not None]
            for head in range(heads):
                scores = []
                for r, c in pairs:
                    score = (q[:, row, col, head] * scale * k[:, r, c, head]).sum(-1)
                    if bias is not None:
                        score = score + bias[head, (r - row) // dilation[0] + kernel[0] - 1, (c - col) // dilation[1] + kernel[1] - 1]
                    scores.append(score)
                weights = torch.stack(scores, -1).softmax(-1)  # B keys
                values = torch.stack([v[:, r, c, head] for r, c in pairs], 1)  # B keys d
                out[:, row, col, head] = (weights.unsqueeze(-1) * values).sum(1)
    return out


def inputs(batch: int, height: int, width: int, heads: int, dim: int, kernel: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, height, width, heads, dim, generator=generator, dtype=dtype) for _ in range(3))
    return [q, k, v, torch.randn(heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1, generator=generator, dtype=dtype)]


CASES = [  # batch, height, width, heads, dim, kernel, dilation
    (2, 7, 7, 2, 8, (7, 7), (1, 1)),
    (1, 8, 13, 3, 4, (3, 5), (1, 1)),
    (1, 11, 9, 1, 6, (5, 3), (2, 3)),  # residue classes of two lengths
    (2, 6, 10, 2, 4, (3, 3), (2, 2)),
    (1, 5, 6, 1, 4, (1, 3), (4, 2)),
]


@pytest.mark.parametrize(("batch", "height", "width", "heads", "dim", "kernel", "dilation"), CASES)
@pytest.mark.parametrize("border", ["shift", "mask"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_loop(batch, height, width, heads, dim, kernel, dilation, border, with_bias) -> None:
    tensors = inputs(batch, height, width, heads, dim, kernel, torch.float64)
    want = {True: tensors[3], False: None}[with_bias]
    exact = by_hand(*tensors[:3], kernel, dilation, want, dim**-0.5, border)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
        q, k, v, table = (tensor.to(dtype) for tensor in tensors)
        got = neighborhood_attention(q, k, v, kernel, dilation, bias=table if with_bias else None, border=border)
        assert got.dtype == dtype
        assert (got.double() - exact).abs().max() <= tolerance * exact.abs().max(), dtype


def test_one_number_for_both_axes_and_a_scale() -> None:
    q, k, v, bias = inputs(1, 8, 7, 2, 4, (3, 3), torch.float64)
    got = neighborhood_attention(q, k, v, 3, 2, bias=bias, scale=0.3)
    assert torch.allclose(got, by_hand(q, k, v, (3, 3), (2, 2), bias, 0.3, "shift"), atol=1e-14)


def test_a_map_smaller_than_the_window_with_mask() -> None:
    q, k, v, bias = inputs(2, 2, 3, 2, 4, (5, 5), torch.float64)
    got = neighborhood_attention(q, k, v, 5, bias=bias, border="mask")
    assert torch.allclose(got, by_hand(q, k, v, (5, 5), (1, 1), bias, 0.5, "mask"), atol=1e-14)


def test_the_halves() -> None:
    q, k, v, bias = inputs(1, 4, 5, 2, 4, (3, 3), torch.float64)
    scores = neighborhood_scores(q, k, 3, bias=bias, border="mask")
    assert scores.shape == (1, 4, 5, 2, 9)
    assert torch.isneginf(scores[0, 0, 0, 0]).tolist() == [True, True, True, True, False, False, True, False, False]
    assert scores[0, 1, 2, 1, 4] == pytest.approx(float(q[0, 1, 2, 1] @ k[0, 1, 2, 1] / 2 + bias[1, 2, 2]))
    # What is outside adds nothing, whatever its weight.
    total = neighborhood_aggregate(torch.ones_like(scores), torch.ones_like(v), 3, border="mask")
    assert total[0, 0, 0, 0, 0] == 4 and total[0, 0, 1, 0, 0] == 6 and total[0, 1, 1, 0, 0] == 9


@pytest.mark.parametrize("border", ["shift", "mask"])
def test_gradients_in_float64(border: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(1, 6, 3, 1, 2, (3, 3), torch.float64)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention(*given[:3], 3, (2, 1), bias=given[3], border=border)

    assert torch.autograd.gradcheck(run, tensors)


def test_views_of_one_projection_and_no_data() -> None:
    qkv = torch.randn(2, 8, 9, 3, 2, 16)
    q, k, v = qkv.unbind(3)
    got = neighborhood_attention(q, k, v, 3, 2)
    assert torch.equal(got, neighborhood_attention(q.contiguous(), k.contiguous(), v.contiguous(), 3, 2))
    q, k, v = qkv.to("meta").unbind(3)
    assert neighborhood_attention(q, k, v, 3, 2, bias=torch.empty(2, 5, 5, device="meta")).shape == got.shape


def test_what_does_not_fit_is_named() -> None:
    q, k, v, bias = inputs(1, 8, 9, 2, 4, (3, 3), torch.float32)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        neighborhood_attention(q, k, v, 4)
    with pytest.raises(ValueError, match="8x9 is smaller than kernel size x dilation, 9x9; pad it first"):
        neighborhood_attention(q, k, v, 3, 3)
    with pytest.raises(ValueError, match="dilation must be at least 1"):
        neighborhood_attention(q, k, v, 3, 0)
    with pytest.raises(ValueError, match=r"bias must be .* \[2, 5, 9\], got \[2, 5, 5\]"):
        neighborhood_attention(q, k, v, (3, 5), bias=bias)
    with pytest.raises(ValueError, match="q, k and v must have one shape"):
        neighborhood_attention(q, k[:, :, 1:], v, 3)
    with pytest.raises(ValueError, match="weights must be"):
        neighborhood_aggregate(neighborhood_scores(q, k, 3), v[:, :, 1:], 3)
    with pytest.raises(ValueError, match="border"):
        neighborhood_attention(q, k, v, 3, border="wrap")
    with pytest.raises(ValueError, match=r"\[B, H, W, heads, dim\]"):
        neighborhood_attention(q[0], k[0], v[0], 3)

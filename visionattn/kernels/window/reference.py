"""Definition of shifted-window attention, step by step."""

from __future__ import annotations

import torch

from visionattn.kernels.record import keep_weights


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Roll the map, partition it into windows, attend inside each, and reverse both steps (arXiv 2103.14030, section 3.2)."""
    batch, height, width, heads, dim = q.shape
    (wh, ww), (sh, sw) = window_size, shift
    rows, cols = height // wh, width // ww

    def windows(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> B windows heads N d
        x = torch.roll(x, (-sh, -sw), (1, 2)).view(batch, rows, wh, cols, ww, heads, dim)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, rows * cols, heads, wh * ww, dim)

    scores = (windows(q) * scale) @ windows(k).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if sh or sw:
        scores = scores + shift_mask(height, width, window_size, shift, q.device, scores.dtype).unsqueeze(1)
    weights = scores.softmax(-1)
    keep_weights("window_attention", weights, size=(height, width), window_size=window_size, shift=shift)
    out = weights @ windows(v)
    out = out.view(batch, rows, cols, heads, wh, ww, dim).permute(0, 1, 4, 2, 5, 3, 6).reshape(q.shape)
    return torch.roll(out, (sh, sw), (1, 2))


def shift_mask(
    height: int, width: int, window_size: tuple[int, int], shift: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Build the mask `[windows, N, N]`: 0 for pairs of a rolled window in the same part of the map before the roll, otherwise -inf.

    The authors add -100. That leaves weights of e^-100, subnormal numbers in float32: they do not change any
    sum of weights, but products with them take many times longer on a CPU.
    """

    def regions(length: int, window: int, step: int) -> torch.Tensor:  # 0, 1, 2 along one axis
        position = torch.arange(length, device=device)
        return (position >= length - window).long() + (position >= length - step).long()

    (wh, ww), (sh, sw) = window_size, shift
    region = 3 * regions(height, wh, sh)[:, None] + regions(width, ww, sw)[None, :]
    region = region.view(height // wh, wh, width // ww, ww).transpose(1, 2).reshape(-1, wh * ww)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, float("-inf"))

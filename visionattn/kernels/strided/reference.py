"""Definition of attention among positions at regular intervals."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.padding import without_padding
from visionattn.kernels.record import keep_weights


def strided_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group_size: tuple[int, int],
    interval: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Pad the map to whole groups, attend inside each group without the padding, and arrange the result as a map again."""
    height, width = q.shape[1:3]
    q, k, v = (pad_to_groups(x, group_size, interval) for x in (q, k, v))
    padded = q.shape
    scores = (groups(q, group_size, interval) * scale) @ groups(k, group_size, interval).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    scores = scores + border_mask(padded, (height, width), group_size, interval, q.device, scores.dtype)
    weights = scores.softmax(-1)
    keep_weights("strided_attention", weights, size=(height, width), group_size=group_size, interval=interval)
    return without_padding(from_groups(weights @ groups(v, group_size, interval), padded, group_size, interval), height, width)


def pad_to_groups(x: torch.Tensor, group_size: tuple[int, int], interval: tuple[int, int]) -> torch.Tensor:
    """Pad a map `[B, H, W, heads, d]` with zeros at the bottom and right to whole groups."""
    spans = (count * step for count, step in zip(group_size, interval, strict=True))
    # Without negative numbers: exported to ONNX, they are divided towards zero.
    bottom, right = ((side + span - 1) // span * span - side for side, span in zip(x.shape[1:3], spans, strict=True))
    if not torch.compiler.is_exporting() and not bottom and not right:
        return x
    return F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom))


def groups(x: torch.Tensor, group_size: tuple[int, int], interval: tuple[int, int]) -> torch.Tensor:
    """Arrange a padded map `[B, H, W, heads, d]` as groups `[B, groups, heads, N, d]`.

    Groups are counted row by row: by the area of `group_size * interval` that they lie in, then by their first position in it.
    """
    (batch, height, width, heads, dim), (gh, gw), (ih, iw) = x.shape, group_size, interval
    x = x.view(batch, height // (gh * ih), gh, ih, width // (gw * iw), gw, iw, heads, dim)
    return x.permute(0, 1, 4, 3, 6, 7, 2, 5, 8).reshape(batch, height * width // (gh * gw), heads, gh * gw, dim)


def from_groups(x: torch.Tensor, shape: torch.Size, group_size: tuple[int, int], interval: tuple[int, int]) -> torch.Tensor:
    """Arrange groups as a padded map of `shape` again."""
    (batch, height, width, heads, dim), (gh, gw), (ih, iw) = shape, group_size, interval
    x = x.view(batch, height // (gh * ih), width // (gw * iw), ih, iw, heads, gh, gw, dim)
    return x.permute(0, 1, 6, 3, 2, 7, 4, 5, 8).reshape(batch, height, width, heads, dim)


def border_mask(
    shape: torch.Size,
    size: tuple[int, int],
    group_size: tuple[int, int],
    interval: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Build the mask `[groups, 1, 1, N]` of a padded map of `shape`: 0 for positions within `size`, otherwise a number close to -inf.

    It is finite, because a group may consist of padding alone.
    """
    rows, cols = (torch.arange(padded, device=device) >= side for padded, side in zip(shape[1:3], size, strict=True))
    outside = (rows[:, None] | cols[None, :])[None, :, :, None, None]
    mask = torch.zeros(outside.shape, device=device, dtype=dtype).masked_fill(outside, torch.finfo(dtype).min / 2)
    return groups(mask, group_size, interval)[0].transpose(-2, -1)

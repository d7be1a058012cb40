"""Definition of neighborhood attention: index tables from the shapes, then gathers."""

from __future__ import annotations

from typing import Literal

import torch

from visionattn.kernels.record import keep_weights

Border = Literal["shift", "mask"]


def axis_table(
    length: int, kernel: int, dilation: int, border: Border, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tables per position of an axis, each `[length, kernel]`: keys, `key - query + kernel - 1` in dilated steps, whether the key exists.

    A position sees its residue class modulo the dilation, within which positions are numbered by step.
    """
    position = torch.arange(length, device=device)[:, None]
    step, residue = position // dilation, position % dilation
    start = step - kernel // 2
    if border == "shift":
        count = (length - residue + dilation - 1) // dilation  # positions of the residue class
        start = torch.minimum(start.clamp(min=0), count - kernel)
    key_step = start + torch.arange(kernel, device=device)
    key = key_step * dilation + residue
    return key.clamp(0, length - 1), key_step - step + kernel - 1, (key >= 0) & (key < length)


def axis_offsets(length: int, kernel: int, dilation: int, border: Border, device: torch.device) -> torch.Tensor:
    """The second table of `axis_table` alone, in fewer operations: what is traced of a bias is made anew in every block."""
    if dilation > 1 or border == "mask":
        return axis_table(length, kernel, dilation, border, device)[1]
    position = torch.arange(length, device=device)[:, None]
    start = (position - kernel // 2).clamp(min=0, max=length - kernel)
    return start - position + torch.arange(kernel - 1, 2 * kernel - 1, device=device)


def neighbors(
    height: int, width: int, kernel_size: tuple[int, int], dilation: tuple[int, int], border: Border, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tables per position of a map, each `[H * W, kh * kw]`: key index, index into the flattened bias table, whether the key exists."""
    area = kernel_size[0] * kernel_size[1]
    rows, row_offsets, row_inside = axis_table(height, kernel_size[0], dilation[0], border, device)
    cols, col_offsets, col_inside = axis_table(width, kernel_size[1], dilation[1], border, device)

    def outer(a: torch.Tensor) -> torch.Tensor:  # H kh -> H 1 kh 1
        return a[:, None, :, None]

    index = outer(rows) * width + cols[:, None]  # cols: W kw -> W 1 kw
    offset = outer(row_offsets) * (2 * kernel_size[1] - 1) + col_offsets[:, None]
    inside = outer(row_inside) & col_inside[:, None]
    return index.reshape(-1, area), offset.reshape(-1, area), inside.reshape(-1, area)


def expand_bias(bias: torch.Tensor, height: int, width: int, dilation: tuple[int, int], border: Border) -> torch.Tensor:
    """Look up the bias of each position and each position of its window, `[heads, H * W, kh * kw]`."""
    kernel_size = (bias.shape[1] + 1) // 2, (bias.shape[2] + 1) // 2
    rows, cols = (
        axis_offsets(length, kernel, step, border, bias.device)
        for length, kernel, step in zip((height, width), kernel_size, dilation, strict=True)
    )
    index = rows[:, None, :, None] * bias.shape[2] + cols[:, None]  # H W kh kw
    return bias.flatten(1)[:, index.reshape(-1, kernel_size[0] * kernel_size[1])]


def scores(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
    border: Border,
) -> torch.Tensor:
    """Compute the products of each query with its keys, plus bias, `[B, H, W, heads, kh * kw]`; -inf for keys outside."""
    batch, height, width, heads, _ = q.shape
    index, _, inside = neighbors(height, width, kernel_size, dilation, border, q.device)
    out = (_by_head(k)[:, index] @ (_by_head(q) * scale).unsqueeze(-1)).view(batch, heads, *index.shape)
    if bias is not None:
        out = out + expand_bias(bias.to(out.dtype), height, width, dilation, border)
    if border == "mask":
        out = out.masked_fill(~inside, -torch.inf)
    return out.view(batch, heads, height, width, index.shape[1]).permute(0, 2, 3, 1, 4)


def aggregate(
    weights: torch.Tensor, v: torch.Tensor, *, kernel_size: tuple[int, int], dilation: tuple[int, int], border: Border
) -> torch.Tensor:
    """Compute the weighted sum of the values in each neighborhood, `[B, H, W, heads, dim]`; values outside count as zero."""
    batch, height, width, heads, dim = v.shape
    index, _, inside = neighbors(height, width, kernel_size, dilation, border, v.device)
    weights = _by_head(weights)
    if border == "mask":
        weights = weights.masked_fill(~inside, 0.0)
    out = weights.unsqueeze(-2) @ _by_head(v)[:, index]
    return out.view(batch, heads, height, width, dim).permute(0, 2, 3, 1, 4)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
    border: Border,
) -> torch.Tensor:
    """Compute both halves with the softmax between them, `[B, H, W, heads, dim]`."""
    weights = scores(q, k, kernel_size=kernel_size, dilation=dilation, bias=bias, scale=scale, border=border).softmax(-1)
    weights = weights.permute(0, 3, 1, 2, 4)  # B heads H W K
    keep_weights(
        "neighborhood_attention",
        weights,
        size=tuple(q.shape[1:3]),
        kernel_size=kernel_size,
        dilation=dilation,
        border=border,
    )
    return aggregate(weights.permute(0, 2, 3, 1, 4), v, kernel_size=kernel_size, dilation=dilation, border=border)


def _by_head(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> (B heads) (H W) d
    batch, height, width, heads, dim = x.shape
    return x.permute(0, 3, 1, 2, 4).reshape(batch * heads, height * width, dim)

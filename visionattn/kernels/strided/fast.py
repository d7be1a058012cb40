"""Strided attention without padding where groups are cut off, on smaller groups instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.strided.reference import border_mask, from_groups, groups, pad_to_groups

Part = tuple[int, int, int]  # first position, end, and length of the groups along an axis


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
    """Compute the same as the definition, up to rounding."""
    if bias is not None and not torch.is_grad_enabled():
        bias = bias.detach()  # views of parameters still require gradients here, and SDPA is slow for masks that do
    table = None if bias is None else bias.to(q.dtype)
    height, width = q.shape[1:3]
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):  # sizes of an exported graph: which groups are cut is open
        return _part(q, k, v, group_size, interval, table, scale)
    rows, cols = (parts(side, count, step) for side, count, step in zip((height, width), group_size, interval, strict=True))
    strips = []
    for top, bottom, gh in rows:
        cells = []
        for left, right, gw in cols:
            queries, keys, values = (x[:, top:bottom, left:right] for x in (q, k, v))
            cells.append(_part(queries, keys, values, (gh, gw), interval, _corner(table, group_size, (gh, gw)), scale))
        strips.append(torch.cat(cells, 2) if len(cells) > 1 else cells[0])
    return torch.cat(strips, 1) if len(strips) > 1 else strips[0]


def parts(side: int, count: int, step: int) -> list[Part]:
    """Divide an axis into whole groups of `count` positions and the rest, whose groups are as long as needed."""
    whole = side // (count * step) * (count * step)
    found = [(0, whole, count), (whole, side, -(-(side - whole) // step))]
    return [part for part in found if part[0] < part[1]]


def _corner(table: torch.Tensor | None, group_size: tuple[int, int], part: tuple[int, int]) -> torch.Tensor | None:
    """Bias `[heads, N, N]` among the first positions of a group."""
    if table is None or part == group_size:
        return table
    (gh, gw), (ph, pw) = group_size, part
    return table.view(-1, gh, gw, gh, gw)[:, :ph, :pw, :ph, :pw].reshape(-1, ph * pw, ph * pw)


def _part(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_size: tuple[int, int],
    interval: tuple[int, int],
    table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    height, width = q.shape[1:3]
    q, k, v = (pad_to_groups(x, group_size, interval) for x in (q, k, v))
    padded = q.shape
    mask = None
    if torch.compiler.is_exporting() or padded[1:3] != (height, width):
        mask = border_mask(padded, (height, width), group_size, interval, q.device, q.dtype)
    q, k, v = (groups(x, group_size, interval) for x in (q, k, v))  # B groups heads N d
    count, heads = q.shape[1:3]
    if mask is not None:  # one axis for groups and heads
        table = (mask if table is None else table + mask).expand(count, heads, q.shape[3], -1).flatten(0, 1)
    training = torch.is_grad_enabled() and q.device.type == "cpu"
    if mask is not None or not training:
        q, k, v = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
        if table is not None and mask is None:
            table = table.expand(count, heads, -1, -1).flatten(0, 1)
    else:
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if training:
        out = attend(q, k, v, table, scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if table is None else table.unsqueeze(0), scale=scale)
    out = from_groups(out.view(padded[0], count, heads, -1, padded[4]), padded, group_size, interval)
    return out[:, :height, :width]

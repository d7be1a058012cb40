"""Window attention with one copy of inputs and output each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.window.reference import shift_mask


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
    """Compute the same as the definition, up to rounding."""
    height, width = q.shape[1:3]
    shifted = shift != (0, 0)
    if bias is not None and not torch.is_grad_enabled():
        bias = bias.detach()  # views of parameters still require gradients here, and SDPA is slow for masks that do
    table = None if bias is None else bias.to(q.dtype).unsqueeze(0)  # windows or 1, heads, N, N
    if shifted:
        mask = shift_mask(height, width, window_size, shift, q.device, q.dtype).unsqueeze(1)
        table = mask if table is None else table + mask
    # The gradient of indexing is slower than that of a roll.
    if shifted and table is not None and not torch.is_grad_enabled():
        return _addressed(q, k, v, window_size, shift, table, scale)
    if shifted:
        q, k, v = (torch.roll(x, (-shift[0], -shift[1]), (1, 2)) for x in (q, k, v))
    out = _partitioned(q, k, v, window_size, table, scale)
    return torch.roll(out, shift, (1, 2)) if shifted else out


def _partitioned(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window_size: tuple[int, int], table: torch.Tensor | None, scale: float
) -> torch.Tensor:
    (batch, height, width, heads, dim), (wh, ww) = q.shape, window_size
    rows, cols = height // wh, width // ww

    def windows(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> B windows heads N d
        x = x.view(batch, rows, wh, cols, ww, heads, dim).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(batch, rows * cols, heads, wh * ww, dim)

    q, k, v = windows(q), windows(k), windows(v)
    if torch.is_grad_enabled() and q.device.type == "cpu":
        if table is not None and table.shape[0] > 1:  # one axis for windows and heads
            q, k, v, table = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), table.expand(-1, heads, -1, -1).flatten(0, 1)
        else:
            q, k, v, table = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), None if table is None else table[0]
        out = attend(q, k, v, table, scale)
    else:
        if table is not None:
            table = table.expand(rows * cols, heads, -1, -1).flatten(0, 1).unsqueeze(0)
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=table, scale=scale)
    return out.view(batch, rows, cols, heads, wh, ww, dim).permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads, dim)


def _addressed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    table: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    (batch, height, width, heads, dim), (wh, ww) = q.shape, window_size
    count, area = height * width // (wh * ww), wh * ww
    # Indices in the map of the positions of all windows in order, and the inverse.
    place = torch.arange(height * width, device=q.device).view(height, width).roll((-shift[0], -shift[1]), (0, 1))
    place = place.view(height // wh, wh, width // ww, ww).transpose(1, 2).flatten()
    back = torch.arange(height * width, device=q.device).view(height // wh, width // ww, wh, ww).transpose(1, 2)
    back = back.reshape(height, width).roll(shift, (0, 1)).flatten()

    def windows(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> B (heads windows) N d
        return x.flatten(1, 2).transpose(1, 2).index_select(2, place).view(batch, heads * count, area, dim)

    mask = table.transpose(0, 1).expand(heads, count, area, area).reshape(1, heads * count, area, area)
    out = F.scaled_dot_product_attention(windows(q), windows(k), windows(v), attn_mask=mask, scale=scale)
    out = out.view(batch, heads, height * width, dim).index_select(2, back)
    return out.transpose(1, 2).reshape(q.shape)

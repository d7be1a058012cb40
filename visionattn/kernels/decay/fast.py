"""Decayed attention by PyTorch's operation, whose mask holds the decay."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.decay.reference import from_lines, lines, steps


def decayed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, *, along: str, scale: float) -> torch.Tensor:
    """Compute the same as the definition, up to rounding."""
    height, width = q.shape[1:3]
    table = decay_table(decay, height, width, along, torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    count = lines(q, along).shape[1]
    q_, k_, v_ = (lines(x, along).flatten(0, 1) for x in (q, k, v))  # lines are images of their own
    if torch.is_grad_enabled() and q.device.type == "cpu":
        out = attend(q_, k_, v_, table, scale)
    else:
        out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=table.unsqueeze(0), scale=scale)
    return from_lines(out.unflatten(0, (-1, count)), q.shape, along)


def decay_table(decay: torch.Tensor, height: int, width: int, along: str, dtype: torch.dtype) -> torch.Tensor:
    """Decays between the positions of a line, `[heads, N, N]`; those of a map are sums of its rows' and columns'."""
    factor = decay.to(dtype)[:, None, None]
    if along != "map":
        return factor * steps(width if along == "rows" else height, decay.device, dtype)
    rows = factor * steps(height, decay.device, dtype)
    cols = rows if width == height else factor * steps(width, decay.device, dtype)
    return (rows[:, :, None, :, None] + cols[:, None, :, None, :]).reshape(-1, height * width, height * width)

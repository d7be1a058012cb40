"""Decayed attention by PyTorch's operation, whose mask holds the decay."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.decay.reference import distances, from_lines, lines


def decayed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, *, along: str, scale: float) -> torch.Tensor:
    """Compute the same as the definition, up to rounding."""
    height, width = q.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    table = (decay.to(wide)[:, None, None] * distances(height, width, along, q.device, wide)).to(q.dtype)  # heads N N
    count = lines(q, along).shape[1]
    q_, k_, v_ = (lines(x, along).flatten(0, 1) for x in (q, k, v))  # lines are images of their own
    if torch.is_grad_enabled() and q.device.type == "cpu":
        out = attend(q_, k_, v_, table, scale)
    else:
        out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=table.unsqueeze(0), scale=scale)
    return from_lines(out.unflatten(0, (-1, count)), q.shape, along)

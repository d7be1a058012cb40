"""Dense attention by PyTorch's operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.dense.reference import from_rows, rows


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Compute the same as the definition, up to rounding."""
    mask = None if bias is None else bias.unsqueeze(0)
    return from_rows(F.scaled_dot_product_attention(rows(q), rows(k), rows(v), attn_mask=mask, scale=scale), q.shape)

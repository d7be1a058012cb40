"""Agent attention by PyTorch's operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.dense.reference import from_rows, rows

FEW = 32  # keys, for which products are faster than scaled_dot_product_attention on a CPU


def agent_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agents: torch.Tensor,
    *,
    agent_bias: torch.Tensor | None,
    query_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Compute the same as the definition, up to rounding."""
    few = rows(agents)
    if agents.dtype in (torch.float32, torch.float64):  # a product more would show in half precision
        few, scale = few * scale, 1.0  # of both factors of the scores the one with fewer numbers
    gathered = _attention(few, rows(k), rows(v), agent_bias, scale)
    return from_rows(_attention(rows(q), few, gathered, query_bias, scale), q.shape)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    if q.device.type == "cpu" and (torch.is_grad_enabled() or k.shape[2] < FEW):
        return attend(q, k, v, bias, scale)
    mask = None if bias is None else bias.detach().unsqueeze(0) if not torch.is_grad_enabled() else bias.unsqueeze(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

"""Agent attention by PyTorch's operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.dense.reference import from_rows, rows


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
    gathered = _attention(few, rows(k), rows(v), agent_bias, scale)
    return from_rows(_attention(rows(q), few, gathered, query_bias, scale), q.shape)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    if torch.is_grad_enabled() and q.device.type == "cpu":
        return attend(q, k, v, bias, scale)
    mask = None if bias is None else bias.detach().unsqueeze(0) if not torch.is_grad_enabled() else bias.unsqueeze(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

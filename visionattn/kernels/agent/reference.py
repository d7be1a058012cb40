"""Definition of agent attention."""

from __future__ import annotations

import torch

from visionattn.kernels.dense.reference import from_rows, rows
from visionattn.kernels.record import keep_weights


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
    """Compute `softmax(scale * q @ a^T + query_bias) @ softmax(scale * a @ k^T + agent_bias) @ v` (arXiv 2312.08874, eq. 5)."""
    gathering = (rows(agents) * scale) @ rows(k).transpose(-2, -1)  # B heads Na N
    gathering = (gathering if agent_bias is None else gathering + agent_bias).softmax(-1)
    spreading = (rows(q) * scale) @ rows(agents).transpose(-2, -1)  # B heads N Na
    spreading = (spreading if query_bias is None else spreading + query_bias).softmax(-1)
    geometry = {"size": tuple(q.shape[1:3]), "agents": tuple(agents.shape[1:3])}
    keep_weights("agent_attention", spreading, **geometry, agent_weights=gathering)
    return from_rows(spreading @ (gathering @ rows(v)), q.shape)

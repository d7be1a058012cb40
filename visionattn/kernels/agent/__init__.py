"""Attention in two steps through a few agents."""

from __future__ import annotations

import torch

from visionattn.kernels.agent import fast, reference
from visionattn.kernels.dispatch import choose, torch_only


def agent_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agents: torch.Tensor,
    *,
    agent_bias: torch.Tensor | None = None,
    query_bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Agents attend to all positions, and all positions to what the agents gathered (arXiv 2312.08874, eq. 4 and 5).

    Time and memory grow with the number of positions times the number of agents. A list of N tokens is a map of 1 x N.
    `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        agents: `[B, Ha, Wa, heads, dim]`, in the authors' networks averages of q.
        agent_bias: added to the scores of the agents, `[heads, Ha * Wa, H * W]`; dtype of `q`.
        query_bias: added to the scores of the positions, `[heads, H * W, Ha * Wa]`; dtype of `q`.
        scale: factor on both scores; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: shapes do not match, or the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    fits = q.dim() == agents.dim() == 5 and q.shape == k.shape == v.shape
    if not (fits and agents.shape[0] == q.shape[0] and agents.shape[3:] == q.shape[3:]):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v, agents))
        raise ValueError(
            f"agent_attention: q, k and v must have one shape [B, H, W, heads, dim], agents its B, heads and dim, got {shapes}"
        )
    heads, positions, count = q.shape[3], q.shape[1] * q.shape[2], agents.shape[1] * agents.shape[2]
    if agent_bias is not None and agent_bias.shape != (heads, count, positions):
        what = f"[heads, Ha * Wa, H * W] = {[heads, count, positions]}"
        raise ValueError(f"agent_attention: agent_bias must be {what}, got {list(agent_bias.shape)}")
    if query_bias is not None and query_bias.shape != (heads, positions, count):
        what = f"[heads, H * W, Ha * Wa] = {[heads, positions, count]}"
        raise ValueError(f"agent_attention: query_bias must be {what}, got {list(query_bias.shape)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose("agent_attention", backend, torch_only())
    run = fast.agent_attention if chosen == "torch" else reference.agent_attention
    return run(q, k, v, agents, agent_bias=agent_bias, query_bias=query_bias, scale=scale)

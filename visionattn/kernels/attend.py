"""Attention in three steps for training: a mask that needs a gradient forces SDPA onto a slower path on a CPU."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import emulated


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Compute `softmax(scale * q @ k^T + table) @ v` for q `[B, n, Q, d]`, k and v `[B, n, K, d]`, and a table `[n, Q, K]`."""
    if emulated(q):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), None if table is None else table.float(), scale).to(q.dtype)
    if table is not None and q.dtype in (torch.bfloat16, torch.float16):
        # A single operation, which rounds scores once instead of three times.
        tables = table.expand(q.shape[0], -1, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(tables, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale).view(*q.shape[:3], -1)
    else:
        scores = (q if scale == 1 else q * scale) @ k.transpose(-2, -1)
        if table is not None:
            scores += table
    return scores.softmax(-1) @ v

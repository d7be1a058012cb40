"""Definition of channel attention."""

from __future__ import annotations

import torch

from visionattn.kernels.record import keep_weights


def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Average the channels e of q for each output channel c, weighted by `softmax_e(scale * sum_n k[n, c] v[n, e])`."""
    shape = q.shape
    q, k, v = (tensor.flatten(1, 2).transpose(1, 2) for tensor in (q, k, v))  # B heads N d
    weights = ((k * scale).transpose(-2, -1) @ v).softmax(-1)  # B heads d d; k is scaled first, to avoid overflow in the sum over N
    keep_weights("channel_attention", weights, size=tuple(shape[1:3]))
    out = q @ weights.transpose(-2, -1)
    return out.transpose(1, 2).reshape(shape)

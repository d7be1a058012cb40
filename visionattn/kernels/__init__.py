"""Attention operations as plain functions; tensors are heads-last, `[B, H, W, heads, dim]`."""

from visionattn.kernels.gate import channel_gate
from visionattn.kernels.neighborhood import neighborhood_aggregate, neighborhood_attention, neighborhood_scores
from visionattn.kernels.window import window_attention

__all__ = ["channel_gate", "neighborhood_aggregate", "neighborhood_attention", "neighborhood_scores", "window_attention"]

"""Attention operations as plain functions; tensors are heads-last, `[B, H, W, heads, dim]`."""

from visionattn.kernels.aggregated import aggregated_attention
from visionattn.kernels.gate import channel_gate
from visionattn.kernels.window import window_attention

__all__ = ["aggregated_attention", "channel_gate", "window_attention"]

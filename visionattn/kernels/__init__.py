"""Attention operations as plain functions; tensors are heads-last, `[B, H, W, heads, dim]`."""

from visionattn.kernels.channel import channel_attention
from visionattn.kernels.gate import channel_gate
from visionattn.kernels.routing import region_routes, routed_attention
from visionattn.kernels.window import window_attention

__all__ = ["channel_attention", "channel_gate", "region_routes", "routed_attention", "window_attention"]

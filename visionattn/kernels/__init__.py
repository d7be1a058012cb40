"""Attention operations as plain functions; tensors are heads-last, `[B, H, W, heads, dim]`, or `[B, C, H, W]` where there are no heads."""

from visionattn.kernels.depthwise import dilated_depthwise_conv2d
from visionattn.kernels.gate import channel_gate, strip_gate
from visionattn.kernels.window import window_attention

__all__ = ["channel_gate", "dilated_depthwise_conv2d", "strip_gate", "window_attention"]

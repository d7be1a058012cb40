"""Attention modules that plug into CNN blocks, U-Net skips and bottlenecks: a map `[B, C, H, W]` in, one of the same shape out."""

from visionattn.attention.eca import ECA
from visionattn.attention.ela import ELA
from visionattn.attention.registry import ATTENTION, build_attention, register_attention, unknown_attention

__all__ = ["ATTENTION", "ECA", "ELA", "build_attention", "register_attention", "unknown_attention"]

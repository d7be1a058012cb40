"""Attention modules for CNN blocks, U-Net skips and bottlenecks: they map `[B, C, H, W]` to the same shape."""

from visionattn.attention.dsl import DSL
from visionattn.attention.eca import ECA
from visionattn.attention.ela import ELA
from visionattn.attention.registry import ATTENTION, build_attention, register_attention, unknown_attention

__all__ = ["ATTENTION", "DSL", "ECA", "ELA", "build_attention", "register_attention", "unknown_attention"]

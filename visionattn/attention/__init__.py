"""Attention modules for CNN blocks, U-Net skips and bottlenecks: they map `[B, C, H, W]` to the same shape."""

from visionattn.attention.contmix import ContMix
from visionattn.attention.dsl import DSL
from visionattn.attention.eca import ECA
from visionattn.attention.ela import ELA
from visionattn.attention.registry import ATTENTION, build_attention, register_attention, unknown_attention
from visionattn.attention.tap import TAP, attention_diversification

__all__ = [
    "ATTENTION",
    "DSL",
    "ECA",
    "ELA",
    "TAP",
    "ContMix",
    "attention_diversification",
    "build_attention",
    "register_attention",
    "unknown_attention",
]

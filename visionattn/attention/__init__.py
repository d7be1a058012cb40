"""Attention modules for CNN blocks, U-Net skips and bottlenecks: they map `[B, C, H, W]` to the same shape."""

from visionattn.attention.cb import ContextBroadcasting
from visionattn.attention.cbam import CBAM
from visionattn.attention.contmix import ContMix
from visionattn.attention.dsl import DSL
from visionattn.attention.eca import ECA
from visionattn.attention.efficient import EfficientAttention2d
from visionattn.attention.ela import ELA
from visionattn.attention.psa import ParallelPSA, SequentialPSA
from visionattn.attention.registry import ATTENTION, build_attention, register_attention, unknown_attention
from visionattn.attention.se import SE
from visionattn.attention.tap import TAP, attention_diversification
from visionattn.attention.triplet import TripletAttention
from visionattn.attention.ulsam import ULSAM

__all__ = [
    "ATTENTION",
    "CBAM",
    "DSL",
    "ECA",
    "ELA",
    "SE",
    "TAP",
    "ULSAM",
    "ContMix",
    "ContextBroadcasting",
    "EfficientAttention2d",
    "ParallelPSA",
    "SequentialPSA",
    "TripletAttention",
    "attention_diversification",
    "build_attention",
    "register_attention",
    "unknown_attention",
]

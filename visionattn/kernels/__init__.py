"""Attention operations as plain functions; tensors are heads-last, `[B, H, W, heads, dim]`, or `[B, C, H, W]` without heads."""

from visionattn.kernels.agent import agent_attention
from visionattn.kernels.aggregated import aggregated_attention
from visionattn.kernels.available import available_backends
from visionattn.kernels.channel import channel_attention
from visionattn.kernels.decay import decayed_attention
from visionattn.kernels.dense import dense_attention
from visionattn.kernels.depthwise import dilated_depthwise_conv2d
from visionattn.kernels.dispatch import use_backend
from visionattn.kernels.gate import channel_gate, strip_gate
from visionattn.kernels.linear import inline_attention, rank_augmented_attention
from visionattn.kernels.neighborhood import neighborhood_aggregate, neighborhood_attention, neighborhood_bias, neighborhood_scores
from visionattn.kernels.record import AttentionRecord, keep_weights, record_attention
from visionattn.kernels.rotary import rotate_pairs
from visionattn.kernels.routing import region_routes, routed_attention
from visionattn.kernels.spread import spread_attention
from visionattn.kernels.strided import strided_attention
from visionattn.kernels.window import window_attention

__all__ = [
    "AttentionRecord",
    "agent_attention",
    "aggregated_attention",
    "available_backends",
    "channel_attention",
    "channel_gate",
    "decayed_attention",
    "dense_attention",
    "dilated_depthwise_conv2d",
    "inline_attention",
    "keep_weights",
    "neighborhood_aggregate",
    "neighborhood_attention",
    "neighborhood_bias",
    "neighborhood_scores",
    "rank_augmented_attention",
    "record_attention",
    "region_routes",
    "rotate_pairs",
    "routed_attention",
    "spread_attention",
    "strided_attention",
    "strip_gate",
    "use_backend",
    "window_attention",
]

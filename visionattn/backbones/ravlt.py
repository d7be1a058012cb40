"""RAVLT: linear attention with rank-augmented keys (RALA) in the fine stages, softmax attention in the coarse ones.

Paper: Fan et al., "Breaking the Low-Rank Dilemma of Linear Attention", arXiv 2411.07635.
Upstream: github qhfan/RALA, commit a86314f (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* A stage's output is its last block's map. Downsampling starts a stage instead of ending the previous one.
* `out_norm=True` normalises each map for dense prediction as RMT, of the same authors, does; their dense code of RAVLT was not read.
* Angles are computed, not stored. Maps are kept with channels last, so that 1x1 convolutions are linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.backbones.registry import register_backbone
from visionattn.backbones.rmt import Block, ConvTransformer
from visionattn.kernels import dense_attention, rank_augmented_attention, rotate_pairs
from visionattn.kernels.rotary import Rotation
from visionattn.layers import ConvMerging, ConvStem, DepthwiseConv, Stage, drop_path_rates


def map_rotation(height: int, width: int, dim: int, like: torch.Tensor) -> Rotation:
    """Compute the rotation of each position: of the first half of the channels by its row, of the second by its column.

    The frequencies of each half reach from 1 to 1 / 10000, both included.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    frequency = 10000 ** -torch.linspace(0, 1, dim // 4, device=like.device, dtype=wide)
    rows, cols = (torch.arange(side, device=like.device, dtype=wide)[:, None] * frequency for side in (height, width))
    angle = torch.cat([rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)], -1)
    return angle.cos(), angle.sin()


class GatedAttention(nn.Module):
    """Attention, linear or dense, plus a depthwise convolution of the values; the sum is multiplied by a projection of the input."""

    def __init__(self, dim: int, num_heads: int, linear: bool) -> None:
        super().__init__()
        self.num_heads, self.linear = num_heads, linear
        self.qkvo = nn.Linear(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        height, width, dim = x.shape[1:]
        *qkv, gate = self.qkvo(x).chunk(4, -1)
        q, k, v = (part.unflatten(3, (self.num_heads, -1)) for part in qkv)
        rotation = map_rotation(height, width, dim // self.num_heads, x)
        if self.linear:
            y = rank_augmented_attention(q, k, v, rotation=rotation)
        else:
            y = dense_attention(rotate_pairs(q, rotation), rotate_pairs(k, rotation), v)
        return self.proj((y.flatten(3) + self.lepe(qkv[2])) * gate)  # type: ignore[no-any-return]


class RAVLT(ConvTransformer):
    """Rank-Augmented Vision Linear Transformer.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage.
        depths: blocks per stage.
        num_heads: attention heads per stage; their channels are multiples of 4.
        mlp_ratio: hidden width of the MLP relative to the channels.
        linear: whether attention is linear, per stage.
        layer_scales: initial factor of the residual branches, per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratio: float = 3.5,
        linear: Sequence[bool] = (True, True, False, False),
        layer_scales: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=(4, 8, 16, 32), out_norm=out_norm)
        first = embed_dims[0]
        self.patch_embed = ConvStem(in_chans, (first // 2, first // 2, first // 2, first), (2, 1, 1, 2))
        self.stages = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim = embed_dims[index]
            blocks = [
                Block(dim, GatedAttention(dim, num_heads[index], linear[index]), mlp_ratio, layer_scales[index], rate) for rate in rates
            ]
            self.stages.append(Stage(ConvMerging(embed_dims[index - 1], dim) if index else None, blocks))
        self.add_out_norms()
        self.init_weights()


def _variant(embed_dims: tuple[int, ...], depths: tuple[int, ...], num_heads: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads, **more}


register_backbone(
    RAVLT,
    {
        "ravlt_tiny": _variant((64, 128, 256, 512), (2, 2, 6, 2), (1, 2, 4, 8)),
        "ravlt_small": _variant((64, 128, 320, 512), (3, 5, 9, 3), (1, 2, 5, 8)),
        "ravlt_base": _variant((96, 192, 384, 512), (4, 6, 12, 6), (1, 2, 6, 8), layer_scales=(1.0, 1.0, 1e-6, 1e-6)),
        "ravlt_large": _variant((96, 192, 448, 640), (4, 7, 19, 8), (1, 2, 7, 10), layer_scales=(1e-6, 1e-6, 1e-6, 1e-6)),
    },
)

"""RMT: attention that decays with the Manhattan distance, over the whole map or along its rows and then its columns.

Paper: Fan et al., "RMT: Retentive Networks Meet Vision Transformers", arXiv 2309.11523.
Upstream: github qhfan/RMT, commit 32ea214 (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* A stage's output is its last block's map, normalised only with `out_norm=True`, as in the segmentation code. Downsampling
  starts a stage instead of ending the previous one.
* Angles and decays are computed, not stored.
* The variants with token labelling, which have a classifier per position, are omitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerScale
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import decayed_attention, rotate_pairs
from visionattn.kernels.rotary import Rotation
from visionattn.layers import ConvMerging, ConvStem, DepthwiseConv, FeatureProjection, ResidualConvMlp, Stage, drop_path_rates, init_layer

NUM_FEATURES = 1024  # that the classifier averages


def sequence_rotation(height: int, width: int, dim: int, like: torch.Tensor) -> Rotation:
    """Compute the rotation of each position by its number in the map, counted row by row.

    The frequencies reach from 1 to 1 / 10000, both included.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    frequency = 10000 ** -torch.linspace(0, 1, dim // 2, device=like.device, dtype=wide)
    position = torch.arange(height * width, device=like.device, dtype=wide).view(height, width, 1)
    angle = position * frequency
    return angle.cos(), angle.sin()


class ManhattanAttention(nn.Module):
    """Multi-head attention that decays with the distance, at another rate in each head, plus a depthwise convolution of the values.

    Head j of h loses a factor of `1 - 2 ** (-2 - decay_range * j / h)` per step.
    """

    def __init__(self, dim: int, num_heads: int, decay_range: int, decomposed: bool) -> None:
        super().__init__()
        self.num_heads, self.decay_range, self.decomposed = num_heads, decay_range, decomposed
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.lepe = DepthwiseConv(dim, 5)
        self.out_proj = nn.Linear(dim, dim)

    def decay(self, like: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(like.dtype, torch.float32)
        exponent = -2 - self.decay_range * torch.arange(self.num_heads, device=like.device, dtype=wide) / self.num_heads
        return torch.log1p(-torch.exp2(exponent))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        height, width, dim = x.shape[1:]
        q, k, v = (proj(x).unflatten(3, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        rotation, decay = sequence_rotation(height, width, dim // self.num_heads, x), self.decay(x)
        q, k = rotate_pairs(q, rotation), rotate_pairs(k, rotation)
        if self.decomposed:
            y = decayed_attention(q, k, v, decay, along="rows")
            y = decayed_attention(q, k, y, decay, along="columns")
        else:
            y = decayed_attention(q, k, v, decay)
        return self.out_proj(y.flatten(3) + self.lepe(v.flatten(3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Position encoding, attention and MLP, the latter two on pre-normalised residual branches, scaled if `layer_scale` is given."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.pos = DepthwiseConv(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ResidualConvMlp(dim, int(dim * mlp_ratio))
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.pos(x)
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]


class ConvTransformer(Backbone):
    """Base of RMT and RAVLT: everything but the attention."""

    first_conv = "patch_embed.0"
    size_step = 1

    @property
    def final_channels(self) -> int:
        return NUM_FEATURES

    def final_norm(self) -> nn.Module:
        return FeatureProjection(self.channels[-1], NUM_FEATURES)

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
            if isinstance(module, LayerScale):
                module.reset_parameters()

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and of the official segmentation backbone."""
        moved = [(rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.downsample.") for i in range(3)]
        places = [
            *moved,
            (r"^patch_embed\.proj\.", "backbone.patch_embed."),
            (r"^layers\.", "backbone.stages."),
            (r"^extra_norms\.", "backbone.out_norms."),
            (r"^(proj|norm)\.", r"head.norm.\1."),
            (r"^head\.", "head.fc."),
        ]
        parts = [
            (r"(.*\.)retention_layer_norm\.", r"\1norm1."),
            (r"(.*\.)final_layer_norm\.", r"\1norm2."),
            (r"(.*\.norm\d)\.norm\.", r"\1."),
            (r"(.*\.)gamma_(\d)$", r"\1scale\2.gamma"),
            (r"(.*\.)ffn\.dwconv\.(conv\.)?", r"\1mlp.dwconv."),
            (r"(.*\.)ffn\.", r"\1mlp."),
            (r"(.*\.)retention\.lepe\.conv\.", r"\1attn.lepe."),
            (r"(.*\.)retention\.", r"\1attn."),
            (r"(.*\.)pos\.conv\.", r"\1pos."),
        ]
        renamed = rename_keys(rename_keys(state, places, drop=r"\.(Relpos|RoPE)\."), parts)
        for key, value in renamed.items():  # upstream has axes of length 1 here
            if key.endswith(".gamma"):
                renamed[key] = value.flatten()
            elif key.endswith((".qkvo.weight", ".attn.proj.weight", ".fc1.weight", ".fc2.weight", "head.fc.weight")):
                renamed[key] = value.flatten(1)
            elif key == "head.norm.proj.weight":
                renamed[key] = value.reshape(*value.shape[:2], 1, 1)
        return renamed


class RMT(ConvTransformer):
    """RMT.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        mlp_ratios: hidden width of the MLP relative to the channels, per stage.
        decay_ranges: how far the decays of a stage's heads spread, per stage.
        decomposed: whether attention runs along rows and then columns, per stage.
        layer_scales: initial factor of the residual branches, per stage; None for no factors.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        num_heads: Sequence[int] = (4, 4, 8, 16),
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        decay_ranges: Sequence[int] = (4, 4, 6, 6),
        decomposed: Sequence[bool] = (True, True, True, False),
        layer_scales: Sequence[float | None] = (None, None, None, None),
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=(4, 8, 16, 32), out_norm=out_norm)
        first = embed_dims[0]
        self.patch_embed = ConvStem(in_chans, (first // 2, first // 2, first, first), (2, 1, 2, 1))
        self.stages = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim = embed_dims[index]
            blocks = [
                Block(
                    dim,
                    ManhattanAttention(dim, num_heads[index], decay_ranges[index], decomposed[index]),
                    mlp_ratios[index],
                    layer_scales[index],
                    rate,
                )
                for rate in rates
            ]
            self.stages.append(Stage(ConvMerging(embed_dims[index - 1], dim) if index else None, blocks))
        self.add_out_norms()
        self.init_weights()


def _variant(embed_dims: tuple[int, ...], depths: tuple[int, ...], num_heads: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads, **more}


_MLP = (4, 4, 3, 3)
_SCALES = (None, None, 1e-6, 1e-6)

register_backbone(
    RMT,
    {
        "rmt_tiny": _variant((64, 128, 256, 512), (2, 2, 8, 2), (4, 4, 8, 16), decomposed=(True, True, False, False)),
        "rmt_small": _variant((64, 128, 256, 512), (3, 4, 18, 4), (4, 4, 8, 16), mlp_ratios=_MLP),
        "rmt_base": _variant(
            (80, 160, 320, 512), (4, 8, 25, 8), (5, 5, 10, 16), mlp_ratios=_MLP, decay_ranges=(5, 5, 6, 6), layer_scales=_SCALES
        ),
        "rmt_large": _variant(
            (112, 224, 448, 640), (4, 8, 25, 8), (7, 7, 14, 20), mlp_ratios=_MLP, decay_ranges=(6, 6, 6, 6), layer_scales=_SCALES
        ),
    },
)

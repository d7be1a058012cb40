"""CrossFormer and CrossFormer++: patches of several sizes, and attention among neighbours and among distant positions in turn.

Papers: Wang et al., "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention", arXiv 2108.00154;
"CrossFormer++: A Versatile Vision Transformer Hinging on Cross-scale Attention", arXiv 2303.06908.
Upstream: github cheerss/CrossFormer, commit 7952010 (MIT).

Differences from upstream:

* Any input size; upstream accepts square images of the size that a model is built for. Images are padded to whole patches, and maps of
  odd size before a downsampling, after its norm. Attention does not see positions beyond the border, as upstream.
* A stage's output is its last block's map, normalised only with `out_norm=True`, as in Swin. Downsampling starts a stage instead of
  ending the previous one.
* Coordinates and indices of relative positions are computed, not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import strided_attention
from visionattn.layers import DepthwiseConv, Stage, drop_path_rates, init_layer, pad_to_multiple, relative_position_bias


class CrossScaleConv(nn.Module):
    """Convolutions of one stride with kernels of several sizes around the same centre, concatenated."""

    def __init__(self, in_dim: int, widths: Sequence[int], kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.projs = nn.ModuleList(
            nn.Conv2d(in_dim, width, size, stride, (size - stride) // 2) for width, size in zip(widths, kernel_sizes, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/s W/s C'
        x = pad_to_multiple(x, self.stride).permute(0, 3, 1, 2)
        return torch.cat([proj(x) for proj in self.projs], 1).permute(0, 2, 3, 1)


class PatchEmbed(CrossScaleConv):
    """Patches of 4, 8, 16 and 32 pixels; the larger a patch, the fewer channels it gets."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(in_chans, (dim // 2, dim // 4, dim // 8, dim // 8), (4, 8, 16, 32), 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/4 W/4 C
        return self.norm(super().forward(x.permute(0, 2, 3, 1)))  # type: ignore[no-any-return]


class PatchMerging(CrossScaleConv):
    """Norm, then convolutions of 2x2 and 4x4: half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, (dim, dim), (2, 4), 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 2C
        return super().forward(self.norm(x))


class DynamicPositionBias(nn.Module):
    """Table of biases by an MLP on the row and column offset between two positions, counted within their group."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2, dim)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, width)) for width in (dim, dim, num_heads))

    def forward(self, group_size: int) -> torch.Tensor:  # -> 2 G - 1, 2 G - 1, heads
        offset = torch.arange(1 - group_size, group_size, device=self.proj.weight.device, dtype=self.proj.weight.dtype)
        table = self.proj(torch.stack(torch.meshgrid(offset, offset, indexing="ij"), -1))
        for layer in self.layers:
            table = layer(table)
        return table


class GroupAttention(nn.Module):
    """Multi-head attention in groups of `group_size` x `group_size` positions at intervals, with a bias per relative position."""

    def __init__(self, dim: int, num_heads: int, group_size: int, interval: int) -> None:
        super().__init__()
        self.num_heads, self.group_size, self.interval = num_heads, group_size, interval
        self.position = DynamicPositionBias(dim // 16, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        group, interval, side = self.group_size, self.interval, min(x.shape[1:3])
        if not isinstance(side, torch.SymInt) and side <= group:  # a graph of open size takes none at which groups shrink
            group, interval = side, 1
        q, k, v = self.qkv(x).unflatten(3, (3, self.num_heads, -1)).unbind(3)
        bias = relative_position_bias(self.position(group), group)
        y = strided_attention(q, k, v, group_size=(group, group), interval=(interval, interval), bias=bias)
        return self.proj(y.flatten(3))  # type: ignore[no-any-return]


class CoolingLayer(nn.Module):
    """Depthwise convolution and norm without a shortcut, so that activations do not grow from block to block (CrossFormer++)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = DepthwiseConv(dim, 3)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each on a pre-normalised residual branch, then a cooling layer if asked for."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float, cooling: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.cooling = CoolingLayer(dim) if cooling else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return self.cooling(x)  # type: ignore[no-any-return]


class CrossFormer(Backbone):
    """CrossFormer and CrossFormer++.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage; every second one attends to distant positions.
        num_heads: attention heads per stage.
        group_sizes: rows and columns of the groups that attend to each other, per stage.
        intervals: steps between the positions of a distant group, per stage.
        cooling: whether every third block, except the last of a stage, ends with a cooling layer.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
    """

    first_conv = "patch_embed.projs.0"
    further_convs = ("patch_embed.projs.1", "patch_embed.projs.2", "patch_embed.projs.3")
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (1, 1, 8, 6),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        group_sizes: Sequence[int] = (7, 7, 7, 7),
        intervals: Sequence[int] = (8, 4, 2, 1),
        cooling: bool = False,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims, strides = ([first * 2**index for index in range(len(depths))] for first in (embed_dim, 4))
        super().__init__(in_chans=in_chans, channels=dims, strides=strides, out_norm=out_norm)
        self.patch_embed = PatchEmbed(in_chans, embed_dim)
        self.group_sizes = tuple(group_sizes)
        self.stages = nn.ModuleList()
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, blocks = dims[stage], nn.ModuleList()
            for index, rate in enumerate(rates):
                attn = GroupAttention(dim, num_heads[stage], group_sizes[stage], intervals[stage] if index % 2 else 1)
                cooled = cooling and index % 3 == 2 and index < depths[stage] - 1
                blocks.append(Block(dim, attn, mlp_ratio, rate, cooled))
            self.stages.append(Stage(PatchMerging(dim // 2) if stage else None, list(blocks)))
        self.add_out_norms()
        self.least_sides = tuple(group_sizes)  # groups shrink on smaller maps
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier."""
        places = [
            *((rf"^layers\.{index}\.downsample\.", f"backbone.stages.{index + 1}.downsample.") for index in range(3)),
            (r"^layers\.", "backbone.stages."),
            (r"^patch_embed\.", "backbone.patch_embed."),
            (r"^norm\.", "head.norm."),
            (r"^head\.", "head.fc."),
        ]
        parts = [
            (r"(.*\.downsample\.)reductions\.", r"\1projs."),
            (r"(.*\.attn\.)pos\.pos_proj\.", r"\1position.proj."),
            *((rf"(.*\.attn\.)pos\.pos{index + 1}\.", rf"\1position.layers.{index}.") for index in range(3)),
            (r"(.*\.)ex_conv\.", r"\1cooling.conv."),
            (r"(.*\.)ex_ln\.", r"\1cooling.norm."),
        ]
        return rename_keys(rename_keys(state, places, drop=r"\.attn\.(relative_position_index|biases)$"), parts)


def _variant(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, **more}


_TINY, _SMALL, _LARGE = (2, 4, 8, 16), (3, 6, 12, 24), (4, 8, 16, 32)
_PLUS: dict[str, Any] = {"group_sizes": (4, 4, 14, 7), "intervals": (4, 2, 1, 1), "cooling": True}

register_backbone(
    CrossFormer,
    {
        "crossformer_tiny": _variant(64, (1, 1, 8, 6), _TINY),
        "crossformer_small": _variant(96, (2, 2, 6, 2), _SMALL),
        "crossformer_base": _variant(96, (2, 2, 18, 2), _SMALL),
        "crossformer_large": _variant(128, (2, 2, 18, 2), _LARGE),
        "crossformer_pp_small": _variant(64, (2, 2, 18, 2), _TINY, **_PLUS),
        "crossformer_pp_base": _variant(96, (2, 2, 18, 2), _SMALL, **_PLUS),
        "crossformer_pp_large": _variant(128, (2, 2, 18, 2), _LARGE, **_PLUS),
        "crossformer_pp_huge": _variant(128, (6, 6, 18, 2), _LARGE, **_PLUS),
    },
)

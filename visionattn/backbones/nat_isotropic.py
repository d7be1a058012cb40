"""Isotropic NAT and DiNAT: a ViT on 16-pixel patches with neighborhood attention; ViT-rpb: the same with global attention.

Paper: Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001.
Upstream: github SHI-Labs/Neighborhood-Attention-Transformer, commit d334f5b (MIT), with NATTEN 0.14.

Differences from upstream:

* Any input size; upstream accepts only 224. Small maps of the neighborhood models are padded as in `nat.py`. ViT-rpb resizes its
  position tables bicubically if the grid of patches differs from the trained one.
* The twelve blocks form four stages of three, whose outputs are the maps; all have stride 16.
* The index of relative positions is computed, not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import window_attention
from visionattn.layers import NeighborhoodAttention, PatchEmbed, block_dilations, drop_path_rates


class GlobalAttention(nn.Module):
    """Multi-head attention among all positions with a learned bias per relative position and head.

    The table is made for a square grid of `grid_size`; for any other grid it is resized, so that offsets
    keep their meaning relative to the image.
    """

    def __init__(self, dim: int, num_heads: int, grid_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * grid_size - 1, 2 * grid_size - 1))
        self.proj = nn.Linear(dim, dim)

    def bias(self, height: int, width: int) -> torch.Tensor:
        """Compute the bias between the positions of a grid, `[heads, N, N]`."""
        table: torch.Tensor = self.rpb
        shape = (2 * height - 1, 2 * width - 1)
        if table.shape[1:] != shape:
            table = F.interpolate(table[None], size=shape, mode="bicubic")[0]

        def offsets(side: int) -> torch.Tensor:  # offset of query and key, from 0
            position = torch.arange(side, device=table.device)
            return position[None, :] - position[:, None] + side - 1  # key - query

        index = offsets(height)[:, None, :, None] * shape[1] + offsets(width)[None, :, None, :]  # row, column of query and key
        return table.flatten(1)[:, index.reshape(height * width, height * width)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads).unbind(3)
        x = window_attention(q, k, v, window_size=(height, width), bias=self.bias(height, width))
        return self.proj(x.reshape(batch, height, width, dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Isotropic(Backbone):
    """Shared part of both models: everything except the attention, which is passed as one module per block."""

    first_conv = "patch_embed.proj"

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        depths: Sequence[int],
        attns: Sequence[nn.Module],
        mlp_ratio: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=[embed_dim] * len(depths), strides=[16] * len(depths))
        self.patch_embed = PatchEmbed(in_chans, embed_dim, 16)
        attn = iter(attns)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(embed_dim, next(attn), mlp_ratio, rate) for rate in rates)
            for rates in drop_path_rates(drop_path_rate, depths)
        )
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.patch_embed(x), []
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = self.run_block(block, x)
            if index in self.out_indices:
                maps.append(x.permute(0, 3, 1, 2))  # B C H W
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (NeighborhoodAttention, GlobalAttention)):
                trunc_normal_(module.rpb, std=0.02)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, whose twelve blocks form one list."""
        rules = [
            *((rf"^layers\.{block}\.", f"backbone.stages.{block // 3}.{block % 3}.") for block in range(12)),
            (r"^patch_embed\.", "backbone.patch_embed."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(fc\.)?", "head.fc."),
        ]
        return rename_keys(state, rules, drop=r"relative_position_index$")


class NATIsotropic(Isotropic):
    """Isotropic NAT or DiNAT.

    Args:
        in_chans: input channels.
        embed_dim: channels.
        depths: blocks per stage; each stage ends with a map.
        num_heads: attention heads.
        kernel_size: side of a neighborhood, in positions of the map, odd.
        dilations: a number d, which means 1, d, 1, d, ... over all blocks, or one number per block.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 384,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 12,
        kernel_size: int = 7,
        dilations: int | Sequence[int] = 1,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        (steps,) = block_dilations([dilations], [sum(depths)])
        attns = [NeighborhoodAttention(embed_dim, num_heads, kernel_size, dilation) for dilation in steps]
        super().__init__(in_chans, embed_dim, depths, attns, mlp_ratio, drop_path_rate)


class ViTRPB(Isotropic):
    """ViT without class token, with relative position bias.

    Args:
        in_chans: input channels.
        embed_dim: channels.
        depths: blocks per stage; each stage ends with a map.
        num_heads: attention heads.
        grid_size: side of the grid of patches of the position tables; 14 for 224 px.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 384,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 12,
        grid_size: int = 14,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        attns = [GlobalAttention(embed_dim, num_heads, grid_size) for _ in range(sum(depths))]
        super().__init__(in_chans, embed_dim, depths, attns, mlp_ratio, drop_path_rate)


_DEPTHS = (3, 3, 3, 3)
_SMALL = {"embed_dim": 384, "depths": _DEPTHS, "num_heads": 12}
_BASE = {"embed_dim": 768, "depths": _DEPTHS, "num_heads": 24}

register_backbone(
    NATIsotropic,
    {
        "nat_isotropic_small": {**_SMALL, "dilations": 1},
        "nat_isotropic_base": {**_BASE, "dilations": 1},
        "dinat_isotropic_small": {**_SMALL, "dilations": 2},
        "dinat_isotropic_base": {**_BASE, "dilations": 2},
    },
)
register_backbone(ViTRPB, {"vitrpb_small": _SMALL, "vitrpb_base": _BASE})

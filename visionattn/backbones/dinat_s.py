"""DiNAT_s: Swin with (dilated) neighborhood attention instead of (shifted) windows.

Paper: Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001.
Upstream: github SHI-Labs/Neighborhood-Attention-Transformer, commit d334f5b (MIT), with NATTEN 0.14.

Differences from upstream: those of `nat.py`, except that position tables for another kernel size are rejected
(no rule is published for this family).
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
from visionattn.layers import NeighborhoodAttention, PatchEmbed, PatchMerging, block_dilations, drop_path_rates, init_layer


class Block(nn.Module):
    """Neighborhood attention and MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, dilation: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention(dim, num_heads, kernel_size, dilation)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class DilatedMerging(PatchMerging):
    """A patch merging without its stride: of the position itself and those `dilation` further, with zeros beyond the border."""

    def __init__(self, merging: PatchMerging, dilation: int) -> None:
        nn.Module.__init__(self)
        self.norm, self.reduction, self.dilation = merging.norm, merging.reduction, dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H W 2C
        step, (height, width) = self.dilation, x.shape[1:3]
        padded = F.pad(x, (0, 0, 0, step, 0, step))
        corners = [padded[:, row : row + height, column : column + width] for column in (0, step) for row in (0, step)]
        return self.reduction(self.norm(torch.cat(corners, -1)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Patch merging (except in the first stage), then blocks."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilations: Sequence[int],
        mlp_ratio: float,
        drop_path: Sequence[float],
        merge: bool,
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, kernel_size, dilation, mlp_ratio, rate) for dilation, rate in zip(dilations, drop_path, strict=True)
        )


class DiNATS(Backbone):
    """DiNAT_s.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        kernel_size: side of a neighborhood, in positions of the map, odd.
        dilations: per stage a number d, which means 1, d, 1, d, ... for its blocks, or one number per block.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
    """

    first_conv = "patch_embed.proj"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        kernel_size: int = 7,
        dilations: Sequence[int | Sequence[int]] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims = [embed_dim * 2**index for index in range(len(depths))]
        super().__init__(in_chans=in_chans, channels=dims, strides=[4 * 2**index for index in range(len(depths))], out_norm=out_norm)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, 4)
        settings = zip(dims, num_heads, block_dilations(dilations, depths), drop_path_rates(drop_path_rate, depths), strict=True)
        self.stages = nn.ModuleList(
            Stage(dim, heads, kernel_size, steps, mlp_ratio, rates, merge=index > 0)
            for index, (dim, heads, steps, rates) in enumerate(settings)
        )
        self.add_out_norms()
        self.init_weights()

    def dilate_stage(self, stage: Any, before: int, after: int) -> None:
        stage.downsample = DilatedMerging(stage.downsample, before)
        for block in stage.blocks:
            block.attn.dilation *= after

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
            if isinstance(module, NeighborhoodAttention):
                trunc_normal_(module.rpb, std=0.02)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and the official dense backbone."""
        # Upstream's stage i ends with the merging that starts our stage i + 1.
        moved = [(rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.downsample.") for i in range(8)]
        rules = [
            *moved,
            (r"^layers\.", "backbone.stages."),
            (r"^patch_embed\.", "backbone.patch_embed."),
            (r"^norm(\d)\.", r"backbone.out_norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(fc\.)?", "head.fc."),
        ]
        return rename_keys(state, rules)


def _variant(embed_dim: int, depths: tuple[int, ...], dilations: tuple[int, ...] = (8, 4, 2, 1)) -> dict[str, Any]:
    heads = embed_dim // 32
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": (heads, 2 * heads, 4 * heads, 8 * heads), "dilations": dilations}


register_backbone(
    DiNATS,
    {
        "dinat_s_tiny": _variant(96, (2, 2, 6, 2)),
        "dinat_s_small": _variant(96, (2, 2, 18, 2)),
        "dinat_s_base": _variant(128, (2, 2, 18, 2)),
        "dinat_s_large": _variant(192, (2, 2, 18, 2)),
        "dinat_s_large_384": _variant(192, (2, 2, 18, 2), (13, 6, 3, 1)),
    },
    {"dinat_s_large_384": {"input_size": (3, 384, 384), "crop_pct": 1.0}},
)

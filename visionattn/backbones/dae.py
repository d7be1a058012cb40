"""Encoders with attention of positions and of channels in every block, each followed by an MLP: DAE-Former and TransDAE.

Paper: Azad et al., "DAE-Former: Dual Attention-guided Efficient Transformer for Medical Image Segmentation", arXiv 2212.13504.
Upstream: github xmindflow/DAEFormer, commit a13909b (MIT); same names and results. Its decoder is the head `dae`.

Paper: Azad et al., "TransDAE: Dual Attention Mechanism in a Hierarchical Transformer for Efficient Medical Image Segmentation",
arXiv 2409.02018. Its decoder is the head `trans_dae`. No code is published; this is our reading: positions attend to a reduced map,
channels are treated by efficient attention. Channels, heads and reductions are those of the transformers it builds on
(arXiv 2109.07162), the blocks otherwise those of DAE-Former.

Differences from upstream:

* Any input size, and a classifier.
* Norms that upstream's MLPs never call are left out, also when reading its files.
* Stochastic depth, which upstream does not have, is off by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from visionattn.attention.dual_efficient import DualBlock, EfficientAttention, ReducedAttention, TransposedAttention, heads_of, init_dual
from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.layers import drop_path_rates


class OverlapEmbed(nn.Module):
    """Overlapping patches, projected and normalised: B C H W -> B H/s W/s C'."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride, patch_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Patch embedding, blocks and norm."""

    def __init__(self, downsample: OverlapEmbed, blocks: Iterable[DualBlock], dim: int) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)


class DualPyramid(Backbone):
    """Stages of dual blocks, each of which begins with overlapping patches and ends with a norm."""

    first_conv = "stages.0.downsample.proj"

    def __init__(self, in_chans: int, embed_dims: Sequence[int], blocks: Sequence[Iterable[DualBlock]], out_norm: bool) -> None:
        strides = [4 * 2**index for index in range(len(embed_dims))]
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=strides, out_norm=out_norm)
        self.stages = nn.ModuleList()
        for index, (before, dim, of_stage) in enumerate(zip([in_chans, *embed_dims], embed_dims, blocks, strict=False)):
            patch_size, stride = (3, 2) if index else (7, 4)
            self.stages.append(Stage(OverlapEmbed(before, dim, patch_size, stride), of_stage, dim))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run_block(block, x)
            x = stage.norm(x).permute(0, 3, 1, 2)
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def init_weights(self) -> None:
        init_dual(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)\.norm", (99999,))]
        return {"stem": r"^stages\.0\.downsample", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("temperature")}


class DAEFormer(DualPyramid):
    """Encoder of DAE-Former.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage.
        depths: blocks per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: for the segmentation models; the maps are always normalised.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (128, 320, 512),
        depths: Sequence[int] = (2, 2, 2),
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        blocks = [
            [DualBlock(dim, EfficientAttention(dim), TransposedAttention(dim), rate) for rate in rates]
            for dim, rates in zip(embed_dims, drop_path_rates(drop_path_rate, depths), strict=True)
        ]
        super().__init__(in_chans, embed_dims, blocks, out_norm)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official encoder."""
        outside = [(r"^head\.(fc\.)?", "head.fc.")]
        for index in range(3):
            stage = f"backbone.stages.{index}."
            outside += [
                (rf"^patch_embed{index + 1}\.", f"{stage}downsample."),
                (rf"^block{index + 1}\.", f"{stage}blocks."),
                (rf"^norm{index + 1}\.", f"{stage}norm."),
            ]
        renamed = rename_keys(state, outside, drop=r"^block\d.*\.mlp[12]\.norm[23]\.")
        return {
            key.replace(".dwconv.dwconv.", ".dwconv."): value.flatten(1) if value.dim() == 4 and ".attn." in key else value
            for key, value in renamed.items()
        }


class TransDAE(DualPyramid):
    """Encoder of TransDAE.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage.
        depths: blocks per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: for the segmentation models; the maps are always normalised.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        blocks = [
            [DualBlock(dim, ReducedAttention(dim, reduction), EfficientAttention(dim, heads_of(dim)), rate) for rate in rates]
            for dim, reduction, rates in zip(embed_dims, (8, 4, 2, 1), drop_path_rates(drop_path_rate, depths), strict=True)
        ]
        super().__init__(in_chans, embed_dims, blocks, out_norm)


register_backbone(
    DAEFormer,
    {"dae_former": {"embed_dims": (128, 320, 512), "depths": (2, 2, 2)}},
)
register_backbone(
    TransDAE,
    {"trans_dae": {"embed_dims": (64, 128, 320, 512), "depths": (2, 2, 2, 2)}},
)

"""DaViT: alternating attention among the positions of a window and among channels.

Paper: Ding et al., "DaViT: Dual Attention Vision Transformers", arXiv 2204.03645.
Upstream: github dingmyu/davit, commit fc79470 (MIT); dense mode follows the segmentation backbone in the same repository.

Differences from upstream:

* A stage's output is its last block's map, normalised only with `out_norm=True`, as in
  the segmentation backbone. Any input size is supported, as upstream's padding allows.
* davit_large, davit_huge and davit_giant with window 7 have timm's sizes; upstream's code has only
  the large one, with window 12 at 384 px (`davit_large_384`).
* Options that no released model uses are omitted: overlapping patches, an activation after the
  position convolutions, blocks without MLP, other orders of the two attentions.
* OpenMMLab's copies of the weights are loaded into the network of the authors, who trained them.
  OpenMMLab's own network pads the first convolution differently, shrinks windows on small maps and
  normalises before pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import channel_attention, window_attention
from visionattn.kernels.padding import without_padding
from visionattn.layers import drop_path_rates, init_layer, pad_to_multiple


class WindowAttention(nn.Module):
    """Multi-head attention in windows, without position encoding; padding is attended to."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        x = pad_to_multiple(x, self.window_size)
        q, k, v = self.qkv(x).view(*x.shape[:3], 3, self.num_heads, dim // self.num_heads).unbind(3)
        x = window_attention(q, k, v, window_size=(self.window_size, self.window_size))
        return self.proj(without_padding(x, height, width).reshape(batch, height, width, dim))  # type: ignore[no-any-return]


class ChannelAttention(nn.Module):
    """Multi-head attention among the channels of a head, over the whole map."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads).unbind(3)
        return self.proj(channel_attention(q, k, v).reshape(x.shape))  # type: ignore[no-any-return]


class ConvPosEnc(nn.Module):
    """Position encoding: a depthwise convolution added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each after a position encoding and on a pre-normalised residual branch."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.cpe1 = ConvPosEnc(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.cpe2 = ConvPosEnc(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = self.cpe1(x)
        x = self.cpe2(x + self.drop_path(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class DualBlock(nn.Module):
    """A block with window attention, then one with channel attention."""

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.spatial = Block(dim, WindowAttention(dim, num_heads, window_size), mlp_ratio, drop_path[0])
        self.channel = Block(dim, ChannelAttention(dim, num_heads), mlp_ratio, drop_path[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return self.channel(self.spatial(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Overlapping patches, projected and normalised."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 7, 4, 3)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/4 W/4 C
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 4).permute(0, 3, 1, 2)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Normalise, then project 2 x 2 neighbourhoods: half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(dim, 2 * dim, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 2C
        x = pad_to_multiple(self.norm(x), 2)
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Downsampling (except in the first stage), then blocks in pairs."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, window_size: int, mlp_ratio: float, drop_path: Sequence[float], downsample: bool
    ) -> None:
        super().__init__()
        self.downsample = Downsample(dim // 2) if downsample else nn.Identity()
        self.blocks = nn.ModuleList(
            DualBlock(dim, num_heads, window_size, mlp_ratio, drop_path[2 * index : 2 * index + 2]) for index in range(depth)
        )


class DaViT(Backbone):
    """Dual Attention Vision Transformer.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: pairs of a window and a channel attention block per stage.
        num_heads: heads of both attentions per stage.
        window_size: side of a window, in positions of the map.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0 over all blocks of all pairs.
        out_norm: normalise each map for dense prediction.
    """

    pool_first = True
    size_step = 1
    first_conv = "patch_embed.proj"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 1, 3, 1),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims = [embed_dim * 2**index for index in range(len(depths))]
        super().__init__(in_chans=in_chans, channels=dims, strides=[4 * 2**index for index in range(len(depths))], out_norm=out_norm)
        self.patch_embed = PatchEmbed(in_chans, embed_dim)
        rates = drop_path_rates(drop_path_rate, [2 * depth for depth in depths])
        self.stages = nn.ModuleList(
            Stage(dim, depth, heads, window_size, mlp_ratio, stage_rates, downsample=index > 0)
            for index, (dim, depth, heads, stage_rates) in enumerate(zip(dims, depths, num_heads, rates, strict=True))
        )
        self.add_out_norms()
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, the official segmentation backbone, timm, and mmpretrain's classifier."""
        # In mmpretrain stage i ends with the downsampling that starts our stage i + 1, and the final norm is numbered.
        mmpretrain = any(key.startswith("patch_embed.projection.") for key in state)
        moved = [(rf"^stages\.{i}\.downsample\.", f"backbone.stages.{i + 1}.downsample.") for i in range(3)] if mmpretrain else []
        places = [
            *moved,
            (r"^(patch_embeds\.0|patch_embed|stem)\.", "backbone.patch_embed."),
            (r"^patch_embeds\.(\d+)\.", r"backbone.stages.\1.downsample."),
            (r"^(main_blocks\.(\d+)|stages\.(\d+)\.blocks)\.(\d+)\.(0|spatial_block)\.", r"backbone.stages.\2\3.blocks.\4.spatial."),
            (r"^(main_blocks\.(\d+)|stages\.(\d+)\.blocks)\.(\d+)\.(1|channel_block)\.", r"backbone.stages.\2\3.blocks.\4.channel."),
            (r"^stages\.", "backbone.stages."),
            (r"^norm(\d)\.", "head.norm." if mmpretrain else r"backbone.out_norms.\1."),
            (r"^(norms|head\.norm)\.", "head.norm."),
            (r"^head\.(fc\.)?", "head.fc."),
        ]
        parts = [
            (r"(.*\.)cpe\.0\.", r"\1cpe1."),
            (r"(.*\.)cpe\.1\.", r"\1cpe2."),
            (r"(.*\.)attn\.w_msa\.", r"\1attn."),
            (r"(.*\.)ffn\.layers\.0\.0\.", r"\1mlp.fc1."),
            (r"(.*\.)ffn\.layers\.1\.", r"\1mlp.fc2."),
            (r"(.*\.)(conv|projection)\.", r"\1proj."),
        ]
        return rename_keys(rename_keys(state, places), parts)


def _variant(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], window_size: int = 7) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, "window_size": window_size}


register_backbone(
    DaViT,
    {
        "davit_tiny": _variant(96, (1, 1, 3, 1), (3, 6, 12, 24)),
        "davit_small": _variant(96, (1, 1, 9, 1), (3, 6, 12, 24)),
        "davit_base": _variant(128, (1, 1, 9, 1), (4, 8, 16, 32)),
        "davit_large": _variant(192, (1, 1, 9, 1), (6, 12, 24, 48)),
        "davit_large_384": _variant(192, (1, 1, 9, 1), (6, 12, 24, 48), window_size=12),
        "davit_huge": _variant(256, (1, 1, 9, 1), (8, 16, 32, 64)),
        "davit_giant": _variant(384, (1, 1, 12, 3), (12, 24, 48, 96)),
    },
    {"*": {"crop_pct": 0.9}, "davit_large_384": {"input_size": (3, 384, 384), "crop_pct": 1.0}},
)

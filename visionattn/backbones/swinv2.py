"""Swin Transformer V2: cosine attention in shifted windows, position bias from coordinates, norms after the residual branches.

Paper: Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv 2111.09883.
Upstream: github microsoft/Swin-Transformer, commit f82860b (MIT).

Differences from upstream:

* Any input size, by the rules of our Swin V1: if upstream's classifier accepts the size, window and
  shift shrink as there; otherwise, and always with `out_norm=True`, maps are padded. A padded
  position has a key of zeros and the value bias as its value, the result of projecting zeros.
* Offsets are scaled by the pretraining window if `window_size` differs from it. Upstream
  leaves this to the config of each fine-tuning run; here it is part of the variant.
* The norms at the end of the residual branches are initialised to 1e-5 instead of 0, so that every parameter
  has a gradient in the first step.
* Patch merging starts a stage instead of ending the previous one, so that a stage's output is its map.
* Coordinates, the index of relative positions and the shift mask are computed, not stored.
* Absolute position embedding (`ape`, off in all released models) is omitted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import nn

from visionattn.backbones.base import Backbone
from visionattn.backbones.registry import register_backbone
from visionattn.backbones.swin import rename_swin
from visionattn.kernels import window_attention
from visionattn.kernels.padding import without_padding
from visionattn.layers import PatchEmbed, concat_2x2, drop_path_rates, init_layer, pad_to_multiple, relative_position_bias, window_and_shift


class WindowAttention(nn.Module):
    """Multi-head cosine attention in windows; a small MLP computes the bias from relative positions (section 3.3)."""

    def __init__(self, dim: int, num_heads: int, window_size: int, pretrained_window_size: int, shift: int, dense: bool) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift, self.dense = num_heads, window_size, shift, dense
        self.pretrained_window_size = pretrained_window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))
        self.proj = nn.Linear(dim, dim)

    def bias(self, window: int) -> torch.Tensor:
        """Compute the bias between the positions of a window, `[heads, N, N]`, with values from 0 to 16."""
        offset = torch.arange(1 - window, window, device=self.logit_scale.device, dtype=torch.float32)
        offset = 8 * offset / max((self.pretrained_window_size or window) - 1, 1)
        offset = offset.sign() * (1 + offset.abs()).log2() / 3  # log-spaced; the maximum is 1 at the pretraining window
        table = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), -1).to(self.logit_scale.dtype)  # rows columns 2
        return relative_position_bias(16 * self.cpb_mlp(table).sigmoid(), window)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        window, shift = window_and_shift(height, width, self.window_size, self.shift, self.dense)
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.unbind(3)
        scale = self.logit_scale.clamp(max=math.log(100)).exp().squeeze(-1)  # heads 1
        q = scale * F.normalize(q + self.q_bias.view(self.num_heads, -1), dim=-1)
        k = F.normalize(k, dim=-1)
        # Padded here, not earlier: the gradient of normalising a key of zeros would overflow in half precision.
        q, k, v = (pad_to_multiple(y, window) for y in (q, k, v))
        v = v + self.v_bias.view(self.num_heads, -1)
        q, k, v = (y.to(qkv.dtype) for y in (q, k, v))  # under autocast, norms and biases are float32
        x = window_attention(q, k, v, window_size=(window, window), shift=(shift, shift), bias=self.bias(window), scale=1.0)
        return self.proj(without_padding(x, height, width).reshape(batch, height, width, dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Window attention and MLP, each normalised before the residual sum."""

    def __init__(self, dim: int, attn: WindowAttention, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.norm1(self.attn(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Concatenate, project and normalise 2 x 2 neighbourhoods: half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 2C
        return self.norm(self.reduction(concat_2x2(x)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Patch merging (except in the first stage), then blocks, every second one with shifted windows."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        pretrained_window_size: int,
        mlp_ratio: float,
        drop_path: Sequence[float],
        dense: bool,
        merge: bool,
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList()
        for index, rate in enumerate(drop_path):
            shift = window_size // 2 if index % 2 else 0
            attn = WindowAttention(dim, num_heads, window_size, pretrained_window_size, shift, dense)
            self.blocks.append(Block(dim, attn, mlp_ratio, rate))


class SwinV2(Backbone):
    """Swin Transformer V2.

    Args:
        in_chans: input channels.
        patch_size: stride of the first map.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: side of a window, in positions of the map; all sizes use the same weights.
        pretrained_window_sizes: window of each stage in pretraining, by which offsets are scaled if
            `window_size` is not the first of them, and with `out_norm`. Otherwise, and if a size is
            0, they are scaled by the current window.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction and pad as in Swin V1.
    """

    first_conv = "patch_embed.proj"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 8,
        pretrained_window_sizes: Sequence[int] = (8, 8, 8, 8),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims = [embed_dim * 2**index for index in range(len(depths))]
        super().__init__(
            in_chans=in_chans, channels=dims, strides=[patch_size * 2**index for index in range(len(depths))], out_norm=out_norm
        )
        self.least_sides = (1 if out_norm else window_size,) * len(depths)  # windows shrink on smaller maps
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        if window_size == pretrained_window_sizes[0] and not out_norm:
            pretrained_window_sizes = [0] * len(depths)
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            Stage(dim, heads, window_size, pretrained, mlp_ratio, stage_rates, dense=out_norm, merge=index > 0)
            for index, (dim, heads, pretrained, stage_rates) in enumerate(zip(dims, num_heads, pretrained_window_sizes, rates, strict=True))
        )
        self.add_out_norms()
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
            if isinstance(module, WindowAttention):
                nn.init.zeros_(module.q_bias)
                nn.init.zeros_(module.v_bias)
                nn.init.constant_(module.logit_scale, math.log(10))
        for stage in self.stages:
            for block in stage.blocks:
                nn.init.constant_(block.norm1.weight, 1e-5)
                nn.init.constant_(block.norm2.weight, 1e-5)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if ".cpb_mlp." in name or name.endswith("logit_scale")}

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer windows from the tables of coordinates in the authors' files: from their size and the scale of their values."""
        found = {re.search(r"layers\.(\d+)\.blocks\.0\.attn\.relative_coords_table$", key): table for key, table in state.items()}
        tables = [table for match, table in sorted((int(match[1]), table) for match, table in found.items() if match)]
        if not tables:
            return {}
        windows = [(table.shape[1] + 1) // 2 for table in tables]
        told: dict[str, Any] = {"window_size": windows[0]}
        if not any(table.is_meta for table in tables) and all(table.any() for table in tables):
            largest = [2 ** (3 * float(table.max())) - 1 for table in tables]  # 8 (window - 1) / (pretrained window - 1)
            told["pretrained_window_sizes"] = tuple(round(8 * (w - 1) / ratio) + 1 for w, ratio in zip(windows, largest, strict=True))
        return told

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, timm and torchvision."""
        renamed = rename_swin(state)
        for key in [key for key in renamed if key.endswith(".attn.qkv.bias")]:  # torchvision's; it sets the part of k to zero
            size = len(renamed[key]) // 3
            bias = renamed.pop(key)
            renamed[key.replace("qkv.bias", "q_bias")], renamed[key.replace("qkv.bias", "v_bias")] = bias[:size], bias[2 * size :]
        return renamed


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def _variant(size: str, window_size: int, pretrained_window_sizes: tuple[int, ...]) -> dict[str, Any]:
    return {**_SIZES[size], "window_size": window_size, "pretrained_window_sizes": pretrained_window_sizes}


# Windows per stage in pretraining, at 256, 256 and 192 px: the last map is 8, 8 and 6 wide.
_8, _16, _12 = (8, 8, 8, 8), (16, 16, 16, 8), (12, 12, 12, 6)
_22K = {"input_size": (3, 192, 192), "num_classes": 21841}
_384 = {"input_size": (3, 384, 384), "crop_pct": 1.0}

register_backbone(
    SwinV2,
    {
        "swinv2_tiny_window8": _variant("tiny", 8, _8),
        "swinv2_tiny_window16": _variant("tiny", 16, _16),
        "swinv2_small_window8": _variant("small", 8, _8),
        "swinv2_small_window16": _variant("small", 16, _16),
        "swinv2_base_window8": _variant("base", 8, _8),
        "swinv2_base_window16": _variant("base", 16, _16),
        "swinv2_base_window12": _variant("base", 12, _12),
        "swinv2_base_window12to16": _variant("base", 16, _12),
        "swinv2_base_window12to24": _variant("base", 24, _12),
        "swinv2_large_window12": _variant("large", 12, _12),
        "swinv2_large_window12to16": _variant("large", 16, _12),
        "swinv2_large_window12to24": _variant("large", 24, _12),
    },
    {
        "*": {"input_size": (3, 256, 256), "crop_pct": 0.9},
        "swinv2_base_window12": _22K,
        "swinv2_base_window12to24": _384,
        "swinv2_large_window12": _22K,
        "swinv2_large_window12to24": _384,
    },
)

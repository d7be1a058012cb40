"""LITv2: convolutional MLPs in the fine stages, and HiLo attention, of high frequencies in windows and of low ones to averages, after them.

Paper: Pan et al., "Fast Vision Transformers with HiLo Attention", arXiv 2205.13213.
Upstream: github ziplab/LITv2, commit 7501c86 (Apache-2.0).

Differences from upstream:

* Any input size. Upstream accepts only square maps that the windows divide; here others are padded after the norm, and an average of keys
  at the border is one of the positions that exist.
* A stage's output is its last block's map. Downsampling starts a stage instead of ending the previous one. `out_norm=True` normalises each
  map for dense prediction, as Swin does.
* The deformable convolution is written as an ordinary one of a map of interpolated positions, so that nothing has to be compiled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import dense_attention, window_attention
from visionattn.kernels.padding import without_padding
from visionattn.kernels.pooling import window_average
from visionattn.layers import DepthwiseConv, PatchEmbed, Stage, drop_path_rates, init_layer, pad_to_multiple


def interpolated(x: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Sample a map `[B, H, W, C]` at fractional positions, `rows` and `cols` `[B, h, w]`, bilinearly, with zeros outside."""
    height, width, dim = x.shape[1:]
    flat, out = x.flatten(1, 2), torch.zeros((), dtype=x.dtype, device=x.device)
    top, left = rows.floor(), cols.floor()
    for down in (0, 1):
        for right in (0, 1):
            row, col = top + down, left + right
            share = (1 - (rows - row).abs()) * (1 - (cols - col).abs())
            inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
            # Whole numbers first: offsets of a training that diverges may be NaN, which no bound holds.
            index = row.long().clamp(0, height - 1) * width + col.long().clamp(0, width - 1)
            corner = flat.gather(1, index.flatten(1)[..., None].expand(-1, -1, dim)).unflatten(1, tuple(index.shape[1:]))
            out = out + corner * (share * inside).to(x.dtype)[..., None]
    return out


class DeformableMerging(nn.Module):
    """Deformable 2x2 convolution of stride 2, batch norm, GELU: half the size.

    Each of the four positions of a 2x2 area is moved by an offset that an ordinary convolution of the area predicts.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(in_dim, 8, 2, 2)
        self.conv = nn.Conv2d(in_dim, dim, 2, 2)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 C'
        x = pad_to_multiple(x, 2)
        batch, height, width = x.shape[:3]
        wide = torch.promote_types(x.dtype, torch.float32)  # positions of a large map are not exact in bf16
        offset = self.offset(x.permute(0, 3, 1, 2)).to(wide).view(batch, 2, 2, 2, height // 2, width // 2)  # B row col (dy, dx) h w
        offset = offset.permute(3, 0, 4, 1, 5, 2).reshape(2, batch, height, width)
        place = [torch.arange(side, device=x.device, dtype=wide) for side in (height, width)]
        x = interpolated(x, place[0][:, None] + offset[0], place[1] + offset[1])
        return F.gelu(self.norm(self.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class HiLoAttention(nn.Module):
    """Multi-head attention, of which some heads attend in windows (high frequencies) and the others to averages of windows (low).

    A share `alpha` of the heads is for low frequencies; with windows of one position all are, and attend to all positions.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, alpha: float) -> None:
        super().__init__()
        self.window_size, self.head_dim = window_size, dim // num_heads
        self.low = num_heads if window_size == 1 else int(num_heads * alpha)
        self.high = num_heads - self.low
        low, high = self.low * self.head_dim, self.high * self.head_dim
        if low:
            self.l_q, self.l_kv, self.l_proj = nn.Linear(dim, low), nn.Linear(dim, 2 * low), nn.Linear(low, low)
        if high:
            self.h_qkv, self.h_proj = nn.Linear(dim, 3 * high), nn.Linear(high, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        parts = [self.attend_high(x)] if self.high else []
        return torch.cat([*parts, self.attend_low(x)], 3) if self.low else parts[0]

    def attend_high(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        q, k, v = self.h_qkv(pad_to_multiple(x, self.window_size)).unflatten(3, (3, self.high, self.head_dim)).unbind(3)
        y = window_attention(q, k, v, window_size=(self.window_size, self.window_size))
        return self.h_proj(without_padding(y, height, width).flatten(3))  # type: ignore[no-any-return]

    def attend_low(self, x: torch.Tensor) -> torch.Tensor:
        keys = x
        if self.window_size > 1:
            keys = window_average(x.permute(0, 3, 1, 2), self.window_size).permute(0, 2, 3, 1)
        q = self.l_q(x).unflatten(3, (self.low, self.head_dim))
        k, v = self.l_kv(keys).unflatten(3, (2, self.low, self.head_dim)).unbind(3)
        return self.l_proj(dense_attention(q, k, v).flatten(3))  # type: ignore[no-any-return]


class ConvMlp(nn.Module):
    """MLP with a depthwise convolution before its activation."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden, 3)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))  # type: ignore[no-any-return]


class ConvBlock(nn.Module):
    """MLP on a pre-normalised residual branch."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class HiLoBlock(ConvBlock):
    """Attention and then the MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__(dim, mlp_ratio, drop_path)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return super().forward(x + self.drop_path(self.attn(self.norm1(x))))


class LITv2(Backbone):
    """LITv2.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_sizes: side of a window, in positions of the map, per stage; 0 for blocks without attention.
        alpha: share of the heads for low frequencies.
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
        window_sizes: Sequence[int] = (0, 0, 2, 1),
        alpha: float = 0.9,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims, strides = ([first * 2**index for index in range(len(depths))] for first in (embed_dim, 4))
        super().__init__(in_chans=in_chans, channels=dims, strides=strides, out_norm=out_norm)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, 4)
        self.stages = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, window, blocks = dims[index], window_sizes[index], nn.ModuleList()
            for rate in rates:
                if window:
                    blocks.append(HiLoBlock(dim, HiLoAttention(dim, num_heads[index], window, alpha), mlp_ratio, rate))
                else:
                    blocks.append(ConvBlock(dim, mlp_ratio, rate))
            self.stages.append(Stage(DeformableMerging(dim // 2, dim) if index else None, list(blocks)))
        self.add_out_norms()
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
        for module in self.modules():
            if isinstance(module, DeformableMerging):  # which begins as an ordinary convolution
                nn.init.zeros_(module.offset.weight)
                nn.init.zeros_(module.offset.bias)  # type: ignore[arg-type]  # it has one

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
            (r"(.*\.)dconv\.conv_offset\.", r"\1offset."),
            (r"(.*\.)dconv\.", r"\1conv."),
            (r"(.*\.)norm_layer\.", r"\1norm."),
            (r"(.*\.)dwconv\.dwconv\.", r"\1dwconv."),
        ]
        return rename_keys(rename_keys(state, places), parts)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer `alpha`, in tenths, from the first block that divides its heads, which have 32 channels in all published files."""
        found = {
            match[1]: value.shape for key, value in state.items() if (match := re.search(r"s\.2\.blocks\.0\.attn\.(\w+)\.weight$", key))
        }
        low, high = found.get("l_q"), found.get("h_qkv")
        if low is None and high is None:
            return {}
        heads, of_low = (low or high)[1] // 32, low[0] // 32 if low else 0  # type: ignore[index]  # one of them is there
        alpha = next((share for share in (0.9, *(tenth / 10 for tenth in range(11))) if int(heads * share) == of_low), 0.9)
        return {} if alpha == 0.9 else {"alpha": alpha}


def _variant(embed_dim: int, depth: int, num_heads: tuple[int, ...]) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": (2, 2, depth, 2), "num_heads": num_heads}


register_backbone(
    LITv2,
    {
        "litv2_small": _variant(96, 6, (3, 6, 12, 24)),
        "litv2_medium": _variant(96, 18, (3, 6, 12, 24)),
        "litv2_base": _variant(128, 18, (4, 8, 16, 32)),
        "litv2_base_384": _variant(128, 18, (4, 8, 16, 32)),
    },
    {"litv2_base_384": {"input_size": (3, 384, 384), "crop_pct": 1.0}},
)

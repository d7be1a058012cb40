"""MedViTV2: neighborhood attention in local blocks, pooled global attention and Kolmogorov-Arnold layers in the others.

Paper: Manzari et al., "Medical image classification with KAN-integrated transformers and dilated neighborhood attention",
arXiv 2502.13693. Upstream: github Omid-Nejati/MedViTV2, commit 8d54f66 (MIT), with NATTEN 0.17.3.

As released, and kept so that its files give the same numbers:

* The dilation is 1 everywhere, whatever the title says.
* Local attention and the Kolmogorov-Arnold layers read the NCHW buffer of a map as if it were `[B, H, W, C]`: a position that they
  see mixes channels and places of the map.
* Global blocks have a convolutional feed-forward that is never run. Its tensors stay for the sake of the files and are not trained.

Differences from upstream:

* Any input size. Upstream accepts only square images from 112 px; smaller maps are padded as in `nat.py`.
* The knots of the Kolmogorov-Arnold layers are not trained, as upstream, and are read from the file.
* `merge_bn`, which does not run upstream, is omitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, make_divisible, trunc_normal_
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import dense_attention
from visionattn.layers import NeighborhoodAttention, drop_path_rates

HEAD_DIM = 32
GLOBAL_SHARE = 0.75  # channels of a global block that attend; the others are convolved


class Projection(nn.Sequential):
    """Average 2x2 positions if `stride` is 2, then change the number of channels; nothing if neither is needed."""

    def __init__(self, in_dim: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        if stride == 2:
            self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        if stride == 2 or in_dim != dim:
            self.conv = nn.Conv2d(in_dim, dim, 1, bias=False)
            self.norm = nn.BatchNorm2d(dim)


class StemLayer(nn.Sequential):
    """3x3 convolution, norm, ReLU."""

    def __init__(self, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.relu = nn.ReLU()


class ConvFeedForward(nn.Module):
    """Inverted residual with hard swish and a channel gate of `expansion` hidden units, added to its input."""

    def __init__(self, dim: int, expansion: int, kernel_size: int) -> None:
        super().__init__()
        hidden = expansion * dim
        self.expand, self.norm1 = nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.gate1, self.gate2 = nn.Linear(hidden, expansion), nn.Linear(expansion, hidden)
        self.reduce, self.norm3 = nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        y = F.hardswish(self.norm1(self.expand(x)))
        y = F.hardswish(self.norm2(self.depthwise(y)))
        gate = F.hardsigmoid(self.gate2(F.relu(self.gate1(y.mean((2, 3))))))
        return x + self.norm3(self.reduce(y * gate[..., None, None]))  # type: ignore[no-any-return]


class LocalBlock(nn.Module):
    """Neighborhood attention and the convolutional feed-forward."""

    def __init__(self, in_dim: int, dim: int, stride: int, conv_kernel: int, drop_path: float) -> None:
        super().__init__()
        self.patch_embed = Projection(in_dim, dim, stride)
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = NeighborhoodAttention(dim, dim // HEAD_DIM, kernel_size=7, dilation=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.ffn = ConvFeedForward(dim, 3, conv_kernel)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = self.patch_embed(x)
        batch, dim, height, width = x.shape
        y = self.attn(self.norm1(x).reshape(batch, height, width, dim))  # re-read, not permuted
        x = x + self.drop_path(y.reshape(x.shape))
        return x + self.ffn(self.norm2(x))  # type: ignore[no-any-return]


class PooledAttention(nn.Module):
    """Attention of all positions to averages of runs of `sr_ratio ** 2` consecutive ones; an incomplete last run is left out."""

    def __init__(self, dim: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads, self.run = dim // HEAD_DIM, sr_ratio**2
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim) if sr_ratio > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        tokens = x.flatten(2)  # B C N
        pooled = self.norm(F.avg_pool1d(tokens, self.run)) if self.run > 1 else tokens
        q, keys = self.q(x.permute(0, 2, 3, 1)), pooled.transpose(1, 2)[:, None]  # B H W C, B 1 K C
        q, k, v = (part.unflatten(-1, (self.num_heads, HEAD_DIM)) for part in (q, self.k(keys), self.v(keys)))
        return self.proj(dense_attention(q, k, v).flatten(3)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class GroupedConv(nn.Module):
    """Grouped 3x3 convolution, norm, ReLU, projection: the convolutional half of a global block."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.group_conv3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim // HEAD_DIM, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.projection = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return self.projection(F.relu(self.norm(self.group_conv3x3(x))))  # type: ignore[no-any-return]


class KANLayer(nn.Module):
    """Normalise, expand each channel in bumps around fixed knots (FasterKAN), project; arXiv 2404.19756 in another basis."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.grid = nn.Parameter(torch.empty(8), requires_grad=False)
        self.linear = nn.Linear(8 * in_dim, dim, bias=False)

    def reset_grid(self) -> None:
        with torch.no_grad():
            self.grid.copy_(torch.linspace(-2, 2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B N C
        wide = torch.promote_types(x.dtype, torch.float32)  # a bump is narrow: its steep sides multiply what bf16 rounds off
        u = F.layer_norm(x.to(wide), x.shape[-1:], self.norm.weight.to(wide), self.norm.bias.to(wide), self.norm.eps)
        bumps = 1 - torch.tanh((u[..., None] - self.grid) / 0.33).square()
        return self.linear(bumps.flatten(-2).to(x.dtype))  # type: ignore[no-any-return]


def attending(dim: int) -> int:
    """Channels of a global block that attend, a multiple of a head's."""
    return int(make_divisible(int(dim * GLOBAL_SHARE), HEAD_DIM))


class GlobalBlock(nn.Module):
    """Pooled attention in three quarters of the channels, a convolution of it for the others, then two Kolmogorov-Arnold layers."""

    def __init__(self, in_dim: int, dim: int, stride: int, sr_ratio: int, drop_path: float) -> None:
        super().__init__()
        attended = attending(dim)
        self.patch_embed = Projection(in_dim, attended, stride)
        self.norm1 = nn.BatchNorm2d(attended)
        self.attn = PooledAttention(attended, sr_ratio)
        self.projection = Projection(attended, dim - attended)
        self.conv = GroupedConv(dim - attended)
        self.norm2 = nn.BatchNorm2d(dim)
        self.kan = nn.Sequential(KANLayer(dim, 2 * dim), KANLayer(2 * dim, dim))
        self.unused = ConvFeedForward(dim, 2, kernel_size=3).requires_grad_(False)
        self.drop_attn = DropPath(drop_path * GLOBAL_SHARE) if drop_path else nn.Identity()
        self.drop_conv = DropPath(drop_path * (1 - GLOBAL_SHARE)) if drop_path else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = self.patch_embed(x)
        x = x + self.drop_attn(self.attn(self.norm1(x)))
        y = self.projection(x)
        x = torch.cat([x, y + self.drop_conv(self.conv(y))], 1)
        batch, dim, height, width = x.shape
        y = self.kan(self.norm2(x).reshape(batch, height * width, dim))  # re-read, not permuted
        return x + self.drop_path(y.reshape(x.shape))  # type: ignore[no-any-return]


class MedViTV2(Backbone):
    """MedViTV2.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage, multiples of 32; of which a quarter or so is convolved in global blocks, so from 128 there.
        depths: blocks per stage. Blocks of the first stage are local, the last of the second is global, of the
            third every third, of the fourth all.
        sr_ratios: side of the square of positions that a key of a global block averages, per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.

    Raises:
        ValueError: a number of channels that leaves none to one of the halves of a global block.
    """

    first_conv = "stem.0.conv"
    placed_attention = False  # local blocks read the map in another order, keys of global ones are averages of runs

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 192, 384),
        depths: Sequence[int] = (2, 2, 6, 1),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
    ) -> None:
        if any(dim % HEAD_DIM or attending(dim) >= dim for dim in embed_dims[1:]) or embed_dims[0] % HEAD_DIM:
            raise ValueError(f"embed_dims: expected multiples of {HEAD_DIM}, from 128 after the first stage, got {list(embed_dims)}")
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=(4, 8, 16, 32))
        self.stem = nn.Sequential(StemLayer(in_chans, 64, 2), StemLayer(64, 32, 1), StemLayer(32, 64, 1), StemLayer(64, 64, 2))
        self.stages = nn.ModuleList()
        in_dim = 64
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = nn.ModuleList()
            for index, rate in enumerate(rates):
                stride = 2 if stage and not index else 1
                if is_global(stage, index, depths[stage]):
                    blocks.append(GlobalBlock(in_dim, embed_dims[stage], stride, sr_ratios[stage], rate))
                else:
                    blocks.append(LocalBlock(in_dim, embed_dims[stage], stride, 3 if stage else 7, rate))
                in_dim = embed_dims[stage]
            self.stages.append(blocks)
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.stem(x), []
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = self.run_block(block, x)
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, NeighborhoodAttention):
                trunc_normal_(module.rpb, std=0.02)
            elif isinstance(module, KANLayer):
                module.reset_grid()

    def final_norm(self) -> nn.Module:
        return nn.BatchNorm2d(self.stage_channels[-1])

    def cam_map(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return output

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, whose blocks form one list; all models have 2, 2 and 6 blocks before the last stage."""
        places = []
        for block in range(20):
            stage = min(block // 2, 2) if block < 10 else 3
            places.append((rf"^features\.{block}\.", f"backbone.stages.{stage}.{block - (0, 2, 4, 10)[stage]}."))
        places += [(r"^stem\.", "backbone.stem."), (r"^norm\.", "head.norm."), (r"^proj_head\.0\.", "head.fc.")]
        global_blocks = {key.partition(".e_mhsa.")[0] for key in state if ".e_mhsa." in key}
        branch = {key: "unused" if key.partition(".conv.conv.")[0] in global_blocks else "ffn" for key in state if ".conv.conv." in key}
        state = {key.replace(".conv.conv.", f".{branch[key]}.") if key in branch else key: value for key, value in state.items()}
        layers = {"0": "expand", "1": "norm1", "3": "depthwise", "4": "norm2", r"6\.fc\.0": "gate1", r"6\.fc\.2": "gate2"}
        layers |= {"7": "reduce", "8": "norm3"}
        parts = [
            *((rf"(.*\.(?:ffn|unused)\.){theirs}\.", rf"\1{ours}.") for theirs, ours in layers.items()),
            (r"(.*\.kan\.)layers\.(\d)\.layernorm\.", r"\1\2.norm."),
            (r"(.*\.kan\.)layers\.(\d)\.rbf\.", r"\1\2."),
            (r"(.*\.kan\.)layers\.(\d)\.spline_linear\.", r"\1\2.linear."),
            (r"(.*\.)e_mhsa\.", r"\1attn."),
            (r"(.*\.)mhca\.", r"\1conv."),
        ]
        return rename_keys(rename_keys(state, places), parts)


def is_global(stage: int, index: int, depth: int) -> bool:
    """Whether a block is global: the last of the second stage, every third of the third, all of the fourth."""
    return (stage == 1 and index == depth - 1) or (stage == 2 and index % 3 == 2) or stage == 3


def _variant(embed_dims: tuple[int, ...], depth: int) -> dict[str, Any]:
    return {"embed_dims": embed_dims, "depths": (2, 2, 6, depth)}


register_backbone(
    MedViTV2,
    {
        "medvitv2_tiny": _variant((64, 128, 192, 384), 1),
        "medvitv2_small": _variant((64, 128, 256, 512), 2),
        "medvitv2_base": _variant((96, 192, 384, 768), 2),
        "medvitv2_large": _variant((96, 256, 512, 1024), 2),
    },
    {"*": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "crop_pct": 1.0}},
)

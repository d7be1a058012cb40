"""CAS-ViT: gates over positions and over channels of queries and keys, whose sum takes the place of their product.

Paper: Zhang et al., "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications",
arXiv 2408.03703. Upstream: github Tianfang-Zhang/CAS-ViT, commit 041d2d6 (MIT).

Differences from upstream:

* A stage's output is its last block's map. Downsampling starts a stage instead of standing between two.
* One classifier. Upstream's files have two, one of them for distillation, and average their logits: that is one linear layer
  with the average of their weights, which is what is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.layers import drop_path_rates, init_layer


def depthwise(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class Gates(nn.Module):
    """Multiply a map by a weight per position, computed from its 3x3 surroundings, and then by a weight per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(depthwise(dim), nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, 1, 1, bias=False))
        self.channel = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = x * self.spatial(x).sigmoid()
        return x * self.channel(x.mean((2, 3), keepdim=True)).sigmoid()  # type: ignore[no-any-return]


class AdditiveAttention(nn.Module):
    """Multiply the values by a convolution of gated queries plus gated keys; no softmax and no heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.oper_q, self.oper_k = Gates(dim), Gates(dim)
        self.dwc, self.proj = depthwise(dim), depthwise(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        q, k, v = self.qkv(x).chunk(3, 1)
        return self.proj(self.dwc(self.oper_q(q) + self.oper_k(k)) * v)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Convolutions, attention and MLP, each on a residual branch, the latter two after a batch norm."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.local = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), depthwise(dim), nn.GELU(), nn.Conv2d(dim, dim, 1))
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = AdditiveAttention(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = x + self.local(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Downsample(nn.Sequential):
    """3x3 convolution and batch norm: half the size."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.norm = nn.BatchNorm2d(dim)


class Stage(nn.Module):
    """Downsampling (except in the first stage), then blocks."""

    def __init__(self, in_dim: int, dim: int, mlp_ratio: float, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.downsample = Downsample(in_dim, dim) if in_dim else nn.Identity()
        self.blocks = nn.ModuleList(Block(dim, mlp_ratio, rate) for rate in drop_path)


class CASViT(Backbone):
    """CAS-ViT.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage.
        depths: blocks per stage.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    cnn = True
    size_step = 1
    first_conv = "patch_embed.0"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (48, 56, 112, 220),
        depths: Sequence[int] = (2, 2, 4, 2),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=(4, 8, 16, 32))
        first = embed_dims[0]
        self.patch_embed = nn.Sequential(
            *(nn.Conv2d(in_chans, first // 2, 3, 2, 1), nn.BatchNorm2d(first // 2), nn.ReLU()),
            *(nn.Conv2d(first // 2, first, 3, 2, 1), nn.BatchNorm2d(first), nn.ReLU()),
        )
        self.stages = nn.ModuleList(
            Stage(embed_dims[index - 1] if index else 0, embed_dims[index], mlp_ratio, rates)
            for index, rates in enumerate(drop_path_rates(drop_path_rate, depths))
        )
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.patch_embed(x), []
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run_block(block, x)
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)

    def final_norm(self) -> nn.Module:
        return nn.BatchNorm2d(self.stage_channels[-1])

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and average its two linear layers."""
        places = [
            (r"^patch_embed\.", "backbone.patch_embed."),
            *((rf"^network\.{2 * index}\.", f"backbone.stages.{index}.blocks.") for index in range(4)),
            *((rf"^network\.{2 * index - 1}\.", f"backbone.stages.{index}.downsample.") for index in range(1, 4)),
            (r"^norm\.", "head.norm."),
            (r"^head\.", "head.fc."),
        ]
        parts = [
            (r"(.*\.)local_perception\.network\.", r"\1local."),
            (r"(.*\.oper_[qk]\.)0\.block\.", r"\1spatial."),
            (r"(.*\.oper_[qk]\.)1\.block\.1\.", r"\1channel."),
            (r"(.*\.)mlp\.fc1\.", r"\1mlp.0."),
            (r"(.*\.)mlp\.fc2\.", r"\1mlp.2."),
        ]
        renamed = rename_keys(rename_keys(state, places), parts)
        for name in ("weight", "bias"):
            other = renamed.pop(f"dist_head.{name}", None)
            if other is not None:
                renamed[f"head.fc.{name}"] = (renamed[f"head.fc.{name}"] + other) / 2
        return renamed


register_backbone(
    CASViT,
    {
        "casvit_xsmall": {"embed_dims": (48, 56, 112, 220), "depths": (2, 2, 4, 2)},
        "casvit_small": {"embed_dims": (48, 64, 128, 256), "depths": (3, 3, 6, 3)},
        "casvit_medium": {"embed_dims": (64, 96, 192, 384), "depths": (3, 3, 6, 3)},
        "casvit_tiny": {"embed_dims": (96, 128, 256, 512), "depths": (3, 3, 6, 3)},
    },
)

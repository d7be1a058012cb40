"""NAT and DiNAT: each position attends to its neighborhood, dilated in every second block of DiNAT.

Papers: Hassani et al., "Neighborhood Attention Transformer", arXiv 2204.07143; Hassani and Shi, "Dilated Neighborhood
Attention Transformer", arXiv 2209.15001.
Upstream: github SHI-Labs/Neighborhood-Attention-Transformer, commit d334f5b (MIT), with NATTEN 0.14.

Differences from upstream:

* The attention is our own: NATTEN removed relative position bias in 0.20 and cannot run the released weights.
  It follows NATTEN 0.14: windows shift inward at the border, small maps are padded.
* Downsampling starts a stage instead of ending the previous one, so that a stage's output is its map.
* `dilations` accepts one number per stage for the published pattern 1, d, 1, d, ..., or lists of one number
  per block. Dense models and classifiers use different dilations with the same weights.
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
from visionattn.layers import NeighborhoodAttention, block_dilations, drop_path_rates, init_layer


class Block(nn.Module):
    """Neighborhood attention and MLP, each on a pre-normalised residual branch, scaled per channel if `layer_scale` is set."""

    def __init__(
        self, dim: int, num_heads: int, kernel_size: int, dilation: int, mlp_ratio: float, drop_path: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.norm1 = nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention(dim, num_heads, kernel_size, dilation)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        if layer_scale is not None:
            self.gamma1, self.gamma2 = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        if self.layer_scale is None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
            return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class ConvEmbed(nn.Module):
    """Two consecutive 3x3 convolutions of stride 2, then a norm."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(in_chans, dim // 2, 3, 2, 1), nn.Conv2d(dim // 2, dim, 3, 2, 1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/4 W/4 C
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class ConvDownsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm: half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 2C
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Downsampling (except in the first stage), then blocks."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilations: Sequence[int],
        mlp_ratio: float,
        drop_path: Sequence[float],
        layer_scale: float | None,
        downsample: bool,
    ) -> None:
        super().__init__()
        self.downsample = ConvDownsample(dim // 2) if downsample else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, kernel_size, dilation, mlp_ratio, rate, layer_scale)
            for dilation, rate in zip(dilations, drop_path, strict=True)
        )


class NAT(Backbone):
    """Neighborhood Attention Transformer; with dilations, the Dilated Neighborhood Attention Transformer.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        kernel_size: side of a neighborhood, in positions of the map, odd.
        dilations: per stage a number d, which means 1, d, 1, d, ... for its blocks, or one number per block.
        mlp_ratio: hidden width of the MLP relative to the channels.
        layer_scale: initial scale of the residual branches; None disables layer scale.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
    """

    first_conv = "patch_embed.proj.0"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: Sequence[int | Sequence[int]] = (1, 1, 1, 1),
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims = [embed_dim * 2**index for index in range(len(depths))]
        super().__init__(in_chans=in_chans, channels=dims, strides=[4 * 2**index for index in range(len(depths))], out_norm=out_norm)
        self.patch_embed = ConvEmbed(in_chans, embed_dim)
        settings = zip(dims, num_heads, block_dilations(dilations, depths), drop_path_rates(drop_path_rate, depths), strict=True)
        self.stages = nn.ModuleList(
            Stage(dim, heads, kernel_size, steps, mlp_ratio, rates, layer_scale, downsample=index > 0)
            for index, (dim, heads, steps, rates) in enumerate(settings)
        )
        self.add_out_norms()
        self.init_weights()

    def dilate_stage(self, stage: Any, before: int, after: int) -> None:
        conv = stage.downsample.reduction
        conv.stride, conv.dilation, conv.padding = (1, 1), (before, before), (before, before)
        for block in stage.blocks:
            block.attn.dilation *= after

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
            if isinstance(module, NeighborhoodAttention):
                trunc_normal_(module.rpb, std=0.02)
            elif isinstance(module, Block) and module.layer_scale is not None:
                nn.init.constant_(module.gamma1, module.layer_scale)
                nn.init.constant_(module.gamma2, module.layer_scale)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, the official dense backbone, and transformers (Nat, Dinat)."""
        if any("encoder.levels." in key for key in state):
            state = _from_transformers(state)
        # Upstream's stage i ends with the downsampling that starts our stage i + 1.
        moved = [(rf"^levels\.{i}\.downsample\.", f"backbone.stages.{i + 1}.downsample.") for i in range(8)]
        rules = [
            *moved,
            (r"^levels\.", "backbone.stages."),
            (r"^patch_embed\.", "backbone.patch_embed."),
            (r"^norm(\d)\.", r"backbone.out_norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(fc\.)?", "head.fc."),
        ]
        return rename_keys(state, rules)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        sides = [value.shape[-1] for key, value in state.items() if key.endswith(".rpb")]
        return {"kernel_size": (sides[0] + 1) // 2} if sides else {}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize bias tables of another kernel size bicubically, as the authors did for their 11x11 model from the 7x7 one."""
        notes: dict[str, int] = {}
        for name, table in self.named_parameters():
            given = state.get(name)
            if not name.endswith(".rpb") or given is None or given.shape == table.shape:
                continue
            if given.dim() != 3 or given.shape[0] != table.shape[0] or given.shape[1] != given.shape[2]:
                continue  # different width: the strict load reports it
            state[name] = F.interpolate(given[None].float(), size=table.shape[1:], mode="bicubic")[0].to(given.dtype)
            line = f"relative position tables {given.shape[1]}x{given.shape[1]} -> {table.shape[1]}x{table.shape[1]}, bicubic"
            notes[line] = notes.get(line, 0) + 1
        return [f"{line} ({count} tables)" for line, count in notes.items()]


def _from_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys of transformers, which splits qkv and stacks the two layer scales, to the authors'."""
    model = r"^(?:(?:di)?nat\.)?"
    block = model + r"encoder\.levels\.(\d+)\.layers\.(\d+)\."
    parts = {
        "layernorm_before": "norm1",
        "attention.self": "attn",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layer_scale_parameters": "gamma",
    }
    rules = [
        *((rf"{block}{theirs}\b", rf"levels.\1.blocks.\2.{ours}") for theirs, ours in parts.items()),
        (model + r"encoder\.", ""),
        (model + r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (model + r"embeddings\.norm\.", "patch_embed.norm."),
        (model + r"layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    ]
    state = rename_keys(state, rules)
    for key in [key for key in state if ".attn.query." in key]:
        split = [key.replace("query", part) for part in ("query", "key", "value")]
        if all(part in state for part in split):
            state[key.replace("query", "qkv")] = torch.cat([state.pop(part) for part in split])
    for key in [key for key in state if key.endswith(".gamma")]:
        state[f"{key}1"], state[f"{key}2"] = state.pop(key)
    return state


def _variant(
    embed_dim: int, depths: tuple[int, ...], mlp_ratio: float, dilations: tuple[int, ...] = (1, 1, 1, 1), **others: Any
) -> dict[str, Any]:
    heads = embed_dim // 32
    num_heads = (heads, 2 * heads, 4 * heads, 8 * heads)
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "dilations": dilations, **others}


_MINI, _DEEP = (3, 4, 6, 5), (3, 4, 18, 5)
_224, _384 = (8, 4, 2, 1), (13, 6, 3, 1)  # the largest dilations that fit the maps at this size
_CFG_384 = {"input_size": (3, 384, 384), "crop_pct": 1.0}

register_backbone(
    NAT,
    {
        "nat_mini": _variant(64, _MINI, 3.0),
        "nat_tiny": _variant(64, _DEEP, 3.0),
        "nat_small": _variant(96, _DEEP, 2.0, layer_scale=1e-5),
        "nat_base": _variant(128, _DEEP, 2.0, layer_scale=1e-5),
        "dinat_mini": _variant(64, _MINI, 3.0, _224),
        "dinat_tiny": _variant(64, _DEEP, 3.0, _224),
        "dinat_small": _variant(96, _DEEP, 2.0, _224),
        "dinat_base": _variant(128, _DEEP, 2.0, _224, layer_scale=1e-5),
        "dinat_large": _variant(192, _DEEP, 2.0, _224),
        "dinat_large_384": _variant(192, _DEEP, 2.0, _384),
        "dinat_large_384_11x11": _variant(192, _DEEP, 2.0, _224, kernel_size=11),
    },
    {"dinat_large_384": _CFG_384, "dinat_large_384_11x11": _CFG_384},
)

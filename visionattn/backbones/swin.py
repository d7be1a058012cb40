"""Swin Transformer: attention in windows that are shifted by half a window in every second block.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030.
Upstream: github microsoft/Swin-Transformer, commit f82860b (MIT); dense mode follows
SwinTransformer/Swin-Transformer-Semantic-Segmentation, commit 87e6f90 (Apache-2.0).

Differences from upstream:

* Any input size. If one window covers the shorter side of a map and the classifier accepts the
  size, window and shift shrink as in the classifier. Otherwise, and always with `out_norm=True`,
  the map is padded after the norm, then rolled, and shifted blocks are always masked, as in the
  segmentation code. A shrunken window uses the middle of its bias table, which gives the same bias for
  the same offset.
* Patch merging starts a stage instead of ending the previous one, so that a stage's output is its map.
* The index of relative positions and the shift mask are computed, not stored.
* Absolute position embedding (`ape`, off in all released models) is omitted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, trunc_normal_
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.layers import PatchEmbed, PatchMerging, SwinBlock, WindowAttention, drop_path_rates, init_layer


class Stage(nn.Module):
    """Patch merging (except in the first stage), then blocks, every second one with shifted windows."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, drop_path: Sequence[float], dense: bool, merge: bool
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window_size, window_size // 2 if index % 2 else 0, mlp_ratio, rate, dense)
            for index, rate in enumerate(drop_path)
        )


def rename_swin(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys from all published layouts of Swin V1 and V2."""
    if any(".attention.self.query." in key for key in state):
        state = _from_transformers(state)
    inside = [
        (r"(.*)\.attn\.w_msa\.", r"\1.attn."),  # OpenMMLab
        (r"(.*)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
        (r"(.*)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
        (r"(.*)\.mlp\.0\.", r"\1.mlp.fc1."),  # torchvision
        (r"(.*)\.mlp\.3\.", r"\1.mlp.fc2."),
    ]
    # Stage i of the authors and of OpenMMLab ends with the merging that starts our stage i + 1; timm's layout matches ours.
    merges_late = any(key.startswith(("layers.0.downsample.", "stages.0.downsample.")) for key in state)
    moved = [(rf"^(?:layers|stages)\.{i}\.downsample\.", f"backbone.stages.{i + 1}.downsample.") for i in range(8)] if merges_late else []
    # torchvision numbers the patch embedding, each stage and each merging as one of `features`.
    for i in range(8):
        moved.append((rf"^features\.{2 * i + 1}\.", f"backbone.stages.{i}.blocks."))
        moved.append((rf"^features\.{2 * i + 2}\.", f"backbone.stages.{i + 1}.downsample."))
    # OpenMMLab's classifier numbers its final norm by the stage, as dense backbones do.
    openmmlab_classifier = any(".w_msa." in key for key in state) and any(key.startswith("head.fc.") for key in state)
    outside = [
        *moved,
        (r"^features\.0\.0\.", "backbone.patch_embed.proj."),
        (r"^features\.0\.2\.", "backbone.patch_embed.norm."),
        (r"^patch_embed\.projection\.", "backbone.patch_embed.proj."),
        (r"^patch_embed\.", "backbone.patch_embed."),
        (r"^(?:layers|stages)\.", "backbone.stages."),
        (r"^norm\d\.", "head.norm.") if openmmlab_classifier else (r"^norm(\d)\.", r"backbone.out_norms.\1."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(fc\.)?", "head.fc."),
    ]
    derived = r"(relative_position_index|relative_coords_table|attn_mask)$"
    return rename_keys(rename_keys(state, inside, drop=derived), outside)


def _from_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys of transformers' Swin and Swinv2, which split qkv, to the authors'."""
    model = r"^(?:swin(?:v2)?\.)?"
    block = model + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
    parts = {
        "layernorm_before": "norm1",
        "attention.self.query.bias": "attn.q_bias",
        "attention.self.value.bias": "attn.v_bias",
        "attention.self.continuous_position_bias_mlp": "attn.cpb_mlp",
        "attention.self": "attn",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    rules = [
        *((rf"{block}{re.escape(theirs)}\b", rf"layers.\1.blocks.\2.{ours}") for theirs, ours in parts.items()),
        (model + r"encoder\.", ""),
        (model + r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (model + r"embeddings\.norm\.", "patch_embed.norm."),
        (model + r"layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    ]
    state = rename_keys(state, rules)
    for key in [key for key in state if key.endswith(".attn.query.weight")]:
        block_keys = {part: key.replace("query", part) for part in ("query", "key", "value")}
        if all(name in state for name in block_keys.values()):
            state[key.replace("query", "qkv")] = torch.cat([state.pop(name) for name in block_keys.values()])
        biases = [key.replace("query.weight", name) for name in ("q_bias", "key.bias", "v_bias")]
        if all(name in state for name in biases):  # of V1; the keys of V2 have no bias
            state[key.replace("query.weight", "qkv.bias")] = torch.cat([state.pop(name) for name in biases])
    return state


def from_unfold(parameter: torch.Tensor) -> torch.Tensor:
    """Reorder a merging parameter of OpenMMLab: nn.Unfold puts the channel before row and column."""
    return parameter.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)  # ... C row col -> ... col row C


def resized_window_table(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resize a table of relative position biases `[L * L, heads]` to `[side * side, heads]`."""
    old = math.isqrt(table.shape[0])
    grid = table.float().T.reshape(1, -1, old, old)
    return F.interpolate(grid, size=(side, side), mode="bicubic").view(-1, side * side).T.to(table.dtype)


class Swin(Backbone):
    """Swin Transformer.

    Args:
        in_chans: input channels.
        patch_size: stride of the first map.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: side of a window, in positions of the map.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction and pad as in the segmentation code.
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
        window_size: int = 7,
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
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            Stage(dim, heads, window_size, mlp_ratio, stage_rates, dense=out_norm, merge=index > 0)
            for index, (dim, heads, stage_rates) in enumerate(zip(dims, num_heads, rates, strict=True))
        )
        self.add_out_norms()
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
            if isinstance(module, WindowAttention):
                trunc_normal_(module.relative_position_bias_table, std=0.02)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, the official segmentation backbone, timm, torchvision, OpenMMLab and transformers."""
        renamed = rename_swin(state)
        if any(".w_msa." in key for key in state):
            for key in renamed:
                if key.endswith((".downsample.norm.weight", ".downsample.norm.bias", ".downsample.reduction.weight")):
                    renamed[key] = from_unfold(renamed[key])
        return renamed

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        tables = [value.shape[0] for key, value in state.items() if key.endswith("relative_position_bias_table")]
        return {"window_size": (math.isqrt(tables[0]) + 1) // 2} if tables else {}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize bias tables of another window bicubically, as in upstream's fine-tuning."""
        notes: dict[str, int] = {}
        for name, table in self.named_parameters():
            given = state.get(name)
            if not name.endswith("relative_position_bias_table") or given is None or given.shape == table.shape:
                continue
            old, new = (int(rows**0.5) for rows in (given.shape[0], table.shape[0]))
            if given.dim() != 2 or given.shape[1] != table.shape[1] or old**2 != given.shape[0]:
                continue  # different width: the strict load reports it
            state[name] = resized_window_table(given, new)
            line = f"relative position tables {old}x{old} -> {new}x{new}, bicubic"
            notes[line] = notes.get(line, 0) + 1
        return [f"{line} ({count} tables)" for line, count in notes.items()]


def _variant(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], window_size: int = 7) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, "window_size": window_size}


_384 = {"input_size": (3, 384, 384), "crop_pct": 1.0}

register_backbone(
    Swin,
    {
        "swin_tiny": _variant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "swin_tiny_c24": _variant(96, (2, 2, 6, 2), (4, 8, 16, 32), window_size=8),
        "swin_small": _variant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "swin_base": _variant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
        "swin_base_384": _variant(128, (2, 2, 18, 2), (4, 8, 16, 32), window_size=12),
        "swin_large": _variant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
        "swin_large_384": _variant(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12),
    },
    {"*": {"crop_pct": 0.9}, "swin_tiny_c24": {"input_size": (3, 256, 256)}, "swin_base_384": _384, "swin_large_384": _384},
)

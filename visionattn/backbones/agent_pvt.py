"""Agent-PVT: PVT with agent attention, and so without the reduction of keys and values, in all blocks.

Paper: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv 2312.08874.
Upstream: github LeapLabTHU/Agent-Attention, commit 207ce3e (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size; see `agent_attention.py` for the position biases. Position tables are resized bilinearly.
* The projections of queries, and of keys and values, are one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.backbones.agent_attention import (
    AGENTS,
    AgentAttention,
    AgentBackbone,
    Block,
    file_size,
    our_biases,
    sizes_of,
)
from visionattn.backbones.base import rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.layers import Stage, drop_path_rates, pad_to_multiple, resized


class Embedding(nn.Module):
    """Non-overlapping patches, projected and normalised, plus a table of positions."""

    def __init__(self, in_dim: int, dim: int, patch_size: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_dim, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.empty(*size, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/p W/p C'
        x = self.proj(pad_to_multiple(x, self.patch_size).permute(0, 3, 1, 2))
        return self.norm(x.permute(0, 2, 3, 1)) + resized(self.pos_embed, (x.shape[2], x.shape[3]), "bilinear")  # type: ignore[no-any-return]


def rename_pvt(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys of an official PVT and join its projections of queries, and of keys and values."""
    places = [
        (r"^patch_embed1\.", "backbone.patch_embed."),
        (r"^pos_embed1$", "backbone.patch_embed.pos_embed"),
        *((rf"^patch_embed{stage + 1}\.", f"backbone.stages.{stage}.downsample.") for stage in range(1, 4)),
        *((rf"^pos_embed{stage + 1}$", f"backbone.stages.{stage}.downsample.pos_embed") for stage in range(1, 4)),
        *((rf"^block{stage + 1}\.", f"backbone.stages.{stage}.blocks.") for stage in range(4)),
        (r"^head\.", "head.fc."),
    ]
    renamed = rename_keys(state, places)
    for key in [key for key in renamed if ".attn.kv." in key]:
        query = key.replace(".kv.", ".q.")
        renamed[key.replace(".kv.", ".qkv.")] = torch.cat([renamed.pop(query), renamed.pop(key)])
    return renamed


class AgentPVT(AgentBackbone):
    """PVT with agent attention in all blocks.

    Args:
        in_chans: input channels.
        img_size: size of the image that position tables and biases are made for.
        embed_dims: channels per stage.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        mlp_ratios: hidden width of the MLP relative to the channels, per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    first_conv = "patch_embed.proj"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=(4, 8, 16, 32))
        sizes = sizes_of(img_size, self.stage_strides)
        self.patch_embed = Embedding(in_chans, embed_dims[0], 4, sizes[0])
        self.stages = nn.ModuleList()
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, size = embed_dims[stage], sizes[stage]
            blocks = [Block(dim, self.attention(dim, num_heads[stage], stage, size), mlp_ratios[stage], rate, eps=1e-6) for rate in rates]
            self.stages.append(Stage(Embedding(embed_dims[stage - 1], dim, 2, size) if stage else None, blocks))
        self.init_weights()

    def attention(self, dim: int, num_heads: int, stage: int, size: tuple[int, int]) -> nn.Module:
        """Build the attention of a block."""
        return AgentAttention(dim, num_heads, AGENTS[stage], size)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return super().forward(x.permute(0, 2, 3, 1))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and join its projections of queries, and of keys and values."""
        renamed = our_biases(rename_pvt(state))
        for stage in range(4):
            block = f"backbone.stages.{stage}.blocks.0.attn.position."
            table = f"backbone.stages.{stage}.downsample.pos_embed" if stage else "backbone.patch_embed.pos_embed"
            size = (renamed[f"{block}ah_bias"].shape[2], renamed[f"{block}aw_bias"].shape[2])
            renamed[table] = renamed[table][0].unflatten(0, size)
        return renamed

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        return file_size(state, 4)

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize the position tables and biases of a file for images of another size."""
        notes = []
        for name, table in self.named_parameters():
            given = state.get(name)
            if name.endswith("pos_embed") and given is not None and given.shape != table.shape and given.dim() == 3:
                size = (table.shape[0], table.shape[1])
                state[name] = resized(given.float(), size, "bilinear").to(given.dtype)
                notes.append(f"position table {given.shape[0]}x{given.shape[1]} -> {size[0]}x{size[1]}, bilinear")
        return [*notes, *super().adapt(state)]


register_backbone(
    AgentPVT,
    {
        "agent_pvt_tiny": {"depths": (2, 2, 2, 2)},
        "agent_pvt_small": {"depths": (3, 4, 6, 3)},
        "agent_pvt_medium": {"depths": (3, 4, 18, 3)},
        "agent_pvt_large": {"depths": (3, 8, 27, 3)},
    },
)

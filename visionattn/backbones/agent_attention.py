"""Agent attention as a module, and what the Swin, PVT and DeiT built of it share (`agent_swin.py`, `agent_pvt.py`, `agent_deit.py`).

Paper: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv 2312.08874.
Upstream: github LeapLabTHU/Agent-Attention, commit 207ce3e (no licence); written from the paper and from recorded outputs.

Upstream accepts only square images of the size that the position biases were made for. Here the biases of rows and columns are resized
linearly to any other map, as their coarse parts are upstream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, to_2tuple, trunc_normal_
from torch import nn

from visionattn.backbones.base import Backbone
from visionattn.kernels import agent_attention
from visionattn.kernels.pooling import bin_shares
from visionattn.layers import DepthwiseConv, init_layer, same_size

GRID = 7  # side of the coarse position biases
AGENTS = (3, 4, 7, 7)  # agents per side, by stage


def pool_to(x: torch.Tensor, side: int) -> torch.Tensor:
    """Average a map `[B, H, W, ...]` over `side` x `side` areas, which overlap where it does not divide the map (adaptive pooling)."""
    rows, cols = (bin_shares(length, side, x) for length in x.shape[1:3])
    x = torch.tensordot(rows, x, dims=([1], [1])).transpose(0, 1)  # B side W ...
    return torch.tensordot(cols, x, dims=([1], [2])).movedim(0, 2)


def along(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resize the last axis of a table `[heads, agents, L]`."""
    return table if same_size(table.shape[-1:], (length,)) else F.interpolate(table, size=length, mode="linear")


class PositionBias(nn.Module):
    """Biases of each agent: a coarse map of its own, resized, plus a bias per row and one per column; for both steps of the attention."""

    def __init__(self, num_heads: int, num_agents: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.an_bias, self.na_bias = (nn.Parameter(torch.empty(num_heads, num_agents, GRID, GRID)) for _ in range(2))
        self.ah_bias, self.ha_bias = (nn.Parameter(torch.empty(num_heads, num_agents, size[0])) for _ in range(2))
        self.aw_bias, self.wa_bias = (nn.Parameter(torch.empty(num_heads, num_agents, size[1])) for _ in range(2))

    def forward(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the biases of the agents `[heads, agents, H * W]` and of the positions `[heads, H * W, agents]`."""

        def bias(coarse: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
            fine = F.interpolate(coarse, size=(height, width), mode="bilinear")
            return (fine + along(rows, height)[..., None] + along(cols, width)[..., None, :]).flatten(2)

        return bias(self.an_bias, self.ah_bias, self.aw_bias), bias(self.na_bias, self.ha_bias, self.wa_bias).transpose(1, 2)


class AgentAttention(nn.Module):
    """Multi-head agent attention plus a depthwise convolution of the values; the agents are averages of the queries."""

    def __init__(self, dim: int, num_heads: int, agents: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.agents = num_heads, agents
        self.qkv = nn.Linear(dim, 3 * dim)
        self.position = PositionBias(num_heads, agents**2, size)
        self.dwc = DepthwiseConv(dim, 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads).unbind(3)
        of_agents, of_queries = self.position(height, width)
        y = agent_attention(q, k, v, pool_to(q, self.agents), agent_bias=of_agents, query_bias=of_queries)
        return self.proj(y.flatten(3) + self.dwc(v.flatten(3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each on a pre-normalised residual branch; what a call gets besides the tokens goes to the attention."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor, **context: Any) -> torch.Tensor:  # B H W C or B N C
        x = x + self.drop_path(self.attn(self.norm1(x), **context))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class AgentBackbone(Backbone):
    """Base of the Agent and InLine networks: initialisation, and tensors whose shape depends on the image size."""

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
        for name, parameter in self.named_parameters():
            if is_table(name):
                trunc_normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if is_table(name)}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize the position biases of a file for images of another size."""
        notes: dict[str, int] = {}
        for name, table in self.named_parameters():
            given = state.get(name)
            if not name.endswith(SIZED) or given is None or given.shape == table.shape or given.shape[:2] != table.shape[:2]:
                continue
            state[name] = along(given.float(), table.shape[-1]).to(given.dtype)
            line = f"position biases {given.shape[-1]} -> {table.shape[-1]}, linear"
            notes[line] = notes.get(line, 0) + 1
        return [f"{line} ({count} tables)" for line, count in notes.items()]


SIZED = (".ah_bias", ".aw_bias", ".ha_bias", ".wa_bias")  # their last axis is a side of the map
TABLES = (*SIZED, ".an_bias", ".na_bias", ".ac_bias", ".ca_bias", ".relative_position_bias_table", "pos_embed", "cls_token")


def is_table(name: str) -> bool:
    """Whether a parameter is an embedding or bias of positions or of the class token."""
    return name.endswith(TABLES)


def sizes_of(img_size: int | tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes of the maps of an image."""
    height, width = to_2tuple(img_size)
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]


def our_biases(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move position biases to `attn.position` and remove their axes of length 1; all end in agents and then positions here."""
    result = {}
    for key, value in state.items():
        prefix, _, name = key.rpartition(".attn.")
        if name in ("ah_bias", "aw_bias"):  # 1 heads agents H 1, 1 heads agents 1 W
            value = value.flatten(3)[0]
        elif name in ("ha_bias", "wa_bias"):  # 1 heads H 1 agents, 1 heads 1 W agents
            value = value.flatten(2, 3)[0].transpose(1, 2)
        elif name in ("ac_bias", "ca_bias"):
            value = value[0]
        position = name.endswith("_bias") and name not in ("ac_bias", "ca_bias")
        result[f"{prefix}.attn.position.{name}" if position else key] = value
    return result


def file_size(state: dict[str, torch.Tensor], stride: int) -> dict[str, Any]:
    """Infer the size of the image, for which the biases of the first block were made."""
    sides = [next((value.shape for key, value in state.items() if key.endswith(name)), None) for name in SIZED[:2]]
    if sides[0] is None or sides[1] is None:
        return {}
    upstream = len(sides[0]) == 5
    height, width = stride * sides[0][3 if upstream else 2], stride * sides[1][-1]
    return {"img_size": height if height == width else (height, width)}

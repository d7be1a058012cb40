"""Agent-DeiT: a ViT on 16-pixel patches with agent attention in all blocks, or in the first four (base).

Paper: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv 2312.08874.
Upstream: github LeapLabTHU/Agent-Attention, commit 207ce3e (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size; see `agent_attention.py` for the position biases. The position table is resized bicubically.
* The twelve blocks form four stages of three, whose outputs are the maps of the patches; all have stride 16. The last map is shifted
  as a whole so that its mean is the class token: a classifier that averages it reads the class token, as upstream. The position biases of
  the patches and the convolution in the last block do not reach the classifier, as upstream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from visionattn.backbones.agent_attention import AgentBackbone, Block, PositionBias, file_size, our_biases, pool_to, sizes_of
from visionattn.backbones.base import rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import agent_attention, dense_attention
from visionattn.layers import DepthwiseConv, drop_path_rates, pad_to_multiple, resized


class ClassAgentAttention(nn.Module):
    """Multi-head agent attention of a class token and patches, plus a depthwise convolution of the patches' values.

    The class token has biases of its own; agents are averages of the queries of patches.
    """

    def __init__(self, dim: int, num_heads: int, agents: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.agents = num_heads, agents
        self.qkv = nn.Linear(dim, 3 * dim)
        self.position = PositionBias(num_heads, agents**2, size)
        self.ac_bias = nn.Parameter(torch.empty(num_heads, agents**2, 1))
        self.ca_bias = nn.Parameter(torch.empty(num_heads, 1, agents**2))
        self.dwc = DepthwiseConv(dim, 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:  # B 1+N C
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unsqueeze(1).unbind(3)  # B 1 1+N heads d
        of_agents, of_queries = self.position(*size)
        agents = pool_to(q[:, 0, 1:].unflatten(1, size), self.agents)
        of_agents, of_queries = torch.cat([self.ac_bias, of_agents], 2), torch.cat([self.ca_bias, of_queries], 1)
        y = agent_attention(q, k, v, agents, agent_bias=of_agents, query_bias=of_queries).flatten(3)[:, 0]
        near = self.dwc(v[:, 0, 1:].flatten(2).unflatten(1, size)).flatten(1, 2)
        return self.proj(y + F.pad(near, (0, 0, 1, 0)))  # type: ignore[no-any-return]


class TokenAttention(nn.Module):
    """Multi-head attention of all tokens, as in ViT."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:  # B 1+N C
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unsqueeze(1).unbind(3)
        return self.proj(dense_attention(q, k, v).flatten(3)[:, 0])  # type: ignore[no-any-return]


class AgentDeiT(AgentBackbone):
    """DeiT with agent attention in its first blocks.

    Args:
        in_chans: input channels.
        img_size: size of the image that position tables and biases are made for.
        embed_dim: channels.
        depths: blocks per stage; each stage ends with a map.
        num_heads: attention heads.
        agent_depth: how many blocks, the first ones, have agent attention; the others have ordinary attention.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    pool_first = True
    first_conv = "patch_embed"
    class_token = True

    def __init__(
        self,
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 192,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 3,
        agent_depth: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=[embed_dim] * len(depths), strides=[16] * len(depths))
        (self.grid,) = sizes_of(img_size, (16,))
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, 16, 16)
        self.cls_token = nn.Parameter(torch.empty(embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1 + self.grid[0] * self.grid[1], embed_dim))
        self.stages, index = nn.ModuleList(), 0
        for rates in drop_path_rates(drop_path_rate, depths):
            attns = [self.attention(embed_dim, num_heads, index + offset < agent_depth) for offset in range(len(rates))]
            self.stages.append(
                nn.ModuleList(Block(embed_dim, attn, mlp_ratio, rate, eps=1e-6) for attn, rate in zip(attns, rates, strict=True))
            )
            index += len(rates)
        self.init_weights()

    def attention(self, dim: int, num_heads: int, agents: bool) -> nn.Module:
        """Build the attention of a block."""
        return ClassAgentAttention(dim, num_heads, 7, self.grid) if agents else TokenAttention(dim, num_heads)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 16).permute(0, 3, 1, 2)
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # B h w C
        size = (x.shape[1], x.shape[2])
        x = (x + resized(self.pos_embed[1:].unflatten(0, self.grid), size, "bicubic")).flatten(1, 2)
        x, maps = torch.cat([(self.cls_token + self.pos_embed[0]).to(x.dtype).expand(x.shape[0], 1, -1), x], 1), []
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = self.run_block(partial(block, size=size), x)
            if index in self.out_indices:
                y = x[:, 1:]
                if index == len(self.stage_channels) - 1:
                    y = y - y.mean(1, keepdim=True) + x[:, :1]
                maps.append(y.transpose(1, 2).unflatten(2, size))  # B C h w
        return maps

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-6)

    def cam_map(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.to_places(output.transpose(1, 2)[:, :, None], (math.ceil(size[0] / 16), math.ceil(size[1] / 16)))  # of B 1+N C

    def to_queries(self, places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Put the class token, which has no place, in front of the positions."""
        return F.pad(places.flatten(-2), (1, 0)).unsqueeze(-2)

    def to_places(self, keys: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Leave out the class token."""
        return keys[..., 0, 1:].unflatten(-1, size)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^(?:patch_embed|cls_token|pos_embed)", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, whose twelve blocks form one list."""
        rules = [
            *((rf"^blocks\.{block}\.", f"backbone.stages.{block // 3}.{block % 3}.") for block in range(12)),
            (r"^patch_embed\.proj\.", "backbone.patch_embed."),
            (r"^(cls_token|pos_embed)$", r"backbone.\1"),
            (r"^norm\.", "head.norm."),
            (r"^head\.", "head.fc."),
        ]
        renamed = our_biases(rename_keys(state, rules))
        renamed["backbone.cls_token"] = renamed["backbone.cls_token"].flatten()
        renamed["backbone.pos_embed"] = renamed["backbone.pos_embed"][0]
        return renamed

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        return file_size(state, 16)

    @staticmethod
    def file_grid(state: dict[str, torch.Tensor]) -> tuple[int, int]:
        """Size of the map that the position table of a file was made for."""
        block = "stages.0.0.attn.position."
        return state[f"{block}ah_bias"].shape[2], state[f"{block}aw_bias"].shape[2]

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize the position table and biases of a file for images of another size."""
        notes, given = [], state.get("pos_embed")
        if given is not None and given.shape != self.pos_embed.shape:
            size = self.file_grid(state)
            places = resized(given[1:].float().unflatten(0, size), self.grid, "bicubic").flatten(0, 1)
            state["pos_embed"] = torch.cat([given[:1], places.to(given.dtype)])
            notes.append(f"position table {size[0]}x{size[1]} -> {self.grid[0]}x{self.grid[1]}, bicubic")
        return [*notes, *super().adapt(state)]


_DEPTHS = (3, 3, 3, 3)

register_backbone(
    AgentDeiT,
    {
        "agent_deit_tiny": {"embed_dim": 192, "num_heads": 3, "depths": _DEPTHS, "agent_depth": 12},
        "agent_deit_small": {"embed_dim": 384, "num_heads": 6, "depths": _DEPTHS, "agent_depth": 12},
        "agent_deit_base": {"embed_dim": 768, "num_heads": 12, "depths": _DEPTHS, "agent_depth": 4},
    },
)

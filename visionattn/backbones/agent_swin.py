"""Agent-Swin: Swin whose first blocks have agent attention instead of windows.

Paper: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv 2312.08874.
Upstream: github LeapLabTHU/Agent-Attention, commit 207ce3e (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size; see `agent_attention.py` for the position biases and `swin.py` for the windows.
* Agent blocks attend to the whole map. At the size that a model is made for, upstream's one window is the whole map too.
* A stage's output is its last block's map, normalised only with `out_norm=True`, as in Swin's segmentation code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import nn

from visionattn.backbones.agent_attention import AGENTS, AgentAttention, AgentBackbone, Block, file_size, our_biases, sizes_of
from visionattn.backbones.registry import register_backbone
from visionattn.backbones.swin import rename_swin, resized_window_table
from visionattn.layers import PatchEmbed, PatchMerging, Stage, SwinBlock, drop_path_rates


class AgentSwin(AgentBackbone):
    """Swin with agent attention in its first blocks.

    Args:
        in_chans: input channels.
        img_size: size of the image that position biases and windows are made for.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        agent_depths: how many of them, the first ones, have agent attention; the others have windows.
        num_heads: attention heads per stage.
        window_size: side of a window, in positions of the map.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction, and pad for windows as Swin's segmentation code.
    """

    first_conv = "patch_embed.proj"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        agent_depths: Sequence[int] = (2, 2, 6, 0),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims, strides = ([first * 2**index for index in range(len(depths))] for first in (embed_dim, 4))
        super().__init__(in_chans=in_chans, channels=dims, strides=strides, out_norm=out_norm)
        self.window_size = window_size
        self.patch_embed = PatchEmbed(in_chans, embed_dim, 4)
        self.stages, least = nn.ModuleList(), []
        sizes = sizes_of(img_size, strides)
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, heads, size = dims[stage], num_heads[stage], sizes[stage]
            window, blocks = min(window_size, *size), nn.ModuleList()
            for index, rate in enumerate(rates):
                if index < agent_depths[stage]:
                    blocks.append(Block(dim, self.attention(dim, heads, stage, size), mlp_ratio, rate, eps=1e-5))
                else:
                    shift = window // 2 if index % 2 else 0  # of no effect where a window is the whole map
                    blocks.append(SwinBlock(dim, heads, window, shift, mlp_ratio, rate, dense=out_norm))
            self.stages.append(Stage(PatchMerging(dim // 2) if stage else None, list(blocks)))
            least.append(1 if out_norm or depths[stage] <= agent_depths[stage] else window)  # windows shrink on smaller maps
        self.least_sides = tuple(least)
        self.add_out_norms()
        self.init_weights()

    def attention(self, dim: int, num_heads: int, stage: int, size: tuple[int, int]) -> nn.Module:
        """Build the attention of a block that has no windows."""
        return AgentAttention(dim, num_heads, AGENTS[stage], size)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-5)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and segmentation backbone, which are those of Swin."""
        return our_biases(rename_swin(state))

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        tables = [value.shape[0] for key, value in state.items() if key.endswith("relative_position_bias_table")]
        window = {"window_size": (math.isqrt(tables[0]) + 1) // 2} if tables else {}
        return {**file_size(state, 4), **window}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize the position biases of a file for images of another size, and its bias tables for other windows.

        Tables of another window are resized bicubically, as in `swin.py`. Where a map is smaller than the window, the middle of the
        table is taken, which is what windows that shrink on small maps read.
        """
        notes: dict[str, int] = {}
        for name, table in self.named_parameters():
            given = state.get(name)
            if not name.endswith("relative_position_bias_table") or given is None or given.shape == table.shape:
                continue
            old, new, whole = math.isqrt(given.shape[0]), math.isqrt(table.shape[0]), 2 * self.window_size - 1
            if given.dim() != 2 or given.shape[1] != table.shape[1] or old**2 != given.shape[0]:
                continue  # different width: the strict load reports it
            if old != whole:
                given = resized_window_table(given, whole)
            border = (whole - new) // 2
            state[name] = given.unflatten(0, (whole, whole))[border : border + new, border : border + new].flatten(0, 1)
            line = f"relative position tables {old}x{old} -> {new}x{new}, {'middle' if old == whole else 'bicubic'}"
            notes[line] = notes.get(line, 0) + 1
        return [*super().adapt(state), *(f"{line} ({count} tables)" for line, count in notes.items())]


def _variant(
    embed_dim: int, depths: tuple[int, ...], agent_depths: tuple[int, ...], num_heads: tuple[int, ...], **more: Any
) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "agent_depths": agent_depths, "num_heads": num_heads, **more}


def _size(size: int) -> dict[str, Any]:
    return {"input_size": (3, size, size), "crop_pct": 1.0}


_DEEP = (2, 2, 18, 2)
_SMALL, _BASE = (3, 6, 12, 24), (4, 8, 16, 32)

register_backbone(
    AgentSwin,
    {
        "agent_swin_tiny": _variant(96, (2, 2, 6, 2), (2, 2, 6, 0), _SMALL),
        "agent_swin_small": _variant(96, _DEEP, (2, 2, 0, 0), _SMALL),
        "agent_swin_small_288": _variant(96, _DEEP, (2, 2, 0, 0), _SMALL, img_size=288, window_size=9),
        "agent_swin_base": _variant(128, _DEEP, (2, 2, 2, 0), _BASE),
        "agent_swin_base_384": _variant(128, _DEEP, (2, 2, 2, 0), _BASE, img_size=384, window_size=12),
    },
    {"agent_swin_small_288": _size(288), "agent_swin_base_384": _size(384)},
)

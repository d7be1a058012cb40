"""InLine-DeiT: a ViT on 16-pixel patches with InLine attention in all blocks.

Paper: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv 2412.06590.
Upstream: github LeapLabTHU/InLine, commit e463a6f (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size: the position table is resized bicubically.
* The twelve blocks form four stages of three, whose outputs are the maps of the patches; all have stride 16. The last map is shifted as a
  whole so that its mean is the class token, see `agent_deit.py`. The convolution in the last block does not reach the classifier, as
  upstream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.backbones.agent_deit import AgentDeiT
from visionattn.backbones.inline_attention import InlineAttention, square
from visionattn.backbones.registry import register_backbone


class InLineDeiT(AgentDeiT):
    """DeiT with InLine attention in all blocks.

    Args:
        in_chans: input channels.
        img_size: size of the image that the position table is made for.
        embed_dim: channels.
        depths: blocks per stage; each stage ends with a map.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 192,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_chans=in_chans,
            img_size=img_size,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )

    def attention(self, dim: int, num_heads: int, agents: bool) -> nn.Module:
        return InlineAttention(dim, num_heads)

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer the size of the image from the position table, if it is that of a square one."""
        count = next((table.shape[-2] - 1 for key, table in state.items() if key.endswith("pos_embed") and table.dim() in (2, 3)), 0)
        side = math.isqrt(max(count, 0))
        return {"img_size": 16 * side} if side and side**2 == count else {}

    @staticmethod
    def file_grid(state: dict[str, torch.Tensor]) -> tuple[int, int]:
        return square(len(state["pos_embed"]) - 1)


_DEPTHS = (3, 3, 3, 3)

register_backbone(
    InLineDeiT,
    {
        "inline_deit_tiny": {"embed_dim": 192, "num_heads": 6, "depths": _DEPTHS},
        "inline_deit_small": {"embed_dim": 320, "num_heads": 10, "depths": _DEPTHS, "img_size": 288},
        "inline_deit_base": {"embed_dim": 384, "num_heads": 12, "depths": _DEPTHS, "img_size": 448},
    },
    {"inline_deit_small": {"input_size": (3, 288, 288)}, "inline_deit_base": {"input_size": (3, 448, 448)}},
)

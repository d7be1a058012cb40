"""InLine-PVT: PVT with InLine attention, and so without the reduction of keys and values, in all blocks.

Paper: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv 2412.06590.
Upstream: github LeapLabTHU/InLine, commit e463a6f (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size: position tables are resized bilinearly.
* The projections of queries, and of keys and values, are one layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from visionattn.backbones.agent_pvt import AgentPVT, rename_pvt
from visionattn.backbones.inline_attention import InlineAttention, square
from visionattn.backbones.registry import register_backbone


class InLinePVT(AgentPVT):
    """PVT with InLine attention in all blocks; arguments as of `AgentPVT`."""

    def attention(self, dim: int, num_heads: int, stage: int, size: tuple[int, int]) -> nn.Module:
        return InlineAttention(dim, num_heads)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and join its projections of queries, and of keys and values."""
        renamed = rename_pvt(state)
        for key, table in renamed.items():
            if key.endswith("pos_embed") and table.dim() == 3:
                renamed[key] = table[0].unflatten(0, square(table.shape[1]))
        return renamed

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer the size of the image, for which the first position table was made."""
        for key, table in state.items():
            if key.endswith(("pos_embed1", "patch_embed.pos_embed")) and table.dim() == 3:
                height, width = square(table.shape[1]) if key.endswith("1") else table.shape[:2]
                return {"img_size": 4 * height if height == width else (4 * height, 4 * width)}
        return {}


_HEADS = (2, 4, 10, 16)

register_backbone(
    InLinePVT,
    {
        "inline_pvt_tiny": {"depths": (2, 2, 2, 2), "num_heads": _HEADS},
        "inline_pvt_small": {"depths": (3, 4, 6, 3), "num_heads": _HEADS},
        "inline_pvt_medium": {"depths": (3, 4, 18, 3), "num_heads": _HEADS},
        "inline_pvt_large": {"depths": (3, 8, 27, 3), "num_heads": _HEADS},
    },
)

"""InLine-Swin: Swin whose first blocks have InLine attention instead of windows.

Paper: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv 2412.06590.
Upstream: github LeapLabTHU/InLine, commit e463a6f (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size; see `swin.py` for the windows. InLine blocks attend to the whole map, as upstream at the size of its models.
* A stage's output is its last block's map, normalised only with `out_norm=True`, as in Swin's segmentation code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from visionattn.backbones.agent_swin import AgentSwin
from visionattn.backbones.inline_attention import InlineAttention
from visionattn.backbones.registry import register_backbone


class InLineSwin(AgentSwin):
    """Swin with InLine attention in its first blocks.

    Args:
        in_chans: input channels.
        img_size: size of the image that windows are made for.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        inline_depths: how many of them, the first ones, have InLine attention; the others have windows.
        num_heads: attention heads per stage.
        window_size: side of a window, in positions of the map.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction, and pad for windows as Swin's segmentation code.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        inline_depths: Sequence[int] = (2, 2, 6, 0),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        super().__init__(
            in_chans=in_chans,
            img_size=img_size,
            embed_dim=embed_dim,
            depths=depths,
            agent_depths=inline_depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            out_norm=out_norm,
        )

    def attention(self, dim: int, num_heads: int, stage: int, size: tuple[int, int]) -> nn.Module:
        return InlineAttention(dim, num_heads)


def _variant(embed_dim: int, depth: int, inline_depths: tuple[int, ...], num_heads: tuple[int, ...]) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": (2, 2, depth, 2), "inline_depths": inline_depths, "num_heads": num_heads}


register_backbone(
    InLineSwin,
    {
        "inline_swin_tiny": _variant(96, 6, (2, 2, 6, 0), (3, 6, 12, 24)),
        "inline_swin_small": _variant(96, 18, (2, 2, 0, 0), (3, 6, 12, 24)),
        "inline_swin_base": _variant(128, 18, (2, 2, 2, 0), (4, 8, 16, 32)),
    },
)

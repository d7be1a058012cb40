"""Dual attention: position attention and channel attention.

Paper: Fu et al., "Dual Attention Network for Scene Segmentation", arXiv 1809.02983.
Upstream: open-mmlab/mmsegmentation 1.2.2 (Apache-2.0), `mmseg/models/decode_heads/da_head.py`; same names and results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.heads.base import Aux, ConvModule, Head, HeadOutput, Scale
from visionattn.kernels import dense_attention, keep_weights


class PositionAttention(nn.Module):
    """Add to each position an average of all positions weighted by similarity (section 3.2), at quadratic cost in the map size.

    Args:
        channels: channels of the map.
        reduced: channels of queries and keys.
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.query_project = nn.Conv2d(channels, reduced, 1)
        self.key_project = nn.Conv2d(channels, reduced, 1)
        self.value_project = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (project(x).permute(0, 2, 3, 1) for project in (self.query_project, self.key_project, self.value_project))
        out = dense_attention(q, k, v, scale=1.0)  # B H W C
        return self.gamma(out.permute(0, 3, 1, 2)) + x  # type: ignore[no-any-return]


class ChannelAttention(nn.Module):
    """Add to each channel an average of all channels, the least similar weighted most (section 3.3, as in the authors' code)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        energy = flat @ flat.transpose(1, 2)  # B C C
        # Not `kernels.channel_attention`: the scores are negated, and there is no q.
        weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        keep_weights("danet_channel_attention", weights, size=tuple(x.shape[2:]))
        return self.gamma((weights @ flat).view_as(x)) + x  # type: ignore[no-any-return]


class DANet(Head):
    """Logits of the sum of both attentions on the last map; in training also the logits of each.

    Args:
        channels: channels of the maps, finest first; the last is used.
        strides: strides of the maps.
        num_classes: logits per position, at the stride of the last map.
        width: channels inside the head.
        reduced: channels of the queries and keys of position attention.
        dropout: dropout rate on the features of each classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 512,
        reduced: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pam_in_conv = ConvModule(channels[-1], width, 3)
        self.pam = PositionAttention(width, reduced)
        self.pam_out_conv = ConvModule(width, width, 3)
        self.pam_conv_seg = nn.Conv2d(width, num_classes, 1)
        self.cam_in_conv = ConvModule(channels[-1], width, 3)
        self.cam = ChannelAttention()
        self.cam_out_conv = ConvModule(width, width, 3)
        self.cam_conv_seg = nn.Conv2d(width, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        positions = self.pam_out_conv(self.pam(self.pam_in_conv(maps[-1])))
        channels = self.cam_out_conv(self.cam(self.cam_in_conv(maps[-1])))
        logits = self.conv_seg(self.dropout(positions + channels))
        if not self.training:
            return HeadOutput(logits)
        pam, cam = self.pam_conv_seg(self.dropout(positions)), self.cam_conv_seg(self.dropout(channels))
        return HeadOutput(logits, (Aux("pam", pam, 1.0), Aux("cam", cam, 1.0)))

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        if "pam_conv_seg.weight" not in state:
            return None
        return {"width": state["conv_seg.weight"].shape[1], "reduced": state["pam.query_project.weight"].shape[0]}

"""CCNet (arXiv:1811.11721): recurrent criss-cross attention, https://github.com/speedinghzl/CCNet at 1fae6c67, MIT.

Names follow mmsegmentation 1.2.2, which computes the same function as the authors (written as a sum over column
and row, equal up to rounding). In the authors' files the residual factor is `gamma` [1] instead of `gamma.scale` [].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visionattn.heads.base import ConvModule, Head, HeadOutput, Scale
from visionattn.kernels import keep_weights


class CrissCrossAttention(nn.Module):
    """Attention of each position to its column and row, to itself once.

    The scores are not divided by the square root of the width; one softmax covers column and row.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query_conv = nn.Conv2d(channels, inner, 1)
        self.key_conv = nn.Conv2d(channels, inner, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        height = x.shape[2]
        itself = torch.eye(height, dtype=torch.bool, device=x.device)[:, None, :]  # H 1 H, counted in the row instead
        column = torch.einsum("bchw,bcgw->bhwg", q, k).masked_fill(itself, -torch.inf)
        row = torch.einsum("bchw,bchv->bhwv", q, k)
        # Not `kernels.dense_attention`, which would need all H * W keys and a mask. Only CCNet uses this form.
        weights = torch.cat([column, row], -1).softmax(-1).to(v.dtype)
        keep_weights("criss_cross_attention", weights, size=tuple(x.shape[2:]))
        column, row = weights[..., :height], weights[..., height:]
        attended = torch.einsum("bhwg,bcgw->bchw", column, v) + torch.einsum("bhwv,bchv->bchw", row, v)
        return self.gamma(attended) + x  # type: ignore[no-any-return]


class CCNet(Head):
    """Criss-cross attention on the last map, repeated with shared weights so that every position reaches every other.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps.
        num_classes: logits per position.
        width: channels inside the head.
        recurrence: number of times the attention is applied.
        dropout: dropout rate of whole channels before the classifier.
    """

    auxiliary = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 512,
        recurrence: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.convs = nn.Sequential(ConvModule(channels[-1], width, 3), ConvModule(width, width, 3))
        self.cca = CrissCrossAttention(width)
        self.conv_cat = ConvModule(channels[-1] + width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.init_weights()

    def forward(self, maps: list[torch.Tensor]) -> HeadOutput:
        x = self.convs[0](maps[-1])
        for _ in range(self.recurrence):
            x = self.cca(x)
        x = self.conv_cat(torch.cat([maps[-1], self.convs[1](x)], 1))
        return HeadOutput(self.conv_seg(self.dropout(x)))

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.zeros_(self.cca.gamma.scale)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the authors' `gamma` [1] to `gamma.scale` []."""
        return {
            f"{key}.scale" if key.rpartition(".")[2] == "gamma" else key: value.reshape(()) if key.endswith("gamma") else value
            for key, value in state.items()
        }

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        return {"width": state["conv_seg.weight"].shape[1]} if "cca.gamma.scale" in state else None

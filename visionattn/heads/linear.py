"""The classification head: norm and global average pooling in the order of the family, dropout, linear."""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from torch import nn


class LinearHead(nn.Module):
    """Logits from the last map.

    Args:
        channels: channels of the maps; the last map is used.
        num_classes: 0 returns the pooled features.
        norm: normalisation over NCHW, of the map or of its average.
        pool_first: pool, then norm; otherwise the map is normed, then pooled.
        drop_rate: dropout before the linear layer.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        num_classes: int,
        *,
        norm: nn.Module | None = None,
        pool_first: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = channels[-1]
        self.pool_first = pool_first
        self.norm = norm if norm is not None else nn.Identity()
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """A new linear layer, drawn anew."""
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        if isinstance(self.fc, nn.Linear):
            trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, maps: list[torch.Tensor], pre_logits: bool = False) -> torch.Tensor:  # B C H W -> B num_classes
        x = maps[-1]
        x = self.norm(x.mean((2, 3), keepdim=True)).flatten(1) if self.pool_first else self.norm(x).mean((2, 3))
        x = self.drop(x)
        return x if pre_logits else self.fc(x)  # type: ignore[no-any-return]

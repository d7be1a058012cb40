"""Classification head: norm and global average pooling in the family's order, dropout, linear layer."""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from torch import nn


class LinearHead(nn.Module):
    """Compute logits from the last map.

    Args:
        channels: channels of the maps; the last map is used.
        num_classes: number of classes; 0 returns the pooled features.
        norm: normalisation over NCHW, of the map or of its average.
        pool_first: pool before the norm instead of after it.
        global_pool: "avg", or "" for features and logits per position, `[B, C, H, W]`.
        drop_rate: dropout before the linear layer.

    Raises:
        ValueError: unknown `global_pool`.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        num_classes: int,
        *,
        norm: nn.Module | None = None,
        pool_first: bool = False,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = channels[-1]
        self.pool_first = pool_first
        self.norm = norm if norm is not None else nn.Identity()
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer; `global_pool=None` keeps the pooling."""
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise ValueError(f'global_pool: expected "avg" or "", got {global_pool!r}')
            self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        if isinstance(self.fc, nn.Linear):
            trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, maps: list[torch.Tensor], pre_logits: bool = False) -> torch.Tensor:  # B C H W -> B num_classes
        x = maps[-1]
        if self.pool_first and self.global_pool:
            x = self.norm(x.mean((2, 3), keepdim=True)).flatten(1)
        else:
            x = self.norm(x)
            x = x.mean((2, 3)) if self.global_pool else x
        x = self.drop(x)
        return x if pre_logits else self.fc(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]  # no-op if pooled

"""Attention map of dynamic subspace learners.

Paper: Adiga V et al., "Attention-based Dynamic Subspace Learners for Medical Image Analysis", arXiv 2206.09068.
Upstream: github adigasu/Dynamic_subspace_learners, commit 84fce0a (MIT); same results. Their network multiplies its last map by this one
before pooling.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class DSL(nn.Module):
    """Scale each position by a gate from three 3x3 convolutions, which see 7 x 7 positions.

    Args:
        channels: channels of the map; the convolutions have an eighth, a thirty-second (at least 2) and 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, narrow = max(2, channels // 8), max(2, channels // 32)
        self.layer1 = nn.Conv2d(channels, wide, 3, padding=1)
        self.layer2 = nn.Conv2d(wide, narrow, 3, padding=1)
        self.layer3 = nn.Conv2d(narrow, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return x * self.gate(x)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the attention map `[B, 1, H, W]`, in (0, 1)."""
        return self.layer3(F.relu(self.layer2(F.relu(self.layer1(x))))).sigmoid()  # type: ignore[no-any-return]

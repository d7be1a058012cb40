"""Context broadcasting.

Paper: Hyeon-Woo et al., "Scratching Visual Transformer's Back with Uniform Attention", arXiv 2210.08457: attention with equal weights,
which the paper adds to the MLPs of a vision transformer.
"""

from __future__ import annotations

import torch
from torch import nn


class ContextBroadcasting(nn.Module):
    """Average each position with the mean over all positions; nothing is learned.

    Args:
        channels: not used.
    """

    share: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # A tensor, so that a file tells that its network has this module.
        self.register_buffer("share", torch.empty(()))
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return x + self.share * (x.mean((2, 3), keepdim=True) - x)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.share, 0.5)

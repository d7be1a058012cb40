"""Squeeze and excitation.

Paper: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507.
Same names and results as github moskomule/senet.pytorch, commit 8cb2669 (MIT), whose layers have no biases; the authors' code is for Caffe.
"""

from __future__ import annotations

import torch
from torch import nn


class SE(nn.Module):
    """Scale each channel by a gate that an MLP computes from the means of all channels.

    Args:
        channels: channels of the map.
        reduction: the hidden layer has `channels / reduction` units, at least one.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc = nn.Sequential(nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]  # type: ignore[no-any-return]

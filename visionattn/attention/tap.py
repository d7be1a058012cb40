"""Token-aware average pooling, and the loss that keeps the rows of an attention map apart.

Paper: Guo et al., "Robustifying Token Attention for Vision Transformers", arXiv 2303.11126.
Upstream: github guoyongcs/TAPADL, commit 6e4dbff (MIT); same results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.kernels import dilated_depthwise_conv2d


class TAP(nn.Module):
    """Mix each position's own values with the means of its 3 x 3 neighbours at growing distances.

    Args:
        channels: channels of the map.
        scales: means to choose from: the position itself, then neighbours at distances 1, 2, ...
    """

    def __init__(self, channels: int, *, scales: int = 4) -> None:
        super().__init__()
        self.scales = scales
        self.conv1 = nn.Conv2d(channels, scales, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(scales)
        self.conv2 = nn.Conv2d(scales, scales, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        share = self.conv2(self.norm(self.conv1(x))).softmax(1)
        ninth = x.new_full((x.shape[1], 1, 3, 3), 1 / 9)  # of nine positions also at the border, beyond which are zeros
        out = share[:, :1] * x
        for distance in range(1, self.scales):
            out = out + share[:, distance : distance + 1] * dilated_depthwise_conv2d(x, ninth, dilation=distance)
        return out


def attention_diversification(maps: Sequence[torch.Tensor], threshold: float = 2.0) -> torch.Tensor:
    """Compute how similar the rows of attention maps are to their mean: a loss to add, with weight 1 in the paper.

    The maps have to be complete: those of windows or neighborhoods have no row in common.

    Args:
        maps: of each layer the weights of N queries for N keys after the softmax, `[B, heads, N, N]`, with gradients.
        threshold: values below this many times the mean, 1 / N, count as 0.

    Returns:
        The mean cosine over rows, images and layers, float32 or wider. Where the mean row is below the threshold everywhere, it is 0.
    """
    cosines = []
    for weights in maps:
        mean = weights.mean(1).to(torch.promote_types(weights.dtype, torch.float32))  # B N N
        least = threshold / mean.shape[-1]
        rows, common = (part.where(part >= least, 0) for part in (mean, mean.mean(1, keepdim=True)))
        cosines.append(F.cosine_similarity(rows, common, dim=-1).mean())
    return torch.stack(cosines).mean()

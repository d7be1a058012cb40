"""Dual attention at linear cost, of positions and of channels, with an MLP after each.

Paper: Azad et al., "DAE-Former: Dual Attention-guided Efficient Transformer for Medical Image Segmentation", arXiv 2212.13504;
its parts are efficient attention (Shen et al., arXiv 1812.01243), transposed attention (Zamir et al., arXiv 2111.09881; El-Nouby et al.,
arXiv 2106.09681) and the mixing MLP of MISSFormer (Huang et al., arXiv 2109.07162).
Upstream: github xmindflow/DAEFormer, commit a13909b (MIT); same names and results, without norms that it never calls.
"""

from __future__ import annotations

import math

import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F

from visionattn.attention.efficient import efficient_attention
from visionattn.kernels import channel_attention, dense_attention


def heads_of(dim: int, head_dim: int = 64) -> int:
    """Number of heads of at least `head_dim` channels, or one."""
    return next(heads for heads in range(max(1, dim // head_dim), 0, -1) if dim % heads == 0)


class EfficientAttention(nn.Module):
    """Efficient attention among the positions of a map."""

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.keys = nn.Linear(dim, dim)
        self.queries = nn.Linear(dim, dim)
        self.values = nn.Linear(dim, dim)
        self.reprojection = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        tokens = x.flatten(1, 2)
        q, k, v = (
            project(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in (self.queries, self.keys, self.values)
        )  # B heads N d
        return self.reprojection(efficient_attention(q, k, v).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class ReducedAttention(nn.Module):
    """Attention of all positions to those of a map reduced by a strided convolution (arXiv 2102.12122).

    Args:
        dim: channels; at least 64 per head.
        reduction: stride of the convolution.
    """

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.num_heads, self.reduction = heads_of(dim), reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        seen = x
        if self.reduction > 1:
            right, bottom = -x.shape[2] % self.reduction, -x.shape[1] % self.reduction
            seen = self.reduce(F.pad(x.permute(0, 3, 1, 2), (0, right, 0, bottom)))
            seen = self.norm(seen.permute(0, 2, 3, 1))
        q = self.q(x).unflatten(3, (self.num_heads, -1))
        k, v = self.kv(seen).unflatten(3, (2, self.num_heads, -1)).unbind(3)
        return self.proj(dense_attention(q, k, v).flatten(3))  # type: ignore[no-any-return]


class TransposedAttention(nn.Module):
    """Attention among the channels of each head, by the cosine of their maps times a learned temperature.

    There are 8 heads, or the most that divide 8 and `dim`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = math.gcd(dim, 8)
        self.temperature = nn.Parameter(torch.empty(self.num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        q, k, v = self.qkv(x).unflatten(3, (3, self.num_heads, -1)).unbind(3)  # B H W heads d
        q, k = (F.normalize(y.flatten(1, 2), dim=1).view(y.shape) for y in (q, k))
        # The operation mixes its first argument, by comparing the other two.
        out = channel_attention(v, q * self.temperature.flatten()[:, None], k, scale=1.0)
        return self.proj(out.flatten(3))  # type: ignore[no-any-return]

    def reset_temperature(self) -> None:
        nn.init.ones_(self.temperature)


class MixMlp(nn.Module):
    """MLP with a depthwise 3x3 convolution and a shortcut around it before the activation."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = self.fc1(x)
        near = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(self.norm1(x + near)))  # type: ignore[no-any-return]


class DualBlock(nn.Module):
    """Attention of positions, MLP, attention of channels, MLP, each on a pre-normalised residual branch; B H W C throughout."""

    def __init__(self, dim: int, attn: nn.Module, channel_attn: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp1 = MixMlp(dim, 4 * dim)
        self.norm3 = nn.LayerNorm(dim)
        self.channel_attn = channel_attn
        self.norm4 = nn.LayerNorm(dim)
        self.mlp2 = MixMlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp1(self.norm2(x)))
        x = x + self.drop_path(self.channel_attn(self.norm3(x)))
        return x + self.drop_path(self.mlp2(self.norm4(x)))  # type: ignore[no-any-return]


def init_dual(network: nn.Module) -> None:
    """Initialise linear layers and convolutions as torch does, norms, and temperatures with 1."""
    for module in network.modules():
        if isinstance(module, TransposedAttention):
            module.reset_temperature()
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
            module.reset_parameters()

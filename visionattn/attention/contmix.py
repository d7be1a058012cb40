"""ContMix: convolution with kernels that a network predicts for each position from the context of the whole map.

Paper: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", arXiv 2502.20087.
Upstream: github LMMMEng/OverLoCK, commit 2c8ab3b (Apache-2.0). The modules have upstream's names of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import nn

from visionattn.errors import UserError
from visionattn.kernels import neighborhood_aggregate, neighborhood_bias
from visionattn.kernels.pooling import adaptive_average

REGIONS = 7  # side of the grid of averages that kernels are predicted from

# Kernel size -> kernel size and dilation of the parallel convolutions that its parameters are trained with.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def merge_branches(tensors: Mapping[str, torch.Tensor], kernel_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute weight and bias of the one convolution that equals those of a `DilatedReparam`, given its tensors."""

    def scaled(conv: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
        weight = tensors[f"{conv}.weight"].double()
        factor, shift, mean, variance = (tensors[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var"))
        factor = factor / (variance + 1e-5).sqrt()
        return weight * factor[:, None, None, None], shift - mean * factor

    weight, bias = scaled("lk_origin", "origin_bn")
    for size, dilation in BRANCHES[kernel_size]:
        part, shift = scaled(f"dil_conv_k{size}_{dilation}", f"dil_bn_k{size}_{dilation}")
        span = (size - 1) * dilation + 1
        taps = slice((kernel_size - span) // 2, (kernel_size + span) // 2, dilation)
        weight[:, :, taps, taps] += part
        bias = bias + shift
    like = tensors["lk_origin.weight"]
    return weight.to(like.dtype), bias.to(like.dtype)


def convolve_within(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:  # B C H W
    """Apply a depthwise convolution that keeps the size, without the taps that lie outside a small map for each of its positions."""
    half, dilation = conv.kernel_size[0] // 2, conv.dilation[0]
    rows, cols = (min(half, (side - 1) // dilation) for side in x.shape[2:])
    if (rows, cols) == (half, half) or torch.compiler.is_compiling():  # a traced graph may have no fixed size
        return conv(x)  # type: ignore[no-any-return]
    weight = conv.weight[:, :, half - rows : half + rows + 1, half - cols : half + cols + 1]
    return F.conv2d(x, weight, conv.bias, padding=(rows * dilation, cols * dilation), dilation=dilation, groups=conv.groups)


class DilatedReparam(nn.Module):
    """Depthwise convolution of a large kernel, trained as a sum of it and of dilated convolutions, each with a batch norm.

    Args:
        dim: channels.
        kernel_size: side of the large kernel, a key of `BRANCHES`.
        deploy: whether it is the one convolution with a bias that `reparameterize` makes of them.
    """

    def __init__(self, dim: int, kernel_size: int, deploy: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.deploy = kernel_size, deploy
        self.lk_origin = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=deploy)
        if deploy:
            return
        self.origin_bn = nn.BatchNorm2d(dim)
        for size, dilation in BRANCHES[kernel_size]:
            conv = nn.Conv2d(dim, dim, size, padding=(size - 1) * dilation // 2, dilation=dilation, groups=dim, bias=False)
            self.add_module(f"dil_conv_k{size}_{dilation}", conv)
            self.add_module(f"dil_bn_k{size}_{dilation}", nn.BatchNorm2d(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        y = convolve_within(self.lk_origin, x)
        if not self.deploy:
            y = self.origin_bn(y)
            for size, dilation in BRANCHES[self.kernel_size]:
                conv, norm = (getattr(self, f"dil_{part}_k{size}_{dilation}") for part in ("conv", "bn"))
                y = y + norm(convolve_within(conv, x))
        return y

    def reparameterize(self) -> None:
        """Replace the convolutions and their norms, with the statistics that evaluation uses, by one convolution with a bias."""
        if self.deploy:
            return
        weight, bias = merge_branches(self.state_dict(), self.kernel_size)
        merged = DilatedReparam(len(weight), self.kernel_size, deploy=True).lk_origin.to(weight.device, weight.dtype)
        merged.load_state_dict({"weight": weight, "bias": bias})
        for name in list(self._modules):
            delattr(self, name)
        self.lk_origin, self.deploy = merged, True


class ResidualDepthwise(nn.Conv2d):
    """A map plus its depthwise 3x3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return x + super().forward(x)


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate computed from the averages of all channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(16, dim // 8)
        self.proj = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return x * self.proj(x)  # type: ignore[no-any-return]


class GRN(nn.Module):
    """Global response normalisation: scale each channel by its norm over the map relative to that of the others (arXiv 2301.00808)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.empty(1, dim, 1, 1)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        relative = norm / (norm.mean(1, keepdim=True) + 1e-6)
        return (self.gamma * relative + 1) * x + self.beta  # type: ignore[no-any-return]


class ChannelAffine(nn.Module):
    """A factor and an offset per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, 1, 1))  # upstream: a depthwise 1x1 convolution
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)  # type: ignore[no-any-return]


def init_parts(network: nn.Module) -> None:
    """Initialise all parameters of a network of these modules; the biases of its kernels, `rpb1` and `rpb2`, begin at 0."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, LayerNorm2d, GRN, ChannelAffine)):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, MixingBlock):
            nn.init.zeros_(module.rpb1)
            nn.init.zeros_(module.rpb2)


def conv_mlp(dim: int, hidden: int) -> list[nn.Module]:
    """MLP with a depthwise convolution and a response normalisation of its hidden units."""
    return [nn.Conv2d(dim, hidden, 1), nn.GELU(), ResidualDepthwise(hidden), GRN(hidden), nn.Conv2d(hidden, dim, 1)]


class MixingBlock(nn.Module):
    """What ContMix and the blocks of OverLoCK's focus network share; see `mix` for the convolution with predicted kernels.

    Args:
        dim: channels of the image.
        context_dim: channels of the context, which are concatenated to them; 0 for none.
        kernel_size: side of the large predicted kernels, of half the channels.
        small_kernel: side of those of the other half.
        num_heads: half of the number of kernels per position and size; four times as many divide `dim`.
        hidden: hidden channels of the MLP.
        drop_path: stochastic depth.
        deploy: see `DilatedReparam`.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        kernel_size: int,
        small_kernel: int,
        num_heads: int,
        hidden: int,
        drop_path: float = 0.0,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        if dim % (4 * num_heads):
            fix = "choose another width or number of heads"
            raise UserError(
                "VA-M002", f"ContMix with num_heads={num_heads} takes multiples of {4 * num_heads} channels, not {dim}", fix=fix
            )
        width = dim + context_dim
        self.kernel_size, self.small_kernel, self.num_groups = kernel_size, small_kernel, 2 * num_heads
        self.rpb1, self.rpb2 = (nn.Parameter(torch.empty(self.num_groups, 2 * k - 1, 2 * k - 1)) for k in (small_kernel, kernel_size))
        self.dwconv1, self.norm1 = ResidualDepthwise(width), LayerNorm2d(width)
        self.weight_query = nn.Sequential(nn.Conv2d(dim, dim // 2, 1, bias=False), nn.BatchNorm2d(dim // 2))
        key = nn.Conv2d(context_dim or dim, dim // 2, 1, bias=False)
        self.weight_key = nn.Sequential(Regions(), key, nn.BatchNorm2d(dim // 2))
        self.weight_proj = nn.Conv2d(REGIONS**2, small_kernel**2 + kernel_size**2, 1)
        self.lepe = nn.Sequential(DilatedReparam(dim, kernel_size, deploy), nn.BatchNorm2d(dim))
        self.se_layer = SqueezeExcite(dim)
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.SiLU())
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, width, 1))
        self.dwconv2, self.norm2 = ResidualDepthwise(width), LayerNorm2d(width)
        self.mlp = nn.Sequential(*conv_mlp(width, hidden))
        self.ls1, self.ls2 = ChannelAffine(width), ChannelAffine(width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def reset_parameters(self) -> None:
        """Initialise all parameters."""
        init_parts(self)

    def mix(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Convolve the values, each group of channels with kernels of its own for each position.

        The similarity of a position's query to 7 x 7 averages of the keys is mapped to the entries of its kernels. A bias per relative
        position is added, and a softmax over each kernel taken. The windows are those of neighborhood attention, shifted inward at the
        border. A map smaller than the large kernel is enlarged for this, and averaged afterwards.

        Args:
            query, value: `[B, C, H, W]`.
            key: `[B, C', H, W]`.

        Returns:
            `[B, C, H, W]`.
        """
        batch, dim, height, width = value.shape
        size = enlarged_size(height, width, self.kernel_size)
        if size != (height, width):
            query, key, value = (F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (query, key, value))
        queries = (self.weight_query(query) * (dim / self.num_groups) ** -0.5).unflatten(1, (self.num_groups, -1)).flatten(3)
        keys = self.weight_key(key).unflatten(1, (self.num_groups, -1)).flatten(3)  # B G d 49
        # The map from similarities to entries of kernels, which is linear, is taken to the keys: they are fewer than the positions.
        entries = keys @ self.weight_proj.weight.flatten(1).transpose(0, 1)  # B G d n
        scores = (queries.transpose(2, 3) @ entries + self.weight_proj.bias).unflatten(2, size)  # B G H W n
        halves = value.view(batch, 2, self.num_groups, -1, *size).permute(1, 0, 4, 5, 2, 3)  # 2 B H W G d
        out, first = [], 0
        for bias, half in zip((self.rpb1, self.rpb2), halves.unbind(0), strict=True):
            kernel = (bias.shape[1] + 1) // 2
            logits = scores[..., first : first + kernel**2] + neighborhood_bias(bias, *size)
            weights = logits.softmax(-1).to(value.dtype).permute(0, 2, 3, 1, 4)
            out.append(neighborhood_aggregate(weights, half, kernel).flatten(3))
            first += kernel**2
        mixed = torch.cat(out, 3).permute(0, 3, 1, 2)
        return mixed if size == (height, width) else adaptive_average(mixed, (height, width))

    def complete(self, identity: torch.Tensor, mixed: torch.Tensor, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Add mixed and convolved values, gated, to the identity, and then the MLP."""
        y = self.se_layer(mixed + self.lepe(value)) * self.gate(gate)
        x = self.dwconv2(self.ls1(identity) + self.drop_path(self.proj(y)))
        return self.ls2(x) + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Regions(nn.Module):
    """Averages of a map over a grid of regions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W -> B C 7 7
        return adaptive_average(x, (REGIONS, REGIONS))


def enlarged_size(height: int, width: int, kernel_size: int) -> tuple[int, int]:
    """Size of a map enlarged until its smaller side is the kernel's, in proportion; its own if it is large enough."""
    if isinstance(height, torch.SymInt) or min(height, width) >= kernel_size:  # a graph of open size takes none that is smaller
        return height, width
    longer = max(int(kernel_size / min(height, width) * max(height, width)), kernel_size)
    return (kernel_size, longer) if height <= width else (longer, kernel_size)


class ContMix(MixingBlock):
    """OverLoCK's block for a map without a context besides it: mixing with predicted kernels, and an MLP, on residual branches.

    Args:
        channels: channels of the map, a multiple of 4.
        kernel_size: side of the large predicted kernels, an odd number from 5 to 17.
        small_kernel: side of the small ones, at most that of the large ones.
        num_heads: half of the number of kernels per position and size; the greatest common divisor with a quarter of the channels is used.
        mlp_ratio: hidden channels of the MLP relative to the channels.

    Raises:
        UserError: VA-M002, four does not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        small_kernel: int = 5,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
    ) -> None:
        num_heads = math.gcd(channels // 4, num_heads) if channels % 4 == 0 else 1
        super().__init__(channels, 0, kernel_size, small_kernel, num_heads, int(channels * mlp_ratio))
        self.weight_value = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.fusion_proj = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = self.dwconv1(x)
        y = self.norm1(x)
        mixed = self.fusion_proj(self.mix(y, y, self.weight_value(y)))
        return self.complete(x, mixed, y, y)

"""Layers and functions shared by at least two families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from visionattn.kernels import dilated_depthwise_conv2d, neighborhood_attention, window_attention
from visionattn.kernels.padding import without_padding


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth per block of each stage, growing linearly from 0 at the first block to `rate` at the last."""
    last = max(sum(depths) - 1, 1)
    starts = [sum(depths[:index]) for index in range(len(depths))]
    return [[rate * (start + block) / last for block in range(depth)] for start, depth in zip(starts, depths, strict=True)]


def pad_to_multiple(x: torch.Tensor, size: int) -> torch.Tensor:
    """Pad `[B, H, W, ...]` with zeros at the bottom and right until `size` divides both sides."""
    # Without negative numbers: exported to ONNX, they are divided towards zero.
    bottom, right = ((side + size - 1) // size * size - side for side in x.shape[1:3])
    if not torch.compiler.is_exporting() and not bottom and not right:
        return x  # F.pad copies even without padding; an exported graph may need some at other sizes
    return F.pad(x, (0, 0) * (x.dim() - 3) + (0, right, 0, bottom))


def pad_to_least(x: torch.Tensor, size: int) -> torch.Tensor:
    """Pad `[B, H, W, C]` with zeros at the bottom and right to sides of at least `size`."""
    bottom, right = (torch.sym_max(size - side, 0) for side in x.shape[1:3])
    if not torch.compiler.is_exporting() and not bottom and not right:
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))  # type: ignore[arg-type]  # sizes of an exported graph are symbols


def same_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; in an exported graph, whether they are at all sizes that it takes."""
    if torch.compiler.is_exporting():
        return all(statically_known_true(a == b) for a, b in zip(one, other, strict=True))
    return tuple(one) == tuple(other)


def resized(table: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resize a table `[H, W, C]` of positions."""
    if same_size(table.shape[:2], size):
        return table
    return F.interpolate(table.permute(2, 0, 1)[None], size=size, mode=mode)[0].permute(1, 2, 0)


class KeptStatistics:
    """Context in which the batch norms of a module leave their running statistics as they are; it may be entered again."""

    def __init__(self, module: object) -> None:
        modules = module.modules() if isinstance(module, nn.Module) else ()
        self.norms = [norm for norm in modules if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        self.before: list[tuple[float | None, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        for norm in self.norms:
            count = norm.num_batches_tracked
            self.before.append((norm.momentum, None if count is None else count.clone()))
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
        self.before.clear()


def recomputed(block: Callable[..., Any], *inputs: torch.Tensor) -> Any:
    """Call a block, whose activations are computed again in the backward pass; the batch norms in it see a batch once all the same.

    Args:
        block: a module, or a `partial` of one.
    """
    if torch.compiler.is_compiling():  # what a compiled graph computes again updates nothing
        return checkpoint(block, *inputs, use_reentrant=False)
    module = getattr(block, "func", block)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), KeptStatistics(module)))


def mean_regularizer(model: nn.Module) -> torch.Tensor | float:
    """Average the losses that layers computed in their last call in training (their `regularizer`), and forget them; 0 without any."""
    found = []
    for module in model.modules():
        if getattr(module, "regularizer", None) is not None:
            found.append(module.regularizer)
            module.regularizer = None  # type: ignore[assignment]  # a graph is not kept, nor copied
    return torch.stack(found).mean() if found else 0.0  # type: ignore[arg-type]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected and normalised."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/p W/p C
        x = pad_to_multiple(x.permute(0, 2, 3, 1), self.patch_size).permute(0, 3, 1, 2)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def concat_2x2(x: torch.Tensor) -> torch.Tensor:
    """Concatenate 2 x 2 neighbourhoods along the channels, with zeros beyond odd borders: B H W C -> B H/2 W/2 4C."""
    x = pad_to_multiple(x, 2)
    batch, height, width, dim = x.shape
    x = x.view(batch, height // 2, 2, width // 2, 2, dim)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # Swin's order: column before row


def window_and_shift(height: int, width: int, window_size: int, shift: int, dense: bool) -> tuple[int, int]:
    """Swin's window and shift for a map, as in the classifier if it accepts the size, otherwise as in the segmentation code (`dense`)."""
    if dense or isinstance(height, torch.SymInt):  # a graph of open size takes none at which windows shrink
        return window_size, shift
    side = min(height, width)
    if side <= window_size and height % side == 0 and width % side == 0:
        return side, 0
    return window_size, shift


def relative_position_bias(table: torch.Tensor, window: int) -> torch.Tensor:
    """Expand a table to the bias between the positions of a window, `[heads, N, N]`, query before key.

    `table` is `[2R - 1, 2R - 1, heads]`, indexed by row and column offset from key to query, offset 0 in the middle; R >= `window`.
    """
    side = table.shape[0]
    position = torch.arange(window, device=table.device)
    offset = position[:, None] - position[None, :] + side // 2  # query - key, from 0
    index = offset[:, None, :, None] * side + offset[None, :, None, :]  # row, column of query and key
    return table.flatten(0, 1)[index.reshape(-1)].view(window**2, window**2, -1).permute(2, 0, 1)


class Stage(nn.Module):
    """Downsampling (except in the first stage), then blocks."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.ModuleList(blocks)


class PatchMerging(nn.Module):
    """Concatenate, normalise and project 2 x 2 neighbourhoods: half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 2C
        return self.reduction(self.norm(concat_2x2(x)))  # type: ignore[no-any-return]


class DepthwiseConv(nn.Conv2d):
    """Depthwise convolution of a map with channels last, which keeps its size."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvStem(nn.Sequential):
    """3x3 convolutions of an image, each with its width and stride, a batch norm, and a GELU except after the last."""

    def __init__(self, in_chans: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(in_chans, width, 3, stride, 1), nn.BatchNorm2d(width), nn.GELU()]
            in_chans = width
        super().__init__(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/s W/s C
        return super().forward(x).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class ConvMerging(nn.Module):
    """3x3 convolution and batch norm: half the size."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 C'
        return self.norm(self.reduction(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class ResidualConvMlp(nn.Module):
    """MLP whose hidden units are added to a depthwise convolution of them, after the activation."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden, 3)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))  # type: ignore[no-any-return]


class FeatureProjection(nn.Sequential):
    """Projection of the last map to the features that a classifier averages: 1x1 convolution, batch norm, SiLU."""

    def __init__(self, dim: int, num_features: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, num_features, 1, bias=bias)
        self.norm = nn.BatchNorm2d(num_features)
        self.act = nn.SiLU()


class LargeKernelAttention(nn.Module):
    """Multiply the input by weights per position and channel, computed from the 23 x 23 surrounding positions, without a sigmoid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = dilated_depthwise_conv2d(self.conv0(x), self.conv_spatial.weight, self.conv_spatial.bias, dilation=3)
        return x * self.conv1(weights)  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Swin's multi-head attention in windows, with a learned bias per relative position and head."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int, dense: bool) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift, self.dense = num_heads, window_size, shift, dense
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        window, shift = window_and_shift(height, width, self.window_size, self.shift, self.dense)
        x = pad_to_multiple(x, window)
        q, k, v = self.qkv(x).view(*x.shape[:3], 3, self.num_heads, dim // self.num_heads).unbind(3)
        table = self.relative_position_bias_table.unflatten(0, (2 * self.window_size - 1, -1))
        bias = relative_position_bias(table, window)
        x = window_attention(q, k, v, window_size=(window, window), shift=(shift, shift), bias=bias)
        return self.proj(without_padding(x, height, width).reshape(batch, height, width, dim))  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Swin's window attention and MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float, drop_path: float, dense: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shift, dense)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood attention with a learned bias per relative position and head.

    A map smaller than kernel size x dilation is padded with zeros at the bottom and right, as in NATTEN
    0.14 and 0.15: the zeros become keys and values (the projection's bias) and are attended to.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        x = pad_to_least(x, self.kernel_size * self.dilation)
        q, k, v = self.qkv(x).view(*x.shape[:3], 3, self.num_heads, dim // self.num_heads).unbind(3)
        x = neighborhood_attention(q, k, v, self.kernel_size, self.dilation, bias=self.rpb)
        return self.proj(without_padding(x, height, width).reshape(batch, height, width, dim))  # type: ignore[no-any-return]


def block_dilations(dilations: Sequence[int | Sequence[int]], depths: Sequence[int]) -> list[list[int]]:
    """Expand dilations to one number per block of each stage.

    Args:
        dilations: per stage a number d, which means 1, d, 1, d, ..., or one number per block.
        depths: blocks per stage.

    Raises:
        ValueError: the lists do not match `depths`.
    """
    if len(dilations) != len(depths):
        raise ValueError(f"dilations: expected one entry for each of the {len(depths)} stages, got {len(dilations)}")
    stages = []
    for index, (given, depth) in enumerate(zip(dilations, depths, strict=True)):
        stage = [given if block % 2 else 1 for block in range(depth)] if isinstance(given, int) else list(given)
        if len(stage) != depth:
            raise ValueError(f"dilations: stage {index} has {depth} blocks, got {len(stage)} dilations {stage}")
        stages.append(stage)
    return stages


def init_layer(module: nn.Module) -> None:
    """Initialise a layer of a transformer, if it is linear, a norm or a convolution.

    Linear layers get weights from a truncated normal distribution, std 0.02, and zero biases; the others reset themselves.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm, nn.Conv1d, nn.Conv2d)):
        module.reset_parameters()


def init_convolutions(module: nn.Module, name: str = "") -> None:
    """Initialise a convolutional network, or its part `name`.

    2D convolutions are drawn from a normal distribution scaled by the fan out for a ReLU (a classifier `conv_seg`: std 0.01), with zero
    biases. Any other module with `reset_parameters` resets itself and its submodules.
    """
    reset = getattr(module, "reset_parameters", None)
    if isinstance(module, nn.Conv2d):
        if name == "conv_seg":
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset):
        reset()
    else:
        for child_name, child in module.named_children():
            init_convolutions(child, child_name)

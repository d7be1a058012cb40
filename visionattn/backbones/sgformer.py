"""SG-Former: significant positions are keys by themselves, and the less significant a region, the more of its positions share a key.

Paper: Ren et al., "SG-Former: Self-guided Transformer with Evolving Token Reallocation", arXiv 2308.12216.
Upstream: github OliverRensu/SG-Former, commit b982803 (no licence); written from the paper and from recorded outputs.

Differences from upstream:

* Any input size; upstream accepts 224 x 224. Position tables are resized bilinearly. Maps are padded, after the norm, to whole windows,
  whose padding is not attended to, and to whole cells of averaged keys. Runs of positions that their share of the map does not fill are
  filled up with zeros.
* Both halves of the heads read the same sorted positions. Upstream sorts those of the second half again, from a copy in another order,
  which differs only where two positions are equally significant.
* The projections of queries, and of keys and values that read the same positions, are one layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, to_2tuple
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import dense_attention, keep_weights
from visionattn.kernels.strided.reference import border_mask, from_groups, groups, pad_to_groups
from visionattn.layers import DepthwiseConv, drop_path_rates, init_layer, pad_to_multiple, resized

WINDOW = 7
# Positions that share a key, of the least significant share of the map to the most significant one, by the stride of averaged keys.
RUNS = {8: (196, 56, 28), 4: (49, 14, 7), 2: (2, 1)}

Marked = tuple[torch.Tensor, torch.Tensor | None]  # a map B H W C, and the significance of its positions B H W


class ConvNorm(nn.Module):
    """Convolution and a norm over all channels and positions of an image."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.norm = nn.GroupNorm(1, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class Stem(nn.Module):
    """Three convolutions to a quarter of the size, a norm, and a table of positions."""

    def __init__(self, in_chans: int, dim: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvNorm(in_chans, dim, 3, 2), ConvNorm(dim, dim, 3), ConvNorm(dim, dim, 3, 2)])
        self.norm = nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.empty(*size, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/4 W/4 C
        x = self.convs[2](F.gelu(self.convs[1](F.gelu(self.convs[0](x)))))
        return self.norm(x.permute(0, 2, 3, 1)) + resized(self.pos_embed, (x.shape[2], x.shape[3]), "bilinear")  # type: ignore[no-any-return]


class Merging(nn.Module):
    """Projection, depthwise convolution, projection: half the size."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvNorm(in_dim, dim, 1), ConvNorm(dim, dim, 3, 2, groups=dim), ConvNorm(dim, dim, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C -> B H/2 W/2 C'
        x = self.convs[2](F.gelu(self.convs[1](F.gelu(self.convs[0](x.permute(0, 3, 1, 2))))))
        return x.permute(0, 2, 3, 1)


def sinusoids(height: int, width: int, dim: int) -> torch.Tensor:
    """Sines and cosines of the column, then of the row, `[H, W, dim]`, of `dim / 4` frequencies each."""
    frequency = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, cols = (torch.arange(side, dtype=torch.float64)[:, None] * frequency for side in (height, width))
    rows, cols = rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)
    return torch.cat([cols.sin(), cols.cos(), rows.sin(), rows.cos()], -1).float()


class Attention(nn.Module):
    """Base of the three kinds: queries of all positions, and a depthwise convolution of projected positions that is added to the result."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.lepe_linear, self.lepe_conv = nn.Linear(dim, dim), DepthwiseConv(dim, 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, significance: torch.Tensor | None) -> Marked:  # B H W C, B H W
        y, significance = self.attend(x, self.heads(self.q(x), 1)[0], significance)
        return self.proj(y.flatten(3) + self.lepe_conv(self.lepe_linear(x))), significance

    def attend(self, x: torch.Tensor, q: torch.Tensor, significance: torch.Tensor | None) -> Marked:
        raise NotImplementedError

    def heads(self, x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Split `[..., parts * C]` into as many `[..., heads, d]`."""
        return x.unflatten(-1, (parts, -1, self.q.out_features // self.num_heads)).unbind(-3)


class DenseAttention(Attention):
    """All positions attend to all, as in the last stage."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.kv = nn.Linear(dim, 2 * dim)

    def attend(self, x: torch.Tensor, q: torch.Tensor, significance: torch.Tensor | None) -> Marked:
        return dense_attention(q, *self.heads(self.kv(x), 2)), significance


class HybridAttention(Attention):
    """Half of the heads attend to averaged keys of the whole map, half to a window; both tell how much attention positions receive."""

    def __init__(self, dim: int, num_heads: int, ratio: int) -> None:
        super().__init__(dim, num_heads)
        self.ratio = ratio
        self.reduction = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim)
        self.global_kv, self.local_kv = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def attend(self, x: torch.Tensor, q: torch.Tensor, significance: torch.Tensor | None) -> Marked:
        height, width = x.shape[1:3]
        far, near = q.chunk(2, 3)
        keys = self.reduction(pad_to_multiple(x, self.ratio).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        far, of_cells = attend_everywhere(far, *self.heads(self.global_kv(F.gelu(self.norm(keys))), 2))
        near, of_positions = attend_in_windows(near, *self.heads(self.local_kv(x), 2))
        of_cells = of_cells.repeat_interleave(self.ratio, 1).repeat_interleave(self.ratio, 2)
        return torch.cat([far, near], 3), of_cells[:, :height, :width] + of_positions


def attend_everywhere(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from a map `[B, H, W, heads, d]` to one of keys `[B, h, w, heads, d]`.

    Returns:
        The map, and the weight that each key receives, averaged over queries and heads, `[B, h, w]`, without a gradient.
    """
    queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    weights = ((queries * q.shape[-1] ** -0.5) @ keys.transpose(-2, -1)).softmax(-1)
    keep_weights("significance_attention", weights, size=tuple(q.shape[1:3]), key_size=tuple(k.shape[1:3]))
    received = weights.detach().mean((1, 2)).unflatten(1, tuple(k.shape[1:3]))
    return (weights @ values).transpose(1, 2).reshape(q.shape), received


def attend_in_windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend within windows of a map `[B, H, W, heads, d]`; see `attend_everywhere`."""
    size, window, step = (q.shape[1], q.shape[2]), (WINDOW, WINDOW), (1, 1)
    q, k, v = (pad_to_groups(x, window, step) for x in (q, k, v))
    shape = q.shape
    whole = shape[1:3] == size  # nothing to mask
    queries, keys, values = (groups(x, window, step) for x in (q, k, v))  # B windows heads N d
    scores = (queries * q.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    weights = (scores if whole else scores + border_mask(shape, size, window, step, q.device, q.dtype)).softmax(-1)
    keep_weights("significance_attention", weights, size=size, window_size=window)
    if whole:
        received = weights.detach().mean((2, 3))  # B windows N
    else:
        inside = groups(pad_to_groups(torch.ones_like(q[:1, : size[0], : size[1], :1, :1]), window, step), window, step)  # 1 windows 1 N 1
        received = (weights.detach() * inside).sum((2, 3)) / (weights.shape[2] * inside.sum((2, 3)))
    one = torch.Size((*shape[:3], 1, 1))
    on_map = from_groups(received[:, :, None, :, None], one, window, step)[:, : size[0], : size[1], 0, 0]
    return from_groups(weights @ values, shape, window, step)[:, : size[0], : size[1]], on_map


class RankedAttention(Attention):
    """Attention to keys that each stand for a run of positions of similar significance, the shorter, the more significant they are."""

    def __init__(self, dim: int, num_heads: int, runs: Sequence[int]) -> None:
        super().__init__(dim, num_heads)
        self.runs = nn.ModuleList(nn.Linear(run, 1) for run in runs)
        self.kv = nn.Linear(dim, 2 * dim)

    def attend(self, x: torch.Tensor, q: torch.Tensor, significance: torch.Tensor | None) -> Marked:
        assert significance is not None, "a block that measures it comes before"
        tokens = in_order(x.flatten(1, 2), significance.flatten(1).argsort(1))  # B N C, the least significant first
        share = tokens.shape[1] // (4 if len(self.runs) == 3 else 2)
        sizes = [share, tokens.shape[1] - 2 * share, share] if len(self.runs) == 3 else [share, tokens.shape[1] - share]
        keys = torch.cat([join(part, run) for part, run in zip(tokens.split(sizes, 1), self.runs, strict=True)], 1)
        return dense_attention(q, *self.heads(self.kv(keys.unsqueeze(1)), 2)), None


def in_order(tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Arrange tokens `[B, N, C]` in the order of indices `[B, N]`."""
    return tokens.gather(1, order.unsqueeze(2).expand_as(tokens))


def join(tokens: torch.Tensor, run: nn.Module) -> torch.Tensor:
    """Reduce each run of tokens `[B, n, C]` to one by a linear layer; the first is filled up with zeros at its start."""
    length: int = run.in_features  # type: ignore[assignment]
    tokens = F.pad(tokens, (0, 0, -tokens.shape[1] % length, 0))
    return run(tokens.unflatten(1, (-1, length)).transpose(2, 3)).squeeze(3)  # type: ignore[no-any-return]


class ConvMlp(nn.Module):
    """MLP whose hidden units are added to a depthwise convolution of them, before the activation."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden, 3)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        x = self.fc1(x)
        return self.fc2(F.gelu(x + self.dwconv(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, attn: Attention, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor, significance: torch.Tensor | None) -> Marked:
        y, significance = self.attn(self.norm1(x), significance)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x))), significance


class Stage(nn.Module):
    """Downsampling (except in the first stage), blocks, and the norm of the map."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)


class SGFormer(Backbone):
    """SG-Former.

    Args:
        in_chans: input channels.
        img_size: size of the image that the table of positions is made for.
        embed_dims: channels per stage.
        depths: blocks per stage; every second one attends to keys by significance, except in the last stage.
        num_heads: attention heads per stage.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    first_conv = "patch_embed.convs.0.conv"
    placed_attention = False

    def __init__(
        self,
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 16, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=(4, 8, 16, 32)[: len(embed_dims)])
        height, width = to_2tuple(img_size)
        self.patch_embed = Stem(in_chans, embed_dims[0], (math.ceil(height / 4), math.ceil(width / 4)))
        self.stages = nn.ModuleList()
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, heads, ratio = embed_dims[stage], num_heads[stage], 8 // 2**stage
            blocks = []
            for index, rate in enumerate(rates):
                if ratio == 1:
                    attn: Attention = DenseAttention(dim, heads)
                else:
                    attn = RankedAttention(dim, heads, RUNS[ratio]) if index % 2 else HybridAttention(dim, heads, ratio)
                blocks.append(Block(dim, attn, mlp_ratio, rate))
            self.stages.append(Stage(Merging(embed_dims[stage - 1], dim) if stage else None, blocks, dim))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.patch_embed(x), []
        run: Any = self.run_block  # blocks return two tensors
        for index, stage in enumerate(self.stages):
            x, significance = stage.downsample(x), None
            for block in stage.blocks:
                x, significance = run(partial(block, significance=significance), x)
            x = stage.norm(x)
            if index in self.out_indices:
                maps.append(x.permute(0, 3, 1, 2))  # B C H W
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)
        table = self.patch_embed.pos_embed
        with torch.no_grad():
            table.copy_(sinusoids(*table.shape))

    def cam_layer(self, index: int = -1) -> nn.Module:
        norm: nn.Module = self.stages[index].norm  # its output is the map, which the classifier averages
        return norm

    def no_weight_decay(self) -> set[str]:
        return {"patch_embed.pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and join projections of the same positions."""
        places = [
            (r"^pos_embed$", "backbone.patch_embed.pos_embed"),
            *((rf"^patch_embed1\.conv\.{2 * index}\.", f"backbone.patch_embed.convs.{index}.") for index in range(3)),
            (r"^patch_embed1\.", "backbone.patch_embed."),
            *(
                (rf"^patch_embed{stage + 1}\.conv{index + 1}\.", f"backbone.stages.{stage}.downsample.convs.{index}.")
                for stage in range(1, 4)
                for index in range(3)
            ),
            *((rf"^block{stage + 1}\.", f"backbone.stages.{stage}.blocks.") for stage in range(4)),
            *((rf"^norm{stage + 1}\.", f"backbone.stages.{stage}.norm.") for stage in range(4)),
            (r"^head\.", "head.fc."),
        ]
        parts = [
            (r"(.*\.convs\.\d)\.c\.", r"\1.conv."),
            (r"(.*\.convs\.\d)\.bn\.", r"\1.norm."),
            (r"(.*\.attn)\.sr\.", r"\1.reduction."),
            *((rf"(.*\.attn)\.f{index + 1}\.", rf"\1.runs.{index}.") for index in range(3)),
            (r"(.*\.)dwconv\.dwconv\.", r"\1dwconv."),
        ]
        renamed = rename_keys(rename_keys(state, places), parts)
        for key in [key for key in renamed if ".attn.kv1." in key]:
            first, second = renamed.pop(key), renamed.pop(key.replace(".kv1.", ".kv2."))
            query = key.replace(".kv1.", ".q1.")
            if query in renamed:  # keys of the whole map, and of windows
                renamed[key.replace(".kv1.", ".q.")] = torch.cat([renamed.pop(query), renamed.pop(query.replace(".q1.", ".q2."))])
                renamed[key.replace(".kv1.", ".global_kv.")] = first
                renamed[key.replace(".kv1.", ".local_kv.")] = second
            else:  # keys of the first half of the heads and of the second, then values likewise
                halves = [part for one, two in zip(first.chunk(2), second.chunk(2), strict=True) for part in (one, two)]
                renamed[key.replace(".kv1.", ".kv.")] = torch.cat(halves)
        table = renamed.get("backbone.patch_embed.pos_embed")
        if table is not None and table.shape[0] == 1:
            renamed["backbone.patch_embed.pos_embed"] = table[0].unflatten(0, (math.isqrt(table.shape[1]), -1))
        return renamed

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer the size of the image from the table of positions, which is of a square image upstream."""
        shape = next((value.shape for key, value in state.items() if key.endswith("pos_embed")), None)
        if shape is None or len(shape) != 3:
            return {}
        height, width = (math.isqrt(shape[1]),) * 2 if shape[0] == 1 else shape[:2]
        return {"img_size": 4 * height if height == width else (4 * height, 4 * width)}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize the position table of a file for images of another size."""
        name, table = "patch_embed.pos_embed", self.patch_embed.pos_embed
        given = state.get(name)
        if given is None or given.dim() != 3 or given.shape == table.shape:
            return []
        size = (table.shape[0], table.shape[1])
        state[name] = resized(given.float(), size, "bilinear").to(given.dtype)
        return [f"position table {given.shape[0]}x{given.shape[1]} -> {size[0]}x{size[1]}, bilinear"]


register_backbone(
    SGFormer,
    {
        "sgformer_small": {"depths": (2, 4, 16, 1)},
        "sgformer_medium": {"depths": (2, 6, 28, 2)},
        "sgformer_base": {"embed_dims": (96, 192, 384, 768), "depths": (4, 6, 24, 2), "num_heads": (4, 6, 12, 24)},
    },
)

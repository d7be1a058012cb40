"""TransNeXt: each position attends to its neighbours and to a pooled copy of the whole map.

Paper: Shi, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", arXiv 2311.17132.
Upstream: github DaiShiResearch/TransNeXt, commit c8a9974 (Apache-2.0): classification, and
segmentation/upernet for `position_mode` and non-square sizes.

Differences from upstream:

* Any input size. Relative positions, pooled sizes and key counts follow the map, as in the
  segmentation code with extrapolation; at `img_size` this equals the classification code.
  Upstream's classifier accepts no other size. A map smaller than the pooling ratio is pooled to one
  position, where upstream would pool it to none.
* Tables are computed from shapes in forward instead of being stored as buffers, without searching for pairs of
  positions: distances to the centres of pooling bins are multiples of half a step.
* `pretrain_size` below 64 px: the last map counts as two positions wide; upstream divides by zero.
* Patch embedding starts a stage; the norm at its end is part of its map, also in classification.
* All four stages with a pooling ratio above 1 (AAAA) work in dense mode.
* The mode with a fixed pooled size, for which nothing was released, is omitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, to_2tuple, trunc_normal_
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import aggregated_attention, dense_attention
from visionattn.kernels.pooling import adaptive_average
from visionattn.layers import drop_path_rates, same_size

KERNEL_SIZE = 3  # side of the neighbourhood


class Geometry(NamedTuple):
    """Size-dependent inputs of the attention of a stage.

    Attributes:
        pool: height and width of the pooled map, or of the map itself in plain attention.
        log_keys: log of the number of keys each query sees, `[H, W, 1, 1]`.
        coords: unique relative positions (rows, columns) on a logarithmic scale, `[T, 2]`.
        pairs: row of `coords` for each query and pooled key, `[H, W, Hp, Wp]`, of the map or of the
            map at another size from which the bias is resized.
    """

    pool: tuple[int, int]
    log_keys: torch.Tensor
    coords: torch.Tensor
    pairs: torch.Tensor


def shrunk(size: tuple[int, int], ratio: int) -> tuple[int, int]:
    return max(size[0] // ratio, 1), max(size[1] // ratio, 1)


def axis_distances(queries: int, keys: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the distances along an axis from positions to the centres of the `keys` bins that they are pooled to.

    Returns:
        The possible distances, ascending (some are unused if the bins differ in length), and
        the index of each pair's distance, `[queries, keys]`.
    """
    # Twice the distance is an integer. The bins are those of adaptive average pooling.
    cell = torch.arange(keys, device=device)
    first, last = cell * queries // keys, ((cell + 1) * queries + keys - 1) // keys - 1
    doubled = 2 * torch.arange(queries, device=device)[:, None] - (first + last)
    if isinstance(queries, torch.SymInt):  # bounds for bins of any length
        reach = 2 * queries - 2
        return torch.arange(-reach, reach + 1, device=device) / 2, doubled + reach
    reach = 2 * queries - 1 - (queries + keys - 1) // keys  # from one end to the centre of the bin at the other
    step = 1 if queries % keys else 2
    return torch.arange(-reach, reach + 1, step, device=device) / 2, (doubled + reach) // step


def relative_positions(
    size: tuple[int, int], pool: tuple[int, int], pretrain_size: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `coords` and `pairs` of `Geometry`; `pretrain_size` is the map size at which the weights were trained."""
    axes, indices = [], []
    for queries, keys, trained in zip(size, pool, pretrain_size, strict=True):
        distance, index = axis_distances(queries, keys, device)
        distance = distance / max(trained - 1, 1) * 8
        axes.append(distance.sign() * torch.log2(distance.abs() + 1) / 3)
        indices.append(index)
    rows, cols = axes
    height, width = rows.shape[0], cols.shape[0]  # len() would be a constant of an exported graph
    coords = torch.stack([rows[:, None].expand(-1, width), cols.expand(height, -1)], -1).flatten(0, 1)
    return coords, indices[0][:, None, :, None] * width + indices[1][None, :, None, :]


def log_key_count(size: tuple[int, int], pool: tuple[int, int], local: bool, device: torch.device) -> torch.Tensor:
    """Compute `log_keys` of `Geometry`: the pooled positions and, if `local`, the neighbours inside the map."""

    def inside(length: int) -> torch.Tensor:
        position, radius = torch.arange(length, device=device), KERNEL_SIZE // 2
        return 1 + position.clamp(max=radius) + position.flip(0).clamp(max=radius)

    neighbours = inside(size[0])[:, None] * inside(size[1]) * int(local)
    return (neighbours + pool[0] * pool[1]).float().log()[..., None, None]


class PositionBias(nn.Module):
    """Bias per head, computed from relative positions by a small MLP."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 512)
        self.fc2 = nn.Linear(512, num_heads)

    def forward(self, size: tuple[int, int], geometry: Geometry) -> torch.Tensor:  # heads, H W, Hp Wp
        table = self.fc2(F.relu(self.fc1(geometry.coords.to(self.fc1.weight.dtype))))  # T heads
        trained, pool = geometry.pairs.shape[:2], geometry.pairs.shape[2:]
        bias = table.T.index_select(1, geometry.pairs.flatten())
        bias = bias.unflatten(1, (math.prod(trained), math.prod(pool)))  # numel() would be a constant of an exported graph
        bias = _resize(bias, pool, geometry.pool)
        return _resize(bias.transpose(1, 2), trained, size).transpose(1, 2)


def _resize(x: torch.Tensor, old: Sequence[int], new: Sequence[int]) -> torch.Tensor:
    """Resize each row of `[heads, N, h * w]` as a map."""
    return x if same_size(old, new) else F.interpolate(x.unflatten(2, old), size=tuple(new), mode="bilinear").flatten(2)


class CosineAttention(nn.Module):
    """Shared part of both attentions: queries scaled by the number of keys, and the position bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.temperature = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, self.head_dim))
        self.position_bias = PositionBias(num_heads)
        self.proj = nn.Linear(dim, dim)

    def scaled(self, q: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Scale queries of unit length for the softmax, `[B, H, W, heads, dim]`."""
        scale = F.softplus(self.temperature[:, 0]) * geometry.log_keys.to(q.dtype)  # H W heads 1
        return (q + self.query_embedding[:, 0]) * scale

    def init_weights(self) -> None:
        nn.init.constant_(self.temperature, math.log(math.expm1(1 / 0.24)))  # softplus gives 1 / 0.24
        trunc_normal_(self.query_embedding, std=0.02)


class Attention(CosineAttention):
    """Attention to all positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: torch.Tensor, geometry: Geometry) -> torch.Tensor:  # B H W C
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        q = self.scaled(F.normalize(q, dim=-1), geometry)
        bias = self.position_bias((x.shape[1], x.shape[2]), geometry)
        out = dense_attention(q, F.normalize(k, dim=-1), v, bias=bias, scale=1.0)
        return self.proj(out.flatten(3))  # type: ignore[no-any-return]


class AggregatedAttention(CosineAttention):
    """Attention to the neighbours and to a pooled map, with a second weight of the neighbours from the query alone."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(num_heads, KERNEL_SIZE**2))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, self.head_dim, KERNEL_SIZE**2))
        self.learnable_bias = nn.Parameter(torch.empty(num_heads, 1, KERNEL_SIZE**2))

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(3)
        return F.normalize(k, dim=-1), v

    def forward(self, x: torch.Tensor, geometry: Geometry) -> torch.Tensor:  # B H W C
        q = F.normalize(self.q(x).unflatten(-1, (self.num_heads, self.head_dim)), dim=-1)
        k, v = self.keys_values(x)
        pooled = F.gelu(F.linear(x, self.sr.weight.flatten(1), self.sr.bias))  # a 1x1 convolution, faster in channels-last layout
        pooled = adaptive_average(pooled.permute(0, 3, 1, 2), geometry.pool).permute(0, 2, 3, 1)
        k_pool, v_pool = self.keys_values(self.norm(pooled))
        out = aggregated_attention(
            self.scaled(q, geometry),
            k,
            v,
            k_pool,
            v_pool,
            local_bias=self.relative_pos_bias_local,
            pool_bias=self.position_bias((x.shape[1], x.shape[2]), geometry),
            local_weight=torch.einsum("bhwnd,ndk->bhwnk", q, self.learnable_tokens) + self.learnable_bias[:, 0],
            kernel_size=KERNEL_SIZE,
        )
        return self.proj(out.flatten(3))  # type: ignore[no-any-return]

    def init_weights(self) -> None:
        super().init_weights()
        trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        trunc_normal_(self.learnable_tokens, std=0.02)
        nn.init.zeros_(self.learnable_bias)


class ConvGLU(nn.Module):
    """Gated MLP: the gate is a depthwise convolution, so that it sees the neighbours."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        gate, x = self.fc1(x).chunk(2, dim=-1)
        gate = F.gelu(self.dwconv(gate.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.fc2(gate * x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and gated MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = (Attention if sr_ratio == 1 else AggregatedAttention)(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvGLU(dim, int(2 * int(dim * mlp_ratio) / 3))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor, geometry: Geometry) -> torch.Tensor:  # B H W C
        x = x + self.drop_path(self.attn(self.norm1(x), geometry))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Overlapping patches, projected and normalised."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W -> B H/s W/s C'
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Positions(nn.Module):
    """Geometry of a stage's maps; a module without parameters, so that torch.fx treats it as one node."""

    def __init__(self, sr_ratio: int, trained: tuple[int, int], built: tuple[int, int] | None) -> None:
        super().__init__()
        self.sr_ratio, self.trained, self.built = sr_ratio, trained, built

    def forward(self, x: torch.Tensor) -> Geometry:  # B H W C
        size = (x.shape[1], x.shape[2])
        pool = shrunk(size, self.sr_ratio)
        built = self.built or size
        coords, pairs = relative_positions(built, shrunk(built, self.sr_ratio), self.trained, x.device)
        return Geometry(pool, log_key_count(size, pool, self.sr_ratio > 1, x.device), coords, pairs)


class Stage(nn.Module):
    """Patch embedding, blocks and a norm."""

    def __init__(
        self,
        downsample: PatchEmbed,
        positions: Positions,
        dim: int,
        num_heads: int,
        sr_ratio: int,
        mlp_ratio: float,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        self.positions = positions
        self.downsample = downsample
        self.blocks = nn.ModuleList(Block(dim, num_heads, sr_ratio, mlp_ratio, rate) for rate in drop_path)
        self.norm = nn.LayerNorm(dim, eps=1e-6)


class TransNeXt(Backbone):
    """TransNeXt.

    The maps are normalised for dense prediction and for classification, so `out_norm` has no effect.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        sr_ratios: pooling ratio of the map for the distant keys, per stage; with 1 the stage
            attends to all positions of the map.
        mlp_ratios: hidden width of the gated MLP relative to the channels, times 3/2, per stage.
        img_size: side in px (or height and width) of the training images. It sets the default of
            `pretrain_size` and the map for interpolation; inputs may have any size.
        pretrain_size: side in px (or height and width) of the images at which the weights were first
            trained; relative positions are scaled by it. Default `img_size`. Keep 224 if
            weights trained at 224 px are used or fine-tuned at another size.
        position_mode: "extrapolation" computes the position bias for the given map,
            "interpolation" for the map at `img_size` and resizes it.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: no effect, see above.

    Raises:
        ValueError: unknown `position_mode`.
    """

    first_conv = "stages.0.downsample.proj"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 48,
        depths: Sequence[int] = (2, 2, 15, 2),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        img_size: int | tuple[int, int] = 224,
        pretrain_size: int | tuple[int, int] | None = None,
        position_mode: Literal["extrapolation", "interpolation"] = "extrapolation",
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        if position_mode not in ("extrapolation", "interpolation"):
            raise ValueError(f"position_mode: expected extrapolation or interpolation, got {position_mode!r}")
        dims = [embed_dim * 2**index for index in range(len(depths))]
        super().__init__(in_chans=in_chans, channels=dims, strides=[4 * 2**index for index in range(len(depths))], out_norm=out_norm)
        self.img_size = to_2tuple(img_size)
        self.pretrain_size = to_2tuple(img_size if pretrain_size is None else pretrain_size)
        self.position_mode = position_mode
        self.least_sides = tuple(2 * ratio - 1 for ratio in sr_ratios)  # smaller maps are pooled to one position
        if position_mode == "interpolation":
            self.size_step = 0  # graphs of open size were not tried
        self.stages = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            embed = PatchEmbed(dims[index - 1], dims[index], 3, 2) if index else PatchEmbed(in_chans, embed_dim, 7, 4)
            stride = self.stage_strides[index]
            built = None if position_mode == "extrapolation" else shrunk(self.img_size, stride)
            positions = Positions(sr_ratios[index], shrunk(self.pretrain_size, stride), built)
            self.stages.append(Stage(embed, positions, dims[index], num_heads[index], sr_ratios[index], mlp_ratios[index], rates))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x)  # B H W C
            geometry = stage.positions(x)
            for block in stage.blocks:
                x = self.run_block(partial(block, geometry=geometry), x)
            x = stage.norm(x).permute(0, 3, 1, 2)  # B C H W
            if index in self.out_indices:
                maps.append(x)
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, CosineAttention):
                module.init_weights()

    def cam_layer(self, index: int = -1) -> nn.Module:
        norm: nn.Module = self.stages[index].norm  # its output is the map, which the classifier averages
        return norm

    def no_weight_decay(self) -> set[str]:
        parts = ("query_embedding", "relative_pos_bias_local", "position_bias", "temperature")
        return {name for name, _ in self.named_parameters() if any(part in name for part in parts)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
        ]
        return {"stem": r"^stages\.0\.downsample", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier and of the backbone in the official dense models."""
        rules = []
        for index in range(4):
            theirs, ours = rf"^block{index + 1}\.(\d+)\.", rf"backbone.stages.{index}.blocks.\1."
            rules += [
                (rf"{theirs}attn\.cpb_", rf"{ours}attn.position_bias."),
                (rf"{theirs}mlp\.dwconv\.dwconv\.", rf"{ours}mlp.dwconv."),
                (theirs, ours),
                (rf"^patch_embed{index + 1}\.", f"backbone.stages.{index}.downsample."),
                (rf"^norm{index + 1}\.", f"backbone.stages.{index}.norm."),
            ]
        return rename_keys(state, [*rules, (r"^head\.", "head.fc.")])


def _variant(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], **args: Any) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, **args}


_FINE_TUNED = {"img_size": 384, "pretrain_size": 224}
_384 = {"input_size": (3, 384, 384), "crop_pct": 1.0}

register_backbone(
    TransNeXt,
    {
        "transnext_micro": _variant(48, (2, 2, 15, 2), (2, 4, 8, 16)),
        "transnext_tiny": _variant(72, (2, 2, 15, 2), (3, 6, 12, 24)),
        "transnext_small": _variant(72, (5, 5, 22, 5), (3, 6, 12, 24)),
        "transnext_base": _variant(96, (5, 5, 23, 5), (4, 8, 16, 32)),
        "transnext_small_384": _variant(72, (5, 5, 22, 5), (3, 6, 12, 24), **_FINE_TUNED),
        "transnext_base_384": _variant(96, (5, 5, 23, 5), (4, 8, 16, 32), **_FINE_TUNED),
        "transnext_micro_aaaa": _variant(48, (2, 2, 15, 2), (2, 4, 8, 16), sr_ratios=(16, 8, 4, 2), img_size=256),
    },
    {"transnext_small_384": _384, "transnext_base_384": _384, "transnext_micro_aaaa": {"input_size": (3, 256, 256)}},
)

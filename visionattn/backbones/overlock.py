"""OverLoCK: a coarse overview of the image is made first, and guides the blocks that look closely.

Paper: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", arXiv 2502.20087.
Upstream: github LMMMEng/OverLoCK, commit 2c8ab3b (Apache-2.0).

Differences from upstream:

* Maps are those of the segmentation code: the third and fourth have the channels of the context behind those of the image. They are
  normalised only with `out_norm=True`.
* The classifier of the overview, an auxiliary one for training, is omitted; its tensors in a file are dropped.
* A file from training is read by a model with `deploy=True` too: its parallel convolutions are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import nn

from visionattn.attention.contmix import (
    GRN,
    ChannelAffine,
    DilatedReparam,
    MixingBlock,
    ResidualDepthwise,
    SqueezeExcite,
    conv_mlp,
    init_parts,
    merge_branches,
)
from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.errors import UserError
from visionattn.layers import FeatureProjection, drop_path_rates

NUM_FEATURES = 1024  # that the classifier averages
KERNELS = (17, 15, 13, 7)  # of the large convolutions, by stage
SMALL_KERNEL = 5  # of the smaller predicted kernels
FOCUS = 2  # index of the first stage that looks at the overview


def convolve(in_dim: int, dim: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False), nn.BatchNorm2d(dim)]


class ConvBlock(nn.Module):
    """A depthwise 3x3 convolution, then a large one, channel gates and an MLP on a residual branch; `scaled` for a scaled identity."""

    def __init__(self, dim: int, kernel_size: int, mlp_ratio: float, drop_path: float, scaled: bool, deploy: bool) -> None:
        super().__init__()
        self.dwconv = ResidualDepthwise(dim)
        large = [LayerNorm2d(dim), DilatedReparam(dim, kernel_size, deploy), nn.BatchNorm2d(dim), SqueezeExcite(dim)]
        self.proj = nn.Sequential(*large, *conv_mlp(dim, int(dim * mlp_ratio)))
        self.ls = ChannelAffine(dim) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W
        x = self.dwconv(x)
        return self.ls(x) + self.drop_path(self.proj(x))  # type: ignore[no-any-return]


class FocusBlock(MixingBlock):
    """ContMix for an image and a context, which are the channels of one map.

    Queries are of the image, keys of the context, and values of both. Except in the `first` block, the context is renewed by that of the
    overview.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        kernel_size: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        first: bool,
        deploy: bool,
    ) -> None:
        super().__init__(dim, context_dim, kernel_size, SMALL_KERNEL, num_heads, int(dim * mlp_ratio), drop_path, deploy)
        self.dims = (dim, context_dim)
        self.x_scale = None if first else ChannelAffine(context_dim)
        self.h_scale = None if first else ChannelAffine(context_dim)
        both = dim + context_dim
        depthwise = nn.Conv2d(both, both, 3, padding=1, groups=both)
        self.fusion = nn.Sequential(depthwise, nn.BatchNorm2d(both), nn.GELU(), nn.Conv2d(both, dim, 1), GRN(dim))
        self.dyconv_proj = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: torch.Tensor, overview: torch.Tensor) -> torch.Tensor:  # B C+C' H W, B C' H W -> B C+C' H W
        image, context = x.split(self.dims, 1)
        if self.x_scale is not None and self.h_scale is not None:
            context = self.x_scale(context) + self.h_scale(overview)
        x = self.dwconv1(torch.cat([image, context], 1))
        fused = self.norm1(x)
        value = self.fusion(fused)
        query, key = fused.split(self.dims, 1)
        mixed = self.dyconv_proj(self.mix(query, key, value))
        return self.complete(x, mixed, value, value)


class Overview(nn.Module):
    """The overview of a map at half its size, its channels reduced; as it is, and enlarged to the size of the map."""

    def __init__(self, in_dim: int, dim: int, context_dim: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = nn.Sequential(*convolve(in_dim, dim, 2))
        self.blocks = nn.Sequential(*blocks)
        self.context_proj = nn.Conv2d(dim, context_dim, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # B C H W
        small = self.context_proj(self.blocks(self.downsample(x)))
        return small, F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


class JointMerging(nn.Module):
    """3x3 convolution and batch norm of the image, and of the context: half the size."""

    def __init__(self, in_dim: int, dim: int, context_dim: int) -> None:
        super().__init__()
        self.dims = (in_dim, context_dim)
        self.x_proj = nn.Sequential(*convolve(in_dim, dim, 2))
        self.h_proj = nn.Sequential(*convolve(context_dim, context_dim, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C+C' H W -> B D+C' H/2 W/2
        image, context = x.split(self.dims, 1)
        return torch.cat([self.x_proj(image), self.h_proj(context)], 1)


class Stage(nn.Module):
    """Downsampling (except in the first stage), then blocks; before them in the third stage, the blocks of the base, and the overview."""

    def __init__(
        self, downsample: nn.Module | None, blocks: Sequence[nn.Module], base: Sequence[nn.Module] = (), overview: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.base = nn.ModuleList(base)
        self.overview = overview
        self.blocks = nn.ModuleList(blocks)


class OverLoCK(Backbone):
    """OverLoCK.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage, without those of the context, which are a quarter of the last number.
        depths: blocks of the base in the first three stages, and of the overview.
        focus_depths: blocks that look at the overview, in the third and fourth stage.
        num_heads: half of the number of predicted kernels per position and size, in the third and fourth stage.
        mlp_ratio: hidden width of the MLPs of base and overview relative to the channels.
        focus_mlp_ratio: that of the blocks that look at the overview.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
        deploy: build large convolutions as `reparameterize` makes them, for inference.
    """

    cnn = True
    first_conv = "patch_embed.0"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (56, 112, 256, 336),
        depths: Sequence[int] = (2, 2, 3, 2),
        focus_depths: Sequence[int] = (6, 2),
        num_heads: Sequence[int] = (4, 6),
        mlp_ratio: float = 4.0,
        focus_mlp_ratio: float = 3.0,
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
        deploy: bool = False,
    ) -> None:
        context = embed_dims[3] // 4
        channels = (*embed_dims[:FOCUS], *(dim + context for dim in embed_dims[FOCUS:]))
        super().__init__(in_chans=in_chans, channels=channels, strides=(4, 8, 16, 32), out_norm=out_norm)
        self.least_sides = (*(1 for _ in KERNELS[:FOCUS]), *(kernel - 1 for kernel in KERNELS[FOCUS:]))  # smaller maps are enlarged
        self.deploy = deploy
        half, first = embed_dims[0] // 2, embed_dims[0]
        stem: list[nn.Module] = []
        for in_dim, dim, stride in ((in_chans, half, 2), (half, half, 1), (half, first, 2), (first, first, 1)):
            stem += [*convolve(in_dim, dim, stride), nn.GELU()]
        self.patch_embed = nn.Sequential(*stem[:-1])

        rates = drop_path_rates(drop_path_rate, (*depths, *focus_depths))
        plain = [
            [ConvBlock(embed_dims[part], KERNELS[part], mlp_ratio, rate, part >= FOCUS, deploy) for rate in rates[part]]
            for part in range(4)
        ]
        focus = [
            [
                FocusBlock(dim, context, KERNELS[part], num_heads[part - FOCUS], focus_mlp_ratio, rate, part == FOCUS and not index, deploy)
                for index, rate in enumerate(rates[part + 2])
            ]
            for part, dim in enumerate(embed_dims[FOCUS:], FOCUS)
        ]
        overview = Overview(embed_dims[2], embed_dims[3], context, plain[3])
        merge = [nn.Sequential(*convolve(embed_dims[part - 1], embed_dims[part], 2)) for part in (1, 2)]
        self.stages = nn.ModuleList(
            [
                Stage(None, plain[0]),
                Stage(merge[0], plain[1]),
                Stage(merge[1], focus[0], plain[2], overview),
                Stage(JointMerging(embed_dims[2], embed_dims[3], context), focus[1]),
            ]
        )
        self.add_out_norms(LayerNorm2d)
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.patch_embed(x), []
        small = overview = x  # of the image; read from the third stage on
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x)
            for block in stage.base:
                x = self.run_block(block, x)
            if stage.overview is not None:
                small, overview = self.run_block(stage.overview, x)
                x = torch.cat([x, overview], 1)
            elif index > FOCUS:
                overview = small  # at this stage's size
            for block in stage.blocks:
                x = self.run_block(partial(block, overview=overview) if index >= FOCUS else block, x)
            if index in self.out_indices:
                maps.append(self.out_norms[str(index)](x) if self.out_norm else x)  # B C H W
        return maps

    def reparameterize(self) -> None:
        """Merge the parallel convolutions, for faster inference with the same outputs; the model cannot be trained as before then.

        Its weights are those of a model with `deploy=True`.
        """
        for module in self.modules():
            if isinstance(module, DilatedReparam):
                module.reparameterize()
        self.deploy = True

    def init_weights(self) -> None:
        init_parts(self)

    def final_norm(self) -> nn.Module:
        return FeatureProjection(self.stage_channels[-1], NUM_FEATURES, bias=False)

    @property
    def final_channels(self) -> int:
        return NUM_FEATURES

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(TABLES)}

    def to_queries(self, places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Share the value of a position out among those of the enlarged map whose average it is."""
        rows, cols = (averages(length, whole, places) for length, whole in zip(places.shape[-2:], size, strict=True))
        return rows.transpose(0, 1) @ places @ cols

    def to_places(self, keys: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Give the value of a position of the enlarged map to those that it is interpolated from."""
        rows, cols = (interpolations(length, whole, keys) for length, whole in zip(size, keys.shape[-2:], strict=True))
        return rows.transpose(0, 1) @ keys @ cols

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return super().group_matcher(coarse)
        groups: list[tuple[str, tuple[int, ...] | None]] = []
        for index, stage in enumerate(self.stages):
            base = len(stage.base)
            groups += [(rf"^stages\.{index}\.downsample", (index, 0)), (rf"^stages\.{index}\.overview", (index, base))]
            groups += [(rf"^stages\.{index}\.base\.{number}\.", (index, number)) for number in range(base)]
            after = base + (stage.overview is not None)
            groups += [(rf"^stages\.{index}\.blocks\.{number}\.", (index, after + number)) for number in range(len(stage.blocks))]
        return {"stem": r"^patch_embed", "blocks": [*groups, (r"^out_norms", (99999,))]}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, also a re-parameterised one, and of the official segmentation backbone."""
        places = [
            (r"^patch_embed1\.", "backbone.patch_embed."),
            *((rf"^patch_embed{number}\.", f"backbone.stages.{number - 1}.downsample.") for number in (2, 3)),
            *((rf"^blocks{number}\.", f"backbone.stages.{number - 1}.blocks.") for number in (1, 2)),
            (r"^blocks3\.", "backbone.stages.2.base."),
            (r"^patch_embed4\.", "backbone.stages.2.overview.downsample."),
            (r"^blocks4\.", "backbone.stages.2.overview.blocks."),
            (r"^high_level_proj\.", "backbone.stages.2.overview.context_proj."),
            (r"^patch_embedx\.", "backbone.stages.3.downsample."),
            *((rf"^sub_blocks{number}\.", f"backbone.stages.{number - 1}.blocks.") for number in (3, 4)),
            (r"^extra_norm\.", "backbone.out_norms."),
            (r"^(patch_embed|stages|out_norms)\.", r"backbone.\1."),  # ours, of the other form
            (r"^head\.0\.", "head.norm.proj."),
            (r"^head\.1\.", "head.norm.norm."),
            (r"^head\.4\.", "head.fc."),
        ]
        renamed = rename_keys(state, places, drop=r"^aux_head\.")
        if "head.fc.weight" in renamed:
            renamed["head.fc.weight"] = renamed["head.fc.weight"].flatten(1)
        return renamed

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"deploy": True} if any(key.endswith(".lk_origin.bias") for key in state) else {}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Merge the parallel convolutions of a file for a model with `deploy=True`."""
        if not self.deploy:
            if self.infer_args(state):
                raise UserError(
                    "VA-W003",
                    "the file is re-parameterised for inference, the model is not",
                    why="the parallel convolutions that it was trained with cannot be recovered from their sum",
                    fix="create the model with deploy=True (model.args={deploy: true}), or load the file from training",
                )
            return []
        count = 0
        for name, module in self.named_modules():
            if isinstance(module, DilatedReparam) and f"{name}.origin_bn.weight" in state:
                inside = {key.removeprefix(f"{name}."): state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
                state[f"{name}.lk_origin.weight"], state[f"{name}.lk_origin.bias"] = merge_branches(inside, module.kernel_size)
                count += 1
        return [f"parallel convolutions merged ({count} kernels)"] if count else []


TABLES = (".rpb1", ".rpb2")


def averages(length: int, whole: int, like: torch.Tensor) -> torch.Tensor:
    """Weights `[length, whole]` with which positions of an enlarged axis are averaged."""
    return F.adaptive_avg_pool1d(torch.eye(whole, device=like.device, dtype=like.dtype), length).transpose(0, 1)


def interpolations(length: int, whole: int, like: torch.Tensor) -> torch.Tensor:
    """Weights `[whole, length]` with which positions of an enlarged axis are interpolated."""
    units = torch.eye(length, device=like.device, dtype=like.dtype)
    return F.interpolate(units[None], size=whole, mode="linear")[0].transpose(0, 1)


def _variant(
    embed_dims: tuple[int, ...], depths: tuple[int, ...], focus_depths: tuple[int, ...], num_heads: tuple[int, ...]
) -> dict[str, Any]:
    return {"embed_dims": embed_dims, "depths": depths, "focus_depths": focus_depths, "num_heads": num_heads}


register_backbone(
    OverLoCK,
    {
        "overlock_xtiny": _variant((56, 112, 256, 336), (2, 2, 3, 2), (6, 2), (4, 6)),
        "overlock_tiny": _variant((64, 128, 256, 512), (4, 4, 6, 2), (12, 2), (4, 8)),
        "overlock_small": _variant((64, 128, 320, 512), (6, 6, 8, 3), (16, 3), (8, 16)),
        "overlock_base": _variant((80, 160, 384, 576), (8, 8, 10, 4), (20, 4), (6, 9)),
    },
    {
        "overlock_xtiny": {"crop_pct": 0.925},
        "overlock_tiny": {"crop_pct": 0.95},
        "overlock_small": {"crop_pct": 0.95},
        "overlock_base": {"crop_pct": 0.975},
    },
)

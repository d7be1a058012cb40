"""BiFormer: each region of a map attends to the few most relevant regions.

Paper: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", arXiv 2303.08810.
Upstream: github rayleizhu/BiFormer, commit 1697bbb (MIT).

Differences from upstream:

* Any input size. A map that the grid of `n_win` x `n_win` regions does not divide is padded with
  zeros after the norm, and the padded positions are routed to and attended to, as with upstream's
  `auto_pad`, which is an option of BiFormer only; here BiFormer-STL does so too. If the grid
  divides the map, the network is the same. The channels-first rewrite of BiFormer-STL rounds
  the region down, pads q, k and v instead and cannot run on maps smaller than the grid: on other
  sizes ours differs from it.
* BiFormer-STL pads the image and its maps with zeros to whole patches, where upstream drops the rest.
* Plain attention (stage 4) is `topks[3] = None` instead of -2 or -1, and its number of heads is given
  with the others; upstream uses 8 for every width.
* Options that no released model uses (soft routing, pooled keys, layer scale) are omitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import region_routes, routed_attention, window_attention
from visionattn.kernels.padding import without_padding
from visionattn.layers import Stage, drop_path_rates, init_layer, pad_to_multiple


class DepthwiseConv(nn.Conv2d):
    """Depthwise convolution of a map `[B, H, W, C]`."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchConv(nn.Conv2d):
    """Non-overlapping patches of a map `[B, C, H, W]`, projected."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__(in_chans, dim, patch_size, patch_size)
        self.patch_size = patch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B C H W -> B dim H/p W/p
        return super().forward(pad_to_multiple(x.permute(0, 2, 3, 1), self.patch_size).permute(0, 3, 1, 2))


class RoutedAttention(nn.Module):
    """Attention to the `topk` regions whose mean keys best match the mean query of a region."""

    def __init__(self, dim: int, num_heads: int, n_win: int, topk: int) -> None:
        super().__init__()
        self.num_heads, self.n_win, self.topk = num_heads, n_win, topk
        self.scale = dim**-0.5  # from the full width, not the head dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.lepe = DepthwiseConv(dim, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        _, height, width, dim = x.shape
        x = pad_to_multiple(x, self.n_win)
        region = (x.shape[1] // self.n_win, x.shape[2] // self.n_win)
        q, k, v = self.qkv(x).view(*x.shape[:3], 3, self.num_heads, dim // self.num_heads).unbind(3)
        routes = region_routes(q, k, region, self.topk)
        x = routed_attention(q, k, v, routes, region, scale=self.scale).flatten(3)
        x = x + self.lepe(v.flatten(3))
        return self.proj(without_padding(x, height, width))  # type: ignore[no-any-return]


class FullAttention(nn.Module):
    """Attention among all positions of the map.

    The position convolution is applied to the input, or to v in the channels-first rewrite. It has two names,
    because files of both kinds have equal shapes and must not be confused.
    """

    def __init__(self, dim: int, num_heads: int, lepe_of: Literal["input", "value"]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.input_lepe = DepthwiseConv(dim, 5) if lepe_of == "input" else None
        self.lepe = DepthwiseConv(dim, 5) if lepe_of == "value" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads).unbind(3)
        y = window_attention(q, k, v, window_size=(height, width)).flatten(3)
        if self.input_lepe is not None:
            y = y + self.input_lepe(x)
        if self.lepe is not None:
            y = y + self.lepe(v.flatten(3))
        return self.proj(y)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Optional convolutional position embedding, then attention and MLP, each on a pre-normalised residual branch."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float, position: bool) -> None:
        super().__init__()
        self.pos_embed = DepthwiseConv(dim, 3) if position else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def _stem(in_chans: int, dim: int, layout: str) -> nn.Sequential:
    if layout == "swin":
        return nn.Sequential(PatchConv(in_chans, dim, 4), nn.BatchNorm2d(dim))
    half = [nn.Conv2d(in_chans, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2), nn.GELU()]
    return nn.Sequential(*half, nn.Conv2d(dim // 2, dim, 3, 2, 1), nn.BatchNorm2d(dim))


def _downsample(in_dim: int, dim: int, layout: str) -> nn.Sequential:
    if layout == "swin":
        return nn.Sequential(nn.BatchNorm2d(in_dim), PatchConv(in_dim, dim, 2))
    return nn.Sequential(nn.Conv2d(in_dim, dim, 3, 2, 1), nn.BatchNorm2d(dim))


class BiFormer(Backbone):
    """BiFormer and BiFormer-STL.

    Args:
        in_chans: input channels.
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        n_win: regions per side of the map, at any size (8 or 16 in upstream's dense models).
        topks: regions that a region attends to, per stage; None is plain attention.
        mlp_ratio: hidden width of the MLP relative to the channels.
        layout: "conv" has overlapping convolutions between the stages and a convolutional position
            embedding in each block; "swin" has patches as in Swin and no position embedding (BiFormer-STL).
        lepe_of: input of the position convolution of plain attention.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: normalise each map for dense prediction.
    """

    first_conv = "stem.0"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 2, 8, 2),
        num_heads: Sequence[int] = (2, 4, 8, 8),
        n_win: int = 7,
        topks: Sequence[int | None] = (1, 4, 16, None),
        mlp_ratio: float = 3.0,
        layout: Literal["conv", "swin"] = "conv",
        lepe_of: Literal["input", "value"] = "input",
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        dims = [embed_dim * 2**index for index in range(len(depths))]
        super().__init__(in_chans=in_chans, channels=dims, strides=[4 * 2**index for index in range(len(depths))], out_norm=out_norm)
        self.least_sides = tuple(1 if topk is None else n_win for topk in topks)  # regions have one position on smaller maps
        self.stem = _stem(in_chans, embed_dim, layout)
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for index, (dim, heads, topk, stage_rates) in enumerate(zip(dims, num_heads, topks, rates, strict=True)):
            blocks = [
                Block(
                    dim,
                    FullAttention(dim, heads, lepe_of) if topk is None else RoutedAttention(dim, heads, n_win, topk),
                    mlp_ratio,
                    rate,
                    position=layout == "conv",
                )
                for rate in stage_rates
            ]
            self.stages.append(Stage(_downsample(dim // 2, dim, layout) if index else None, blocks))
        self.add_out_norms(partial(LayerNorm2d, eps=1e-6))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.stem(x), []
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x).permute(0, 2, 3, 1)
            for block in stage.blocks:
                x = self.run_block(block, x)
            x = x.permute(0, 3, 1, 2)  # B C H W
            if index in self.out_indices:
                maps.append(self.out_norms[str(index)](x) if self.out_norm else x)
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            init_layer(module)

    def final_norm(self) -> nn.Module:
        return nn.BatchNorm2d(self.stage_channels[-1])

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifiers (BiFormer, BiFormer-STL and its channels-first rewrite) and dense backbone."""
        theirs, ours = r"\.(?:blocks\.)?(\d+)\.", r"backbone.stages.\1.blocks.\2."
        block = r"^stages\.(\d+)" + theirs
        # Plain attention with linear layers adds a convolution of its input; the rewrite, with 1x1 convolutions, one of v.
        plain = sorted({key.split(".")[1] for key, value in state.items() if key.endswith(".attn.proj.weight") and value.dim() == 2})
        rules = [
            *[(rf"^stages\.({index})" + theirs + r"attn\.lepe\.", ours + "attn.input_lepe.") for index in plain],
            (block + r"attn\.(?:qkv\.qkv|qkv_linear)\.", ours + "attn.qkv."),
            (block + r"attn\.(?:wo|output_linear)\.", ours + "attn.proj."),
            (block + r"mlp\.0\.", ours + "mlp.fc1."),
            (block + r"mlp\.[23]\.", ours + "mlp.fc2."),
            (block, ours),
            (r"^downsample_layers\.0\.", "backbone.stem."),
            (r"^downsample_layers\.(\d+)\.", r"backbone.stages.\1.downsample."),
            (r"^extra_norms\.", "backbone.out_norms."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(fc\.)?", "head.fc."),
        ]
        pointwise = {key: value.flatten(1) if value.shape[2:] == (1, 1) else value for key, value in state.items()}
        return rename_keys(pointwise, rules)


def _variant(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], **args: Any) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, **args}


_STL = _variant(96, (2, 2, 6, 2), (3, 6, 12, 8), mlp_ratio=4.0, layout="swin")

register_backbone(
    BiFormer,
    {
        "biformer_tiny": _variant(64, (2, 2, 8, 2), (2, 4, 8, 8)),
        "biformer_small": _variant(64, (4, 4, 18, 4), (2, 4, 8, 8)),
        "biformer_base": _variant(96, (4, 4, 18, 4), (3, 6, 12, 8)),
        "biformer_stl": _STL,
        "biformer_stl_nchw": {**_STL, "lepe_of": "value"},
    },
)

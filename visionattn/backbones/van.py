"""VAN: a convolutional network whose attention is the output of large kernels, multiplied by their input.

Paper: Guo et al., "Visual Attention Network", arXiv 2202.09741.
Upstream: github Visual-Attention-Network/VAN-Classification, commit e19779b (Apache-2.0, its README asks
commercial users to contact the authors); the dense backbone follows Visual-Attention-Network/VAN-Segmentation,
commit 8285fc7 (Apache-2.0).

Differences from upstream:

* The norm of a stage is part of its map, for classification and dense prediction; there is no
  other norm before the classifier. Upstream's norms have an eps of 1e-6 in the classifier and 1e-5 in
  the dense backbone: `out_norm=True` selects the latter.
* A stage contains its patch embedding, so that it can be dropped as a whole.
* Dropout inside the MLP (off in all released models) is omitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.layers import LargeKernelAttention, drop_path_rates


class Attention(nn.Module):
    """Large kernel attention between two projections, with its own shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.act = nn.GELU()
        self.lka = LargeKernelAttention(dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj_2(self.lka(self.act(self.proj_1(x))))  # type: ignore[no-any-return]


class ConvMlp(nn.Module):
    """MLP with a depthwise 3x3 convolution before the activation."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each on a normalised and scaled residual branch; the first scale includes the attention's shortcut."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = Attention(dim)
        self.layer_scale_1 = nn.Parameter(torch.empty(dim))
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.layer_scale_2 = nn.Parameter(torch.empty(dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Overlapping patches, projected and normalised."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride, patch_size // 2)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Patch embedding, blocks and norm."""

    def __init__(self, downsample: PatchEmbed, dim: int, mlp_ratio: float, drop_path: Sequence[float], norm_eps: float) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(Block(dim, mlp_ratio, rate) for rate in drop_path)
        self.norm = LayerNorm2d(dim, eps=norm_eps)


class VAN(Backbone):
    """Visual Attention Network.

    Args:
        in_chans: input channels.
        embed_dims: channels per stage.
        depths: blocks per stage.
        mlp_ratios: hidden width of the MLP relative to the channels, per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        out_norm: use the norms of the dense backbone (eps 1e-5), with the same weights.
    """

    first_conv = "stages.0.downsample.proj"
    size_step = 1

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        drop_path_rate: float = 0.0,
        out_norm: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=embed_dims, strides=[4 * 2**index for index in range(len(depths))], out_norm=out_norm)
        inputs = [in_chans, *embed_dims[:-1]]
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList()
        for index, (dim, mlp_ratio, stage_rates) in enumerate(zip(embed_dims, mlp_ratios, rates, strict=True)):
            patch_size, stride = (3, 2) if index else (7, 4)
            downsample = PatchEmbed(inputs[index], dim, patch_size, stride)
            self.stages.append(Stage(downsample, dim, mlp_ratio, stage_rates, norm_eps=1e-5 if out_norm else 1e-6))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run_block(block, x)
            x = stage.norm(x)
            if index in self.out_indices:
                maps.append(x)  # B C H W
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Block):
                nn.init.constant_(module.layer_scale_1, 0.01)
                nn.init.constant_(module.layer_scale_2, 0.01)

    def cam_layer(self, index: int = -1) -> nn.Module:
        norm: nn.Module = self.stages[index].norm  # its output is the map, which the classifier averages
        return norm

    def cam_map(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return output

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
        ]
        return {"stem": r"^stages\.0\.downsample", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier, the official dense backbone, mmpretrain and transformers."""
        outside = [(r"^head\.(fc\.)?|^classifier\.", "head.fc.")]
        for index in range(4):
            stage = f"backbone.stages.{index}."
            outside += [
                (rf"^(patch_embed{index + 1}|van\.encoder\.stages\.{index}\.embeddings)\.", f"{stage}downsample."),
                (rf"^(blocks?{index + 1}|van\.encoder\.stages\.{index}\.layers)\.", f"{stage}blocks."),
                (rf"^(norm{index + 1}|van\.encoder\.stages\.{index}\.normalization)\.", f"{stage}norm."),
            ]
        inside = [(rf"^(backbone\..*\.)({theirs})(\.|$)", rf"\1{ours}\3") for theirs, ours in _MODULES.items()]
        # The norm after transformers' last stage is unused in its forward pass.
        return rename_keys(rename_keys(state, outside, drop=r"^van\.layernorm\."), inside)


# Names in a stage of upstream, mmpretrain and transformers that differ from ours; the first match is used.
_MODULES = {
    r"projection|convolution": "proj",
    r"normalization": "norm",
    r"pre_normomalization": "norm1",
    r"post_normalization": "norm2",
    r"attention\.pre_projection\.conv": "attn.proj_1",
    r"attention\.post_projection": "attn.proj_2",
    r"attention_scaling\.weight": "layer_scale_1",
    r"mlp_scaling\.weight": "layer_scale_2",
    r"attn\.spatial_gating_unit\.DW_conv|attention\.attention_layer\.attention\.depth_wise": "attn.lka.conv0",
    r"attn\.spatial_gating_unit\.DW_D_conv|attention\.attention_layer\.attention\.depth_wise_dilated": "attn.lka.conv_spatial",
    r"attention\.attention_layer\.attention\.point_wise": "attn.lka.conv1",
    r"attn\.spatial_gating_unit": "attn.lka",
    r"mlp\.in_dense": "mlp.fc1",
    r"mlp\.dwconv\.dwconv|mlp\.depth_wise": "mlp.dwconv",
    r"mlp\.out_dense": "mlp.fc2",
}


def _variant(embed_dims: tuple[int, ...], depths: tuple[int, ...]) -> dict[str, Any]:
    return {"embed_dims": embed_dims, "depths": depths}


_HALF = (0.5, 0.5, 0.5)

register_backbone(
    VAN,
    {
        "van_b0": _variant((32, 64, 160, 256), (3, 3, 5, 2)),
        "van_b1": _variant((64, 128, 320, 512), (2, 2, 4, 2)),
        "van_b2": _variant((64, 128, 320, 512), (3, 3, 12, 3)),
        "van_b3": _variant((64, 128, 320, 512), (3, 5, 27, 3)),
        "van_b4": _variant((64, 128, 320, 512), (3, 6, 40, 3)),
        "van_b5": _variant((96, 192, 480, 768), (3, 3, 24, 3)),
        "van_b6": _variant((96, 192, 384, 768), (6, 6, 90, 6)),
    },
    {"*": {"mean": _HALF, "std": _HALF, "crop_pct": 0.9}},
)

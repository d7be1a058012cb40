"""A custom backbone: a small ConvNeXt-like pyramid, registered under a name that every command accepts.

visionattn train --data flowers plugins=[own_backbone.py] --model own_pyramid
visionattn train --data roads plugins=[own_backbone.py] --model own_pyramid model.head.name=unet data.classes=[background,road]
"""

import torch
from torch import nn

import visionattn
from visionattn.backbones import Backbone
from visionattn.layers import drop_path_rates


class Block(nn.Module):
    """A 7x7 depthwise convolution and an MLP over channels on a residual branch."""

    def __init__(self, dim: int, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.mix = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Conv2d(4 * dim, dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.mix(x)))
        if self.training and self.keep < 1:  # stochastic depth: drop the branch of some samples
            y = y * torch.empty(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(self.keep) / self.keep
        return x + y


class OwnPyramid(Backbone):
    """Four stages at strides 4, 8, 16 and 32; each starts with a convolution of stride 2 (4 for the first).

    Args:
        in_chans: input channels.
        dims: channels per stage.
        depths: blocks per stage.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
    """

    cnn = True
    first_conv = "stages.0.0"

    def __init__(self, *, in_chans: int = 3, dims=(32, 64, 128, 256), depths=(2, 2, 4, 2), drop_path_rate: float = 0.0) -> None:
        super().__init__(in_chans=in_chans, channels=dims, strides=(4, 8, 16, 32))
        self.stages = nn.ModuleList()
        inputs = (in_chans, *dims[:-1])
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            step = 4 if index == 0 else 2
            down = nn.Conv2d(inputs[index], dims[index], step + 1, step, step // 2)  # odd sizes round up
            self.stages.append(nn.Sequential(down, *(Block(dims[index], 1 - rate) for rate in rates)))
        self.init_weights()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for index, stage in enumerate(self.stages):
            for layer in stage:
                x = self.run_block(layer, x)
            if index in self.out_indices:
                maps.append(x)  # B C H/s W/s
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def group_matcher(self, coarse: bool = False):
        return {"stem": r"^stages\.0\.0", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}


visionattn.register_backbone(OwnPyramid, {"own_pyramid": {}, "own_pyramid_tiny": {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}})

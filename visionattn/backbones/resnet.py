"""ResNet, plain or with any attention module at the end of each block.

Paper: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, with the stride in the 3x3 convolution.
Same names and results as torchvision's (BSD-3-Clause). An attention module stands where its papers put it: on the residual branch, before
the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from visionattn.attention.registry import ANY_SIZE
from visionattn.backbones.cnn import GatedCNN, attention_gate, resnet, resnet_keys
from visionattn.backbones.registry import register_backbone


class ResNet(GatedCNN):
    """ResNet with an attention module, or none, before each residual sum.

    Args:
        in_chans: input channels.
        block: "basic" (18, 34) or "bottleneck" (50, 101, 152).
        depths: blocks per stage.
        width: channels of the stem; each further stage doubles them (times 4 in bottlenecks).
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        attn: the module, by its name in `visionattn.attention.ATTENTION`, or "none".
    """

    first_conv = "stem.0"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        block: Literal["basic", "bottleneck"] = "basic",
        depths: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        drop_path_rate: float = 0.0,
        attn: str = "none",
    ) -> None:
        gates = [attention_gate(attn)] * len(depths)
        super().__init__(in_chans, resnet(in_chans, block, depths, width, gates, drop_path_rate))
        if attn != "none" and attn not in ANY_SIZE:
            self.size_step = 0

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename torchvision's keys; a module is `layerN.M.attn`."""
        return resnet_keys(state)

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Keep the modules of this network where the file is that of a plain ResNet."""
        own = {key: value for key, value in self.state_dict().items() if ".attn." in key}
        if not own or any(".attn." in key for key in state):
            return []
        state.update(own)
        return ["no attention modules in the file: they start anew"]


register_backbone(
    ResNet,
    {
        "resnet18": {"block": "basic", "depths": (2, 2, 2, 2)},
        "resnet34": {"block": "basic", "depths": (3, 4, 6, 3)},
        "resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3)},
        "resnet101": {"block": "bottleneck", "depths": (3, 4, 23, 3)},
        "resnet152": {"block": "bottleneck", "depths": (3, 8, 36, 3)},
    },
    {"*": {"interpolation": "bilinear"}},
)

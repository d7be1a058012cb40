"""ELA: ResNet and MobileNetV2 whose blocks hold a gate per channel, row and column.

Paper: Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", arXiv 2403.01123.
Upstream: github Xuwei86/ELA_Code, commit cd4594d, experiments of the first author; its folder MbV2
(Apache-2.0) has the MobileNetV2 for ImageNet, with the L gate. There is no ResNet for classification,
and no weights are published for either.

What differs from upstream, and why:

* The ResNets have the gate where upstream's ResNet for segmentation has it: after the 3x3
  convolution of a bottleneck, at the end of the branch of a basic block. That backbone's further
  gates between the stages and its sums around each gate are left out: they go beyond the gate of the paper.
* The paper's 32 or 16 groups of the norm, and a group of the convolution per 8 channels, do not
  divide all widths: there the greatest common divisor of the two is taken (T in the 144-channel
  blocks of MobileNetV2: 16 groups instead of 32). Upstream fails there.
* Stochastic depth can be switched on; upstream has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from visionattn.backbones.base import rename_keys
from visionattn.backbones.cnn import Gate, GatedCNN, attention_gate, mobilenetv2, mobilenetv2_keys, resnet, resnet_keys
from visionattn.backbones.registry import register_backbone


def _gate(attn: str) -> Gate:
    name = "ela" if attn in ("ela_t", "ela_b", "ela_s", "ela_l") else "attn"
    return attention_gate(attn, name=name, inner=True)


class ELAResNet(GatedCNN):
    """ResNet with an ELA gate on the 3x3 convolution of each bottleneck, or before the residual sum of each basic block.

    Args:
        in_chans: input channels.
        block: "basic" (18, 34) or "bottleneck" (50, 101, 152).
        depths: blocks per stage.
        width: channels of the stem; each further stage doubles them (times 4 in bottlenecks).
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        attn: the gate. "ela_t" and "ela_b" convolve each channel by itself, over 5 and 7 positions; "ela_s" and "ela_l"
            mix 8 channels, over 5 and 7. Or another name in `visionattn.attention.ATTENTION`, or "none".
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
        attn: str = "ela_b",
    ) -> None:
        gates = [_gate(attn)] * len(depths)
        super().__init__(in_chans, resnet(in_chans, block, depths, width, gates, drop_path_rate))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """torchvision's keys, with the gates as `layerN.M.ela`; no file of the authors is known."""
        return resnet_keys(state)


class ELAMobileNetV2(GatedCNN):
    """MobileNetV2 with an ELA gate between the depthwise convolution and the linear projection, in all blocks that expand.

    The maps have strides 4, 8, 16 and 32; the last one is the 1280-channel map the classifier pools.

    Args:
        in_chans: input channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        attn: see `ELAResNet`.
    """

    first_conv = "stem.0.0"

    def __init__(self, *, in_chans: int = 3, drop_path_rate: float = 0.0, attn: str = "ela_l") -> None:
        super().__init__(in_chans, mobilenetv2(in_chans, _gate(attn), drop_path_rate))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keys of the official classifier, whose blocks are flat: convolution, norm, activation, convolution, ..."""
        block = r"^features\.(\d+)\.conv\."
        rules = [
            (r"^features\.1\.conv\.([01])\.", r"features.1.conv.0.\1."),  # the block that does not expand
            (r"^features\.1\.conv\.3\.", "features.1.conv.1."),
            (r"^features\.1\.conv\.4\.", "features.1.conv.2."),
            (rf"{block}([01])\.", r"features.\1.conv.0.\2."),
            (rf"{block}3\.", r"features.\1.conv.1.0."),
            (rf"{block}4\.", r"features.\1.conv.1.1."),
            (rf"{block}6\.", r"features.\1.conv.2."),
            (rf"{block}7\.", r"features.\1.conv.3."),
            (rf"{block}8\.", r"features.\1.conv.4."),
            (r"^conv\.", "features.18."),
        ]
        return mobilenetv2_keys(rename_keys(state, rules))


_V1 = {"interpolation": "bilinear"}

register_backbone(
    ELAResNet,
    {
        "ela_resnet18": {"block": "basic", "depths": (2, 2, 2, 2)},
        "ela_resnet34": {"block": "basic", "depths": (3, 4, 6, 3)},
        "ela_resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3)},
        "ela_resnet101": {"block": "bottleneck", "depths": (3, 4, 23, 3)},
        "ela_resnet152": {"block": "bottleneck", "depths": (3, 8, 36, 3)},
    },
    {"*": _V1},
)
register_backbone(ELAMobileNetV2, {"ela_mobilenetv2": {}}, {"*": _V1})

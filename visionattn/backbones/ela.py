"""ELA: ResNet and MobileNetV2 with a gate per channel, row and column in each block.

Paper: Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", arXiv 2403.01123.
Upstream: github Xuwei86/ELA_Code, commit cd4594d, experiments of the first author; its folder MbV2
(Apache-2.0) contains the MobileNetV2 for ImageNet, with the L gate. There is no ResNet for classification,
and no weights are published for either.

Differences from upstream:

* The ResNets have the gate in the same place as upstream's ResNet for segmentation: after the 3x3
  convolution of a bottleneck, at the end of the branch of a basic block. That backbone's additional
  gates between the stages and sums around each gate are omitted, since they are not part of the paper's gate.
* The paper's 32 or 16 groups of the norm, and one group of the convolution per 8 channels, do not
  divide all widths; the greatest common divisor of the two is then used (T in the 144-channel
  blocks of MobileNetV2: 16 groups instead of 32). Upstream fails in these cases.
* Stochastic depth is available; upstream has none.
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
        attn: the gate. "ela_t" and "ela_b" convolve each channel separately, over 5 and 7 positions; "ela_s" and "ela_l"
            mix 8 channels, over 5 and 7 positions. Or another name in `visionattn.attention.ATTENTION`, or "none".
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
        """Rename torchvision's keys, with the gates as `layerN.M.ela`; the authors published no file."""
        return resnet_keys(state)


class ELAMobileNetV2(GatedCNN):
    """MobileNetV2 with an ELA gate between the depthwise convolution and the linear projection of all expanding blocks.

    The maps have strides 4, 8, 16 and 32; the last is the 1280-channel map that the classifier pools.

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
        """Rename keys of the official classifier, whose blocks are flat: convolution, norm, activation, convolution, ..."""
        block = r"^features\.(\d+)\.conv\."
        rules = [
            (r"^features\.1\.conv\.([01])\.", r"features.1.conv.0.\1."),  # the block without expansion
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

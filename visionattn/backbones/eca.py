"""ECA-Net: ResNet and MobileNetV2 with a channel gate at the end of each block.

Paper: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", arXiv 1910.03151.
Upstream: github BangguWu/ECANet, commit b332f6b (MIT).

Differences from upstream:

* The default kernel sizes are those of the released files (k3577 for ResNet-18, k3357 for 34, 101
  and 152, k3557 for 50), not the code's 3 everywhere. The sizes of a checkpoint take precedence: they are
  inferred from its shapes.
* Stochastic depth is available; upstream has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from visionattn.attention import ECA
from visionattn.backbones.cnn import Gate, GatedCNN, attention_gate, mobilenetv2, mobilenetv2_keys, resnet, resnet_keys
from visionattn.backbones.registry import register_backbone


def _gate(attn: str, kernel_size: int) -> Gate:
    return Gate("eca", partial(ECA, kernel_size=kernel_size)) if attn == "eca" else attention_gate(attn)


def _set_kernel_sizes(backbone: GatedCNN, state: dict[str, torch.Tensor]) -> list[str]:
    """Set the gates to the kernel sizes of a file; returns a description of the change."""
    sizes = []
    for name, module in backbone.named_modules():
        given = state.get(f"{name}.conv.weight")
        if not isinstance(module, ECA) or given is None or given.dim() != 3:
            continue
        old = module.conv.weight
        if given.shape[2] != old.shape[2]:
            sizes.append(given.shape[2])
            module.set_kernel_size(given.shape[2])
            module.to(old.device, old.dtype)
    return [f"kernel sizes of {len(sizes)} ECA gates set to {sorted(set(sizes))} as in the file"] if sizes else []


class ECAResNet(GatedCNN):
    """ResNet with an ECA gate before each residual sum.

    Args:
        in_chans: input channels.
        block: "basic" (18, 34) or "bottleneck" (50, 101, 152).
        depths: blocks per stage.
        kernel_sizes: taps of the ECA gates per stage, odd.
        width: channels of the stem; each further stage doubles them (times 4 in bottlenecks).
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        attn: gate instead of ECA, by its name in `visionattn.attention.ATTENTION`, or "none".
    """

    first_conv = "stem.0"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        block: Literal["basic", "bottleneck"] = "basic",
        depths: Sequence[int] = (2, 2, 2, 2),
        kernel_sizes: Sequence[int] = (3, 5, 7, 7),
        width: int = 64,
        drop_path_rate: float = 0.0,
        attn: str = "eca",
    ) -> None:
        gates = [_gate(attn, kernel_size) for kernel_size in kernel_sizes]
        super().__init__(in_chans, resnet(in_chans, block, depths, width, gates, drop_path_rate))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier."""
        return resnet_keys(state)

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Adopt the gate's kernel sizes of the file."""
        return _set_kernel_sizes(self, state)


class ECAMobileNetV2(GatedCNN):
    """MobileNetV2 with an ECA gate after each linear projection.

    The maps have strides 4, 8, 16 and 32; the last is the 1280-channel map that the classifier pools.

    Args:
        in_chans: input channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.
        attn: gate instead of ECA, by its name in `visionattn.attention.ATTENTION`, or "none".
    """

    first_conv = "stem.0.0"

    def __init__(self, *, in_chans: int = 3, drop_path_rate: float = 0.0, attn: str = "eca") -> None:
        gate = attention_gate(attn)
        if attn == "eca":
            gate = Gate("eca", lambda channels: ECA(channels, kernel_size=1 if channels < 96 else 3))
        super().__init__(in_chans, mobilenetv2(in_chans, gate, drop_path_rate))

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official classifier."""
        return mobilenetv2_keys(state)

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Adopt the gate's kernel sizes of the file."""
        return _set_kernel_sizes(self, state)


_V1 = {"interpolation": "bilinear"}

register_backbone(
    ECAResNet,
    {
        "eca_resnet18": {"block": "basic", "depths": (2, 2, 2, 2), "kernel_sizes": (3, 5, 7, 7)},
        "eca_resnet34": {"block": "basic", "depths": (3, 4, 6, 3), "kernel_sizes": (3, 3, 5, 7)},
        "eca_resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3), "kernel_sizes": (3, 5, 5, 7)},
        "eca_resnet101": {"block": "bottleneck", "depths": (3, 4, 23, 3), "kernel_sizes": (3, 3, 5, 7)},
        "eca_resnet152": {"block": "bottleneck", "depths": (3, 8, 36, 3), "kernel_sizes": (3, 3, 5, 7)},
    },
    {"*": _V1},
)
register_backbone(ECAMobileNetV2, {"eca_mobilenetv2": {}}, {"*": _V1})

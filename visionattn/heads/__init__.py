"""Segmentation and classification heads: map the list of feature maps to logits."""

from visionattn.heads.att_swin import AttSwin
from visionattn.heads.base import Aux, ConvModule, Head, HeadOutput, Regularizer, resize_to
from visionattn.heads.ccnet import CCNet
from visionattn.heads.dae import DAE
from visionattn.heads.danet import DANet
from visionattn.heads.deeplab import DeepLabV3Plus
from visionattn.heads.fcn import FCN
from visionattn.heads.linear import LinearHead
from visionattn.heads.ms_dual_guided import MSDualGuided
from visionattn.heads.probe import EfficientProbe
from visionattn.heads.psp import PSP
from visionattn.heads.segformer import SegFormer
from visionattn.heads.semantic_fpn import SemanticFPN
from visionattn.heads.trans_dae import TransDAEDecoder
from visionattn.heads.unet import UNet
from visionattn.heads.upernet import UPerNet

# Segmentation heads by name.
HEADS: dict[str, type[Head]] = {
    "upernet": UPerNet,
    "semantic_fpn": SemanticFPN,
    "segformer": SegFormer,
    "fcn": FCN,
    "psp": PSP,
    "deeplabv3plus": DeepLabV3Plus,
    "ccnet": CCNet,
    "danet": DANet,
    "unet": UNet,
    "att_swin": AttSwin,
    "dae": DAE,
    "trans_dae": TransDAEDecoder,
    "ms_dual_guided": MSDualGuided,
}


def register_head(name: str, cls: type[Head]) -> None:
    """Register a segmentation head: `cls(channels, strides, num_classes, *, ...)`.

    Raises:
        ValueError: the name is taken.
    """
    if name in HEADS:
        raise ValueError(f"head {name!r} is registered already, by {HEADS[name].__module__}")
    HEADS[name] = cls


__all__ = [
    "FCN",
    "HEADS",
    "Aux",
    "ConvModule",
    "EfficientProbe",
    "Head",
    "HeadOutput",
    "LinearHead",
    "Regularizer",
    "register_head",
    "resize_to",
]

"""Segmentation and classification heads, which map the list of feature maps to logits, and heads that pool bags of instances."""

from visionattn.heads.abmil import ABMIL
from visionattn.heads.acmil import ACMIL, ACMILHeads
from visionattn.heads.att_swin import AttSwin
from visionattn.heads.base import Aux, ConvModule, Head, HeadOutput, Regularizer, resize_to
from visionattn.heads.ccnet import CCNet
from visionattn.heads.dae import DAE
from visionattn.heads.danet import DANet
from visionattn.heads.deeplab import DeepLabV3Plus
from visionattn.heads.fcn import FCN
from visionattn.heads.linear import LinearHead
from visionattn.heads.mha import MHA
from visionattn.heads.mil import BagHead, BagOutput
from visionattn.heads.ms_dual_guided import MSDualGuided
from visionattn.heads.probe import EfficientProbe
from visionattn.heads.psp import PSP
from visionattn.heads.segformer import SegFormer
from visionattn.heads.semantic_fpn import SemanticFPN
from visionattn.heads.subspaces import SubspaceHead
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

# Heads of bags by name.
BAG_HEADS: dict[str, type[BagHead]] = {"abmil": ABMIL, "mha": MHA, "acmil": ACMIL, "acmil_mha": ACMILHeads}


def register_head(name: str, cls: type[Head]) -> None:
    """Register a segmentation head: `cls(channels, strides, num_classes, *, ...)`.

    Raises:
        ValueError: the name is taken.
    """
    if name in HEADS:
        raise ValueError(f"head {name!r} is registered already, by {HEADS[name].__module__}")
    HEADS[name] = cls


def register_bag_head(name: str, cls: type[BagHead]) -> None:
    """Register a head of bags: `cls(features, num_classes, *, ...)`.

    Raises:
        ValueError: the name is taken.
    """
    if name in BAG_HEADS:
        raise ValueError(f"head {name!r} is registered already, by {BAG_HEADS[name].__module__}")
    BAG_HEADS[name] = cls


__all__ = [
    "BAG_HEADS",
    "FCN",
    "HEADS",
    "Aux",
    "BagHead",
    "BagOutput",
    "ConvModule",
    "EfficientProbe",
    "Head",
    "HeadOutput",
    "LinearHead",
    "Regularizer",
    "SubspaceHead",
    "register_bag_head",
    "register_head",
    "resize_to",
]

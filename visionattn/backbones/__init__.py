"""The families; importing this package registers them all."""

from visionattn.backbones import eca, swin, swinv2
from visionattn.backbones.base import Backbone
from visionattn.backbones.registry import list_models, register_backbone

__all__ = ["Backbone", "eca", "list_models", "register_backbone", "swin", "swinv2"]

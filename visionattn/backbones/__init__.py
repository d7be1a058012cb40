"""The families; importing this package registers them all."""

from visionattn.backbones import biformer, davit, eca, ela, swin, swinv2, transnext, van
from visionattn.backbones.base import Backbone
from visionattn.backbones.registry import list_models, register_backbone

__all__ = ["Backbone", "biformer", "davit", "eca", "ela", "list_models", "register_backbone", "swin", "swinv2", "transnext", "van"]

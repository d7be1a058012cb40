"""The families; importing this package registers them all."""

from visionattn.backbones import dinat_s, eca, nat, nat_isotropic, swin
from visionattn.backbones.base import Backbone
from visionattn.backbones.registry import list_models, register_backbone

__all__ = ["Backbone", "dinat_s", "eca", "list_models", "nat", "nat_isotropic", "register_backbone", "swin"]

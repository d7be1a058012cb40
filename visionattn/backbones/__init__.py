"""Backbone families; importing this package registers all of them."""

from visionattn.backbones import (
    biformer,
    chada_vit,
    dae,
    davit,
    dinat_s,
    eca,
    ela,
    medvit,
    nat,
    nat_isotropic,
    swin,
    swinv2,
    transnext,
    van,
)
from visionattn.backbones.base import Backbone, Sizes
from visionattn.backbones.registry import list_models, register_backbone

__all__ = [
    "Backbone",
    "Sizes",
    "biformer",
    "chada_vit",
    "dae",
    "davit",
    "dinat_s",
    "eca",
    "ela",
    "list_models",
    "medvit",
    "nat",
    "nat_isotropic",
    "register_backbone",
    "swin",
    "swinv2",
    "transnext",
    "van",
]

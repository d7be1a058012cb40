"""Build the network of a volumes config: a 3D network, or a 2D backbone and head that see slices."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from visionattn.backbones.registry import get_variant
from visionattn.config.schema import chosen
from visionattn.errors import UserError, did_you_mean
from visionattn.heads.base import Aux, HeadOutput
from visionattn.models import create_segmenter
from visionattn.models.mpunet3d import MPUNet3d
from visionattn.models.network3d import Network3d
from visionattn.models.segmenter import head_class
from visionattn.models.unet3d import UNet3d, pool_strides
from visionattn.models.volumes import VOLUME_NETS
from visionattn.tasks.base import Target
from visionattn.tasks.volumes.settings import NETWORKS, VolumesConfig

# By the value of `model.name`: classes that take channels and classes, and return logits of `[B, C, x, y, z]`, a list finest first.
NETS: dict[str, Callable[..., Network3d]] = {"unet3d": UNet3d, **VOLUME_NETS, "mpunet3d": MPUNet3d}


class VolumeNet(nn.Module):
    """A 3D network as the engine takes models.

    Attributes:
        backbone: the network.
        pretrained_cfg: how a volume is prepared for it.
    """

    def __init__(self, network: Network3d) -> None:
        super().__init__()
        self.backbone = network
        self.pretrained_cfg: dict[str, Any] = {}

    def forward(self, volume: torch.Tensor) -> torch.Tensor | HeadOutput:
        """Compute logits `[B, K, x, y, z]`; in training with those of coarser levels, each with half of the weight of the one before."""
        found = self.backbone(volume)
        logits, *coarser = found if isinstance(found, (list, tuple)) else [found]
        if not self.training:
            return logits
        return HeadOutput(logits, tuple(Aux(f"level{level}", item, 0.5**level) for level, item in enumerate(coarser, 1)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn the recomputation of activations in the backward pass on or off."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, from the input on (timm's layer decay)."""
        return {"stem": r"^backbone\.stem", "blocks": [(r"^backbone\.down\.(\d+)", None), (r"^backbone\.", (99999,))]}


def check_names(config: VolumesConfig) -> None:
    """Check that network and head are known.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    settings = config.model
    if not settings.is_3d:
        try:
            get_variant(settings.name)
        except UserError as error:
            near = did_you_mean(settings.name, NETWORKS)
            error.fix = f"{near} " * bool(near) + f"3D networks: {', '.join(NETWORKS)}; {error.fix}"
            raise
        head_class(settings.head.name, settings.head.args)
        return
    known = [name for name in inspect.signature(NETS[settings.name]).parameters if name not in ("in_chans", "num_classes", "strides")]
    for name in settings.args:
        if name not in known:
            fix = f"{did_you_mean(name, known, 1)} It takes: {', '.join(known)}".strip()
            raise UserError("VA-M002", f'{settings.name} has no argument "{name}"', fix=fix)


def build_model(config: VolumesConfig, target: Target) -> nn.Module:
    """Build the model with initial weights; its `pretrained_cfg` has the plan of volumes and the axis of slices.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    model: Any = _build(config, target)
    model.pretrained_cfg |= {"plan": target["plan"], "slice_axis": target["slice_axis"]}
    return model  # type: ignore[no-any-return]


def _build(config: VolumesConfig, target: Target) -> nn.Module:
    settings, classes = config.model, len(target["classes"])
    args = dict(settings.args)
    try:
        if settings.is_3d:
            network = NETS[settings.name]
            if "strides" in (parameters := inspect.signature(network).parameters):
                depth = args.get("depth", parameters["depth"].default)
                args["strides"] = pool_strides(settings.patch, target["plan"]["spacing"] or (1.0, 1.0, 1.0), depth)
            return VolumeNet(network(settings.in_chans, classes, **args))
        return create_segmenter(
            settings.name,
            settings.head.name,
            classes,
            in_chans=settings.in_chans * (2 * settings.context + 1),
            img_size=settings.size,
            drop_path_rate=chosen(settings.drop_path_rate, "model.drop_path_rate"),
            backbone_args=args,
            **settings.head.args,
        )
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        what = f"{settings.name} cannot be built with model.args {settings.args} and model.head.args {settings.head.args}"
        raise UserError("VA-M002", what, why=str(error)) from error

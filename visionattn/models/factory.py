"""`create_model`: a classifier or a pyramid of feature maps by name, with timm's names and meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from visionattn.backbones import Backbone
from visionattn.backbones.registry import Variant, check_arguments, get_variant
from visionattn.errors import UserError
from visionattn.heads import LinearHead
from visionattn.models.weights import load_checkpoint


class Classifier(nn.Module):
    """A backbone and a linear head; parameters are `backbone.*` and `head.*`.

    Attributes:
        pretrained_cfg: input size, mean, std, interpolation and crop of the model, in timm's keys.
        num_features: channels of the last map; `head_hidden_size` is the same.
    """

    backbone: Backbone
    head: LinearHead

    def __init__(
        self, backbone: Backbone, num_classes: int, *, drop_rate: float = 0.0, pretrained_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LinearHead(backbone.channels, num_classes, norm=backbone.final_norm(), drop_rate=drop_rate)
        self.num_classes = num_classes
        self.in_chans = backbone.in_chans
        self.num_features = self.head_hidden_size = self.head.num_features
        self.pretrained_cfg = pretrained_cfg or {}

    @property
    def default_cfg(self) -> dict[str, Any]:
        return self.pretrained_cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One `dict(num_chs, reduction, module)` per stage."""
        return [{**info, "module": f"backbone.{info['module']}"} for info in self.backbone.feature_dicts()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[B, num_classes]` of images `[B, in_chans, H, W]`; pooled features if `num_classes` is 0."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last map, `[B, C, H / 32, W / 32]`."""
        return self.backbone(x)[-1]  # type: ignore[no-any-return]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits of the last map, or its pooled features with `pre_logits`."""
        return self.head([x], pre_logits)  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The last map and the maps of the stages in `indices` (a count takes the last ones).

        `norm` applies the head's norm to the last map; all maps are computed, so `stop_early` saves nothing here.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: maps are NCHW, got {output_fmt!r}")
        maps = self.backbone(x)
        final = maps[-1]
        if norm:
            maps[-1] = self.head.norm(final)
        chosen = [maps[index] for index in self._stage_indices(indices, len(maps))]
        return chosen if intermediates_only else (final, chosen)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop the stages behind the last of `indices`, and the classifier; returns the indices kept."""
        kept = self._stage_indices(indices, len(self.backbone.channels))
        self.backbone.select_stages(range(max(kept) + 1))
        if prune_norm:
            self.head.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return kept

    @staticmethod
    def _stage_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            return list(range(count - indices, count))
        return [range(count)[index] for index in indices]

    def get_classifier(self) -> nn.Module:
        """The linear layer (an identity when `num_classes` is 0)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for `num_classes`; 0 removes it. Pooling is the average."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: only 'avg' exists, got {global_pool!r}")
        like = next(self.backbone.parameters())
        self.head.reset(num_classes)
        self.head.fc.to(like.device, like.dtype)
        self.num_classes = num_classes

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Record the size that transforms are built for; the network takes any size from 32 up."""
        self.pretrained_cfg = {**self.pretrained_cfg, "input_size": (self.in_chans, *_pair(img_size))}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters beyond norms and biases that are not decayed."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put parameters into layers, from the input on (timm's layer decay)."""

        def below(pattern: str) -> str:
            return r"^backbone\." + pattern.removeprefix("^")

        matcher = self.backbone.group_matcher(coarse)
        blocks = matcher["blocks"]
        return {
            "stem": below(matcher["stem"]),
            "blocks": below(blocks) if isinstance(blocks, str) else [(below(pattern), order) for pattern, order in blocks],
        }

    def init_weights(self) -> None:
        """Draw all parameters anew; also completes a model that was built on the meta device."""
        self.backbone.init_weights()
        for module in self.head.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
        self.head.init_weights()


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: Literal[32] = 32,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **args: Any,
) -> Classifier | Backbone:
    """A model by name.

    Args:
        name: see `list_models()`.
        pretrained: load published weights (none can be downloaded yet: use `checkpoint_path`).
        checkpoint_path: a file of the authors, of timm or of ours. A classifier of another size and
            another number of input channels are adapted and reported (`load_checkpoint`).
        num_classes: outputs of the classifier; 0 for pooled features.
        in_chans: input channels.
        img_size: size the transforms are built for; the network takes any size from 32 up.
        features_only: return the backbone, which gives a list of maps.
        out_indices: stages whose maps are returned, with `features_only`.
        output_stride: 32, the only stride.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        **args: arguments of the family's class.

    Raises:
        UserError: VA-M001 unknown name, VA-M002 unknown argument, VA-W001 to VA-W005 weights.
        ValueError: another output stride; `out_indices` without `features_only`.
    """
    variant = get_variant(name)
    if output_stride != 32:
        raise ValueError(f"output_stride: {name} has stride 32 only, got {output_stride}")
    if out_indices is not None and not features_only:
        raise ValueError("out_indices needs features_only=True; on a classifier use forward_intermediates(indices=...)")
    if pretrained and checkpoint_path is None:
        raise UserError(
            "VA-W001",
            f"{name}: published weights cannot be downloaded yet",
            fix='download the authors\' file and pass checkpoint_path="FILE" (config: model.weights=FILE)',
        )
    if drop_path_rate:
        args["drop_path_rate"] = drop_path_rate
    check_arguments(variant, args)
    backbone = variant.cls(in_chans=in_chans, **{**variant.args, **args})
    model: Classifier | Backbone
    if features_only:
        backbone.select_stages(out_indices if out_indices is not None else backbone.out_indices)
        model = backbone
    else:
        model = Classifier(
            backbone, num_classes, drop_rate=drop_rate, pretrained_cfg=_pretrained_cfg(variant, backbone, num_classes, img_size)
        )
    if checkpoint_path is not None:
        load_checkpoint(model, checkpoint_path)
    return model


def model_info(name: str) -> dict[str, Any]:
    """Facts of a registered model: family, parameters, GMACs at its published size, channels, strides, preprocessing.

    Raises:
        UserError: VA-M001 unknown name.
    """
    from torch.utils.flop_counter import FlopCounterMode

    variant = get_variant(name)
    with torch.device("meta"):
        model = create_model(name).eval()
        assert isinstance(model, Classifier)
        image = torch.empty(1, *variant.cfg["input_size"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    backbone = model.backbone
    return {
        "name": name,
        "family": variant.family,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
        "channels": list(backbone.channels),
        "strides": list(backbone.strides),
        "args": dict(variant.args),
        "cfg": dict(variant.cfg),
        "paper": (__import__(variant.cls.__module__, fromlist=["x"]).__doc__ or "").strip().split("\n\n")[1].splitlines()[0],
    }


def resolve_data_config(model: Classifier) -> dict[str, Any]:
    """What `create_transform` needs to prepare images for a model: input_size, mean, std, interpolation, crop_pct."""
    return {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}


def _pretrained_cfg(variant: Variant, backbone: Backbone, num_classes: int, img_size: int | tuple[int, int] | None) -> dict[str, Any]:
    size = variant.cfg["input_size"][1:] if img_size is None else _pair(img_size)
    means, stds = (_channels(variant.cfg[key], backbone.in_chans) for key in ("mean", "std"))
    return {
        **variant.cfg,
        "architecture": variant.name,
        "input_size": (backbone.in_chans, *size),
        "pool_size": tuple(math.ceil(side / backbone.strides[-1]) for side in size),
        "min_input_size": (backbone.in_chans, 32, 32),
        "num_classes": num_classes,
        "mean": means,
        "std": stds,
        "first_conv": f"backbone.{backbone.first_conv}",
        "classifier": "head.fc",
    }


def _channels(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Mean or std for another number of channels: their average, repeated."""
    return tuple(values) if len(values) == in_chans else (sum(values) / len(values),) * in_chans


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])

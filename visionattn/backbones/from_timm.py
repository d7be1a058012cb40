"""Backbones of timm by name, `timm:NAME`: its networks as they are, behind the interface of ours.

Only names of timm's own modules are known here; nothing else that timm's `create_model` takes (models of the hub, folders) gets to it.

Differences from timm:

* For heads, images are padded with zeros at the bottom and right to multiples of the largest stride, and the maps cut to
  `ceil(size / stride)`. A classifier gives its network the images as they are.
* The classifier is one linear layer on the features that timm's head reads. That of a network with several classifiers, for distillation
  (EfficientFormer) or one per branch (CrossViT), is the one with the mean of their logits, which timm computes in evaluation;
  VOLO's second classifier, of patches, is left out.
"""

from __future__ import annotations

import math
import re
import sys
from functools import lru_cache
from inspect import signature
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from visionattn.backbones.base import Backbone
from visionattn.backbones.registry import DEFAULT_CFG, Variant, register_source
from visionattn.errors import UserError, did_you_mean

PREFIX = "timm:"
_USUAL = 96  # side of images from which networks without position tables take any; some pool more often than smaller ones allow
_FAILURES = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)  # of networks that get an image of a size that is not theirs


class TimmBackbone(Backbone):
    """A network of timm.

    Networks whose maps have strides from 4 on are pyramids; of the others only `pooled` is there.

    Args:
        name: name of a model of timm, without a tag.
        in_chans: input channels.
        img_size: height and width that a network with position tables is built for; None for those of its published weights.
        drop_path_rate: stochastic depth, by timm's rule.
        pooled: also return what timm's classifier reads, as a last map of one position.

    Raises:
        UserError: VA-M001, timm has no such model; VA-M002, it has no maps, no stochastic depth, or does not take images of this size.
    """

    placed_attention = False

    def __init__(
        self,
        *,
        name: str,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        drop_path_rate: float = 0.0,
        pooled: bool = False,
    ) -> None:
        require_name(name)
        size = (img_size, img_size) if isinstance(img_size, int) else None if img_size is None else (img_size[0], img_size[1])
        self.build_args: dict[str, Any] = {"name": name, "in_chans": in_chans, "size": size, "drop_path_rate": drop_path_rate}
        network = _build(**self.build_args)
        levels: dict[int, int] = {}  # stride -> index of the last map with it
        for index, info in enumerate(network.feature_info if hasattr(network, "forward_intermediates") else ()):
            levels[info["reduction"]] = index
        strides = sorted(stride for stride in levels if stride >= 4)
        self.pyramid = len(strides) > 1 and strides[0] == 4
        if not (self.pyramid or pooled):
            why = "its maps have strides " + (", ".join(map(str, sorted(levels))) or "that timm does not state")
            fix = "a pyramid, for example timm:focalnet_tiny_srf; or use it to classify"
            raise UserError("VA-M002", f"{PREFIX}{name} is not a pyramid of maps, which heads of dense prediction read", why=why, fix=fix)
        self.levels = [levels[stride] for stride in strides] if self.pyramid else []
        infos = [network.feature_info[level] for level in self.levels]
        channels, strides = [info["num_chs"] for info in infos], strides if self.pyramid else []
        if pooled:
            channels.append(getattr(network, "head_hidden_size", network.num_features))
            strides = [*strides, strides[-1] if strides else 32]
        super().__init__(in_chans=in_chans, channels=channels, strides=strides)
        self.pooled = pooled
        self.modules_of_levels = [info["module"] for info in infos]
        self.tokens_of = "" if self.pyramid else _block_before_last(network)
        self.only_size = _only_size(network, name, size)
        self.network = network
        self.left_out: frozenset[str] = frozenset()
        self.first_conv = f"network.{_first_conv(network)}"
        kinds = {type(module) for module in network.modules()}
        self.cnn = nn.BatchNorm2d in kinds and not any(issubclass(kind, nn.LayerNorm) for kind in kinds)

    @property
    def stages(self) -> list[nn.Module]:  # type: ignore[override]  # families have a ModuleList
        """The last module of each level of the pyramid; of a plain transformer the last but one block; of others none.

        The last block of a plain transformer is of no use to class activation maps: a classifier that reads the class token has no
        gradient at the others.
        """
        names = [self.tokens_of] if self.tokens_of else self.modules_of_levels
        return [self.network.get_submodule(module) for module in names]

    @property
    def stochastic_depth(self) -> bool:
        """Whether the network takes a rate of stochastic depth."""
        return "drop_path_rate" in signature(type(self.network).__init__).parameters

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        height, width = x.shape[2:]
        if self.only_size is not None and (height, width) != self.only_size:
            raise _wrong_size(self.build_args["name"], (height, width), self.only_size, "of larger images, windows: eval.mode=slide")
        if not self.pyramid:
            return [self.pool(self.network.forward_features(x))]
        if self.pooled:
            final, maps = self.network.forward_intermediates(x, indices=self.levels)
            return [[*maps, self.pool(final)][index] for index in self.out_indices]
        bottom, right = (-side % self.stage_strides[-1] for side in (height, width))
        x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
        maps = self.network.forward_intermediates(x, indices=[self.levels[i] for i in self.out_indices], intermediates_only=True)
        return [y[:, :, : math.ceil(height / s), : math.ceil(width / s)] for y, s in zip(maps, self.strides, strict=True)]

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Compute what the classifier reads from timm's features, `[B, C, 1, 1]`."""
        return self.network.forward_head(features, pre_logits=True)[:, :, None, None]  # type: ignore[operator]  # a method

    def select_stages(self, out_indices: Any) -> None:
        super().select_stages(out_indices)
        if self.pooled:
            return
        before = set(self.network.state_dict())
        kept = [self.levels[index] for index in self.out_indices]
        self.network.prune_intermediate_layers(kept, prune_norm=True, prune_head=True)  # type: ignore[operator]
        for name in ("head", "conv_head", "bn2", "final_conv"):  # of a classifier, where timm leaves it
            if name not in self.modules_of_levels and hasattr(self.network, name):
                setattr(self.network, name, nn.Identity())
        self.left_out |= before - set(self.network.state_dict())

    def init_weights(self) -> None:
        """Copy the parameters and buffers of a network that timm has just initialised."""
        fresh = _build(**self.build_args)
        values = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        with torch.no_grad():
            for name, tensor in [*self.network.named_parameters(), *self.network.named_buffers()]:
                tensor.copy_(values[name])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        try:
            self.network.set_grad_checkpointing(enable)  # type: ignore[operator]
        except AssertionError as error:
            what = f"{PREFIX}{self.build_args['name']} cannot recompute activations"
            raise UserError("VA-M002", what, why=str(error), fix="model.grad_checkpointing=false") from error

    def no_weight_decay(self) -> set[str]:
        own = getattr(self.network, "no_weight_decay", set)
        return {f"network.{name}" for name in own()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's own patterns for this network."""
        found: dict[str, Any] = {}
        for key, value in self.network.group_matcher(coarse=coarse).items():  # type: ignore[operator]
            if isinstance(value, str):
                found[key] = _below(value)
            elif key == "stem":
                found[key] = _below("|".join(pattern for pattern, _ in value))
            else:
                found[key] = [(_below(pattern), order) for pattern, order in value]
        return found

    def feature_dicts(self) -> list[dict[str, Any]]:
        names = [f"network.{module}" for module in self.modules_of_levels] + ["network"] * self.pooled
        facts = zip(self.stage_channels, self.stage_strides, names, strict=True)
        return [{"num_chs": channels, "reduction": stride, "module": name} for channels, stride, name in facts]

    def cam_layer(self, index: int = -1) -> nn.Module:
        return self.stages[index]

    def cam_map(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if self.tokens_of:  # B N C, class tokens and others first
            stride = self.network.feature_info[-1]["reduction"]  # type: ignore[index, union-attr]  # a list
            rows, columns = size[0] // stride, size[1] // stride
            return output[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
        if output.dim() == 3:  # B N C
            side = math.isqrt(output.shape[1] * size[0] // size[1])
            return output.transpose(1, 2).unflatten(2, (side, -1))
        return output.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else output

    def from_upstream(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # type: ignore[override]  # it depends on the network
        """Rename timm's keys, after what timm itself does to older files of this network."""
        convert = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        if convert is not None and len(signature(convert).parameters) == 2:
            state = convert(state, self.network)
        names = _names(self.network.pretrained_cfg.get("classifier"))
        rest = {f"backbone.network.{key}": value for key, value in state.items() if key.rpartition(".")[0] not in names}
        heads = [name for name in names if not name.startswith("aux") and f"{name}.weight" in state]
        if not heads:
            return rest
        weights = [state[f"{name}.weight"].flatten(1) for name in heads]
        width = self.stage_channels[-1] if self.pooled else weights[0].shape[1]
        branches = len(weights) > 1 and sum(weight.shape[1] for weight in weights) == width
        weight = torch.cat(weights, 1) / len(weights) if branches else torch.stack(weights).mean(0)
        rest["head.fc.weight"] = weight
        biases = [state[f"{name}.bias"] for name in heads if f"{name}.bias" in state]
        rest["head.fc.bias"] = torch.stack(biases).mean(0) if biases else weight.new_zeros(len(weight))
        return rest

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Leave out what belongs to timm's classifier, or to stages that are not computed."""
        for key in self.left_out:
            state.pop(f"network.{key}", None)
        return []


def require_name(name: str) -> None:
    """Check that a name is that of a model in timm's own modules.

    Raises:
        UserError: VA-M001 with close names.
    """
    if not timm.is_model(name) or not timm.models.model_entrypoint(name).__module__.startswith("timm."):
        own = name.removeprefix("va_") if name.startswith("va_") else ""
        near = f"Did you mean {own}?" if own else did_you_mean(name, timm.list_models())
        listed = 'All names are listed by: python -c "import timm; print(timm.list_models())"'
        raise UserError("VA-M001", f'timm has no model "{name}"', fix=f"{near} {listed}".strip())


@lru_cache(maxsize=64)
def timm_variant(name: str) -> Variant:
    """Describe a model of timm, `timm:NAME`, with the preprocessing of its default weights.

    Raises:
        UserError: VA-M001.
    """
    own = name.removeprefix(PREFIX)
    require_name(own)
    cfg = timm.get_pretrained_cfg(own)
    return Variant(name, TimmBackbone, {"name": own}, {**DEFAULT_CFG, **(preprocessing(cfg) if cfg is not None else {})})


def preprocessing(cfg: Any) -> dict[str, Any]:
    """What a configuration of timm says about images, where ours has a place for it."""
    found = {key: getattr(cfg, key) for key in ("input_size", "mean", "std", "crop_pct", "num_classes", "fixed_input_size")}
    found["interpolation"] = cfg.interpolation if cfg.interpolation in ("bicubic", "bilinear") else "bicubic"
    found["crop_pct"] = min(found["crop_pct"] or 0.875, 1.0)
    return {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in found.items() if value is not None}


def _build(name: str, in_chans: int, size: tuple[int, int] | None, drop_path_rate: float) -> Any:
    """Build a network of timm without its classifier."""
    args: dict[str, Any] = {"in_chans": in_chans, "num_classes": 0}
    if drop_path_rate:
        args["drop_path_rate"] = drop_path_rate
    if size is not None:
        args["img_size"] = size
    for _ in range(3):
        try:
            return timm.create_model(name, **args)
        except TypeError as error:
            if "img_size" in args and "img_size" in str(error):
                del args["img_size"]  # it takes any size, or its own only, which `_only_size` finds out
            elif "drop_path_rate" in str(error):
                raise UserError("VA-M002", f"{PREFIX}{name} has no stochastic depth", fix="model.drop_path_rate=0") from error
            else:
                raise
    raise AssertionError("unreachable")


def _only_size(network: Any, name: str, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The one size of images that a network takes; None if it takes others too.

    Raises:
        UserError: VA-M002, it does not take `size`.
    """
    native = tuple(network.pretrained_cfg["input_size"][1:])
    own = native if size is None else size
    fixed = bool(network.pretrained_cfg.get("fixed_input_size"))
    takes = "img_size" in signature(type(network).__init__).parameters
    if not fixed and (not takes or _accepts(name, None, (96, 128))):
        if min(own) >= _USUAL or _accepts(name, size, own):
            return None
        raise _wrong_size(name, own, native, f"model.img_size={native[0]}")
    if own != native and not _accepts(name, own, own):
        raise _wrong_size(name, own, native, f"model.img_size={native[0] if native[0] == native[1] else list(native)}")
    return own


@lru_cache(maxsize=64)
def _accepts(name: str, built_for: tuple[int, int] | None, size: tuple[int, int]) -> bool:
    """Whether a network computes the features of an image of this size; nothing is computed for it."""
    try:
        with torch.device("meta"), torch.no_grad():
            network = _build(name, 3, built_for, 0.0).eval()
            network.forward_features(torch.empty(1, 3, *size))
    except _FAILURES:
        return False
    return True


def _wrong_size(name: str, size: tuple[int, int], own: tuple[int, int], fix: str) -> UserError:
    what = f"{PREFIX}{name} takes images of {own[0]}x{own[1]} px here, not of {size[0]}x{size[1]} px"
    return UserError("VA-M002", what, fix=fix)


def _first_conv(network: Any) -> str:
    """Name of the first convolution."""
    for name in _names(network.pretrained_cfg.get("first_conv")):
        if isinstance(getattr(network.get_submodule(name), "weight", None), nn.Parameter):
            return name
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _block_before_last(network: Any) -> str:
    """Name of the last but one block of a plain transformer, whose tokens are those of one grid; empty for other networks."""
    infos: Any = network.feature_info if hasattr(network, "forward_intermediates") else ()
    names = [info["module"] for info in infos if info["reduction"] == infos[0]["reduction"]]
    plain = len(names) == len(infos) > 1 and all(hasattr(network.get_submodule(name), "attn") for name in names)
    return names[-2] if plain else ""


def _names(given: Any) -> tuple[str, ...]:
    return () if not given else (given,) if isinstance(given, str) else tuple(given)


def _below(pattern: str) -> str:
    """A pattern of timm for parameters under `network.`; each of its alternatives may begin with ^."""
    return r"^network\.(?:" + re.sub(r"(?<!\[)\^", "", pattern) + ")"


register_source(PREFIX, timm_variant)

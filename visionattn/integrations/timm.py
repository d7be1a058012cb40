"""Register our models with timm as `va_<name>`, when `register()` is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType, ModuleType
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_function,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from torch import nn

from visionattn import attention
from visionattn.backbones import list_models
from visionattn.backbones.registry import Variant, get_variant
from visionattn.models import create_model, load_checkpoint
from visionattn.models.weights.load import SAFE_OBJECTS
from visionattn.models.weights.records import Record, records_of

PREFIX = "va_"  # timm has models such as davit_tiny, and allows overwriting them

# timm looks up this name in the module of an entry function.
default_cfgs: dict[str, Any] = {}


def register() -> list[str]:
    """Register every backbone with timm; a second call adds those registered since.

    `timm.create_model("va_swin_tiny", ...)` then accepts timm's arguments and those of our `create_model`;
    `features_only=True` returns our backbone, `feature_cls="getter"` timm's wrapper around the classifier.

    Returns:
        The names in timm's registry.
    """
    for layer in _layers(attention):
        register_notrace_module(layer)
    for variant in map(get_variant, list_models()):
        name = PREFIX + variant.name
        if name not in default_cfgs:
            cfgs = {f"{name}.{tag}" if tag else name: cfg for tag, cfg in pretrained_cfgs(variant).items()}
            default_cfgs.update(generate_default_cfgs(cfgs))
            globals()[name] = register_model(_entrypoint(name, variant))
            family = sys.modules[variant.cls.__module__]
            for layer in _layers(family):
                register_notrace_module(layer)
            for function in _functions(family):
                register_notrace_function(function)
    return list(default_cfgs)


def pretrained_cfgs(variant: Variant) -> dict[str, dict[str, Any]]:
    """Return tag -> configuration in timm's keys; the tag is empty for a model without weights."""
    facts = {"input_size", "mean", "std", "interpolation", "crop_pct"}
    cfgs = {}
    for record in _published(variant):
        cfg = {**variant.cfg, **record.model_dump(include=facts), "url": record.sources[0].url, "license": record.weights_license}
        cfgs[record.tag] = cfg if record.num_classes is None else {**cfg, "num_classes": record.num_classes}
    return cfgs or {"": dict(variant.cfg)}


def _published(variant: Variant) -> list[Record]:
    return [record for record in records_of(variant.name) if record.sources]


def _record(variant: Variant, cfg: Any) -> Record | None:
    """Find the record behind a configuration, unless the caller set other weights."""
    if cfg.file or cfg.state_dict or cfg.hf_hub_id:
        return None
    return next((record for record in _published(variant) if (record.tag, record.sources[0].url) == (cfg.tag, cfg.url)), None)


def _layers(module: ModuleType) -> list[type[nn.Module]]:
    """Return the layers of a family; torch.fx keeps them whole, as it cannot trace their use of map sizes in Python."""
    found = [item for item in _own(module) if isinstance(item, type) and issubclass(item, nn.Module)]
    return [item for item in found if not hasattr(item, "select_stages")]  # no backbone


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    """Return the functions of a family, kept whole for the same reason where a backbone calls them itself."""
    return [item for item in _own(module) if isinstance(item, FunctionType)]


def _own(module: ModuleType) -> list[Any]:
    """List what a module defines, or imports from visionattn."""
    return [item for item in vars(module).values() if getattr(item, "__module__", "").startswith("visionattn.")]


def _entrypoint(name: str, variant: Variant) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **args: Any) -> nn.Module:
        return _build(name, variant, pretrained, **args)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    return entrypoint


def _build(
    name: str,
    variant: Variant,
    pretrained: bool,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    img_size: int | tuple[int, int] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **args: Any,
) -> nn.Module:
    overlay = dict(pretrained_cfg_overlay or {})
    if img_size is not None:
        overlay.setdefault("input_size", (3, *to_2tuple(img_size)))
    features_only = bool(args.get("features_only"))
    ours = {}  # otherwise timm wraps the model, which ours do not need
    if "feature_cls" not in args:
        ours = {key: args.pop(key) for key in ("features_only", "out_indices") if key in args}
    facts: dict[str, Any] = {}
    record = _record(variant, resolve_pretrained_cfg(name, args.get("pretrained_cfg"), overlay))
    fetched = pretrained and record is not None  # by our downloader, which checks the hash

    def build(**arguments: Any) -> nn.Module:
        with torch.device(device) if device is not None else nullcontext():
            model = create_model(record.name if record else variant.name, fetched, img_size=img_size, **ours, **arguments)
        if not features_only:
            facts.update({key: model.pretrained_cfg[key] for key in ("pool_size", "first_conv", "classifier")})
        return model.to(dtype=dtype)

    def load(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        load_checkpoint(model, state)
        return model.state_dict()  # already loaded and adapted

    with torch.serialization.safe_globals(SAFE_OBJECTS):
        model = build_model_with_cfg(
            build,
            name,
            pretrained and not fetched,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=load,
            feature_cfg={"out_indices": None},
            **args,
        )
    if not features_only:
        model.pretrained_cfg.update(facts)  # only now, or timm would adapt these layers a second time
    return model  # type: ignore[no-any-return]

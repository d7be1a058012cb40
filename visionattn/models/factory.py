"""Create classifiers and backbones by name, with timm's arguments."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from timm.layers import to_2tuple

from visionattn.backbones import Backbone
from visionattn.backbones.registry import Variant, check_arguments, get_variant
from visionattn.errors import UserError, lacks_memory
from visionattn.kernels.dispatch import use_backend
from visionattn.models.classifier import Classifier
from visionattn.models.weights.download import CachedFile, fetch
from visionattn.models.weights.folders import open_folder
from visionattn.models.weights.hub import CONFIG, is_hub, model_folder
from visionattn.models.weights.load import load_checkpoint
from visionattn.models.weights.records import Record, find_record, records_of, shipped_facts, split_name


@overload
def create_model(name: str, pretrained: bool | str = ..., *, features_only: Literal[True], **args: Any) -> Backbone: ...
@overload
def create_model(name: str, pretrained: bool | str = ..., *, features_only: Literal[False] = ..., **args: Any) -> Classifier: ...
@overload
def create_model(name: str, pretrained: bool | str = ..., *, features_only: bool, **args: Any) -> Classifier | Backbone: ...
def create_model(
    name: str,
    pretrained: bool | str = False,
    *,
    checkpoint_path: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int = 32,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    classifier: str = "linear",
    classifier_args: Mapping[str, Any] | None = None,
    **args: Any,
) -> Classifier | Backbone:
    """Create a model by name.

    Args:
        name: see `list_models()`; with a tag (`swin_tiny.in22k`), preprocessing and classes are those of
            these weights. Or a model of timm (`timm:NAME`, with a tag of timm's or without), of the Hugging Face hub
            (`hf-hub:OWNER/NAME`) or of a folder (`local-dir:FOLDER`), whose `config.json` gives the network, its classes and
            preprocessing.
        pretrained: load published weights, downloaded on first use: those of the tag in the name, of the
            tag given here, or the model's default (`list_models(pretrained=True)`). Another number of
            classes or input channels is adapted and logged (`load_checkpoint`).
        checkpoint_path: load this file instead, in the same way: the authors', timm's or ours.
        num_classes: outputs of the classifier, 0 for pooled features; None for those of the weights
            in `name` or `pretrained`, else 1000.
        in_chans: input channels; None for those of a model of the hub, else 3.
        img_size: size that transforms are built for; the network accepts any size from 32 px. Families whose
            position tables depend on it (`img_size` of the class) are built for it.
        features_only: return the backbone, whose output is a list of maps.
        out_indices: stages whose maps are returned, with `features_only`.
        output_stride: the largest stride of a returned map. CNNs and neighborhood attention dilate the stages beyond it, with the
            same weights; of the other families, `out_indices` must exclude them.
        global_pool: "avg", or "" for features and logits at each position.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        classifier: "linear", or "ep" for attentive pooling by learned queries, with which a frozen backbone is probed.
        classifier_args: arguments of its class; `queries` and `reduction` of `visionattn.heads.EfficientProbe`.
        **args: arguments of the family's class.

    Raises:
        UserError: VA-M001 unknown name, VA-M002 unknown argument, VA-W001 to VA-W007 weights.
        ValueError: a map exceeds the output stride; unknown pooling; `out_indices` without `features_only`.
    """
    if is_hub(name):
        given: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size, "out_indices": out_indices}
        given |= {"features_only": features_only, "output_stride": output_stride, "global_pool": global_pool, "drop_rate": drop_rate}
        given |= {"drop_path_rate": drop_path_rate, "classifier": classifier, "classifier_args": classifier_args}
        given |= args
        return _create_from_folder(name, bool(pretrained), checkpoint_path, given)
    model_name, tag = split_name(name)
    variant = get_variant(model_name)
    in_chans = 3 if in_chans is None else in_chans
    download = bool(pretrained) and checkpoint_path is None
    asked = find_record(name, pretrained if isinstance(pretrained, str) else None) if tag or download else None
    if num_classes is None:
        num_classes = (asked.num_classes if asked else None) or 1000
    if out_indices is not None and not features_only:
        raise ValueError("out_indices needs features_only=True; on a classifier use forward_intermediates(indices=...)")
    if drop_path_rate:
        args["drop_path_rate"] = drop_path_rate
    accepted = inspect.signature(variant.cls.__init__).parameters
    if img_size is not None and "img_size" in accepted:
        args["img_size"] = img_size
    check_arguments(variant, args)
    if "pooled" in accepted:
        args["pooled"] = not features_only and classifier == "linear"
    given = {**variant.args, **(weights_args(variant, asked) if asked else {}), **args}
    file = fetch(asked) if asked and download else None
    backbone = variant.cls(in_chans=in_chans, **given)
    model: Classifier | Backbone = backbone
    if not features_only:
        record = asked or next(iter(records_of(variant.name)), None)
        cfg = pretrained_cfg(variant, backbone, record, file, num_classes, img_size)
        model = Classifier(
            backbone,
            num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            classifier=classifier,
            classifier_args=classifier_args,
            pretrained_cfg=cfg,
        )
    if source := checkpoint_path or (file and file.path):
        load_checkpoint(model, source).log(source)
    if features_only:  # after loading: the file has all stages
        backbone.select_stages(out_indices if out_indices is not None else backbone.out_indices)
    if backbone.strides[-1] > output_stride:
        backbone.dilate(output_stride)
    return model


def _create_from_folder(name: str, pretrained: bool, checkpoint_path: str | Path | None, given: Mapping[str, Any]) -> Classifier | Backbone:
    """`create_model` for a model of the hub or of a folder; what is not given follows its `config.json`."""
    folder = model_folder(name)
    assert folder is not None  # for a source of this form there is a folder or an error
    found = open_folder(folder)
    defaults = {key: parameter.default for key, parameter in inspect.signature(create_model).parameters.items()}
    chosen = {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}
    size = found.cfg.get("input_size", (None,))[1:] or None
    facts: dict[str, Any] = {"num_classes": found.num_classes, "in_chans": found.in_chans, "img_size": size}
    source = checkpoint_path or (found.weights if pretrained else None)
    try:
        model: Any = create_model(found.name, checkpoint_path=source, **{**facts, **found.args, **chosen})
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        if chosen or isinstance(error, UserError) or lacks_memory(error):
            raise
        what = f"{found.name} cannot be built with the arguments in {CONFIG} of the model"
        raise UserError("VA-W005", what, where=str(folder / CONFIG), why=str(error)[:300]) from error
    if not given["features_only"]:
        stated = {key: value for key, value in found.cfg.items() if key != "input_size"}
        stated |= {key: _channels(stated[key], model.in_chans) for key in ("mean", "std") if key in stated}
        labels = {"label_names": found.classes} if found.classes and model.num_classes == found.num_classes else {}
        unknown = {"tag": "", "url": None, "sha256": None, "license": None, "code_license": None}  # not those of the published weights
        model.pretrained_cfg |= {**unknown, "num_classes": found.num_classes, **stated, **labels}
    return model


def weights_args(variant: Variant, record: Record) -> dict[str, Any]:
    """Return the arguments that a model of these weights is built with, besides its own."""
    args = dict(record.args)
    if "pretrain_size" in inspect.signature(variant.cls.__init__).parameters and "pretrain_size" not in variant.args:
        args.setdefault("pretrain_size", record.input_size[1:])  # their position tables are scaled relative to the training size
    return args


def model_info(name: str) -> dict[str, Any]:
    """Describe a registered model: family, parameters, GMACs at its published size, channels, strides, preprocessing, weights.

    Raises:
        UserError: VA-M001 unknown name.
    """
    variant = get_variant(name)
    facts = shipped_facts().get(name) or computed_facts(name)
    return {
        "name": name,
        **{key: facts[key] for key in ("family", "params", "gmacs", "channels", "strides")},
        "args": dict(variant.args),
        "cfg": dict(variant.cfg),
        "weights": [record.name for record in records_of(name)],
        "about": inspect.getdoc(sys.modules[variant.cls.__module__]) or "",
    }


def computed_facts(name: str, **args: Any) -> dict[str, Any]:
    """Compute the facts of a model that only its network tells, as plain values; `args` are those of `create_model`.

    `params` of the classifier with 1000 classes, `gmacs` of one image at the published `input_size`, `channels` and `strides` of
    the maps, and the `family`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    variant = get_variant(name)
    with torch.device("meta"):
        model = create_model(name, **args).eval()
        image = torch.empty(1, *variant.cfg["input_size"])
    # Count the reference kernels: fast ones may compute more than needed, or out of the counter's sight.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), use_backend("reference"):
        model(image)
    return {
        "family": variant.family,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
        "channels": list(model.backbone.channels),
        "strides": list(model.backbone.strides),
        "input_size": list(variant.cfg["input_size"]),
    }


def pretrained_cfg(
    variant: Variant,
    backbone: Backbone,
    record: Record | None,
    file: CachedFile | None,
    num_classes: int,
    img_size: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """Build the configuration of a model and its preprocessing, in timm's keys."""
    cfg = {**variant.cfg, "num_classes": num_classes, **(_published_cfg(record, file) if record else {})}
    size = cfg["input_size"][1:] if img_size is None else to_2tuple(img_size)
    means, stds = (_channels(cfg[key], backbone.in_chans) for key in ("mean", "std"))
    return {
        **cfg,
        "architecture": variant.name,
        "input_size": (backbone.in_chans, *size),
        "pool_size": tuple(math.ceil(side / backbone.strides[-1]) for side in size),
        "min_input_size": (backbone.in_chans, 32, 32),
        "mean": means,
        "std": stds,
        "first_conv": f"backbone.{backbone.first_conv}",
        "classifier": "head.fc",
    }


def _published_cfg(record: Record, file: CachedFile | None) -> dict[str, Any]:
    """Convert a record to timm's keys; `sha256` is that of the loaded file, or the published one."""
    source = next(iter(record.sources), None)
    facts = record.model_dump(include={"tag", "input_size", "mean", "std", "interpolation", "crop_pct", "code_license"})
    known = file.sha256 if file else source and source.sha256
    cfg = {**facts, "url": source and source.url, "sha256": known, "license": record.weights_license}
    return cfg if record.num_classes is None else {**cfg, "num_classes": record.num_classes}


def _channels(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Adapt mean or std to another number of channels: the average, repeated."""
    return tuple(values) if len(values) == in_chans else (sum(values) / len(values),) * in_chans

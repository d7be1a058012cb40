"""Folders of a model as on the Hugging Face hub: what their `config.json` says, and write one that timm reads.

Three layouts are read: a model of ours (`architecture` is `va_<name>`, timm's form), transformers' (`model_type`), and timm's own
names. In the last two the network follows from the tensors, which are loaded without running code.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from visionattn.backbones.registry import get_variant, list_models
from visionattn.errors import UserError
from visionattn.models.weights.hub import CONFIG, PREPROCESSOR, RUN, WEIGHTS, read_json
from visionattn.models.weights.load import read_file, tensors_of
from visionattn.models.weights.recognise import recognise
from visionattn.names import shown

PREFIX = "va_"  # before the names of our models in timm's registry
# Arguments of `create_model` that a file may set besides those of the family's class.
_OPTIONS = ("global_pool", "drop_rate", "classifier", "classifier_args")
# `model_type` in a config of transformers -> family.
_TRANSFORMERS = {"swin": "swin", "swinv2": "swinv2", "nat": "nat", "dinat": "nat"}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # of Pillow
# What timm accepts in `pretrained_cfg`, of what we have.
_SHARED = ("input_size", "mean", "std", "interpolation", "crop_pct", "license", "pool_size", "min_input_size", "first_conv", "classifier")


class Preprocessing(BaseModel):
    """What a file says about its images; anything else in it is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    input_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    mean: tuple[float, ...] | None = Field(None, min_length=1)
    std: tuple[PositiveFloat, ...] | None = Field(None, min_length=1)
    interpolation: Literal["bicubic", "bilinear"] | None = None
    crop_pct: float | None = Field(None, ge=0.1, le=1)  # images are enlarged by its inverse
    license: str | None = None

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """What timm's keys state."""
        known = {key: value for key, value in cfg.items() if key != "interpolation" or value in ("bicubic", "bilinear")}
        return cls.model_validate(known).model_dump(exclude_none=True)


@dataclass(frozen=True)
class FolderModel:
    """A classifier or backbone in a folder.

    Attributes:
        folder: with `config.json` and `model.safetensors`.
        name: registered name.
        args: arguments of `create_model` besides the next two.
        num_classes: outputs of its classifier; 0 if it has none.
        in_chans: channels of its images.
        cfg: preprocessing in timm's keys, where the folder states it.
        classes: names of the outputs; empty if they are not stated.
        descriptions: texts for these names; empty if they are not stated.
    """

    folder: Path
    name: str
    args: dict[str, Any]
    num_classes: int
    in_chans: int
    cfg: dict[str, Any]
    classes: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = field(default=())

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def open_folder(folder: Path) -> FolderModel:
    """Find out which model is in a folder.

    Raises:
        UserError: VA-W003 not one of ours, VA-W005 damaged, VA-M001 unknown name, VA-M002 unknown argument.
    """
    config = read_json(folder / CONFIG)
    architecture = config.get("architecture")
    try:
        if isinstance(architecture, str) and architecture.startswith(PREFIX):
            return _ours(folder, config, architecture.removeprefix(PREFIX))
        if RUN in config:
            what = f'"{folder}" is not a classifier'
            raise UserError("VA-W003", what, fix="use it as a run: to predict, to evaluate, or as the weights that a training starts from")
        if (family := _TRANSFORMERS.get(str(config.get("model_type")))) is not None:
            return _transformers(folder, config, family)
        return _recognised(folder, config)
    except (ValidationError, TypeError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("VA-W005", f"{CONFIG} of the model is damaged", where=str(folder / CONFIG), why=str(error)[:300]) from error


def _ours(folder: Path, config: Mapping[str, Any], name: str) -> FolderModel:
    """A model of ours as timm saves it."""
    cfg = _mapping(config.get("pretrained_cfg"))
    args = dict(_mapping(config.get("model_args")))
    known = {*list(inspect.signature(get_variant(name).cls.__init__).parameters)[1:], *_OPTIONS}
    about = Preprocessing.of(cfg)
    in_chans = int(args.pop("in_chans", about.get("input_size", (3,))[0]))
    num_classes = int(args.pop("num_classes", config.get("num_classes", cfg.get("num_classes", 1000))))
    if isinstance(pool := config.get("global_pool"), str):
        args.setdefault("global_pool", pool)
    if foreign := sorted(args.keys() - known - {"img_size", "drop_path_rate"}):  # files and switches are the caller's to name
        raise UserError("VA-M002", f'{name} has no argument "{shown(foreign[0])}"', where=str(folder / CONFIG))
    names = config.get("label_names", cfg.get("label_names"))
    return FolderModel(folder, name, args, num_classes, in_chans, about, *_labels(names, config.get("label_descriptions"), num_classes))


def _recognised(folder: Path, config: Mapping[str, Any]) -> FolderModel:
    """A model under another name, of timm or a family of transformers whose config is not known here, by its tensors."""
    found = recognise(tensors_of(read_file(folder / WEIGHTS)).state)
    if found is None or found.fit < 1 or found.decoder is not None:
        stated = shown(str(config.get("model_type") or config.get("architecture") or "no architecture"))[:80]
        closest = f", closest: {' or '.join(found.names)}" if found else ""
        what = f"the model in {folder} is not one of ours"
        raise UserError("VA-W003", what, why=f"{CONFIG} states {stated}{closest}", fix="supported models: visionattn models list")
    if "model_type" in config:
        about = _transformers_preprocessing(folder, config, found.in_chans)
        names: Any = _id_labels(config, found.num_classes)
    else:
        cfg = _mapping(config.get("pretrained_cfg")) or dict(config)  # older files of timm have no section of their own
        about, names = Preprocessing.of(cfg), config.get("label_names", cfg.get("label_names"))
    labels = _labels(names, config.get("label_descriptions"), found.num_classes)
    return FolderModel(folder, found.names[0], dict(found.args), found.num_classes, found.in_chans, about, *labels)


def _transformers(folder: Path, config: Mapping[str, Any], family: str) -> FolderModel:
    """A Swin, Swinv2, Nat or Dinat of transformers, by its config: some of it no tensor shows (dilations)."""
    wanted: dict[str, Any] = {
        "embed_dim": int(config["embed_dim"]),
        "depths": tuple(map(int, config["depths"])),
        "num_heads": tuple(map(int, config["num_heads"])),
        "mlp_ratio": float(config.get("mlp_ratio", 4.0 if family != "nat" else 3.0)),
    }
    if family == "nat":
        wanted["kernel_size"] = int(config.get("kernel_size", 7))
        wanted["dilations"] = _dilations(config.get("dilations") or [1] * len(wanted["depths"]))
        wanted["layer_scale"] = 1e-5 if float(config.get("layer_scale_init_value") or 0) > 0 else None
    else:
        wanted["window_size"] = int(config.get("window_size", 7))
    if family == "swinv2" and any(config.get("pretrained_window_sizes") or ()):
        wanted["pretrained_window_sizes"] = tuple(map(int, config["pretrained_window_sizes"]))
    candidates = []
    for name in list_models(family=family):
        variant = get_variant(name)
        defaults = {key: parameter.default for key, parameter in inspect.signature(variant.cls.__init__).parameters.items()}
        usual = {**defaults, **variant.args}
        candidates.append(({key: value for key, value in wanted.items() if usual[key] != value}, name))
    args, name = min(candidates, key=lambda item: (len(item[0]), item[1]))
    names = _id_labels(config, None)
    classes = len(names) if any("ForImageClassification" in str(item) for item in config.get("architectures") or ()) else 0
    channels = int(config.get("num_channels", 3))
    about = _transformers_preprocessing(folder, config, channels)
    return FolderModel(folder, name, args, classes, channels, about, *_labels(names, None, classes))


def _id_labels(config: Mapping[str, Any], count: int | None) -> list[Any]:
    """The names of a config of transformers, by number."""
    given = _mapping(config.get("id2label"))
    return [given.get(str(number)) for number in range(len(given) if count is None else count)]


def _dilations(given: Sequence[Any]) -> tuple[Any, ...]:
    """The dilations of each stage: one number d where they are 1, d, 1, d, ..., as in our variants."""
    stages = []
    for stage in given:
        steps = [int(stage)] if isinstance(stage, int) else list(map(int, stage))
        alternates = all(step == (max(steps) if block % 2 else 1) for block, step in enumerate(steps))
        stages.append(max(steps) if alternates or len(steps) == 1 else tuple(steps))
    return tuple(stages)


def _transformers_preprocessing(folder: Path, config: Mapping[str, Any], in_chans: int) -> dict[str, Any]:
    given = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    size = given.get("size", config.get("image_size"))
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    cfg = {"mean": given.get("image_mean"), "std": given.get("image_std"), "interpolation": _RESAMPLE.get(given.get("resample", 3))}
    if isinstance(size, int) and size >= 32:
        cfg["input_size"] = (in_chans, size, size)
    return Preprocessing.of(cfg)


def _labels(names: Any, descriptions: Any, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and descriptions of the outputs, where there is one for each."""
    if not (isinstance(names, Sequence) and len(names) == count and all(isinstance(name, str) for name in names)):
        return (), ()
    if len(set(names)) != count:
        return (), ()
    texts = [str(descriptions.get(name, name)) for name in names] if isinstance(descriptions, Mapping) else []
    return tuple(names), tuple(texts)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def timm_config(model: Any, args: Mapping[str, Any], classes: Sequence[str], descriptions: Sequence[str] | None = None) -> dict[str, Any]:
    """The content of `config.json` from which timm, after `register()`, and `open_folder` build a classifier.

    Args:
        model: a `Classifier`.
        args: arguments of `create_model` that it was built with, besides the number of classes and channels.
        classes: names of its outputs.
        descriptions: texts for these names.
    """
    texts = {"label_descriptions": dict(zip(classes, descriptions, strict=True))} if descriptions else {}
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key in _SHARED and value is not None}
    return {
        "architecture": PREFIX + model.pretrained_cfg["architecture"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": "avg",
        "model_args": {**args, "in_chans": model.in_chans},
        "label_names": list(classes),
        **texts,
        "pretrained_cfg": {"tag": "", "custom_load": False, "fixed_input_size": False, "num_classes": model.num_classes, **cfg},
    }

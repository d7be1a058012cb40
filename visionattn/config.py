"""Every setting of a run: type, default, bounds and meaning in one place, and how files are read.

A config is YAML: `base:` names the files it builds on (shipped names or paths), `key=value` from
the command line comes last. The result is validated once and never changed afterwards.
"""

from __future__ import annotations

import copy
import json
import os
import re
import types
import typing
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Union

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from visionattn.errors import UserError, did_you_mean

SHIPPED = files("visionattn") / "configs"

# The label of pixels that neither loss nor metrics see; every ignored value of a mask becomes this one on reading.
IGNORE = 255


class Section(BaseModel):
    """A frozen mapping that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *typing.get_args(annotation)):
            raise PydanticCustomError("bool_for_other", "true and false are neither numbers nor text")
        return value


def _setting(default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, **bounds)


class BackboneConfig(Section):
    """What the models of all tasks have."""

    name: str = _setting("eca_resnet18", "Backbone, see `visionattn models list`.")
    weights: str = _setting(
        "none", "Weights to start from: a tag (visionattn weights list), pretrained for the model's default, a path, or none."
    )
    in_chans: int = _setting(3, "Input channels: 3, or 1 to train on grey images.", ge=1)
    img_size: int | tuple[int, int] = _setting(224, "Input size in pixels: one number, or [height, width].")
    drop_path_rate: float = _setting(0.0, "Stochastic depth, growing linearly to this rate at the last block.", ge=0, lt=1)
    grad_checkpointing: bool = _setting(False, "Recompute activations in the backward pass: less memory, more time.")
    args: dict[str, Any] = _setting({}, "Arguments of the family's class, for example depths or embed_dim.")

    @property
    def size(self) -> tuple[int, int]:
        """Input height and width in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)


class ModelConfig(BackboneConfig):
    drop_rate: float = _setting(0.0, "Dropout before the classifier.", ge=0, lt=1)


class AuxConfig(Section):
    enabled: bool | Literal["auto"] = _setting(
        "auto", "Train an auxiliary FCN head on the last but one map; auto: where the head's published recipes do."
    )
    weight: float = _setting(0.4, "Weight of the auxiliary head's loss.", ge=0)
    rule: Literal["upsample_logits", "downsample_label"] = _setting(
        "upsample_logits", "At which size auxiliary outputs meet the label; downsample_label is nnU-Net's deep supervision."
    )


class HeadConfig(Section):
    name: str = _setting("auto", "Segmentation head or decoder, see visionattn.heads.HEADS; auto: that of a preset, or upernet.")
    args: dict[str, Any] = _setting({}, "Arguments of the head's class, for example width or dropout; they go before a preset's.")
    aux: AuxConfig = AuxConfig()


class SegmentModelConfig(BackboneConfig):
    name: str = _setting(
        "eca_resnet18", "Backbone, see `visionattn models list`, or a preset of backbone and head: att_swin_unet, resunet_eca_aspp."
    )
    img_size: int | tuple[int, int] = _setting(512, "Size of a training crop in pixels: one number, or [height, width].")
    head: HeadConfig = HeadConfig()


class ImageDataConfig(Section):
    """What the data of all tasks have: splits, and how an image is read."""

    root: str = _setting("", "Folder of images, folder of CSV lists, an .npz file; a cache folder for format torchvision.")
    train: str = _setting("train", "Name of the training split (folder, CSV file stem, npz prefix).")
    val: str = _setting("val", "Name of the validation split.")
    test: str = _setting("test", "Name of the test split, used by `visionattn eval --split test`.")
    val_fraction: float | None = _setting(
        None, "Share of the training set held out as validation: seeded, stratified, whole groups.", gt=0, lt=1
    )
    group_by: str = _setting("", "CSV column (or regular expression on the path) whose equal values stay in one split.")
    exclude: list[str] = _setting([".*", "__MACOSX", "Thumbs.db"], "File and folder names (globs) to skip.")
    on_error: Literal["stop", "skip"] = _setting(
        "stop", "Undecodable images are excluded; stop ends the run above 3 of them or 0.1 %, skip never does."
    )
    alpha_background: Literal["black", "white"] = _setting("black", "Background under transparent pixels.")
    range: Literal["dtype", "percentile"] | tuple[float, float] = _setting(
        "dtype", "Scaling of 16-bit and float images: dtype maximum, 1st-99th percentile, or [low, high]."
    )
    max_pixels: int = _setting(178_956_970, "Largest image accepted, in pixels.", ge=1)
    workers: int | Literal["auto"] = _setting("auto", "Loader processes; auto is the number of cores, at most 8.")
    cache: Literal["none", "ram"] = _setting("none", "ram keeps decoded images in memory (per worker).")


class DataConfig(ImageDataConfig):
    format: Literal["auto", "folders", "csv", "npz", "digits", "torchvision"] = _setting(
        "auto", "Layout of data.root; auto reads it from what lies there."
    )
    dataset: str = _setting("", "Class in torchvision.datasets, for format torchvision.")
    classes: Literal["auto"] | list[str] | str = _setting(
        "auto", "Class names in order: auto (classes.txt or the training set), a list, or a text file."
    )
    multi_label: bool = _setting(False, "Several classes per image: labels separated by ';' in CSV, multi-hot in npz.")


class MaskDataConfig(ImageDataConfig):
    root: str = _setting("", "Folder of images and masks, or a CSV file of pairs.")
    format: Literal["auto", "pairs", "csv", "ade20k", "cityscapes", "voc", "camvid"] = _setting(
        "auto", "Layout of data.root; auto reads it from what lies there."
    )
    images: str = _setting("", "Folder of images, {split} standing for the split; empty: as the layout has it, for example images/{split}.")
    masks: str = _setting("", "Folder of masks, for example masks/{split}; empty: as the layout has it.")
    mask_suffix: str = _setting("", "End of a mask's name after the image's, for example _mask.png; empty: the same name, any image type.")
    classes: Literal["auto"] | int | list[str] | str = _setting(
        "auto",
        "Class names in order of the mask values: auto (classes.txt, or the layout's own), a list, how many, "
        "a text file, or one of ade20k, cityscapes, voc, camvid.",
    )
    ignore_index: int | Literal["auto", "none"] = _setting(
        "auto", "Mask value that is left out of loss and metrics; auto: classes called void or unlabelled, or none."
    )
    map: dict[int, int] = _setting({}, "Mask values to read as others, for example {128: 1}; 255 ignores.")
    palette: Literal["auto"] | list[tuple[int, int, int]] | str = _setting(
        "auto",
        "Colours of RGB masks and pictures, in order of the values: auto (from the classes), a list, or a file of `index name R G B`.",
    )
    mask_resize: Literal["error", "nearest"] = _setting(
        "error", "Masks of another size than their image: stop, or take the nearest pixels."
    )
    reduce_zero_label: bool = _setting(False, "Mask value 0 is no class and ignored; classes begin at 1.")


class CropConfig(Section):
    scale: tuple[float, float] = _setting((0.08, 1.0), "Range of the crop's area, as a share of the image.")
    ratio: tuple[float, float] = _setting((0.75, 1.3333), "Range of the crop's width / height.")


class AugmentConfig(Section):
    random_resized_crop: CropConfig | None = _setting(CropConfig(), "Random crop, resized to img_size; null resizes the whole image.")
    pad_crop: int = _setting(0, "Pixels of reflected border before a random crop of img_size (with random_resized_crop: null).", ge=0)
    hflip: float = _setting(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vflip: float = _setting(0.0, "Probability of an up-down flip.", ge=0, le=1)
    rotate: float = _setting(0.0, "Largest rotation in degrees.", ge=0, le=180)
    shift: float = _setting(0.0, "Largest shift, as a share of the size.", ge=0, lt=1)
    zoom: float = _setting(0.0, "Largest relative change of scale.", ge=0, lt=1)
    color_jitter: float = _setting(0.0, "Strength of brightness, contrast and saturation changes (hue: a quarter).", ge=0)
    rand_augment: str = _setting("", "RandAugment in timm's notation, for example rand-m9-mstd0.5-inc1.")
    random_erasing: float = _setting(0.0, "Probability of erasing a rectangle.", ge=0, le=1)
    mixup: float = _setting(0.0, "Mixup alpha; 0 is off.", ge=0)
    cutmix: float = _setting(0.0, "CutMix alpha; 0 is off.", ge=0)


class MaskAugmentConfig(Section):
    resize: Literal["none", "fixed"] | int | tuple[int, int] = _setting(
        "none",
        "Size before all else, in training and evaluation: none (as it is), fixed (img_size, not keeping the ratio), "
        "a number for the short side, or [long, short] to fit into.",
    )
    scale: tuple[float, float] = _setting((0.5, 2.0), "Range of random scaling in training, before a random crop of img_size.")
    cat_max_ratio: float = _setting(0.75, "Largest share of one class in a crop, if ten draws find such a crop; 1: any crop.", gt=0, le=1)
    hflip: float = _setting(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vflip: float = _setting(0.0, "Probability of an up-down flip.", ge=0, le=1)
    rotate90: float = _setting(0.0, "Probability of a rotation by a multiple of 90 degrees (square img_size).", ge=0, le=1)
    rotate: float = _setting(0.0, "Largest rotation in degrees.", ge=0, le=180)
    elastic: float = _setting(0.0, "Probability of a mild elastic deformation.", ge=0, le=1)
    photometric: bool = _setting(True, "Random brightness, contrast, saturation and hue; grey images: brightness and contrast.")


class LossConfig(Section):
    label_smoothing: float = _setting(0.0, "Label smoothing.", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | list[float] = _setting(
        "none", "Weight per class: none, balanced (inverse frequency), or a list."
    )


class LossTermConfig(Section):
    name: str = _setting(
        "cross_entropy", "cross_entropy, binary_cross_entropy, focal, ohem_cross_entropy, dice, generalised_dice, tversky or lovasz."
    )
    weight: float = _setting(1.0, "Factor of this term in the sum.", ge=0)
    args: dict[str, Any] = _setting({}, "Arguments of the loss, for example {gamma: 2.0} or {class_weights: balanced}.")


class OptimConfig(Section):
    name: Literal["adamw", "sgd"] = _setting("adamw", "Optimizer.")
    lr: float = _setting(1e-3, "Learning rate, given for lr_batch samples per step.", gt=0)
    lr_batch: int | None = _setting(
        None, "Batch size the rate is given for: lr grows with batch x accum x processes; null: lr as it is.", ge=1
    )
    weight_decay: float = _setting(0.05, "Weight decay; norms, biases and the family's own list are left out.", ge=0)
    betas: tuple[float, float] = _setting((0.9, 0.999), "AdamW betas.")
    momentum: float = _setting(0.9, "SGD momentum (Nesterov).", ge=0, lt=1)
    layer_decay: float | None = _setting(None, "Factor on the rate from each layer to the one before it.", gt=0, le=1)
    clip_grad: float | None = _setting(5.0, "Largest gradient norm; null: no clipping.", gt=0)


class ScheduleConfig(Section):
    name: Literal["cosine", "poly", "step", "constant"] = _setting("cosine", "Learning rate over the run, set at each step.")
    warmup_epochs: float = _setting(0.0, "Epochs of linear warm-up from a thousandth of the rate; at most half of the run.", ge=0)
    warmup_steps: int | None = _setting(None, "Optimizer steps of warm-up, instead of schedule.warmup_epochs.", ge=0)
    min_lr: float = _setting(1e-6, "Rate at the end of cosine and poly.", ge=0)
    power: float = _setting(0.9, "Exponent of poly.", gt=0)
    step_epochs: float = _setting(30.0, "Epochs between the drops of step.", gt=0)
    gamma: float = _setting(0.1, "Factor of each drop of step.", gt=0, le=1)


class TrainConfig(Section):
    epochs: int = _setting(20, "Passes over the training set.", ge=1)
    steps: int | None = _setting(None, "Optimizer steps of the run, instead of train.epochs; its last epoch may be cut off.", ge=1)
    batch_size: int = _setting(32, "Images per step and device.", ge=1)
    accum: int = _setting(1, "Steps whose gradients are added before an update.", ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting("auto", "auto is bf16 where the device computes it fast, else fp32.")
    device: Literal["auto", "cpu"] = _setting("auto", "auto takes CUDA or MPS where there is one.")
    ema: float | None = _setting(None, "Decay of the moving average of the weights (then evaluated and exported); null: none.", gt=0, lt=1)
    freeze: Literal["none", "backbone"] = _setting("none", "What is not trained.")
    channels_last: bool | Literal["auto"] = _setting("auto", "Memory layout; auto: on for the CNN families.")
    deterministic: bool = _setting(True, "Use deterministic operations where torch has them.")
    save_every: int = _setting(0, "Optimizer steps between checkpoints; 0: at each epoch's end.", ge=0)


class EvalConfig(Section):
    every: int = _setting(1, "Epochs between evaluations.", ge=1)
    best: Literal["auto", "top1", "balanced_accuracy", "macro_f1", "auroc"] = _setting(
        "auto", "Metric that chooses the best checkpoint; auto: top1, or macro_f1 for multi-label."
    )
    batch_size: int | None = _setting(None, "Images per evaluation step; null: as in training.", ge=1)
    crop_pct: float | None = _setting(
        None, "Share of the resized image that is kept by the centre crop; null: the model's own.", gt=0, le=1
    )


class SegmentEvalConfig(Section):
    every: int = _setting(1, "Epochs between evaluations.", ge=1)
    best: Literal["auto", "miou", "macc", "aacc", "mdice", "dice", "iou", "nsd"] = _setting(
        "auto", "Metric that chooses the best checkpoint; auto: miou, or dice with eval.per_case. The last three need eval.per_case."
    )
    mode: Literal["whole", "slide"] = _setting("whole", "The whole image at once, or windows of eval.tile.")
    tile: int | tuple[int, int] | None = _setting(None, "Window of slide in pixels: one number, or [height, width]; null: model.img_size.")
    stride: int | tuple[int, int] | None = _setting(None, "Steps of the window in pixels; null: by eval.overlap.")
    overlap: float = _setting(0.33, "Share of a window that the next one covers again.", ge=0, lt=1)
    blend: Literal["constant", "gaussian", "nnunet"] = _setting(
        "constant", "Weights of overlapping windows: constant is mmsegmentation's rule, gaussian MONAI's, nnunet nnU-Net's with its grid."
    )
    flips: Literal["none", "horizontal", "both"] = _setting("none", "Average over flips of the image: none, left-right, or up-down too.")
    scales: list[float] = _setting([], "Average over the image at these scales, for example [0.75, 1, 1.25]; empty: as it is.")
    average: Literal["logits", "probabilities"] = _setting(
        "logits", "What flips and scales are averaged over; probabilities is mmsegmentation's rule."
    )
    per_case: bool = _setting(False, "Dice, IoU and surface distances per image, averaged over images, as in medicine.")
    spacing: tuple[float, float] | None = _setting(None, "Pixel size in mm, [rows, columns], for distances; null measures in pixels.")
    hausdorff: Literal["max_directed", "pooled"] = _setting("max_directed", "Definition of hd95.")
    tolerance: float = _setting(1.0, "Distance within which a surface is right in nsd, in mm or pixels.", gt=0)


class LogConfig(Section):
    every_steps: int = _setting(20, "Optimizer steps between log lines.", ge=1)
    tensorboard: bool = _setting(True, "Write TensorBoard events to tb/.")
    images: int = _setting(16, "Pictures per TensorBoard panel.", ge=0, le=64)


class OutputConfig(Section):
    dir: str = _setting("runs", "Folder of all runs.")
    name: str = _setting("", "Folder of this kind of run inside it; empty: <data>-<model>.")


class Config(Section):
    """All settings of a run that classifies."""

    version: Literal[1] = _setting(1, "Version of the config format.")
    task: Literal["classify"] = _setting("classify", "What is learned.")
    seed: int = _setting(0, "Seed of weights, order, augmentation and dropout.", ge=0)
    plugins: list[str] = _setting([], "Importable modules that register backbones or attention modules of your own.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        _check_common(self)
        crop = self.augment.random_resized_crop
        for name, (low, high) in {"scale": crop.scale, "ratio": crop.ratio}.items() if crop else ():
            if not 0 < low <= high:
                raise ValueError(f"augment.random_resized_crop.{name}: expected [low, high] with 0 < low <= high, got [{low:g}, {high:g}]")
        if self.data.multi_label and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("augment.mixup and augment.cutmix mix single labels: set them to 0 with data.multi_label")
        if self.data.multi_label and self.eval.best == "top1":
            raise ValueError("eval.best: top1 needs one label per image; use macro_f1 or auroc with data.multi_label")
        return self


class SegmentConfig(Section):
    """All settings of a run that segments."""

    version: Literal[1] = _setting(1, "Version of the config format.")
    task: Literal["segment"] = _setting("segment", "What is learned.")
    seed: int = _setting(0, "Seed of weights, order, augmentation and dropout.", ge=0)
    plugins: list[str] = _setting([], "Importable modules that register backbones or attention modules of your own.")
    model: SegmentModelConfig = SegmentModelConfig()
    data: MaskDataConfig = MaskDataConfig()
    augment: MaskAugmentConfig = MaskAugmentConfig()
    loss: list[LossTermConfig] = _setting([LossTermConfig()], "Terms of the loss, added up.", min_length=1)
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: SegmentEvalConfig = SegmentEvalConfig()
    log: LogConfig = LogConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _check(self) -> SegmentConfig:
        _check_common(self)
        if not all(scale > 0 for scale in self.eval.scales):
            raise ValueError(f"eval.scales: expected numbers > 0, got {self.eval.scales}")
        if self.eval.best in ("dice", "iou", "nsd") and not self.eval.per_case:
            raise ValueError(f"eval.best: {self.eval.best} is a score of cases; set eval.per_case=true, or use mdice or miou")
        if not any(term.weight for term in self.loss):
            raise ValueError("loss: expected a term with weight > 0")
        for key in ("tile", "stride"):
            if self.eval.mode == "whole" and getattr(self.eval, key) is not None:
                raise ValueError(f"eval.{key}: windows need eval.mode=slide; eval.{key}=null for the whole image")
        if self.eval.spacing is not None and not self.eval.per_case:
            raise ValueError("eval.spacing: distances are scores of cases; set eval.per_case=true")
        return self


AnyConfig = Config | SegmentConfig
# By the value of `task`.
CONFIGS: dict[str, type[AnyConfig]] = {"classify": Config, "segment": SegmentConfig}


def _check_common(config: AnyConfig) -> None:
    if min(config.model.size) < 32:
        raise ValueError("model.img_size: expected at least 32 pixels per side")
    if config.data.workers != "auto" and config.data.workers < 0:
        raise ValueError(f"data.workers: expected integer >= 0 or auto, got {config.data.workers}")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ValueError(f"optim.betas: expected numbers >= 0 and < 1, got {list(config.optim.betas)}")


# ---------------------------------------------------------------- reading

# Keys that hold paths: the only ones in which ${env:NAME} is replaced.
PATH_KEYS = ("data.root", "output.dir", "model.weights", "data.classes")
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


def shipped_names() -> list[str]:
    """Names of the configs inside the package that are meant to be run."""
    root = Path(str(SHIPPED))
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("base/"))


def find_config(name: str, beside: Path | None = None) -> Path:
    """The file of a config: a path (also relative to the file that names it), or a shipped name.

    Raises:
        UserError: VA-C004, no such file or shipped config.
    """
    candidates = [Path(name).expanduser()]
    if beside is not None:
        candidates += [beside / name, beside / f"{name}.yaml"]
    candidates.append(Path(str(SHIPPED)) / f"{name}.yaml")
    for path in candidates:
        if path.is_file():
            return path
    leaves = {known.rpartition("/")[2]: known for known in shipped_names()}
    near = [leaves[leaf] for leaf in get_close_matches(name.removesuffix(".yaml").rpartition("/")[2], leaves, 3, 0.55)]
    hint = f"Did you mean {', '.join(near)}?" if near else did_you_mean(name, leaves.values())
    raise UserError(
        "VA-C004", f'config "{name}" is neither a file nor a shipped config', fix=f"{hint} List them: visionattn config list".strip()
    )


def load_config(source: str | Path | None = None, overrides: tuple[str, ...] | list[str] = ()) -> AnyConfig:
    """Read, merge and validate.

    Args:
        source: path or shipped name; None for the defaults.
        overrides: `key=value` strings with dotted keys; they come last.

    Raises:
        UserError: VA-C001 to VA-C004; all unknown keys and wrong values are reported together.
    """
    merged, origins = ({}, {}) if source is None else _read(find_config(str(source)), ())
    return _override(merged, origins, overrides)


def change_config(config: AnyConfig, overrides: Sequence[str], sections: Collection[str]) -> AnyConfig:
    """The config with `key=value` strings applied, all of them in `sections` (or keys in them).

    Raises:
        UserError: VA-C001, VA-C002; also for a key outside of `sections`.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        if "=" in text and not any(key == section or key.startswith(f"{section}.") for section in sections):
            raise UserError(
                "VA-C002", f"{key}: a trained model keeps its own", where="command line", fix=f"What may differ: {', '.join(sections)}"
            )
    return _override(config.model_dump(mode="json"), {}, overrides) if overrides else config


def _override(values: dict[str, Any], origins: dict[str, str], overrides: Sequence[str]) -> AnyConfig:
    for text in overrides:
        key, sign, _ = text.partition("=")
        if not sign or not key.strip():
            raise UserError("VA-C001", f'"{text}" is not of the form key=value', where="command line", fix="Example: train.epochs=5")
        origins[key.strip()] = "command line"
    try:
        merged = _over(values, OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:  # TypeError: a list where a mapping is, or the reverse
        raise UserError("VA-C002", f"the settings do not fit together: {str(error).splitlines()[0]}", where=", ".join(overrides)) from error
    return config_from_dict(merged, origins)


def config_from_dict(values: Any, origins: dict[str, str] | None = None) -> AnyConfig:
    """Validate a plain mapping by its task; `origins` tells for a dotted key where it was set (`file:line`)."""
    origins = origins or {}
    problems: list[tuple[str, str, str]] = []  # code, dotted key, message
    values = _substitute_env(values, "", problems)
    task = values.get("task", "classify")
    if not isinstance(task, str) or task not in CONFIGS:
        got = json.dumps(task, ensure_ascii=False, default=str)
        problems.append(("VA-C002", "task", f"expected one of {', '.join(CONFIGS)}, got {got}"))
        values, task = {key: value for key, value in values.items() if key != "task"}, "classify"
    schema = CONFIGS[task]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        problems += [_problem(details, schema) for details in error.errors(include_url=False)]
    if not problems:
        return config
    lines = [" ".join(filter(None, (_origin(key, origins), f"{key}: {message}" if key else message))) for _, key, message in problems]
    show = "visionattn config show" + ("" if task == "classify" else f" task={task}")
    raise UserError(problems[0][0], "\n  ".join(dict.fromkeys(lines)), fix=f"Keys and their meaning: {show}")


def changed_values(config: AnyConfig) -> dict[str, Any]:
    """Only what differs from the defaults of its task, as nested plain values; the task is told unless it is classify."""
    changed = _difference(config.model_dump(mode="json"), type(config)().model_dump(mode="json"))
    return changed if config.task == "classify" else {"task": config.task, **changed}


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML text in the order they are declared."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def describe(config: AnyConfig) -> str:
    """YAML of all values with each key's meaning as a comment."""

    def section(model: BaseModel, indent: str) -> list[str]:
        lines = []
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, Section):
                lines += ["", f"{indent}{name}:", *section(value, indent + "  ")]
            else:
                plain = model.model_dump(mode="json", include={name})[name]
                text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
                lines.append(f"{indent + name + ': ' + text:<40}  # {field.description or ''}")
        return lines

    return "\n".join(section(config, "")).strip() + "\n"


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    if path.resolve() in seen:
        raise UserError("VA-C003", f"{path} names itself under base:", where=" -> ".join(str(p) for p in seen))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError("VA-C003", f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        empty = node is None or node.tag == "tag:yaml.org,2002:null"
        own: Any = {} if empty else OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise _syntax_error(path, text, error) from error
    if not isinstance(own, dict) or (isinstance(node, yaml.ScalarNode) and not empty):
        raise UserError("VA-C003", "a config is a mapping of keys to values", where=f"{path}:1")
    origins = {key: f"{path.name}:{line}" for key, line in _lines(node, "")}
    bases = own.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError("VA-C002", "base: expected a config name or a list of names", where=origins.get("base", str(path)))
    merged: dict[str, Any] = {}
    merged_origins: dict[str, str] = {}
    for name in bases:
        values, lines = _read(find_config(name, beside=path.parent), (*seen, path.resolve()))
        merged = _merge(merged, values, path)
        merged_origins |= lines
    return _merge(merged, own, path), merged_origins | origins


def _merge(low: dict[str, Any], high: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return _over(low, high)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError("VA-C002", f"does not fit its base: {str(error).splitlines()[0]}", where=str(path)) from error


def _over(low: dict[str, Any], high: Any) -> dict[str, Any]:
    """`low` with the values of `high`; arguments of a model or a head go with its name, and another name leaves them out."""
    low, high = copy.deepcopy(low), OmegaConf.to_container(OmegaConf.create(high), resolve=False)
    for path in (("model",), ("model", "head")):
        below, above = _section_at(low, path), _section_at(high, path)
        if "name" in below and "name" in above and below["name"] != above["name"]:
            below.pop("args", None)
    return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.merge(low, high), resolve=False))


def _section_at(values: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping at a path; an empty one where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _syntax_error(path: Path, text: str, error: Exception) -> UserError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return UserError("VA-C003", f"not valid YAML: {problem}", where=str(path))
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    return UserError(
        "VA-C003", f"not valid YAML: {problem}\n  {line}\n  {' ' * mark.column}^", where=f"{path}:{mark.line + 1}, column {mark.column + 1}"
    )


def _lines(node: Any, prefix: str) -> list[tuple[str, int]]:
    found = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            found.append((dotted, key.start_mark.line + 1))
            found += _lines(value, f"{dotted}.")
    return found


def _origin(key: str, origins: dict[str, str]) -> str:
    inside = next((where for known, where in origins.items() if known.startswith(f"{key}.")), "")
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return inside


def _substitute_env(value: Any, key: str, problems: list[tuple[str, str, str]]) -> Any:
    if isinstance(value, dict):
        return {name: _substitute_env(item, f"{key}.{name}" if key else str(name), problems) for name, item in value.items()}
    if isinstance(value, list):
        return [_substitute_env(item, key, problems) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    if key not in PATH_KEYS or "${" in _ENV.sub("", value):
        problems.append(("VA-C002", key, f'"{value}": only ${{env:NAME}} is replaced, and only in {", ".join(PATH_KEYS)}'))
        return value
    for name in _ENV.findall(value):
        if name not in os.environ:
            problems.append(("VA-C002", key, f"the environment variable {name} is not set"))
    return _ENV.sub(lambda match: os.environ.get(match[1], ""), value)


def _problem(details: Any, schema: type[AnyConfig]) -> tuple[str, str, str]:
    path = [part for part in details["loc"] if isinstance(part, str)]
    section, keys = _walk(path, schema)
    dotted, known = ".".join(keys), _all_keys(schema, "")
    if details["type"] == "extra_forbidden":
        return "VA-C001", dotted, f"unknown key{_instead(keys, section, known, schema)}"
    if details["type"] == "invalid_key":
        return "VA-C001", dotted, f"{details['input']!r}: unknown key, keys are text"
    if details["type"] == "value_error":
        key, _, message = str(details["ctx"]["error"]).partition(": ")
        return ("VA-C002", key, message) if key in known else ("VA-C002", dotted, str(details["ctx"]["error"]))
    field = section.model_fields.get(keys[-1]) if keys else None
    expected = _expected(field) if field is not None else details["msg"]
    got = json.dumps(details["input"], ensure_ascii=False, default=str)
    return "VA-C002", dotted, f"expected {expected}, got {got}"


def _instead(keys: list[str], section: type[BaseModel], known: list[str], schema: type[AnyConfig]) -> str:
    """What goes after `unknown key`: the task that has it, or the closest key of this one."""
    dotted, unknown = ".".join(keys), keys[-1]
    task = schema.model_fields["task"].default
    owner = next((name for name, other in CONFIGS.items() if dotted in _all_keys(other, "")), None)
    if owner is not None:
        return f": it belongs to task {owner}, and this is task {task}"
    near = did_you_mean(unknown, section.model_fields, 1)
    if near and len(keys) > 1:
        near = near.replace("Did you mean ", f"Did you mean {'.'.join(keys[:-1])}.")
    elif not near:
        leaf = [key for key in known if key.rpartition(".")[2] == unknown]
        near = f"Did you mean {leaf[0]}?" if leaf else did_you_mean(dotted, known, 1)
    return f". {near}".rstrip()


def _walk(path: list[str], schema: type[AnyConfig]) -> tuple[type[BaseModel], list[str]]:
    """The section a pydantic location ends in, and the location without pydantic's own union tags."""
    section: type[BaseModel] = schema
    keys: list[str] = []
    for index, part in enumerate(path):
        keys.append(part)
        field = section.model_fields.get(part)
        if field is None:
            break
        inner = _section_of(field.annotation)
        if inner is None:
            break
        if index + 1 < len(path):
            section = inner
            if path[index + 1] == inner.__name__:  # a tag of Optional[Section]
                del path[index + 1]
    return section, keys


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for inner in map(_section_of, typing.get_args(annotation)) if inner), None)


def _all_keys(section: type[BaseModel], prefix: str) -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        keys.append(prefix + name)
        if inner is not None:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _expected(field: Any) -> str:
    """The type of a field in words, with its bounds: `integer >= 1`."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "null", dict: "a mapping"}

    def words(annotation: Any) -> str:
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Literal:
            return "one of " + ", ".join(str(value) for value in args) if len(args) > 1 else str(args[0])
        if origin in (Union, types.UnionType):
            return " or ".join(words(arg) for arg in args)
        if origin in (list, tuple):
            inner = [words(arg) for arg in args if arg is not Ellipsis]
            return f"[{', '.join(inner)}]" if origin is tuple else f"a list of {inner[0]}".replace("of a mapping", "of mappings")
        if _section_of(annotation) is not None:
            return "a mapping"
        return names.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))

    text, null = words(field.annotation), ""
    if text.endswith(" or null"):
        text, null = text.removesuffix(" or null"), "or null"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(mark, name)}" for mark in field.metadata for name, sign in signs.items() if getattr(mark, name, None) is not None
    ]
    return " ".join(filter(None, [text, " and ".join(bounds), null]))


def _difference(value: Any, default: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {key: _difference(item, default.get(key)) for key, item in value.items() if item != default.get(key)}

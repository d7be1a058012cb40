"""Settings that every task has: type, default, bounds and meaning in one place.

A task adds its own sections beside its code (`tasks/<task>/settings.py`), and those of its data stand with the readers.
"""

from __future__ import annotations

import math
import re
import signal
import typing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from visionattn.errors import did_you_mean
from visionattn.names import shown

Auto = Literal["auto"]

# What settings that are auto stand for when a run starts from scratch; from weights, `config/choices.py` chooses.
FROM_SCRATCH: dict[str, Any] = {
    "train.epochs": 20,
    "optim.lr": 1e-3,
    "optim.layer_decay": None,
    "optim.weight_decay": 0.05,
    "schedule.warmup_epochs": 0.0,
    "model.drop_path_rate": 0.0,
    "loss.label_smoothing": 0.0,
    "augment.random_resized_crop.scale": (0.08, 1.0),
    "augment.rand_augment": "",
    "augment.scale": (0.5, 2.0),
}


def chosen(value: Any, key: str) -> Any:
    """The value of a setting that may be auto; a config that no job has completed is one from scratch."""
    return FROM_SCRATCH[key] if value == "auto" else value


class Section(BaseModel):
    """A frozen mapping that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_other(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not Any and bool not in (annotation, *typing.get_args(annotation)):
            raise PydanticCustomError("bool_for_other", "true and false are neither numbers nor text")
        return value


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field with its one-line description."""
    return Field(default, description=description, **bounds)


class BackboneConfig(Section):
    """The `model` section: a backbone and its weights."""

    default_size: ClassVar[int] = 224

    name: str = setting("davit_tiny", "Backbone, see `visionattn models list`.")
    weights: str = setting(
        "auto",
        "Weights to start from: a tag (visionattn weights list), pretrained for the model's default, a path, a run, or none; "
        "auto: the model's default if a program can download it or it was imported, none with arguments of your own.",
    )
    in_chans: Annotated[int, Field(ge=1, le=512)] | Auto = setting(
        "auto",
        "Input channels: 3, 1 to train on grey images, or those of TIFF, npy and npz; auto: 3, or where the first training image has 2 or "
        "more than 3, these.",
    )
    img_size: int | tuple[int, int] | Auto = setting(
        "auto", "Input size in pixels: one number, or [height, width]; auto: the size of the weights, or 224."
    )
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | Auto = setting(
        "auto",
        "Stochastic depth, growing linearly to this rate at the last block; auto: 0, from weights 0.1 for attention of 20 million "
        "parameters and 0.2 of 80 million.",
    )
    grad_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, more time.")
    args: dict[str, Any] = setting({}, "Arguments of the family's class, for example depths or embed_dim.")

    @property
    def channels(self) -> int:
        """Input channels; 3 where they are still auto."""
        return 3 if self.in_chans == "auto" else self.in_chans

    @property
    def size(self) -> tuple[int, int]:
        """Input height and width in pixels; the default where it is still auto."""
        size = self.default_size if self.img_size == "auto" else self.img_size
        return size if isinstance(size, tuple) else (size, size)


class DataConfig(Section):
    """The `data` section: where the splits are and how they are loaded."""

    root: str = setting("", "Folder or file with the data.")
    train: str = setting("train", "Name of the training split (folder, CSV file stem, npz prefix, glob or range of shards).")
    val: str = setting("val", "Name of the validation split.")
    test: str = setting("test", "Name of the test split, used by `visionattn eval --split test`.")
    val_fraction: float | None = setting(
        None, "Share of the training set held out for validation: seeded, stratified, whole groups.", gt=0, lt=1
    )
    fold: tuple[int, int] | None = setting(
        None,
        "[2, 5]: validate on the second of five stratified folds of the training and validation samples, train on the others; "
        "train --folds sets it.",
    )
    group_by: str = setting("", "CSV column (or regular expression on the path) whose equal values stay in one split.")
    exclude: list[str] = setting([".*", "__MACOSX", "Thumbs.db"], "File and folder names (globs) to skip.")
    on_error: Literal["stop", "skip"] = setting(
        "stop", "Files that cannot be decoded are excluded; stop ends the run above 3 of them or 0.1 %, skip never does."
    )
    check: Literal["full", "headers", "none"] = setting(
        "full",
        "Check before training: full decodes every file once, headers only opens them, none only lists them; the last two find less "
        "and leave content hashes out of the manifest.",
    )
    workers: int | Literal["auto"] = setting("auto", "Loader processes; auto is the number of cores, at most 8.")
    sampler: Literal["shuffled", "balanced"] = setting(
        "shuffled", "Order of training: shuffled, each sample once per epoch; balanced, each class equally often."
    )

    @property
    def has_source(self) -> bool:
        """Whether there is something to load."""
        return bool(self.root)

    def at(self, root: str) -> Self:
        """The same settings for other data, which need not be laid out alike."""
        return self.model_copy(update={"root": root, "val_fraction": None, "fold": None})

    def read_once(self) -> Self:
        """The same settings for data that are read only once, so that nothing is kept for another time."""
        return self


class OptimConfig(Section):
    name: str = setting("adamw", "Optimizer, by timm's name: adamw, sgd, lamb, lion, adan, nadamw, ...")
    lr: Annotated[float, Field(gt=0)] | Auto = setting(
        "auto",
        "Learning rate, given for lr_batch samples per step; auto: 1e-3, from weights times sqrt(samples per step / the default of "
        "train.batch_size), for CNNs times 2, and for larger networks times sqrt(3 million / parameters).",
    )
    lr_batch: int | None = setting(
        None, "Batch size that optim.lr is given for: the rate grows with batch x accum x processes; null: the rate does not change.", ge=1
    )
    weight_decay: Annotated[float, Field(ge=0)] | Auto = setting(
        "auto", "Weight decay; norms, biases and the family's own list are left out; auto: 0.05."
    )
    betas: list[float] | None = setting(None, "Betas; null: the optimizer's own, of AdamW [0.9, 0.999].")
    momentum: float | None = setting(None, "Momentum; null: 0.9 where the optimizer has one; that of sgd is Nesterov's.", ge=0, lt=1)
    layer_decay: Annotated[float, Field(gt=0, le=1)] | Auto | None = setting(
        "auto",
        "Factor on the rate from each layer to the one before it; null: none; auto: null, from weights the first layer of attention "
        "of 20 million parameters learns at 0.3 of the rate.",
    )
    clip_grad: float | None = setting(5.0, "Norm to which larger gradients are clipped; null: no clipping.", gt=0)


class ScheduleConfig(Section):
    name: Literal["cosine", "poly", "step", "constant"] = setting("cosine", "Course of the learning rate over the run, set at each step.")
    warmup_epochs: Annotated[float, Field(ge=0)] | Auto = setting(
        "auto", "Epochs of linear warm-up from a thousandth of the rate; at most half of the run; auto: 0, from weights a tenth of the run."
    )
    warmup_steps: int | None = setting(None, "Optimizer steps of warm-up, instead of schedule.warmup_epochs.", ge=0)
    min_lr: float = setting(1e-6, "Rate at the end of cosine and poly.", ge=0)
    power: float = setting(0.9, "Exponent of poly.", gt=0)
    step_epochs: float = setting(30.0, "Epochs between the drops of step.", gt=0)
    gamma: float = setting(0.1, "Factor of each drop of step.", gt=0, le=1)


class TrainConfig(Section):
    epochs: Annotated[int, Field(ge=1)] | Auto = setting(
        "auto", "Passes over the training set; auto: 20, from weights the number that shows 20,000 samples, within 10 to 40."
    )
    steps: int | None = setting(None, "Optimizer steps of the run, instead of train.epochs; its last epoch may be cut off.", ge=1)
    max_time: str | None = setting(None, "Time after which the run ends, for example 90s, 30m or 1h30m, counted over resumptions.")
    patience: int | None = setting(None, "Evaluations without a better eval.best after which the run ends; null: never.", ge=1)
    min_delta: float = setting(0.0, "Gain that train.patience asks for, in units of the metric: 0.001 is 0.1 percent.", ge=0)
    batch_size: Annotated[int, Field(ge=1)] | Auto = setting(
        32, "Samples per step and device; auto: what fits, with train.accum for steps of optim.lr_batch samples, or of 32 per device."
    )
    accum: int = setting(1, "Batches whose gradients are added before an update.", ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "auto is bf16 where the device computes it fast, else fp32.")
    device: str = setting("auto", "cpu, mps, cuda or one GPU by its number, cuda:1; auto takes CUDA or MPS where available.")
    ema: float | None = setting(None, "Decay of the moving average of the weights (then evaluated and exported); null: none.", gt=0, lt=1)
    freeze: list[str] | str = setting(
        "none", "Parts that are not trained: none, backbone, or names of modules: [stem, stages.0, '*.norm*']."
    )
    channels_last: bool | Literal["auto"] = setting("auto", "Memory layout; auto: on for the CNN families.")
    deterministic: bool = setting(True, "Use deterministic operations where torch has them.")
    save_every: int = setting(0, "Optimizer steps between checkpoints; 0: at each epoch's end.", ge=0)
    save_signal: str | None = setting(
        None, "A signal that saves and stops as SIGTERM does, for example SIGUSR1, which a scheduler sends before time runs out."
    )
    on_nan: Literal["stop", "skip", "rollback"] = setting(
        "stop", "A loss or gradient that is not finite: stop, leave the step out, or go back to the weights of the last checkpoint."
    )
    nan_limit: int = setting(
        3, "Largest number of steps left out in a row, or of returns to a checkpoint in a run, before the run stops.", ge=1
    )
    shard: bool = setting(
        False, "Divide weights, gradients and optimizer state among the processes (FSDP2), for models too large for one device."
    )
    process_timeout: float = setting(1800.0, "Seconds that processes wait for each other before the run ends.", gt=0)

    @field_validator("max_time", mode="before")
    @classmethod
    def _check_duration(cls, value: Any) -> Any:
        if value is not None and seconds_of(value) is None:
            raise ValueError(f"train.max_time: expected a duration such as 90s, 30m, 2h or 1h30m, got {shown(str(value))}")
        return value

    @property
    def max_seconds(self) -> float:
        """`max_time` in seconds; infinite without one."""
        return math.inf if self.max_time is None else float(seconds_of(self.max_time) or 0)

    @property
    def frozen(self) -> list[str]:
        """The names of `freeze`."""
        return [] if self.freeze == "none" else [self.freeze] if isinstance(self.freeze, str) else self.freeze


def seconds_of(duration: Any) -> float | None:
    """Seconds of a duration such as 90s, 30m or 1h30m; None if it is not one, or has no length."""
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(duration).replace(" ", ""))
    if found is None or isinstance(duration, bool):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) or None


class EvalConfig(Section):
    every: int = setting(1, "Epochs between evaluations.", ge=1)
    best: str = setting("auto", "Metric that selects the best checkpoint, higher is better; auto: the task's own.")


Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab"]


class LogConfig(Section):
    every_steps: int = setting(20, "Optimizer steps between log lines.", ge=1)
    to: list[Tracker] = setting(
        ["tensorboard"],
        f"Trackers: {', '.join(typing.get_args(Tracker))}; []: none. They get metrics, settings and pictures; TensorBoard's are in tb/.",
    )
    images: int = setting(16, "Pictures per figure that trackers get.", ge=0, le=64)

    @field_validator("to", mode="before")
    @classmethod
    def _check_trackers(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value  # log.to=mlflow
        known = typing.get_args(Tracker)
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and name not in known:
                near = did_you_mean(name, known, 1) or f"Choose from {', '.join(known)}; none: log.to=[]"
                raise ValueError(f"log.to: unknown tracker {shown(name)}. {near}")
        return list(dict.fromkeys(names)) if isinstance(names, list) and all(isinstance(name, str) for name in names) else names


class OutputConfig(Section):
    dir: str = setting("runs", "Folder of all runs.")
    name: str = setting("", "Folder of this kind of run inside it; empty: <data>-<model>.")


class RunConfig(Section):
    """All settings of a run. A task's config narrows `task` and declares the sections that are its own."""

    version: Literal[1] = setting(1, "Version of the config format.")
    task: str = setting("", "Kind of job.")
    seed: int = setting(0, "Seed of weights, order, augmentation and dropout.", ge=0)
    plugins: list[str] = setting([], "Your own modules (importable names or .py files): backbones, heads, attention, tasks.")
    model: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    augment: Section = Section()
    loss: Any = None
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _check_common(self) -> RunConfig:
        if min(self.model.size) < 32:
            raise ValueError("model.img_size: expected at least 32 pixels per side")
        if self.data.workers != "auto" and self.data.workers < 0:
            raise ValueError(f"data.workers: expected integer >= 0 or auto, got {self.data.workers}")
        if self.train.batch_size == "auto" and self.train.accum != 1:
            raise ValueError("train.accum: train.batch_size=auto chooses it; train.accum=1")
        if self.train.batch_size == "auto" and self.train.shard:
            raise ValueError("train.batch_size: auto tries the whole model on each device, train.shard shares it out; give a number")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.train.device):
            raise ValueError(f"train.device: expected auto, cpu, mps, cuda or a GPU by its number (cuda:0), got {shown(self.train.device)}")
        if self.data.fold is not None and not (self.data.fold[1] >= 2 and 1 <= self.data.fold[0] <= self.data.fold[1]):
            raise ValueError(f"data.fold: expected [number, folds] with 1 <= number <= folds and folds >= 2, got {list(self.data.fold)}")
        if self.data.fold is not None and self.data.val_fraction is not None:
            raise ValueError("data.fold: it holds out the validation samples; data.val_fraction=null")
        name = self.train.save_signal
        if name is not None and name not in signal.Signals.__members__:
            raise ValueError(f"train.save_signal: expected the name of a signal, for example SIGUSR1, got {name}")
        if name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"train.save_signal: {name} cannot be handled by a program")
        if self.train.shard and self.train.ema is not None:
            raise ValueError("train.shard: the moving average needs whole weights at each step; train.ema=null")
        if not all(0 <= beta < 1 for beta in self.optim.betas or ()):
            raise ValueError(f"optim.betas: expected numbers >= 0 and < 1, got {self.optim.betas}")
        return self

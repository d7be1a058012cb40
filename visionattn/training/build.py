"""What training, evaluation and prediction build from a config."""

from __future__ import annotations

import os
from importlib import import_module

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from visionattn.config import Config
from visionattn.data.transforms import EvalTransform, RandAugmentTransform, TrainTransform, eval_transform, train_transform
from visionattn.errors import UserError
from visionattn.models import Classifier, create_model
from visionattn.models.records import Record, records_of


def make_accelerator(config: Config) -> Accelerator:
    """Devices and precision; the CPU is named where there is no other, or processes would not find each other."""
    cpu = config.train.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = {"auto": "bf16" if fast_bf16(cpu) else "no", "fp32": "no"}.get(config.train.precision, config.train.precision)
    if precision == "fp16" and cpu:
        raise UserError("VA-C002", "train.precision: fp16 needs a GPU", fix="train.precision=auto")
    AcceleratorState._reset_state()  # it keeps the precision of the process' first run otherwise
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise UserError(
            "VA-R006",
            f"{expected} processes were started, but this one sees {accelerator.num_processes}",
            fix="start with torchrun --nproc_per_node N",
        )
    return accelerator


def fast_bf16(cpu: bool) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if not cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def build_model(config: Config, classes: list[str]) -> Classifier:
    """The classifier of a config for these classes, with initial weights."""
    settings = config.model
    record = published_weights(config)
    try:
        model = create_model(
            settings.name if record is None else record.name,
            num_classes=len(classes),
            in_chans=settings.in_chans,
            img_size=settings.size,
            drop_rate=settings.drop_rate,
            drop_path_rate=settings.drop_path_rate,
            **settings.args,
        )
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        what = f"{settings.name} cannot be built with model.args {settings.args}"
        raise UserError("VA-M002", what, why=str(error), fix=f"visionattn models info {settings.name}") from error
    assert isinstance(model, Classifier)
    return model


def published_weights(config: Config) -> Record | None:
    """The record that model.weights names: by its tag, or `pretrained` for the model's default; None for all else."""
    tags = {record.tag: record for record in records_of(config.model.name)}
    if config.model.weights == "pretrained":
        return next(iter(tags.values()), None)
    return tags.get(config.model.weights)


def import_plugins(config: Config) -> None:
    """Import the modules under `plugins:`, which register backbones.

    Raises:
        UserError: VA-C002, a module that cannot be imported.
    """
    for plugin in config.plugins:
        try:
            import_module(plugin)
        except ImportError as error:
            fix = "it must be importable: install it, or put its folder on PYTHONPATH"
            raise UserError("VA-C002", f'plugins: "{plugin}" cannot be imported', why=str(error), fix=fix) from error


def build_train_transform(model: Classifier, config: Config) -> TrainTransform | RandAugmentTransform:
    """Augmentation and normalisation for a model."""
    cfg = model.pretrained_cfg
    return train_transform(config.augment, config.model.size, cfg["mean"], cfg["std"])


def build_eval_transform(model: Classifier, config: Config) -> EvalTransform:
    """The published evaluation of a model at the config's size."""
    cfg = model.pretrained_cfg
    crop = config.eval.crop_pct if config.eval.crop_pct is not None else cfg["crop_pct"]
    return eval_transform(config.model.size, cfg["mean"], cfg["std"], interpolation=cfg["interpolation"], crop_pct=crop)


def worker_count(config: Config) -> int:
    """Loader processes: data.workers, or as many as there are cores, at most 8."""
    if config.data.workers != "auto":
        return config.data.workers
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

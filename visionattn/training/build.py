"""What training, evaluation and prediction build from a config: device, model, task. Images are in `datasets.py`.

What differs between tasks is a branch on the type of the config, here and in `datasets.py`.
"""

from __future__ import annotations

import os
from importlib import import_module

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from visionattn.config import AnyConfig, Config
from visionattn.errors import UserError
from visionattn.models import Classifier, create_model
from visionattn.models.records import Record, records_of
from visionattn.tasks import Classification, Task

# What the trainer takes: a backbone with a head.
Model = Classifier


def make_accelerator(config: AnyConfig) -> Accelerator:
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


def build_model(config: AnyConfig, classes: list[str]) -> Model:
    """The model of a config for these classes, with initial weights."""
    settings = config.model
    record = published_weights(config)
    name = settings.name if record is None else record.name
    common = {
        "num_classes": len(classes),
        "in_chans": settings.in_chans,
        "img_size": settings.size,
        "drop_rate": settings.drop_rate,
        "drop_path_rate": settings.drop_path_rate,
        **settings.args,
    }
    try:
        model = create_model(name, **common)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        what = f"{settings.name} cannot be built with model.args {settings.args}"
        raise UserError("VA-M002", what, why=str(error), fix=f"visionattn models info {settings.name}") from error
    assert isinstance(model, Classifier)
    return model


def build_task(config: AnyConfig, classes: list[str], labels: np.ndarray) -> Task:
    """Loss and metrics.

    Args:
        classes: names in the order of the model's outputs.
        labels: of the training set, for balanced class weights.
    """
    assert isinstance(config, Config)
    return Classification(classes, labels, config.loss, config.augment, multi_label=config.data.multi_label)


def published_weights(config: AnyConfig) -> Record | None:
    """The record that model.weights names: by its tag, or `pretrained` for the model's default; None for all else."""
    tags = {record.tag: record for record in records_of(config.model.name)}
    if config.model.weights == "pretrained":
        return next(iter(tags.values()), None)
    return tags.get(config.model.weights)


def import_plugins(config: AnyConfig) -> None:
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


def eval_batch_size(config: AnyConfig) -> int:
    """Images per step of evaluation; one where they keep their own sizes."""
    if not isinstance(config, Config):
        return 1
    return config.eval.batch_size or config.train.batch_size


def worker_count(config: AnyConfig) -> int:
    """Loader processes: data.workers, or as many as there are cores, at most 8."""
    if config.data.workers != "auto":
        return config.data.workers
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

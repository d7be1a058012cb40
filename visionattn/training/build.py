"""What training, evaluation and prediction build from a config: device, model, task. Images are in `datasets.py`.

What differs between tasks is a branch on the type of the config, here and in `datasets.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from visionattn.backbones.registry import get_variant
from visionattn.config import AnyConfig, Config, SegmentConfig
from visionattn.data.palettes import Colour, default_palette
from visionattn.errors import UserError
from visionattn.models import Classifier, Segmenter, create_model, create_segmenter
from visionattn.models.records import Record, SegmenterRecord, Weights, find_segmenter, records_of
from visionattn.models.segmenter import head_class
from visionattn.models.segmenter_factory import IMAGENET, Preset, with_preset
from visionattn.tasks import Classification, Task
from visionattn.tasks.segmentation import Segmentation

# What the trainer takes: a backbone with a head.
Model = Classifier | Segmenter


def make_accelerator(config: AnyConfig) -> Accelerator:
    """Devices and precision; the CPU is named where there is no other, or processes would not find each other."""
    cpu = config.train.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = {"auto": "bf16" if fast_bf16(cpu) else "no", "fp32": "no"}.get(config.train.precision, config.train.precision)
    if precision == "fp16" and cpu:
        raise UserError("VA-C002", "train.precision: fp16 needs a GPU", fix="train.precision=auto")
    AcceleratorState._reset_state()  # it keeps the precision of the process' first run otherwise
    # Heads leave maps out, and so the norms of these maps.
    unused = [DistributedDataParallelKwargs(find_unused_parameters=True)] if isinstance(config, SegmentConfig) else None
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=unused)
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
    name = record.name if isinstance(record, Record) else backbone_name(config)
    what = f"{settings.name} cannot be built with model.args {settings.args}"
    try:
        if isinstance(config, SegmentConfig):
            what += f" and model.head.args {config.model.head.args}"
            return _segmenter(config, name, len(classes))
        model = create_model(
            name,
            num_classes=len(classes),
            in_chans=settings.in_chans,
            img_size=settings.size,
            drop_rate=config.model.drop_rate,
            drop_path_rate=settings.drop_path_rate,
            **settings.args,
        )
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        raise UserError("VA-M002", what, why=str(error), fix=f"visionattn models info {settings.name}") from error
    assert isinstance(model, Classifier)
    return model


def _segmenter(config: SegmentConfig, name: str, num_classes: int) -> Segmenter:
    settings, aux = config.model, config.model.head.aux
    parts, record = _parts(config), published_weights(config)
    whole = record if isinstance(record, SegmenterRecord) else None  # weights of the head too
    model = create_segmenter(
        name,
        parts.head,
        num_classes,
        in_chans=settings.in_chans,
        img_size=settings.size,
        drop_path_rate=settings.drop_path_rate,
        aux=None if aux.enabled == "auto" else aux.enabled,
        backbone_args={**(whole.args if whole else {}), **settings.args},
        **parts.head_args,
    )
    model.aux_weight = aux.weight
    if whole and settings.in_chans == 3:
        model.pretrained_cfg |= IMAGENET
    return model


def build_task(config: AnyConfig, classes: list[str], labels: np.ndarray, palette: Sequence[Colour] | None = None) -> Task:
    """Loss and metrics.

    Args:
        classes: names in the order of the model's outputs.
        labels: what balanced class weights are counted from: the labels of images, or the pixels of each class of masks.
        palette: colour of each class of masks.

    Raises:
        UserError: VA-C002, a loss or a value of it that does not exist.
    """
    if isinstance(config, SegmentConfig):
        return _segmentation(config, classes, labels, palette or default_palette(len(classes)))
    return Classification(classes, labels, config.loss, config.augment, multi_label=config.data.multi_label)


def _segmentation(config: SegmentConfig, classes: list[str], pixel_counts: np.ndarray, palette: Sequence[Colour]) -> Segmentation:
    settings = config.eval
    tile = config.model.size if settings.tile is None else _pair(settings.tile)
    task = Segmentation(
        classes,
        losses=[(term.name, term.weight, term.args) for term in config.loss],
        pixel_counts=pixel_counts,
        deep_supervision=config.model.head.aux.rule,
        window=tile if settings.mode == "slide" else None,
        stride=None if settings.stride is None else _pair(settings.stride),
        overlap=settings.overlap,
        blend=settings.blend,
        flips={"none": (), "horizontal": (-1,), "both": (-1, -2)}[settings.flips],
        scales=settings.scales,
        average=settings.average,
        per_case=settings.per_case,
        spacing=settings.spacing,
        hausdorff=settings.hausdorff,
        tolerance=settings.tolerance,
        monitor=None if settings.best == "auto" else settings.best,
        palette=palette,
    )
    try:  # a wrong value is said before the run begins
        task.loss(torch.zeros(1, len(classes), 2, 2), {"label": torch.zeros(1, 2, 2, dtype=torch.int64)})
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{term.name} {term.args}" for term in config.loss)
        raise UserError("VA-C002", f"loss: not computable with {given}", why=str(error)) from error
    return task


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def backbone_name(config: AnyConfig) -> str:
    """The registered name, also where model.name is a preset of segmentation."""
    return _parts(config).backbone if isinstance(config, SegmentConfig) else config.model.name


def check_names(config: AnyConfig) -> None:
    """Say a wrong name of a backbone or a head before the data are read.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    get_variant(backbone_name(config))
    if isinstance(config, SegmentConfig):
        parts = _parts(config)
        head_class(parts.head, parts.head_args)


def _parts(config: SegmentConfig) -> Preset:
    head = config.model.head
    return with_preset(config.model.name, None if head.name == "auto" else head.name, head.args)


def published_weights(config: AnyConfig) -> Weights | None:
    """The record that model.weights names; None for all else.

    By its tag, or as `pretrained` for the model's default; in segmentation also by the tag of a model with its head.
    """
    name, tag = backbone_name(config), config.model.weights
    tags = {record.tag: record for record in records_of(name)}
    if tag == "pretrained":
        return next(iter(tags.values()), None)
    return tags.get(tag) or (find_segmenter(f"{name}.{tag}") if isinstance(config, SegmentConfig) else None)


def import_plugins(config: AnyConfig) -> None:
    """Import the modules under `plugins:`, which register backbones and attention modules.

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

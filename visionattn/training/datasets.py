"""From data.root to what the loaders read: the part of a run that depends on the kind of labels."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionattn.config import AnyConfig, Config, SegmentConfig
from visionattn.data.check import CheckReport, check_data, exclude_unreadable, preview
from visionattn.data.classification import load_data, load_split
from visionattn.data.mask_check import check_masks, exclude_unreadable_masks, preview_masks, stop_at_errors
from visionattn.data.mask_transforms import MaskEvalTransform, MaskTrainTransform, mask_eval_transform, mask_train_transform
from visionattn.data.segmentation import MaskData, MaskDataset, count_pixels, load_mask_data, load_mask_split, mask_manifest
from visionattn.data.sets import ClassificationDataset, Data, FileImages, ImageDataset, ManifestRow, Samples, manifest
from visionattn.data.transforms import EvalTransform, RandAugmentTransform, TrainTransform, eval_transform, train_transform
from visionattn.errors import UserError
from visionattn.files import atomic_write, cache_folder
from visionattn.training.build import Model
from visionattn.training.console import Console
from visionattn.training.run import csv_text

AnyData = Data | MaskData


class CheckedData(NamedTuple):
    """Splits without unreadable images, and what the check found."""

    data: AnyData
    report: CheckReport

    def manifest(self) -> list[ManifestRow]:
        """Rows of manifest.csv; their hash tells whether a run goes on with the data it began with."""
        if isinstance(self.data, MaskData):
            return mask_manifest(self.data, self.report.hashes)
        return manifest(self.data, self.report.hashes)

    def class_weight_labels(self) -> np.ndarray:
        """What balanced class weights are counted from: the labels of the training images, or the pixels of each class."""
        if isinstance(self.data, MaskData):
            counts = self.report.counts["train"]
            return np.array([counts[name] for name in self.data.classes], np.int64)
        return self.data.train.labels


def read_data(config: AnyConfig) -> AnyData:
    """Classes and splits, before anything is decoded."""
    if isinstance(config, SegmentConfig):
        return load_mask_data(config.data, seed=config.seed, in_chans=config.model.in_chans)
    return load_data(config.data, seed=config.seed, in_chans=config.model.in_chans)


def checked_data(config: AnyConfig, console: Console, *, strict: bool = False, keep: bool = True) -> CheckedData:
    """Find, decode and label all images, and say what training would stumble over.

    Args:
        strict: warnings stop.
        keep: remember in the user's cache which files were decoded.

    Raises:
        UserError: the first error found, for masks all of them together; with `strict` also the first warning.
    """
    data = read_data(config)
    total = sum(len(part) for part in data.sets)
    with tempfile.TemporaryDirectory() as folder, console.progress("check", total) as bar:
        cache = cache_folder() / "check" if keep else Path(folder)
        report = _check(config, data, cache, bar.update)
    if isinstance(data, MaskData):
        assert isinstance(config, SegmentConfig)
        _stop_at_faults(data, report, console, strict=strict, keep=keep)
        data = exclude_unreadable_masks(data, report, config.data)
    else:
        assert isinstance(config, Config)
        data = exclude_unreadable(data, report, config.data)
    warnings = [note for note in report.notes if note.level == "warning"]
    test = f", test {len(data.test):,}" if data.test is not None else ""
    several = isinstance(config, Config) and config.data.multi_label
    console.say("task", f"{config.task} ({len(data.classes)} classes{', several per image' if several else ''})")
    text = f"train {len(data.train):,} images, val {len(data.val):,}{test}, {len(data.classes)} classes   check: {len(warnings)} warnings"
    console.say("data", text)
    _say_notes(report, console)
    if strict and warnings:
        raise UserError(warnings[0].code, warnings[0].text, why="--strict makes warnings of the data check stop")
    return CheckedData(data, report)


def training_sets(config: AnyConfig, model: Model, data: AnyData) -> tuple[Samples, Samples]:
    """Training images with augmentation, validation images without."""
    if isinstance(data, MaskData):
        train_set = MaskDataset(data.train, build_mask_train_transform(model, config), seed=config.seed)
        return train_set, MaskDataset(data.val, build_mask_eval_transform(model, config))
    train = ClassificationDataset(data.train, build_train_transform(model, config), seed=config.seed)
    return train, ClassificationDataset(data.val, build_eval_transform(model, config))


def split_set(config: AnyConfig, model: Model, split: str, classes: list[str]) -> tuple[Samples, np.ndarray]:
    """One split for evaluation, labelled with the classes of a run, and what balanced class weights are counted from."""
    if isinstance(config, SegmentConfig):
        masks = load_mask_split(config.data, split, classes, config.model.in_chans, seed=config.seed)
        balanced = any(term.args.get("class_weights") == "balanced" for term in config.loss)
        counts = count_pixels(masks, len(classes)) if balanced else np.zeros(len(classes), np.int64)
        return MaskDataset(masks, build_mask_eval_transform(model, config)), counts
    images = load_split(config.data, split, classes, config.model.in_chans, seed=config.seed)
    return ClassificationDataset(images, build_eval_transform(model, config)), images.labels


def file_set(config: AnyConfig, model: Model, paths: list[Path]) -> Samples:
    """Image files without labels, for prediction."""
    names = [str(path) for path in paths]
    files = FileImages(tuple(names), config.data, config.model.in_chans)
    transform = build_mask_eval_transform(model, config) if isinstance(config, SegmentConfig) else build_eval_transform(model, config)
    return ImageDataset(files, names, transform)


def write_data(folder: Path, config: AnyConfig, model: Model, checked: CheckedData, rows: list[ManifestRow]) -> None:
    """The run's `data/`: classes, manifest, findings, and pictures of both splits as the network sees them."""
    data, report = checked
    atomic_write(folder / "classes.txt", "".join(f"{name}\n" for name in data.classes))
    atomic_write(folder / "manifest.csv", csv_text(["path", "label", "split", "bytes", "hash16"], [list(row) for row in rows]))
    atomic_write(folder / "check.json", json.dumps(report.as_dict(), indent=1))
    preview_training(config, model, data, 24, folder / "preview_train.png")
    if isinstance(data, MaskData):
        transform = build_mask_eval_transform(model, config)
        preview_masks(data.val, data.classes, data.palette, transform, 24, folder / "preview_val.png")
    else:
        preview(data.val, data.classes, build_eval_transform(model, config), 24, folder / "preview_val.png")


def preview_training(config: AnyConfig, model: Model, data: AnyData, count: int, path: Path) -> None:
    """A picture of augmented training images with their labels."""
    if isinstance(data, MaskData):
        preview_masks(data.train, data.classes, data.palette, build_mask_train_transform(model, config), count, path)
    else:
        preview(data.train, data.classes, build_train_transform(model, config), count, path)


def build_train_transform(model: Model, config: AnyConfig) -> TrainTransform | RandAugmentTransform:
    """Augmentation and normalisation for a model."""
    assert isinstance(config, Config)
    cfg = model.pretrained_cfg
    return train_transform(config.augment, config.model.size, cfg["mean"], cfg["std"])


def build_eval_transform(model: Model, config: AnyConfig) -> EvalTransform:
    """The published evaluation of a model at the config's size."""
    assert isinstance(config, Config)
    cfg = model.pretrained_cfg
    crop = config.eval.crop_pct if config.eval.crop_pct is not None else cfg["crop_pct"]
    return eval_transform(config.model.size, cfg["mean"], cfg["std"], interpolation=cfg["interpolation"], crop_pct=crop)


def build_mask_train_transform(model: Model, config: AnyConfig) -> MaskTrainTransform:
    """Augmentation of images with masks, and normalisation for a model."""
    assert isinstance(config, SegmentConfig)
    cfg = model.pretrained_cfg
    return mask_train_transform(config.augment, config.model.size, cfg["mean"], cfg["std"])


def build_mask_eval_transform(model: Model, config: AnyConfig) -> MaskEvalTransform:
    """Images at the size of evaluation."""
    assert isinstance(config, SegmentConfig)
    cfg = model.pretrained_cfg
    return mask_eval_transform(config.augment, config.model.size, cfg["mean"], cfg["std"])


def _check(config: AnyConfig, data: AnyData, cache: Path, progress: Callable[[int], None]) -> CheckReport:
    if isinstance(data, MaskData):
        assert isinstance(config, SegmentConfig)
        return check_masks(data, config.data, cache_dir=cache, progress=progress)
    assert isinstance(config, Config)
    return check_data(data, config.data, cache_dir=cache, progress=progress)


def _stop_at_faults(data: MaskData, report: CheckReport, console: Console, *, strict: bool, keep: bool) -> None:
    """Say all that was found in images and masks, and stop if they cannot be trained on."""
    stopping = ("error", "warning") if strict else ("error",)
    if not any(note.level in stopping for note in report.notes):
        return
    _say_notes(report, console)
    if keep:
        path = Path(f"{data.name}-check.json")
        atomic_write(path, json.dumps(report.as_dict(), indent=1))
        console.say("", f"full list: {path}")
    stop_at_errors(report, strict=strict)


def _say_notes(report: CheckReport, console: Console) -> None:
    """Information and warnings; errors are said by what stops at them."""
    for note in report.notes:
        if note.level == "info":
            console.say("", note.text)
        elif note.level == "warning":
            console.warn(f"{note.code} {note.text}")

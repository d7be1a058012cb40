"""From data.root to what the loaders read: the part of a run that depends on the kind of labels."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionattn.config import AnyConfig, Config
from visionattn.data.check import CheckReport, check_data, exclude_unreadable, preview
from visionattn.data.classification import load_data, load_split
from visionattn.data.sets import ClassificationDataset, Data, FileImages, ImageDataset, ManifestRow, Samples, manifest
from visionattn.data.transforms import EvalTransform, RandAugmentTransform, TrainTransform, eval_transform, train_transform
from visionattn.errors import UserError
from visionattn.files import atomic_write, cache_folder
from visionattn.training.build import Model
from visionattn.training.console import Console
from visionattn.training.run import csv_text


class CheckedData(NamedTuple):
    """Splits without unreadable images, what the check found, and the rows of manifest.csv."""

    data: Data
    report: CheckReport
    rows: list[ManifestRow]


def read_data(config: AnyConfig) -> Data:
    """Classes and splits, before anything is decoded."""
    return load_data(config.data, seed=config.seed, in_chans=config.model.in_chans)


def checked_data(config: AnyConfig, console: Console, *, strict: bool = False, keep: bool = True) -> CheckedData:
    """Find, decode and label all images, and say what training would stumble over.

    Args:
        strict: warnings stop.
        keep: remember in the user's cache which files were decoded.

    Raises:
        UserError: the first error found; with `strict` also the first warning.
    """
    assert isinstance(config, Config)
    data = read_data(config)
    total = sum(len(part) for part in data.sets)
    with tempfile.TemporaryDirectory() as folder, console.progress("check", total) as bar:
        cache = cache_folder() / "check" if keep else Path(folder)
        report = check_data(data, config.data, cache_dir=cache, progress=bar.update)
    data = exclude_unreadable(data, report, config.data)
    warnings = [note for note in report.notes if note.level == "warning"]
    test = f", test {len(data.test):,}" if data.test is not None else ""
    console.say("task", f"{config.task} ({len(data.classes)} classes{', several per image' if config.data.multi_label else ''})")
    text = f"train {len(data.train):,} images, val {len(data.val):,}{test}, {len(data.classes)} classes   check: {len(warnings)} warnings"
    console.say("data", text)
    for note in report.notes:
        if note.level == "info":
            console.say("", note.text)
        else:
            console.warn(f"{note.code} {note.text}")
    if strict and warnings:
        raise UserError(warnings[0].code, warnings[0].text, why="--strict makes warnings of the data check stop")
    return CheckedData(data, report, manifest(data, report.hashes))


def training_sets(config: AnyConfig, model: Model, data: Data) -> tuple[Samples, Samples]:
    """Training images with augmentation, validation images without."""
    train = ClassificationDataset(data.train, build_train_transform(model, config), seed=config.seed)
    return train, ClassificationDataset(data.val, build_eval_transform(model, config))


def split_set(config: AnyConfig, model: Model, split: str, classes: list[str]) -> tuple[Samples, np.ndarray]:
    """One split for evaluation, labelled with the classes of a run, and its labels."""
    assert isinstance(config, Config)
    images = load_split(config.data, split, classes, config.model.in_chans, seed=config.seed)
    return ClassificationDataset(images, build_eval_transform(model, config)), images.labels


def file_set(config: AnyConfig, model: Model, paths: list[Path]) -> Samples:
    """Image files without labels, for prediction."""
    names = [str(path) for path in paths]
    files = FileImages(tuple(names), config.data, config.model.in_chans)
    return ImageDataset(files, names, build_eval_transform(model, config))


def write_data(folder: Path, config: AnyConfig, model: Model, checked: CheckedData) -> None:
    """The run's `data/`: classes, manifest, findings, and pictures of both splits as the network sees them."""
    data, report, rows = checked
    atomic_write(folder / "classes.txt", "".join(f"{name}\n" for name in data.classes))
    atomic_write(folder / "manifest.csv", csv_text(["path", "label", "split", "bytes", "hash16"], [list(row) for row in rows]))
    atomic_write(folder / "check.json", json.dumps(report.as_dict(), indent=1))
    preview(data.train, data.classes, build_train_transform(model, config), 24, folder / "preview_train.png")
    preview(data.val, data.classes, build_eval_transform(model, config), 24, folder / "preview_val.png")


def preview_training(config: AnyConfig, model: Model, data: Data, count: int, path: Path) -> None:
    """A picture of augmented training images with their labels."""
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

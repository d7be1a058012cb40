"""Use a trained run: load its model, evaluate it on a split, predict on images."""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo

from visionattn.backbones import list_models
from visionattn.config import (
    AnyConfig,
    Config,
    HeadConfig,
    MaskAugmentConfig,
    ModelConfig,
    SegmentConfig,
    SegmentModelConfig,
    change_config,
    config_from_dict,
)
from visionattn.data.images import IMAGE_SUFFIXES
from visionattn.data.palettes import Colour, read_classes
from visionattn.data.sets import FileImages, ImageDataset, Samples
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write
from visionattn.models import Classifier, create_model, load_checkpoint, segmenter_from_file
from visionattn.models.download import Say, fetch
from visionattn.models.records import find_record, find_segmenter, split_name
from visionattn.tasks import Classification
from visionattn.tasks.segmentation import Segmentation
from visionattn.training import classification, masks
from visionattn.training.build import Model, build_model, build_task, eval_batch_size, import_plugins, make_accelerator, worker_count
from visionattn.training.checkpoint import latest_checkpoint, read_meta, read_weights
from visionattn.training.classification import Prediction, top_classes
from visionattn.training.console import Console
from visionattn.training.datasets import build_mask_eval_transform, file_set, split_set
from visionattn.training.evaluation import Evaluation, eval_loader, evaluate_model
from visionattn.training.masks import MaskPrediction
from visionattn.training.report import save_evaluation
from visionattn.training.run import RunFolder

# What `predict` can save of each task, and what it does if nothing is said.
FORMATS = {"classify": ("json", "csv"), "segment": ("mask", "overlay", "json", "csv")}
SAVED = {"classify": ("json", "csv"), "segment": ("mask", "overlay")}

# What may differ from the run: neither the network nor what its outputs stand for.
CHANGEABLE = ("eval", "data", "augment.resize", "train.device", "train.precision")


def evaluate(
    source: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    batch_size: int | None = None,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Evaluation:
    """Metrics of a run or a checkpoint; preprocessing, classes and model come from it.

    With the data and the settings of the run itself the result is also written to `eval/<split>/` in its folder.

    Args:
        source: run folder (its best checkpoint), a checkpoint folder, a weights file in one, or the name of
            published or imported weights (`swin_tiny.in1k`), whose classes are ImageNet's.
        data: other data than the run's.
        split: train, val or test.
        batch_size: images per step; default as in the run.
        settings: `key=value` strings that differ from the run, of the keys in `CHANGEABLE`: `eval.flips=both`.
        console: where progress is printed.

    Raises:
        UserError: VA-R003, VA-W005, VA-W006 for the source; VA-D001, VA-D002, VA-M003 for the data; VA-C001, VA-C002 for the settings.
    """
    console = console or Console()
    loaded = load_model(source, lambda text: console.say("", text))
    model, classes, run = loaded.model, loaded.classes, loaded.run
    config = change_config(loaded.config, settings, CHANGEABLE)
    if data is None and not config.data.root:
        raise UserError("VA-D001", f"{source} brings no data to evaluate on", fix="--data FOLDER")
    if data is not None:
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"root": str(data), "format": _other_format(config), "val_fraction": None})}
        )
    dataset, labels = split_set(config, model, split, classes)
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    loader = eval_loader(dataset, batch_size or eval_batch_size(config), worker_count(config))
    result = evaluate_model(
        model,
        build_task(config, classes, labels, loaded.palette),
        loader,
        split=split,
        device=accelerator.device,
        autocast=accelerator.autocast,
        console=console,
    )
    if run is not None and data is None and not settings:
        save_evaluation(run.path / "eval" / split, result, dataset, classes)
    return result


def predict(
    source: str | Path,
    images: Sequence[str | Path],
    *,
    topk: int = 5,
    batch_size: int = 32,
    out: str | Path | None = None,
    save: Collection[str] = (),
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> tuple[Sequence[Prediction | MaskPrediction], list[tuple[str, str]]]:
    """Classes of images, or of their pixels.

    Images are segmented one at a time, and their class maps kept as compressed PNGs, in `out` or else in memory:
    `prediction.class_map()` decodes one.

    Args:
        source: run folder (its best checkpoint), a checkpoint folder, a weights file in one, or the name of
            published or imported weights (`swin_tiny.in1k`), whose classes are ImageNet's, or a published segmentation file.
        images: files, folders (searched through) and globs.
        topk: classes per image, of classification.
        batch_size: images per step, of classification.
        out: folder for the results; None saves nothing.
        save: what to write there: "json" and "csv", and of segmentation also "mask" (palette PNGs of the image's size, whose pixels are
            class numbers) and "overlay". () is json and csv of classification, mask and overlay of segmentation.
        settings: as in `evaluate`.
        console: where progress is printed.

    Returns:
        Predictions in the order of the files, and (path, reason) of files that could not be read.

    Raises:
        UserError: VA-D001, nothing found; VA-D010, nothing readable; VA-C001, VA-C002, `save` and `settings`;
            VA-R007, files to write are there already.
    """
    console = console or Console(quiet=True)
    loaded = load_model(source, lambda text: console.say("", text))
    loaded = replace(loaded, config=change_config(loaded.config, settings, CHANGEABLE))
    found = find_images(images)
    target = None if out is None else Path(out)
    formats = tuple(save) or SAVED[loaded.config.task]
    if wrong := set(formats) - set(FORMATS[loaded.config.task]):
        known = ", ".join(FORMATS[loaded.config.task])
        raise UserError("VA-C002", f"--save: expected {known}, got {', '.join(sorted(wrong))}", why=f"the task is {loaded.config.task}")
    if target is not None:
        masks.require_new([target / f"predictions.{name}" for name in ("json", "csv") if name in formats])
    unreadable: list[tuple[str, str]] = []
    predictions: list[Prediction] | list[MaskPrediction]
    if loaded.config.task == "segment":
        predictions = _segmented(loaded, found, target, formats, unreadable, console)
        table = masks.csv_table(predictions, loaded.shown)
    else:
        predictions = _classified(loaded, list(found), topk, batch_size, unreadable, console)
        table = classification.csv_table(predictions)
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        texts = {"json": json.dumps(predictions_dict(predictions, unreadable), indent=1), "csv": table}
        for name in [name for name in texts if name in formats]:
            atomic_write(target / f"predictions.{name}", texts[name])
            console.say("written", str(target / f"predictions.{name}"))
    return predictions, unreadable


def predictions_dict(predictions: Sequence[Prediction | MaskPrediction], unreadable: list[tuple[str, str]]) -> dict[str, Any]:
    """The object that `predict --json` prints and `predictions.json` holds."""
    return {
        "predictions": [prediction.as_dict() for prediction in predictions],
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable],
    }


def _classified(
    loaded: LoadedModel, paths: list[Path], topk: int, batch_size: int, unreadable: list[tuple[str, str]], console: Console
) -> list[Prediction]:
    """The most probable classes of each image; (path, reason) of files that could not be read are added to `unreadable`."""
    model, config = loaded.model, loaded.config
    assert isinstance(config, Config)
    # balanced class weights are counted from labels, and there are none
    config = config.model_copy(update={"loss": config.loss.model_copy(update={"class_weights": "none"})})
    task = build_task(config, loaded.shown, np.zeros(0, dtype=np.int64))
    assert isinstance(task, Classification)
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    found = []
    for batch in _batches(config, file_set(config, model, paths), batch_size, unreadable, console):
        with accelerator.autocast(), torch.inference_mode():
            outputs = task.outputs(task.predict(model, batch["image"].to(accelerator.device)))
        found += [
            top_classes(str(paths[index]), output, loaded.shown, topk)
            for index, output in zip(batch["index"].tolist(), outputs, strict=True)
        ]
    return found


def _segmented(
    loaded: LoadedModel,
    found: dict[Path, Path],
    out: Path | None,
    formats: Collection[str],
    unreadable: list[tuple[str, str]],
    console: Console,
) -> list[MaskPrediction]:
    """The class map of each image, saved before the next image is read."""
    model, config = loaded.model, loaded.config
    assert isinstance(config, SegmentConfig)
    task = build_task(config, loaded.shown, np.ones(len(loaded.shown), np.int64), loaded.palette)
    assert isinstance(task, Segmentation)
    names = masks.output_names(found)
    if out is not None:
        files = {"mask": masks.mask_file, "overlay": masks.overlay_file}
        masks.require_new([file(out, name) for kind, file in files.items() if kind in formats for name in names])
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    mapper = masks.Mapper(
        config,
        model,
        task,
        build_mask_eval_transform(model, config),
        accelerator.device,
        accelerator.autocast,
        say=console.warn,
    )
    paths = [str(path) for path in found]
    images = FileImages(tuple(paths), config.data, config.model.in_chans)
    predictions = []
    for batch in _batches(config, ImageDataset(images, paths, torch.tensor), 1, unreadable, console):
        index, image = int(batch["index"]), batch["image"][0].numpy()
        predictions.append(masks.save_map(image, mapper(image), names[index], task, out, formats, paths[index]))
    for kind in ("mask", "overlay"):
        if out is not None and kind in formats:
            console.say("written", f"{out / kind}s: {len(predictions)} files")
    return predictions


def _batches(
    config: AnyConfig, dataset: Samples, batch_size: int, unreadable: list[tuple[str, str]], console: Console
) -> Iterator[dict[str, Any]]:
    """Batches with images; (path, reason) of files that cannot be read are added to `unreadable`.

    Raises:
        UserError: VA-D010, nothing readable.
    """
    workers = worker_count(config) if len(dataset) > 64 else 0  # starting processes costs more than a few images
    loader = eval_loader(dataset, batch_size, workers)
    with console.progress("predict", len(loader)) as bar:
        for step, batch in enumerate(loader):
            unreadable += [(dataset.ids[index], reason) for index, reason in batch["unreadable"]]
            if len(batch["index"]):
                yield batch
            bar.update(step + 1)
    if len(unreadable) == len(dataset):
        raise UserError("VA-D010", "none of the images could be read", where=unreadable[0][0], why=unreadable[0][1])


def find_images(sources: Sequence[str | Path]) -> dict[Path, Path]:
    """Image files named by paths, folders and globs, with their place below the folder (or the fixed part of the glob).

    Raises:
        UserError: VA-D001.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        path = Path(source).expanduser()
        above = path.parent
        if path.is_dir():
            above = path
            items = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith("."))
        elif path.is_file():
            items = [path]
        else:
            above = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
            items = sorted(Path(item) for item in glob.glob(str(path), recursive=True) if Path(item).suffix.lower() in IMAGE_SUFFIXES)
        if not items:
            near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError("VA-D001", f'no images at "{source}"', fix=did_you_mean(path.name, near) or "give files, folders or a glob")
        for item in items:
            found.setdefault(item, item.relative_to(above))
    return found


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what goes with it.

    Attributes:
        model: a backbone with a head.
        config: the run's config, or the defaults with the model of published weights.
        classes: names that labels of data have.
        shown: names for people; other than `classes` for ImageNet, whose folders have numbers for names.
        palette: colours of the classes of pixels.
        run: run folder, if the source lies in one.
    """

    model: Model
    config: AnyConfig
    classes: list[str]
    shown: list[str]
    run: RunFolder | None
    palette: Sequence[Colour] | None = None


def load_model(source: str | Path, say: Say | None = None) -> LoadedModel:
    """The model of a run folder, a checkpoint folder, a weights file in one, of weights by name (`swin_tiny.in1k`,
    `swin_tiny.upernet_ade20k`), or of a segmentation file.

    Raises:
        UserError: VA-R003 no run or checkpoint there, VA-W001 to VA-W007.
    """
    path = Path(source)
    if not path.exists() and find_segmenter(str(source)) is not None:
        return _published_segmenter(str(source), say)
    if not path.exists() and split_name(str(source))[0] in list_models():
        return _named_model(str(source), say)
    name = None
    if path.is_file() and not (path.parent / "meta.json").is_file():
        return _published_segmenter(path, say)
    if path.is_file():
        path, name = path.parent, path.name
    if (path / "meta.json").is_file():
        checkpoint = path
    else:
        run = RunFolder.open(path)
        best = run.checkpoints / "best"
        found = best if best.is_dir() else latest_checkpoint(run.checkpoints)
        if found is None:
            raise UserError("VA-W006", "the run has no checkpoint yet", where=str(run.checkpoints), fix=f"visionattn train --resume {path}")
        checkpoint = found
    meta = read_meta(checkpoint)
    config = config_from_dict(meta["config"])
    import_plugins(config)
    model = build_model(config, meta["classes"])
    load_checkpoint(model, read_weights(checkpoint, name), allow=())
    folder = checkpoint.resolve().parent.parent
    inside = RunFolder(folder) if (folder / "config.yaml").is_file() else None
    return LoadedModel(model.eval(), config, meta["classes"], meta["classes"], inside, meta.get("palette"))


def _named_model(name: str, say: Say | None) -> LoadedModel:
    """A model with published or imported weights, and the classes they were trained for."""
    record = find_record(name)
    if record.num_classes is None:
        raise UserError(
            "VA-M003", f"{record.name} has no classifier", fix=f"train one: model.name={record.model} model.weights={record.tag}"
        )
    file = fetch(record, say=say)
    model = create_model(record.name, checkpoint_path=file.path, in_chans=record.in_chans)
    assert isinstance(model, Classifier)
    settings = ModelConfig(name=record.model, weights=record.tag, in_chans=record.in_chans, img_size=record.input_size[1:])
    config = Config(model=settings)
    if record.label_set is None:
        classes = list(record.class_names) or [str(number) for number in range(record.num_classes)]
        return LoadedModel(model.eval(), config, classes, classes, None)
    labels = ImageNetInfo(record.label_set)
    classes = labels.label_names()
    shown = [f"{labels.index_to_description(number)} ({synset})" for number, synset in enumerate(classes)]
    return LoadedModel(model.eval(), config, classes, shown, None)


def _published_segmenter(source: str | Path, say: Say | None) -> LoadedModel:
    """The model of a segmentation file or of published weights, with the preprocessing of the published recipes.

    150 classes without names are ADE20K's.
    """
    model, classes, palette = segmenter_from_file(source, say=say)
    known = [entry for entry in read_classes("ade20k") if not entry.ignored]
    ade20k = model.num_classes == len(known)
    if classes is None:
        classes = tuple(entry.name for entry in known) if ade20k else tuple(str(number) for number in range(model.num_classes))
    if palette is None and ade20k:
        palette = tuple(entry.colour for entry in known if entry.colour is not None)
    settings = SegmentModelConfig(
        name=model.pretrained_cfg["architecture"], weights=str(source), in_chans=model.in_chans, head=HeadConfig(name=model.head)
    )
    # The published test on ADE20K: the image fits into 2048 x 512 and is predicted in one piece.
    augment = MaskAugmentConfig(resize=(2048, 512)) if ade20k else MaskAugmentConfig()
    names = list(classes)
    if model.num_classes == 1:  # one logit tells a class from the background
        names, palette = ["background", *names], None
    return LoadedModel(model.eval(), SegmentConfig(model=settings, augment=augment), names, names, None, palette)


def _other_format(config: AnyConfig) -> str:
    """Data given to eval may be laid out differently; a class of torchvision stays what it is."""
    return "torchvision" if config.data.format == "torchvision" else "auto"

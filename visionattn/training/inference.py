"""Use a trained run: load its model, evaluate it on a split, predict on images."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import ImageNetInfo

from visionattn.backbones import list_models
from visionattn.config import AnyConfig, Config, ModelConfig, config_from_dict
from visionattn.data.images import IMAGE_SUFFIXES
from visionattn.errors import UserError, did_you_mean
from visionattn.models import Classifier, create_model, load_checkpoint
from visionattn.models.download import Say, fetch
from visionattn.models.records import find_record, split_name
from visionattn.tasks import Classification, Task
from visionattn.training.build import Model, build_model, build_task, eval_batch_size, import_plugins, make_accelerator, worker_count
from visionattn.training.checkpoint import latest_checkpoint, read_meta, read_weights
from visionattn.training.classification import Prediction, top_classes
from visionattn.training.console import Console
from visionattn.training.datasets import file_set, split_set
from visionattn.training.evaluation import Evaluation, eval_loader, evaluate_model
from visionattn.training.report import save_evaluation
from visionattn.training.run import RunFolder


def evaluate(
    source: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    batch_size: int | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Metrics of a run or a checkpoint; preprocessing, classes and model come from it.

    Within a run folder the result is also written to `eval/<split>/`.

    Args:
        source: run folder (its best checkpoint), a checkpoint folder, a weights file in one, or the name of
            published or imported weights (`swin_tiny.in1k`), whose classes are ImageNet's.
        data: other data than the run's.
        split: train, val or test.
        batch_size: images per step; default as in the run.
        console: where progress is printed.

    Raises:
        UserError: VA-R003, VA-W005, VA-W006 for the source; VA-D001, VA-D002, VA-M003 for the data.
    """
    console = console or Console()
    loaded = load_model(source, lambda text: console.say("", text))
    model, config, classes, run = loaded.model, loaded.config, loaded.classes, loaded.run
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
        build_task(config, classes, labels),
        loader,
        split=split,
        device=accelerator.device,
        autocast=accelerator.autocast,
        console=console,
    )
    if run is not None and data is None:
        save_evaluation(run.path / "eval" / split, result, dataset, classes)
    return result


def predict(
    source: str | Path,
    images: Sequence[str | Path],
    *,
    topk: int = 5,
    batch_size: int = 32,
    console: Console | None = None,
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """Classes of images.

    Args:
        source: run folder (its best checkpoint), a checkpoint folder, a weights file in one, or the name of
            published or imported weights (`swin_tiny.in1k`), whose classes are ImageNet's.
        images: files, folders (searched through) and globs.
        topk: classes per image.
        batch_size: images per step.
        console: where progress is printed.

    Returns:
        Predictions in the order of the files, and (path, reason) of files that could not be read.

    Raises:
        UserError: VA-D001, nothing found; VA-D010, nothing readable.
    """
    console = console or Console(quiet=True)
    loaded = load_model(source, lambda text: console.say("", text))
    paths = find_images(images)
    config = loaded.config
    if isinstance(config, Config):  # balanced class weights are counted from labels, and there are none
        config = config.model_copy(update={"loss": config.loss.model_copy(update={"class_weights": "none"})})
    task = build_task(config, loaded.shown, np.zeros(0, dtype=np.int64))
    assert isinstance(task, Classification)
    unreadable: list[tuple[str, str]] = []
    found = [
        top_classes(str(path), task.outputs(logits), loaded.shown, topk)
        for path, _, logits in each_prediction(loaded, task, paths, batch_size, unreadable, console)
    ]
    return found, unreadable


def each_prediction(
    loaded: LoadedModel, task: Task, paths: list[Path], batch_size: int, unreadable: list[tuple[str, str]], console: Console
) -> Iterator[tuple[Path, tuple[int, int], torch.Tensor]]:
    """Each image's path, size in its file (height, width) and what `task.predict` gives, in the order of the files.

    One at a time, so that large ones need not all be kept.

    Args:
        unreadable: (path, reason) of files that could not be read are added here.

    Raises:
        UserError: VA-D010, nothing readable.
    """
    model, config = loaded.model, loaded.config
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    workers = worker_count(config) if len(paths) > 64 else 0  # starting processes costs more than a few images
    loader = eval_loader(file_set(config, model, paths), batch_size, workers)
    with console.progress("predict", len(loader)) as bar:
        for step, batch in enumerate(loader):
            unreadable += [(str(paths[index]), reason) for index, reason in batch["unreadable"]]
            if len(batch["index"]):
                with accelerator.autocast(), torch.inference_mode():
                    predictions = task.predict(model, batch["image"].to(accelerator.device))
                for index, (height, width), prediction in zip(batch["index"].tolist(), batch["size"].tolist(), predictions, strict=True):
                    yield paths[index], (height, width), prediction
            bar.update(step + 1)
    if len(unreadable) == len(paths):
        raise UserError("VA-D010", "none of the images could be read", where=unreadable[0][0], why=unreadable[0][1])


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """Image files named by paths, folders and globs, without repeats.

    Raises:
        UserError: VA-D001.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            items = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith("."))
        elif path.is_file():
            items = [path]
        else:
            items = sorted(Path(item) for item in glob.glob(str(path), recursive=True) if Path(item).suffix.lower() in IMAGE_SUFFIXES)
        if not items:
            near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError("VA-D001", f'no images at "{source}"', fix=did_you_mean(path.name, near) or "give files, folders or a glob")
        found += items
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what goes with it.

    Attributes:
        model: a backbone with a head.
        config: the run's config, or the defaults with the model of published weights.
        classes: names that labels of data have.
        shown: names for people; other than `classes` for ImageNet, whose folders have numbers for names.
        run: run folder, if the source lies in one.
    """

    model: Model
    config: AnyConfig
    classes: list[str]
    shown: list[str]
    run: RunFolder | None


def load_model(source: str | Path, say: Say | None = None) -> LoadedModel:
    """The model of a run folder, a checkpoint folder, a weights file in one, or of weights by name (`swin_tiny.in1k`).

    Raises:
        UserError: VA-R003 no run or checkpoint there, VA-W001 to VA-W007.
    """
    path = Path(source)
    if not path.exists() and split_name(str(source))[0] in list_models():
        return _named_model(str(source), say)
    name = None
    if path.is_file() and (path.parent / "meta.json").is_file():
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
    return LoadedModel(model.eval(), config, meta["classes"], meta["classes"], inside)


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


def _other_format(config: AnyConfig) -> str:
    """Data given to eval may be laid out differently; a class of torchvision stays what it is."""
    return "torchvision" if config.data.format == "torchvision" else "auto"

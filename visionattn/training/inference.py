"""Use a trained run: load its model, evaluate it on a split, predict classes of images."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo

from visionattn.backbones import list_models
from visionattn.config import Config, ModelConfig, config_from_dict
from visionattn.data.classification import load_split
from visionattn.data.images import IMAGE_SUFFIXES
from visionattn.data.sets import ClassificationDataset, FileImages, ImageSet
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write
from visionattn.models import Classifier, create_model, load_checkpoint
from visionattn.models.download import Say, fetch
from visionattn.models.records import find_record, split_name
from visionattn.tasks import Classification
from visionattn.training.build import build_eval_transform, build_model, import_plugins, make_accelerator, worker_count
from visionattn.training.checkpoint import latest_checkpoint, read_meta, read_weights
from visionattn.training.console import Console
from visionattn.training.evaluation import Evaluation, eval_loader, evaluate_model
from visionattn.training.report import save_evaluation
from visionattn.training.run import RunFolder, csv_text


@dataclass(frozen=True)
class Prediction:
    """One image: the classes with their probabilities, most probable first."""

    path: str
    classes: list[str]
    probabilities: list[float]


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
    images = load_split(config.data, split, classes, config.model.in_chans, seed=config.seed)
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    task = Classification(classes, images.labels, config.loss, config.augment, multi_label=config.data.multi_label)
    dataset = ClassificationDataset(images, build_eval_transform(model, config))
    loader = eval_loader(dataset, batch_size or config.eval.batch_size or config.train.batch_size, worker_count(config))
    result = evaluate_model(model, task, loader, split=split, device=accelerator.device, autocast=accelerator.autocast, console=console)
    if run is not None and data is None:
        save_evaluation(run.path / "eval" / split, result, images, classes)
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
    model, config, classes = loaded.model, loaded.config, loaded.shown
    paths = find_images(images)
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    labels = torch.zeros(len(paths), dtype=torch.int64).numpy()
    files = FileImages(tuple(str(path) for path in paths), config.data, config.model.in_chans)
    dataset = ClassificationDataset(
        ImageSet("predict", files, labels, [str(path) for path in paths], None), build_eval_transform(model, config)
    )
    workers = worker_count(config) if len(paths) > 64 else 0  # starting processes costs more than a few images
    loader = eval_loader(dataset, batch_size, workers)
    task = Classification(
        classes, labels, config.loss.model_copy(update={"class_weights": "none"}), config.augment, multi_label=config.data.multi_label
    )
    predictions: list[Prediction] = []
    unreadable: list[tuple[str, str]] = []
    with console.progress("predict", len(loader)) as bar, torch.inference_mode():
        for step, batch in enumerate(loader):
            unreadable += [(str(paths[index]), reason) for index, reason in batch["unreadable"]]
            if len(batch["index"]):
                with accelerator.autocast():
                    logits = model(batch["image"].to(accelerator.device))
                values, order = task.outputs(logits).topk(min(topk, len(classes)))
                for index, row, names in zip(batch["index"], values.tolist(), order.tolist(), strict=True):
                    predictions.append(Prediction(str(paths[int(index)]), [classes[name] for name in names], row))
            bar.update(step + 1)
    if not predictions:
        raise UserError("VA-D010", "none of the images could be read", where=unreadable[0][0], why=unreadable[0][1])
    return predictions, unreadable


def save_predictions(out: Path, predictions: list[Prediction], unreadable: list[tuple[str, str]], formats: Sequence[str]) -> list[Path]:
    """`predictions.json` and `predictions.csv` in a folder; returns the files written."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if "json" in formats:
        written.append(out / "predictions.json")
        atomic_write(written[-1], json.dumps(predictions_dict(predictions, unreadable), indent=1))
    if "csv" in formats:
        count = max(len(prediction.classes) for prediction in predictions)
        columns = ["path", *(name for rank in range(1, count + 1) for name in (f"class{rank}", f"probability{rank}"))]
        rows = [
            [item.path, *(value for pair in zip(item.classes, (f"{p:.6f}" for p in item.probabilities), strict=True) for value in pair)]
            for item in predictions
        ]
        written.append(out / "predictions.csv")
        atomic_write(written[-1], csv_text(columns, rows))
    return written


def predictions_dict(predictions: list[Prediction], unreadable: list[tuple[str, str]]) -> dict[str, Any]:
    """The object that `predict --json` prints and `predictions.json` holds."""
    return {
        "predictions": [asdict(prediction) for prediction in predictions],
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable],
    }


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
        model: the classifier.
        config: the run's config, or the defaults with the model of published weights.
        classes: names that labels of data have.
        shown: names for people; other than `classes` for ImageNet, whose folders have numbers for names.
        run: run folder, if the source lies in one.
    """

    model: Classifier
    config: Config
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


def _other_format(config: Config) -> str:
    """Data given to eval may be laid out differently; a class of torchvision stays what it is."""
    return "torchvision" if config.data.format == "torchvision" else "auto"

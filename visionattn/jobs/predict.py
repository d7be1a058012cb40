"""Predict on files with a trained or published model."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from visionattn.console import Console
from visionattn.data.loading import FEW_SAMPLES, eval_loader, worker_count
from visionattn.data.walk import Walker, matches
from visionattn.engine.devices import inference_settings, open_accelerator
from visionattn.engine.diagnosis import memory_explained, out_of_memory_in_inference
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write, csv_lines, json_text
from visionattn.jobs.ensemble import Ensemble
from visionattn.names import shown
from visionattn.runs.load import load_models
from visionattn.spill import Rows
from visionattn.tasks import CHANGEABLE, change_config, name_plugins
from visionattn.tasks.base import Dataset, Member, Prediction, Predictor, Target, Writer, WriterRequest
from visionattn.tasks.batch import Batch


def predict(
    source: str | Path | Sequence[str | Path],
    files: str | Path | Iterable[str | Path],
    *,
    topk: int = 5,
    batch_size: int = 32,
    out: str | Path | None = None,
    save: Collection[str] = (),
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> tuple[Sequence[Any], list[tuple[str, str]]]:
    """Predict on files; the predictions are in the order of the files.

    Classifiers give `Prediction`s (classes with probabilities), volumes `LabelMap`s, bags `BagPrediction`s. Segmentation gives
    `MaskPrediction`s, made one image at a time, whose class maps are kept as compressed PNGs: `prediction.class_map()` decodes one.
    Many predictions are kept on the disk, in a temporary file or in `out`, and loaded one at a time.

    Args:
        source: see `load_models`; of several the probabilities are averaged, and the settings of the first are used.
        files: a file, a folder (searched recursively) or a glob, or several.
        topk: classes per image, for classifiers.
        batch_size: files per step, for classifiers.
        out: folder for the results; None saves nothing.
        save: what to write there: "json", "csv" and "probs" (the probabilities of all classes), and of segmentation also "mask"
            (palette PNGs of the image's size, whose pixels are class numbers), "confidence" (grey PNGs, 255 where the class is
            certain), "overlay" and "coco" (a file of polygons for annotation tools). Volumes have "mask", "overlay", "json" and
            "csv", bags "json", "csv", "attention" and "heatmap". (): the task's default.
        settings: as in `evaluate`.
        console: where progress is printed.

    Returns:
        Predictions, and (path, reason) of files that could not be read.

    Raises:
        TypeError: `files` are not paths.
        UserError: VA-D001, nothing found; VA-D010, nothing readable; VA-C001, VA-C002, `save` and `settings`; VA-R001, out of memory;
            VA-R007, files that would be overwritten; VA-R009, a loader process ended.
    """
    sources = paths_of(files)
    console = console or Console(quiet=True)
    settings = name_plugins(settings)
    models = load_models(source, lambda text: console.field("", text))
    train = inference_settings(models[0].config.train, console.warn)
    configs = [change_config(loaded.config.model_copy(update={"train": train}), settings, CHANGEABLE) for loaded in models]
    configs = [config.model_copy(update={"data": config.data.at("")}) for config in configs]  # not what they were trained on
    task, config, target = models[0].task, configs[0], None if out is None else Path(out).expanduser()
    members = task.ensemble([Member(changed, loaded.model) for changed, loaded in zip(configs, models, strict=True)])
    formats = tuple(save) or task.default_formats
    if wrong := set(formats) - set(task.formats):
        known = ", ".join(task.formats)
        raise UserError("VA-C002", f"--save: expected {known}, got {', '.join(sorted(wrong))}", why=f"the task is {task.name}")
    found = task.input_files(config, find_files(sources, task.input_suffixes, config.data.exclude, console, task.is_input))
    if not found:
        fix = "name the first one CASE_0000, or data.channel_files=false"
        raise UserError("VA-D001", "none of the files is the first channel of an image", fix=fix)
    request = WriterRequest(found, target, formats, topk)
    writer = task.writer(config, models[0].target, request)
    if target is not None:
        tables = [target / f"predictions.{name}" for name in ("json", "csv") if name in formats]
        require_new([*tables, *writer.planned_files()])
    datasets = [task.file_dataset(changed, model, list(request.files)) for changed, model in members]
    predictions, unreadable = _run(Ensemble.of(task, members, datasets), models[0].target, writer, formats, batch_size, console)
    if target is not None:
        _save(target, formats, predictions, unreadable, writer, console)
    return predictions, unreadable


def predictions_json(predictions: Iterable[Prediction], unreadable: list[tuple[str, str]]) -> Iterator[str]:
    """The object that `predict --json` prints and `predictions.json` holds, in pieces: a line per prediction."""
    yield '{"predictions": ['
    for number, prediction in enumerate(predictions):
        yield (",\n " if number else "\n ") + json_text(prediction.as_dict())
    missing = [{"path": path, "reason": reason} for path, reason in unreadable]
    yield f'\n], "unreadable": {json_text(missing)}}}\n'


def paths_of(files: Any) -> list[str | Path]:
    """The paths that a job was given: one, or several.

    Raises:
        TypeError: anything else.
    """
    several = isinstance(files, Iterable) and not isinstance(files, (str, bytes, bytearray, Path))
    found = list(files) if several else [files]
    wrong = [type(item).__name__ for item in found if not isinstance(item, (str, Path))]
    if wrong:
        raise TypeError(f"files: expected a path (str or pathlib.Path) or several, got {'one of type ' * several}{wrong[0]}")
    return found


def find_files(
    sources: Sequence[str | Path],
    suffixes: Collection[str],
    exclude: Sequence[str],
    console: Console,
    is_known: Callable[[str], bool] = lambda path: False,
) -> dict[Path, Path]:
    """Files named by paths, folders and globs, with their place below the folder (or the fixed part of the glob).

    Folders are read by the rules of training: links are followed, excluded names skipped. What is left out is reported.

    Args:
        suffixes: endings of the files taken from folders and globs.
        exclude: names (globs) of files and folders to skip in folders and globs.
        is_known: whether a file with another ending is taken too, by its path.

    Raises:
        UserError: VA-D001.
    """
    found: dict[Path, Path] = {}
    walker = Walker(suffixes, exclude, is_known)
    for source in sources:
        path = Path(source).expanduser()
        above = path.parent
        if path.is_dir():
            above = path
            items = walker.without_strays([walker.files(path)])[0]
        elif path.exists():
            if not path.is_file():
                raise UserError("VA-D001", f'"{source}" is not a regular file', why="FIFOs, sockets and devices are not read")
            items = [str(path)]
        else:
            above = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
            items = _glob(path, above, walker)
        if not items:
            near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            fix = did_you_mean(path.name, near) or "give files, folders or a glob"
            raise UserError("VA-D001", f'nothing to read at "{source}"', why="\n".join(walker.report()), fix=fix)
        for item in map(Path, items):
            found.setdefault(item, item.relative_to(above))
    for line in walker.report(hidden_names=False):
        console.field("", line)
    return found


def _glob(pattern: Path, above: Path, walker: Walker) -> list[str]:
    """Files that match a glob; `above` is its fixed part."""
    if "**" in pattern.parts:  # not glob's own walk, which has no end where links form a circle
        wanted = pattern.relative_to(above).parts
        return [item for item in walker.files(above) if matches(Path(item).relative_to(above).parts, wanted)] if above.is_dir() else []
    items = sorted(item for item in glob.glob(str(pattern)) if not Path(item).is_dir())
    return [item for item in items if not any(map(walker.excludes, Path(item).relative_to(above).parts)) and walker.accepts(item)]


def _run(
    ensemble: Ensemble, target: Target, writer: Writer, formats: Collection[str], batch_size: int, console: Console
) -> tuple[Rows[Prediction], list[tuple[str, str]]]:
    task, config, dataset = ensemble.task, ensemble.members[0].config, ensemble.dataset
    predictions: Rows[Prediction] = Rows()
    unreadable: list[tuple[str, str]] = []
    batch_size = task.file_batch_size(batch_size)
    explained = memory_explained(partial(out_of_memory_in_inference, "the prediction", batch_size))
    with open_accelerator(config.train) as accelerator, explained:
        device = accelerator.device
        ensemble.to(device)

        def build(member: Member) -> Predictor:
            return task.file_predictor(member.config, target, member.model, device, formats, console.warn)

        predictor = ensemble.predictor(build)
        workers = worker_count(config.data) if len(dataset) > FEW_SAMPLES else 0
        for batch in file_batches(dataset, batch_size, workers, unreadable, console):
            with accelerator.autocast(), torch.inference_mode():
                found = predictor(batch)
            predictions.extend(writer.write(found, batch))
            del found  # before the next ones are made
    if len(unreadable) == len(dataset):
        raise UserError("VA-D010", f"none of the {task.unit}s could be read", where=shown(unreadable[0][0]), why=shown(unreadable[0][1]))
    return predictions, unreadable


def file_batches(
    dataset: Dataset, batch_size: int, workers: int, unreadable: list[tuple[str, str]], console: Console, label: str = "predict"
) -> Iterator[Batch]:
    """Batches with samples; (id, reason) of unreadable ones are added to `unreadable`."""
    loader = eval_loader(dataset, batch_size, workers, warn=console.warn)
    with console.progress(label, len(loader)) as bar:
        for step, batch in enumerate(loader):
            unreadable += batch.unreadable
            if len(batch):
                yield batch
            bar.update(step + 1)


def require_new(files: Sequence[Path]) -> None:
    """Stop before anything is overwritten.

    Raises:
        UserError: VA-R007.
    """
    there = [path for path in files if path.exists()]
    if there:
        what = f"{shown(str(there[0]))} exists already" + (f", and {len(there) - 1} more of the files to write" if len(there) > 1 else "")
        raise UserError("VA-R007", what, fix="another --out FOLDER, or remove them")


def _save(
    out: Path, formats: Collection[str], predictions: Rows[Prediction], unreadable: list[tuple[str, str]], writer: Writer, console: Console
) -> None:
    """Write the tables and report what was written."""
    out.mkdir(parents=True, exist_ok=True)
    writer.finish()
    for path in dict.fromkeys(out / path.relative_to(out).parts[0] for path in writer.planned_files()):
        console.field("written", f"{path}: {len(predictions)} files" if path.is_dir() else str(path))
    texts = {"json": lambda: predictions_json(predictions, unreadable), "csv": lambda: csv_lines(*writer.table(predictions))}
    for name, text in texts.items():
        if name in formats:
            atomic_write(out / f"predictions.{name}", text())
            console.field("written", str(out / f"predictions.{name}"))

"""Features of images, as the classifier of a model sees them, and the nearest images by them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.data.bags.patches import places_of
from visionattn.data.loading import FEW_SAMPLES, worker_count
from visionattn.data.sources import FileImages, Images
from visionattn.data.split_names import require_split
from visionattn.engine.devices import inference_settings, open_accelerator
from visionattn.engine.diagnosis import memory_explained, out_of_memory_in_inference
from visionattn.errors import UserError
from visionattn.files import atomic_write, csv_lines, json_text
from visionattn.jobs.predict import file_batches, find_files, paths_of, require_new
from visionattn.names import plain_path, shown
from visionattn.runs.exported import OnnxNetwork
from visionattn.runs.load import LoadedModel, load_models
from visionattn.spill import Table, npy_pieces
from visionattn.tasks import CHANGEABLE, change_config, name_plugins
from visionattn.tasks.base import Dataset


@dataclass(frozen=True)
class Features:
    """Features of images, in their order; those that could not be read are left out.

    Attributes:
        values: `[N, channels]`, float32; of many images on the disk.
        ids: name of each image: its path, or its id in a split.
        labels: label of each image; None if they have none.
        paths: file of each image; empty text if there is none.
        images: the images themselves.
        positions: where each image is in `images`.
        unreadable: id and reason of images that could not be read.
        fingerprint: of the model.
    """

    values: np.ndarray
    ids: list[str]
    labels: list[str] | None
    paths: list[str]
    images: Images
    positions: Sequence[int]
    unreadable: list[tuple[str, str]]
    fingerprint: str


def extract_features(
    source: str | Path | Sequence[str | Path],
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 32,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Features:
    """Compute the features of images: of a classifier the input of its linear layer, after norm and pooling; of a segmentation model
    the last map of its backbone, averaged over the image.

    Args:
        source: one model, see `load_models`.
        data: files, folders or globs, as in `predict`; with `split` one data set, None for that of the run.
        split: train, val or test: its images with their labels.
        out: `NAME.npy`, beside which `NAME.csv` and `NAME.json` are written, or a folder for `features.npy`; None saves nothing.
        batch_size: images per step, of classification.
        settings: as in `evaluate`.
        console: where progress is printed.

    Raises:
        UserError: VA-M004, several models; as in `evaluate` with `split`, else as in `predict`.
    """
    console = console or Console(quiet=True)
    model = open_model(source, settings, console)
    target = None if out is None else feature_files(Path(out).expanduser())
    if target is not None:
        require_new(target)
    found = features_of_split(model, data, split, batch_size, console) if split else features_of_files(model, data, batch_size, console)
    if target is not None:
        _save(found, target, shown(str(source)), split, console)
    return found


def extract_bags(
    source: str | Path | Sequence[str | Path],
    folder: str | Path,
    out: str | Path,
    *,
    batch_size: int = 32,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Save the features of patches as bags: `OUT/<folders>/SLIDE.npz` for each folder `SLIDE` of patches.

    A file holds `features` `[N, channels]`, float32, and `coords` `[N, 2]` where all names of patches end in them (`1024_2048.png`).

    Args:
        source: one model, see `load_models`.
        folder: of folders of patches, for example `tumour/slide_1/1024_2048.png`.
        out: folder of the bags, a new one.
        batch_size: images per step, of classification.
        settings: as in `evaluate`.
        console: where progress is printed.

    Returns:
        The files.

    Raises:
        UserError: VA-D002, patches that are in no folder of a slide; as `extract_features`.
    """
    console, root, out = console or Console(quiet=True), Path(folder).expanduser(), Path(out).expanduser()
    slides: dict[Path, list[int]] = {}
    require_new([out])
    model = open_model(source, settings, console)
    found = features_of_files(model, root, batch_size, console)
    for row, path in enumerate(found.paths):
        slides.setdefault(Path(path).relative_to(root).parent if root.is_dir() else Path(), []).append(row)
    if Path() in slides:
        what = "patches that are in no folder of their slide"
        raise UserError("VA-D002", what, where=shown(found.paths[slides[Path()][0]]), fix="make folders: SLIDE/1024_2048.png")
    files = [out / plain_path(slide.parent) / f"{plain_path(Path(slide.name))}.npz" for slide in slides]
    for file, rows in zip(files, slides.values(), strict=True):
        places = places_of([found.paths[row] for row in rows])
        arrays: dict[str, Any] = {"features": found.values[rows]} | ({} if places is None else {"coords": places})
        np.savez(content := BytesIO(), **arrays)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, content.getvalue())
    console.field("written", f"{out}: {len(files):,} bags, {len(found.paths):,} x {found.values.shape[1]:,}, float32")
    return files


# ---------------------------------------------------------------- extract


def _file_images(paths: Iterable[str], config: Any) -> FileImages:
    return FileImages(tuple(paths), config.data.read_once(), config.model.channels)


def open_model(
    source: str | Path | Sequence[str | Path],
    settings: Sequence[str],
    console: Console,
    what: str = "features",
    *,
    calibrated: bool = False,
) -> LoadedModel:
    """The one model of a source, with the settings it is used with.

    Args:
        what: what it is used for, for messages.
        calibrated: see `load_model`.

    Raises:
        UserError: VA-C002, an ONNX file; VA-M004, several models; as `load_models` and `change_config`.
    """
    settings = name_plugins(settings)
    models = load_models(source, lambda text: console.field("", text), calibrated=calibrated)
    if len(models) > 1:
        why = "those of several models have nothing in common"
        raise UserError("VA-M004", f"{what} are of one model, and there are {len(models)}", why=why, fix="use them one at a time")
    (loaded,) = models
    if isinstance(loaded.model, OnnxNetwork):
        why = "its graph ends in the outputs, without features"
        raise UserError("VA-C002", f"{source} is an exported file", why=why, fix="use the run, or export it as safetensors")
    config = loaded.config.model_copy(update={"train": inference_settings(loaded.config.train, console.warn)})
    return LoadedModel(loaded.task, change_config(config, settings, CHANGEABLE), loaded.model, loaded.target, loaded.run)


def features_of_files(model: LoadedModel, data: Any, batch_size: int, console: Console) -> Features:
    """Features of files, folders or globs.

    Raises:
        UserError: VA-C005, there are none.
    """
    if data is None:
        raise UserError("VA-C005", "no images: give files or a folder, or a split of a data set by --split")
    config = model.config.model_copy(update={"data": model.config.data.at("")})
    files = model.task.input_files(config, find_files(paths_of(data), model.task.input_suffixes, config.data.exclude, console))
    dataset = model.task.feature_dataset(config, model.model, list(files))
    images = _file_images(map(str, files), config)
    return _extract(model, config, dataset, images, None, batch_size, console)


def features_of_split(model: LoadedModel, data: Any, split: str, batch_size: int, console: Console) -> Features:
    """Features of a split of a data set, by default that of the run.

    Raises:
        UserError: VA-D002, unknown split; VA-D001, no data.
    """
    require_split(split)
    roots = [] if data is None else paths_of(data)
    if len(roots) > 1:
        raise UserError("VA-C002", f"--split: a split is of one data set, and there are {len(roots)}: {', '.join(map(str, roots))}")
    section = model.config.data.at(str(roots[0])) if roots else model.config.data
    config = model.config.model_copy(update={"data": section.read_once()})
    if not config.data.has_source:
        raise UserError("VA-D001", "the model has no data of its own: name a data set")
    samples, labels = model.task.labelled_split(config, split, model.target)
    if samples.images is None:
        raise model.task.no_features()
    return _extract(model, config, model.task.eval_dataset(config, model.model, samples), samples.images, labels, batch_size, console)


def _extract(
    model: LoadedModel, config: RunConfig, dataset: Dataset, images: Images, labels: list[str] | None, batch_size: int, console: Console
) -> Features:
    task, values = model.task, Table()
    place_of = {name: place for place, name in enumerate(dataset.ids)}
    positions: list[int] = []
    unreadable: list[tuple[str, str]] = []
    batch_size = task.file_batch_size(batch_size)
    explained = memory_explained(partial(out_of_memory_in_inference, "the features", batch_size))
    with open_accelerator(config.train) as accelerator, explained:
        device = accelerator.device
        model.model.to(device)
        embed = task.embedder(model.model, device)
        workers = worker_count(config.data) if len(dataset) > FEW_SAMPLES else 0
        for batch in file_batches(dataset, batch_size, workers, unreadable, console, "features"):
            with accelerator.autocast(), torch.inference_mode():
                values.append(embed(batch).float().cpu().numpy())
            positions += [place_of[name] for name in batch.ids]
    if not positions:
        raise UserError("VA-D010", f"none of the {task.unit}s could be read", where=shown(unreadable[0][0]), why=shown(unreadable[0][1]))
    for name, reason in unreadable:
        console.warn(f"unreadable: {shown(name)} ({shown(reason)})")
    return Features(
        values.array(),
        [dataset.ids[place] for place in positions],
        None if labels is None else [labels[place] for place in positions],
        [images.path(place) or "" for place in positions],
        images,
        positions,
        unreadable,
        fingerprint(model.model, config),
    )


def fingerprint(model: nn.Module, config: RunConfig) -> str:
    """A hash of the weights of a model and of its input: features with the same one can be compared."""
    digest = hashlib.blake2b(json_text([config.model.size, getattr(model, "pretrained_cfg", {})]).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- files


def feature_files(out: Path) -> list[Path]:
    """The array, the table and the facts that features are saved in."""
    first = out if out.suffix == ".npy" else out / "features.npy"
    return [first, first.with_suffix(".csv"), first.with_suffix(".json")]


def _save(found: Features, files: Sequence[Path], source: str, split: str | None, console: Console) -> None:
    values, table, facts = files
    values.parent.mkdir(parents=True, exist_ok=True)
    columns = ["id", *["label"] * (found.labels is not None), "path"]
    about = {"model": source, "split": split, "shape": list(found.values.shape), "fingerprint": found.fingerprint}
    atomic_write(table, csv_lines(columns, _rows(found)))
    atomic_write(facts, json_text(about))
    atomic_write(values, npy_pieces(found.values))  # last: where it is, all are
    console.field("written", f"{values}: {found.values.shape[0]:,} x {found.values.shape[1]:,}, float32\n{table}: {', '.join(columns)}")


def _rows(found: Features) -> Iterator[list[str]]:
    for row, (name, path) in enumerate(zip(found.ids, found.paths, strict=True)):
        yield [name, *([] if found.labels is None else [found.labels[row]]), path]


def load_features(out: Path, model: LoadedModel) -> Features:
    """Features that `extract_features` has saved, mapped from the disk.

    Raises:
        UserError: VA-D001, none there; VA-D010, damaged files; VA-M004, they are of another model.
    """
    values, table, facts = feature_files(out)
    if not values.is_file():
        raise UserError("VA-D001", f'no features at "{out}"', fix="visionattn features RUN --split train --out FOLDER")
    try:
        about = json.loads(facts.read_text(encoding="utf-8"))
        array = np.load(values, mmap_mode="r", allow_pickle=False)
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if array.ndim != 2 or array.dtype != np.float32 or len(array) != len(rows) or not rows or not {"id", "path"} <= rows[0].keys():
            raise ValueError(f"{values.name} and {table.name} do not fit together")
        known = about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        raise UserError("VA-D010", "the features are damaged", where=str(values), why=f"{type(error).__name__}: {error}") from error
    if known != fingerprint(model.model, model.config):
        why = f"they were made with {shown(str(about.get('model')))}, or at another input size"
        raise UserError("VA-M004", "the features are of another model", where=str(values), why=why)
    paths = [_plain(row["path"]) for row in rows]
    labels = [_plain(row["label"]) for row in rows] if "label" in rows[0] else None
    images = _file_images(paths, model.config)
    return Features(array, [_plain(row["id"]) for row in rows], labels, paths, images, range(len(rows)), [], known)


def _plain(cell: str) -> str:
    """A cell without the apostrophe before text that begins like a formula."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'")[:1] in tuple("=+-@") else cell

"""Import local checkpoint files: recognise them by content, check them by loading, store them under a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError
from visionattn.models.factory import create_model
from visionattn.models.segmenter_factory import create_segmenter
from visionattn.models.weights.download import CachedFile, Report, print_line, store
from visionattn.models.weights.load import LoadReport, load_checkpoint, read_file, tensors_of
from visionattn.models.weights.recognise import Decoder, Recognised, one_name, recognise
from visionattn.models.weights.records import Record, SegmenterRecord, Weights, add_local_record, list_segmenters, records, records_of


@dataclass(frozen=True)
class Imported:
    """Result of an import."""

    record: Weights
    file: CachedFile
    recognised: Recognised
    report: LoadReport


def import_file(
    path: str | Path,
    *,
    model: str | None = None,
    tag: str | None = None,
    class_names: Sequence[str] = (),
    report: Report = print_line,
) -> Imported:
    """Store a checkpoint file as `model.tag`, for use by name in `create_model`, train, eval and predict.

    The model is recognised from the file's tensors. A file named like a published one gets the tag of that
    record; any other gets a record of its own, with `tag` or a tag made from the file's name. Segmentation
    models can be imported only if they are published ones.

    Args:
        path: .pth or .safetensors, in the authors' layout, timm's, torchvision's, mmpretrain's or ours.
        model: needed only if several models have the same tensors and the file's name does not contain one of them.
        tag: name of the weights among those of the model.
        class_names: names of the outputs, if they are not ImageNet's classes.
        report: called with lines about the import.

    Raises:
        UserError: VA-W003 not recognised, or several models fit; VA-W002, VA-W004 to VA-W006; VA-R004 no space.
    """
    path = Path(path).expanduser()
    content = read_file(path)
    given = tensors_of(content).state
    found = recognise(given)
    if found is None or found.fit < 1:
        raise _unknown(path, found)
    if found.decoder is not None:
        segmenter = _published_segmenter(path, found, found.decoder, model, tag)
        args = {**found.args, **segmenter.args}
        network = create_segmenter(
            segmenter.model, segmenter.head, found.num_classes, aux=found.decoder.aux, backbone_args=args, **found.decoder.args
        )
        loaded = load_checkpoint(network, content, allow=())
        _require_finite(path, segmenter, loaded)
        return Imported(segmenter, store(path, segmenter.model, segmenter.tag, report=report), found, loaded)
    record = _published(path, found, model, tag) or _local(path, found, model, tag, class_names)
    classifier = create_model(record.model, num_classes=found.num_classes, in_chans=found.in_chans, **record.args)
    allow = ("position",) if found.num_classes else ("position", "classifier")  # the norm of a head may be missing with it
    loaded = load_checkpoint(classifier, content, allow=allow)  # before anything is stored
    if record.sources:
        _require_finite(path, record, loaded)
    else:
        add_local_record(record)
    return Imported(record, store(path, record.model, record.tag, report=report), found, loaded)


def _require_finite(path: Path, record: Weights, loaded: LoadReport) -> None:
    if loaded.not_finite:
        fix = "download it again, or import it as weights of your own: --tag NAME"
        raise UserError("VA-W005", f"{path.name} is not {record.name} as published", where=str(path), why=loaded.not_finite, fix=fix)


def _published(path: Path, found: Recognised, model: str | None, tag: str | None) -> Record | None:
    """Find the published record with this file name, or with the requested tag, if the content matches."""
    for record in records():
        named = any(source.name == path.name for source in record.sources) if tag is None else record.tag == tag
        same = record.model in found.names and model in (None, record.model) and not found.args
        if record.sources and named and same and record.num_classes == found.num_classes and found.in_chans == 3:
            return record
    return None


def _published_segmenter(path: Path, found: Recognised, decoder: Decoder, model: str | None, tag: str | None) -> SegmenterRecord:
    """Find the published segmentation model with this content: by file name, by tag, or the only one whose file name is unknown."""
    fitting = [
        record
        for record in list_segmenters()
        if record.model in found.names and (record.head, record.num_classes) == (decoder.head, decoder.num_classes) and found.in_chans == 3
    ]
    fitting = [record for record in fitting if model in (None, record.model) and tag in (None, record.tag)]
    named = [record for record in fitting if any(source.name == path.name for source in record.sources)]
    unnamed = [record for record in fitting if tag is not None or any(not source.name for source in record.sources)]
    chosen = named or unnamed
    if len(chosen) == 1:
        return chosen[0]
    what = f"{path.name} is a segmentation model ({decoder.head} on {' or '.join(found.names)})"
    if chosen:
        fix = f"choose one: visionattn weights import {path} --tag {chosen[0].tag}"
        raise UserError("VA-W003", f"{what} and may be {' or '.join(record.name for record in chosen)}", where=str(path), fix=fix)
    fix = f"use the file itself: model.weights={path}, or segmenter_from_file(FILE) of visionattn.models"
    raise UserError("VA-W003", f"{what}, but not a published one", where=str(path), fix=fix)


def _local(path: Path, found: Recognised, model: str | None, tag: str | None, class_names: Sequence[str]) -> Record:
    name = one_name(path, found, model, fix=f"visionattn weights import {path} --model {found.names[0]}")
    stem = path.name.partition(".")[0].lower()
    tag = tag or re.sub(r"[^a-z0-9]+", "_", stem).strip("_")[:60] or "local"
    if not re.fullmatch(r"[a-z0-9_]{1,60}", tag):
        raise UserError("VA-W007", f'--tag "{tag}": expected at most 60 small letters, digits and _', where=str(path))
    if any(record.sources for record in records_of(name) if record.tag == tag):
        raise UserError("VA-W007", f"{name}.{tag} is a published file with different content", where=str(path), fix="choose another --tag")
    if class_names and len(class_names) != found.num_classes:
        raise UserError("VA-M003", f"{len(class_names)} class names for a classifier of {found.num_classes}", where=str(path))
    label_sets = {1000: "imagenet-1k", 21841: "imagenet-22k"}
    # As for the model without weights, so that a run needs no record of them.
    published = next((record for record in records_of(name) if record.sources), None)
    cfg = published.model_dump() if published else get_variant(name).cfg
    return Record.model_validate(
        {
            "model": name,
            "tag": tag,
            "args": found.args,
            "in_chans": found.in_chans,
            "num_classes": found.num_classes or None,
            "label_set": None if class_names else label_sets.get(found.num_classes),
            "class_names": list(class_names),
            "note": f"imported from {path.name}",
            **{key: cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")},
        }
    )


def _unknown(path: Path, found: Recognised | None) -> UserError:
    why = "its tensors match no registered model"
    if found is not None:
        why = f"closest: {' or '.join(found.names)}, {found.fit:.0%} of the tensors match"
    return UserError("VA-W003", f"{path.name} is not recognised", where=str(path), why=why, fix="supported models: visionattn models list")

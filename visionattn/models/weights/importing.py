"""Files that a person brings: recognised by their content, checked by loading them, kept under a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError
from visionattn.models.factory import create_model
from visionattn.models.segmenter_factory import create_segmenter
from visionattn.models.weights.download import CachedFile, Say, store, tell
from visionattn.models.weights.load import LoadReport, load_checkpoint, read_file, tensors_of
from visionattn.models.weights.recognise import Decoder, Recognised, one_name, recognise
from visionattn.models.weights.records import Record, SegmenterRecord, Weights, add_local_record, list_segmenters, records, records_of


@dataclass(frozen=True)
class Imported:
    """What became of a file."""

    record: Weights
    file: CachedFile
    recognised: Recognised
    report: LoadReport


def import_file(
    path: str | Path, *, model: str | None = None, tag: str | None = None, class_names: Sequence[str] = (), say: Say = tell
) -> Imported:
    """Keep a checkpoint file under `model.tag`, from where `create_model`, train, eval and predict take it by name.

    What it is, is read from its tensors. A file with the name of a published one takes that record's
    tag; another gets a record of its own, whose tag is `tag` or made from the file's name. Of segmentation
    models only the published ones are kept by name.

    Args:
        path: .pth or .safetensors, in the authors' layout, timm's, torchvision's, mmpretrain's or ours.
        model: needed only where several models have the same tensors and the file's name does not say which.
        tag: name of the weights among those of the model.
        class_names: what the outputs stand for, where they are not ImageNet's classes.
        say: takes the lines that tell what is done.

    Raises:
        UserError: VA-W003 not recognised, or several models fit; VA-W002, VA-W004 to VA-W006; VA-R004 no space.
    """
    path = Path(path).expanduser()
    given = tensors_of(read_file(path))
    found = recognise(given)
    if found is None or found.fit < 1:
        raise _unknown(path, found)
    if found.decoder is not None:
        segmenter = _published_segmenter(path, found, found.decoder, model, tag)
        args = {**found.args, **segmenter.args}
        network = create_segmenter(
            segmenter.model, segmenter.head, found.num_classes, aux=found.decoder.aux, backbone_args=args, **found.decoder.args
        )
        report = load_checkpoint(network, given, allow=())
        return Imported(segmenter, store(path, segmenter.model, segmenter.tag, say=say), found, report)
    record = _published(path, found, model, tag) or _local(path, found, model, tag, class_names)
    classifier = create_model(record.model, num_classes=found.num_classes, in_chans=found.in_chans, **record.args)
    report = load_checkpoint(classifier, given, allow=("position",))  # before anything is kept
    if not record.sources:
        add_local_record(record)
    return Imported(record, store(path, record.model, record.tag, say=say), found, report)


def _published(path: Path, found: Recognised, model: str | None, tag: str | None) -> Record | None:
    """The record with a source of this file's name (or the one asked for), if the content agrees."""
    for record in records():
        named = any(source.name == path.name for source in record.sources) if tag is None else record.tag == tag
        same = record.model in found.names and model in (None, record.model) and not found.args
        if record.sources and named and same and record.num_classes == found.num_classes and found.in_chans == 3:
            return record
    return None


def _published_segmenter(path: Path, found: Recognised, decoder: Decoder, model: str | None, tag: str | None) -> SegmenterRecord:
    """The published segmentation model with this content: of this name, of this tag, or the only one whose file has no known name."""
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
        fix = f"say which: visionattn weights import {path} --tag {chosen[0].tag}"
        raise UserError("VA-W003", f"{what} and may be {' or '.join(record.name for record in chosen)}", where=str(path), fix=fix)
    fix = f"use the file itself: model.weights={path}, or segmenter_from_file(FILE) of visionattn.models"
    raise UserError("VA-W003", f"{what}, and none that was published", where=str(path), fix=fix)


def _local(path: Path, found: Recognised, model: str | None, tag: str | None, class_names: Sequence[str]) -> Record:
    name = one_name(path, found, model, fix=f"visionattn weights import {path} --model {found.names[0]}")
    stem = path.name.partition(".")[0].lower()
    tag = tag or re.sub(r"[^a-z0-9]+", "_", stem).strip("_") or "local"
    if any(record.sources for record in records_of(name) if record.tag == tag):
        raise UserError("VA-W007", f"{name}.{tag} is a published file of another content", where=str(path), fix="give another --tag")
    if class_names and len(class_names) != found.num_classes:
        raise UserError("VA-M003", f"{len(class_names)} class names for a classifier of {found.num_classes}", where=str(path))
    label_sets = {1000: "imagenet-1k", 21841: "imagenet-22k"}
    cfg = get_variant(name).cfg
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
    why = "its tensors are those of no registered model"
    if found is not None:
        why = f"nearest: {' or '.join(found.names)}, with {found.fit:.0%} of the tensors"
    return UserError(
        "VA-W003", f"{path.name} is not recognised", where=str(path), why=why, fix="models that can be read: visionattn models list"
    )

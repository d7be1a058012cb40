"""Check bags before training: load every one once, compare their forms, and find values that are not numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from visionattn.data.bags.readers import Bag, check_form
from visionattn.data.bags.sets import BagData, BagSet
from visionattn.data.bags.settings import BagDataConfig
from visionattn.data.check import CheckReport
from visionattn.data.readers import UnreadableFile
from visionattn.data.splits import ManifestRow, Note, content_hash
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import shown

_SHOWN = 20


def check_bags(data: BagData, settings: BagDataConfig, progress: Callable[[int], None]) -> CheckReport:
    """Load all bags and compare them, as far as data.check asks for it; features of patches are computed here.

    A bag that cannot be used is an error, or with data.on_error=skip left out.
    """
    counts = {part.name: data.class_counts(part) for part in data.sets}
    if settings.check == "none" and not any(place.patches for part in data.sets for place in part.places):
        note = Note("info", "", "data.check=none lists bags without loading them: what is wrong with one is found in training")
        return CheckReport([*data.notes, note], {}, {}, counts, None)
    broken: dict[str, tuple[str, str]] = {}
    widths: dict[str, int] = {}
    sizes: list[int] = []
    hashes: dict[str, dict[str, str]] = {part.name: {} for part in data.sets}
    done = 0
    for part in data.sets:
        for index, name in enumerate(part.ids):
            try:
                bag = part.read(index)
                check_form(bag, name)
                widths[name] = bag.features.shape[1]
                sizes.append(len(bag))
                hashes[part.name][name] = content_hash(bag.features.tobytes())
            except UnreadableFile as error:
                broken[name] = (error.code, error.reason)
            done += 1
            progress(done)
    usual = Counter(widths.values()).most_common(1)
    for name, width in widths.items():
        if width != usual[0][0]:
            broken[name] = ("VA-D013", f"{width} features per instance, the other bags have {usual[0][0]}")
    notes = [*data.notes, *_size_notes(sizes), *_broken_notes(broken, settings), *_duplicate_notes(hashes)]
    unreadable = {name: reason for name, (_, reason) in broken.items()}
    return CheckReport(notes, unreadable, {}, counts, {name: value for found in hashes.values() for name, value in found.items()})


def usable_bags(data: BagData, report: CheckReport) -> BagData:
    """The data without the bags that cannot be used.

    Raises:
        UserError: VA-D005, a split or a class of the training set becomes empty.
    """
    if not report.unreadable:
        return data
    parts = {part.name: part.take([index for index, name in enumerate(part.ids) if name not in report.unreadable]) for part in data.sets}
    for name, part in parts.items():
        if not len(part):
            raise UserError("VA-D005", f"no usable bag is left of {name}", fix="repair these files, or put others in their place")
    changed: BagData = data.with_sets(parts)
    before, after = data.class_counts(data.train), changed.class_counts(changed.train)
    lost = [name for name in before if before[name] and not after[name]]
    if lost:
        raise UserError("VA-D005", f"no usable training bag is left of {shown(', '.join(lost))}", fix="repair these files")
    return changed


def bag_manifest(data: BagData, report: CheckReport) -> list[ManifestRow]:
    """A row per bag, with a hash of its features where the check loaded it."""
    hashes = report.hashes or {}
    return [
        ManifestRow(name, data.label_text(part, index), part.name, _bytes(part, index), hashes.get(name, ""))
        for part in data.sets
        for index, name in enumerate(part.ids)
    ]


def moments(part: BagSet) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over the instances of all bags; a constant feature has deviation 1.

    Raises:
        UserError: VA-D010, no bag can be read.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for bag in _readable(part):
        for start in range(0, len(bag), 4096):
            rows = bag.features[start : start + 4096].astype(np.float64)
            total = count + len(rows)
            shift = rows.mean(0) - mean
            squares = squares + ((rows - rows.mean(0)) ** 2).sum(0) + shift**2 * count * len(rows) / total  # Chan et al. 1983
            mean, count = mean + shift * len(rows) / total, total
    deviation = np.sqrt(squares / count)
    return mean, np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1), deviation, 1.0)


def width_of(part: BagSet) -> int:
    """Features per instance.

    Raises:
        UserError: VA-D010, no bag can be read.
    """
    return int(next(_readable(part)).features.shape[1])


def _readable(part: BagSet) -> Iterator[Bag]:
    """The bags that can be used, in order."""
    width, reason = None, "it is empty"
    for index in range(len(part)):
        try:
            bag = part.read(index)
            check_form(bag, part.ids[index], features=width)
        except UnreadableFile as error:
            reason = error.reason
            continue
        width = bag.features.shape[1]
        yield bag
    if width is None:
        raise UserError("VA-D010", f"no bag of {part.name} can be read", why=reason)


def _bytes(part: BagSet, index: int) -> int:
    try:
        return part.size(index)
    except OSError:
        return 0


def _size_notes(sizes: list[int]) -> list[Note]:
    if not sizes:
        return []
    low, middle, high = min(sizes), int(np.median(sizes)), max(sizes)
    return [Note("info", "", f"{counted(len(sizes), 'bag')} of {low:,} to {high:,} instances, in the middle {middle:,}")]


def _broken_notes(broken: dict[str, tuple[str, str]], settings: BagDataConfig) -> list[Note]:
    level: Any = "error" if settings.on_error == "stop" else "warning"
    what = "" if settings.on_error == "stop" else " (left out)"
    notes = [Note(level, code, f"{shown(name)}: {shown(reason)}{what}") for name, (code, reason) in list(broken.items())[:_SHOWN]]
    if len(broken) > _SHOWN:
        notes.append(replace(notes[-1], text=f"... and {counted(len(broken) - _SHOWN, 'more bag')}"))
    return notes


def _duplicate_notes(hashes: dict[str, dict[str, str]]) -> list[Note]:
    """Report training bags that also appear in another split."""
    seen = {value: name for name, value in hashes["train"].items()}
    notes = []
    for split, found in hashes.items():
        both = [(seen[value], name) for name, value in found.items() if split != "train" and value in seen]
        if both:
            pairs = "; ".join(f"{shown(first)} = {shown(second)}" for first, second in both[:3])
            notes.append(Note("warning", "VA-D006", f"{counted(len(both), 'bag')} in both train and {split}: {pairs}"))
    return notes

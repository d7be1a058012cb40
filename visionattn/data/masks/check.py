"""Check images and masks before training and report all faults of all pairs together."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionattn.data.check import (
    CheckReport,
    Finding,
    broken_notes,
    cache_name,
    channel_notes,
    check_threads,
    duplicate_notes,
    examine,
    fits,
    format_notes,
    median_size,
    partial_notes,
    read_cache,
    write_cache,
)
from visionattn.data.masks.convert import convert_command
from visionattn.data.masks.palettes import Colour
from visionattn.data.masks.sets import BACKGROUND, MOST_CLASSES, LabelRule, MaskData, MaskSet, map_setting
from visionattn.data.masks.settings import IGNORE, MaskDataConfig
from visionattn.data.readers import UnreadableFile, file_content, mask_header, read_mask, upright_size
from visionattn.data.splits import Note, content_hash
from visionattn.names import shown

_TINY = 0.005  # share of the labelled pixels below which a class is reported as small
_VALUES_KEPT = 1024  # per mask; a file with more values is not a mask
_SHOWN = 8


@dataclass(frozen=True)
class MaskFacts:
    """Properties of one mask: `counts` are pixels per value, for the most frequent values; sizes are (height, width).

    `palette` gives the stored colour of these values, if the file has a palette; `decoded` as `decoded_bytes` counts.
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    colour: bool
    palette: dict[int, int]
    lossy: bool
    rotated: bool
    distinct: int
    counts: dict[int, int]
    decoded: int


@dataclass(frozen=True)
class MaskFinding:
    """Finding for one pair: the facts of its mask, or the reason they are missing."""

    split: str
    image_id: str
    mask_id: str
    hash16: str
    facts: MaskFacts | None
    code: str
    reason: str


def check_masks(data: MaskData, settings: MaskDataConfig, *, cache_dir: Path, progress: Callable[[int], None] | None = None) -> CheckReport:
    """Decode all images and masks, as far as data.check asks for it; only the cache is written.

    In the report, `counts` are pixels per split and class, `hashes` are those of images and masks by id, and
    `unreadable` lists images that cannot be used, because of the image or its mask.

    Args:
        cache_dir: folder of stored results, keyed by path, size and modification time of each file.
        progress: called with the number of pairs checked.
    """
    if settings.check == "none":
        notes = [_summary(data, sum(len(part) for part in data.sets)), *_missing_notes(data), *data.notes, *partial_notes(settings)]
        return CheckReport(notes, {}, {}, {part.name: {} for part in data.sets}, None)
    cache_file = cache_dir / f"pairs-{cache_name([part.images for part in data.sets], data.name)}.json"
    cache = read_cache(cache_file) if settings.check == "full" else {}
    kept: dict[str, Any] = {}
    images: dict[str, list[Finding]] = {}
    masks: list[MaskFinding] = []
    with ThreadPoolExecutor(check_threads(settings)) as pool:
        for part in data.sets:
            found = images.setdefault(part.name, [])
            for finding, mask, records in pool.map(lambda index, part=part: _examine_pair(part, index, cache, settings), range(len(part))):
                found.append(finding)
                masks.append(mask)
                kept.update(records)
                if progress is not None:
                    progress(len(masks))
    everything = [finding for part in images.values() for finding in part]
    rule, labelled, convert = data.train.rule, _pixels(data, masks), convert_command(settings)
    decoded = [finding.facts for finding in everything if finding.facts is not None]
    notes = [
        _summary(data, len(masks), sum(mask.facts is not None and mask.facts.size == mask.facts.image_size for mask in masks)),
        *_missing_notes(data),
        *data.notes,
        *partial_notes(settings),
        *broken_notes(everything),
        *channel_notes(everything, data.train.images.in_chans),
        *_broken_mask_notes(masks, {finding.id for finding in everything if finding.facts is None}),
        *_size_notes(masks, rule),
        *_kind_notes(masks, rule, convert),
        *_palette_notes(masks, convert),
        *_stray_notes(data, settings, masks, rule),
        *_class_notes(data, labelled),
        *duplicate_notes(images),
        *format_notes(decoded, settings, data.train.images.in_chans),
    ]
    notes += [*_rotated_notes(masks), *write_cache(cache_file, kept, cache, settings)]
    broken = {finding.id: finding.reason for finding in everything if finding.code in ("VA-D010", "VA-D011")}
    broken |= {mask.image_id: f"mask {mask.mask_id}: {mask.reason}" for mask in masks if mask.code in ("VA-D010", "VA-D011")}
    large = {finding.id: finding.reason for finding in everything if finding.code == "VA-D020"}
    large |= {mask.mask_id: mask.reason for mask in masks if mask.code == "VA-D020"}
    if settings.check == "headers":
        return CheckReport(notes, broken, large, {split: {} for split in labelled}, None)
    hashes = {finding.id: finding.hash16 for finding in everything if finding.hash16}
    hashes |= {mask.mask_id: mask.hash16 for mask in masks if mask.hash16}
    counts = {split: dict(zip(data.classes, values[: len(data.classes)].tolist(), strict=True)) for split, values in labelled.items()}
    return CheckReport(notes=notes, unreadable=broken, too_large=large, counts=counts, hashes=hashes, size=median_size(everything))


# ---------------------------------------------------------------- one pair


def _examine_pair(
    part: MaskSet, index: int, cache: dict[str, Any], settings: MaskDataConfig
) -> tuple[Finding, MaskFinding, dict[str, Any]]:
    """Examine image and mask; return both findings and the records for the cache."""
    finding, key, record = examine(part.ids[index], part.images, index, cache, settings)
    records = {key: record} if key and record is not None else {}
    mask, mask_key, mask_record = _examine_mask(part, index, cache, settings)
    if mask_key and mask_record is not None:
        records[mask_key] = mask_record
    return finding, mask, records


def _examine_mask(
    part: MaskSet, index: int, cache: dict[str, Any], settings: MaskDataConfig
) -> tuple[MaskFinding, str | None, dict[str, Any] | None]:
    path, image_path, limit = part.mask_paths[index], part.images.path(index), settings.max_bytes
    names = (part.name, part.ids[index], part.mask_ids[index])
    try:
        stamps = [(file, os.stat(file)) for file in (image_path, path)]
    except OSError as error:
        return MaskFinding(*names, "", None, "VA-D010", error.strerror or str(error)), None, None
    key = "||".join(f"{file}|{status.st_size}|{status.st_mtime_ns}" for file, status in stamps)
    record = cache.get(key)
    if settings.check == "headers":
        try:
            return MaskFinding(*names, "", _header(Path(path), Path(image_path), limit), "", ""), None, None
        except UnreadableFile as error:
            return MaskFinding(*names, "", None, error.code, error.reason), None, None
    if record is None or not fits(record, limit):
        digest, facts, code, reason = "", None, "", ""
        try:
            digest = content_hash(file_content(Path(path), max_bytes=limit))
            facts = _facts(Path(path), Path(image_path), limit)
        except UnreadableFile as error:
            code, reason = error.code, error.reason
            if code == "VA-D020":  # depends on a setting, so it is not stored
                return MaskFinding(*names, digest, None, code, reason), None, None
        plain = None if facts is None else json.loads(json.dumps(asdict(facts)))  # in the form that the cache returns
        record = {"hash16": digest, "bytes": stamps[1][1].st_size, "facts": plain, "code": code, "reason": reason}
    return MaskFinding(*names, record["hash16"], _restored(record["facts"]), record["code"], record["reason"]), key, record


def _restored(plain: dict[str, Any] | None) -> MaskFacts | None:
    if plain is None:
        return None
    sizes = {name: (plain[name][0], plain[name][1]) for name in ("size", "image_size")}
    tables = {name: {int(value): other for value, other in plain[name].items()} for name in ("counts", "palette")}
    return MaskFacts(**{**plain, **sizes, **tables})


def _header(path: Path, image_path: Path, limit: int) -> MaskFacts:
    """What the header tells of a mask; its values stay unknown."""
    header = mask_header(path, max_bytes=limit)
    return MaskFacts(
        size=header.size,
        image_size=_image_size(image_path, limit) or header.size,
        colour=header.colour,
        palette={},
        lossy=header.lossy,
        rotated=header.rotated,
        distinct=0,
        counts={},
        decoded=header.decoded,
    )


def _image_size(path: Path, limit: int) -> tuple[int, int] | None:
    """Height and width of an image; None if it cannot be read, which is reported for the image itself."""
    try:
        return upright_size(path, max_bytes=limit)
    except UnreadableFile:
        return None


def _facts(path: Path, image_path: Path, limit: int) -> MaskFacts:
    pixels = read_mask(path, max_bytes=limit)
    height, width = pixels.values.shape
    values, counts = np.unique(pixels.values, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_VALUES_KEPT]
    return MaskFacts(
        size=(height, width),
        image_size=_image_size(image_path, limit) or (height, width),
        colour=pixels.colour,
        palette={value: pixels.palette[value] for value in values.tolist() if value < len(pixels.palette)},
        lossy=pixels.lossy,
        rotated=pixels.rotated,
        distinct=len(values),
        counts={int(values[index]): int(counts[index]) for index in sorted(most)},
        decoded=pixels.decoded,
    )


# ---------------------------------------------------------------- notes


def _summary(data: MaskData, masks: int, fine: int | None = None) -> Note:
    """The numbers of files, and of pairs whose sizes agree if they are known."""
    return Note(
        "info", "", f"images {masks + len(data.without_mask):,}   masks {masks:,}" + (f"   pairs ok {fine:,}" if fine is not None else "")
    )


def _missing_notes(data: MaskData) -> list[Note]:
    if not data.without_mask:
        return []
    have = "images have" if len(data.without_mask) > 1 else "image has"
    return [Note("error", "VA-D021", f"{len(data.without_mask):,} {have} no mask: {_examples(data.without_mask)}")]


def _broken_mask_notes(masks: list[MaskFinding], broken_images: set[str]) -> list[Note]:
    verbs = {"VA-D010": "cannot be decoded", "VA-D011": "is not an image"}
    notes = []
    for mask in masks:
        if mask.code in verbs and mask.image_id not in broken_images:
            notes.append(Note("warning", mask.code, f"{shown(mask.mask_id)} {verbs[mask.code]}: {shown(mask.reason)}"))
        if mask.code == "VA-D020":
            notes.append(Note("error", mask.code, f"{shown(mask.mask_id)}: {shown(mask.reason)}"))
    return notes


def _size_notes(masks: list[MaskFinding], rule: LabelRule) -> list[Note]:
    wrong = [(mask, mask.facts) for mask in masks if mask.facts is not None and mask.facts.size != mask.facts.image_size]
    if not wrong:
        return []
    mask, facts = wrong[0]
    (tall, wide), (high, broad) = facts.image_size, facts.size
    sizes = f"image {wide}x{tall}, mask {broad}x{high}"
    text = f"{_count(len(wrong), 'mask')} with a size different from the image, {shown(mask.mask_id)}: {sizes}"
    if tall * broad == wide * high:
        text += f" (ratio {tall / high:.3g})"
    if rule.resize:
        return [Note("info", "VA-D013", f"{text}: resized to the nearest pixels (data.mask_resize)")]
    turned = sum(facts.size == facts.image_size[::-1] for _, facts in wrong)
    if turned:
        text += f"\n{turned:,} match before the rotation that EXIF asks of the image -> save image or mask upright"
    text += f"\n-> data.mask_resize=nearest resizes them on loading: {_examples([mask.mask_id for mask, _ in wrong])}"
    return [Note("error", "VA-D013", text)]


def _kind_notes(masks: list[MaskFinding], rule: LabelRule, convert: str) -> list[Note]:
    notes = []
    known = [(mask, mask.facts) for mask in masks if mask.facts is not None]
    coloured = [(mask, facts) for mask, facts in known if facts.colour]
    if coloured and not rule.colours:
        seen: Counter[int] = Counter()
        for _, facts in coloured:
            seen.update(facts.counts)
        examples = _examples([mask.mask_id for mask, _ in coloured])
        colours = f"{_count(len(seen), 'colour')}, and no palette assigns them" if seen else "and no palette assigns the colours"
        text = f"{_count(len(coloured), 'mask')} in RGB, {colours} to classes: {examples}"
        fix = "-> a classes.txt in data.root, a line for each class: index name R G B"
        if 0 < len(seen) <= rule.num_classes:
            listed = ",".join(f"[{red},{green},{blue}]" for red, green, blue in (_unpack(value) for value, _ in seen.most_common()))
            fix = f"-> data.palette=[{listed}], in the order of the classes, or{fix.removeprefix('->')}"
        notes.append(Note("error", "VA-D014", f"{text}\n{fix}"))
    elif coloured:
        notes.append(Note("info", "VA-D014", f"{_count(len(coloured), 'mask')} in RGB: mapped by the palette"))
    indexed = sum(bool(facts.palette) for _, facts in known)
    if indexed:
        notes.append(Note("info", "VA-D014", f"{_count(indexed, 'mask')} with a stored palette: its indices are the classes"))
    lossy = [(mask, facts) for mask, facts in known if facts.lossy]
    if lossy:
        worst = max(facts.distinct for _, facts in lossy)
        allowed = len(rule.table(colour=lossy[0][1].colour))
        values = f" ({worst:,} distinct values in one)" if worst else ""
        text = f"{_count(len(lossy), 'mask')} JPEG{values}: lossy masks are not labels -> re-export as PNG"
        if worst > allowed and rule.num_classes == 2 and not lossy[0][1].colour:
            text += f"\nor, if 255 is the second class: {convert} --in-place --map 0-127:0 --map 128-255:1"
        notes.append(Note("error" if worst > allowed else "warning", "VA-D017", text))
    return notes


def _palette_notes(masks: list[MaskFinding], convert: str) -> list[Note]:
    """Report an index that stands for different colours in different files: then it is hardly a class."""
    first: dict[int, tuple[int, str]] = {}
    conflicts: dict[str, str] = {}
    for mask in masks:
        for value, packed in (mask.facts.palette if mask.facts is not None else {}).items():
            known, name = first.setdefault(value, (packed, mask.mask_id))
            if known != packed:
                conflicts.setdefault(mask.mask_id, f"{value} is {_unpack(known)} in {name}, {_unpack(packed)} in {mask.mask_id}")
    if not conflicts:
        return []
    text = f"the palettes of the masks differ, in {_count(len(conflicts), 'file')} from those before: {next(iter(conflicts.values()))}"
    text += f"\n-> {convert} --in-place --palette FILE takes the colours as classes, by a file of `index name R G B`"
    text += f"\n-> {convert} --in-place --map 0:0 keeps the indices as classes, and writes one palette"
    return [Note("error", "VA-D014", text)]


def _stray_notes(data: MaskData, settings: MaskDataConfig, masks: list[MaskFinding], rule: LabelRule) -> list[Note]:
    """Report values that are not classes, with their probable meaning and the settings that express it."""
    notes = []
    for colour in (False, True):
        if colour and not rule.colours:
            continue
        table = rule.table(colour=colour)
        known = [mask.facts for mask in masks if mask.facts is not None and mask.facts.colour == colour]
        # a JPEG with more values than classes is reported as such
        known = [facts for facts in known if not (facts.lossy and facts.distinct > len(table))]
        files: Counter[int] = Counter(value for facts in known for value in facts.counts if value not in table)
        if not files:
            continue
        used = {table[value] for facts in known for value in facts.counts if value in table} - {IGNORE}
        listed = ", ".join(f"{_value(value, colour)}: {_count(count, 'file')}" for value, count in files.most_common(_SHOWN))
        more = f", ... {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        outside = f"mask values outside {_range(table, colour)}: {{{listed}{more}}}"
        hints = _colour_hints(files) if colour else _value_hints(data, settings, files, used, table)
        example = next(
            mask.mask_id for mask in masks if mask.facts is not None and mask.facts.colour == colour and set(mask.facts.counts) & set(files)
        )
        notes.append(Note("error", "VA-D012", "\n".join([f"{outside}; first in {shown(example)}", *hints])))
    return notes


def _colour_hints(files: Counter[int]) -> list[str]:
    return [
        f"{_unpack(value)} in {_count(count, 'file')} is not in the palette -> add it to data.palette or classes.txt"
        for value, count in files.most_common(_SHOWN)
    ]


def _value_hints(data: MaskData, settings: MaskDataConfig, files: Counter[int], used: set[int], table: dict[int, int]) -> list[str]:
    """What the values may mean, and the settings that say so; of 255 it is asked, because foreground and unlabelled pixels have it."""
    unused = [label for label in range(len(data.classes)) if label not in used]
    if set(files) - {IGNORE} == {len(data.classes)} and unused == [0]:
        where = f"{len(data.classes)} in {_count(files[len(data.classes)], 'file')}, and no 0: the classes start at 1"
        other = f", and {IGNORE} looks like an ignore label" if files[IGNORE] else ""
        repair = "data.reduce_zero_label=true"  # which ignores 255 too
        if data.classes[0].lower() in BACKGROUND:
            repair = map_setting(settings.map | {label + 1: label for label in range(len(data.classes))})
            repair += f" data.ignore_index={IGNORE}" if files[IGNORE] else ""
        return [f"{where}{other}  -> {repair}"]
    others = sorted(set(files) - {IGNORE})
    if len(others) > _SHOWN:
        if others[-1] < MOST_CLASSES:
            return [f"{len(others):,} values have no class  -> data.classes={others[-1] + 1}, if each of them is one"]
        return [f"{len(others):,} values have no class, up to {others[-1]:,}: are these files masks?"]
    by_label = {label: value for value, label in table.items() if label != IGNORE}
    targets = dict(zip(others, (by_label[label] for label in unused), strict=False))
    left = unused[len(targets) :]
    hints = []
    for value in others:
        meaning = f'perhaps "{shown(data.classes[table[targets[value]]])}"' if value in targets else f"{IGNORE} ignores it"
        hints.append(f"{value} in {_count(files[value], 'file')} has no class ({meaning})")
    changes = settings.map | {value: targets.get(value, IGNORE) for value in others}
    ignore = [map_setting(changes)] if others else []
    where = f"{IGNORE} in {_count(files[IGNORE], 'file')}"
    if not files[IGNORE]:
        return [*hints, f"-> {map_setting(changes)}"]
    ignored = " ".join([*ignore, f"data.ignore_index={IGNORE}"])
    if not left:
        return [*hints, f"{where} looks like an ignore label  -> {ignored}"]
    name = shown(data.classes[left[0]])
    return [
        *hints,
        f'{where}: the class "{name}", or pixels without a label?',
        f'  if it is "{name}"  -> {map_setting(changes | {IGNORE: by_label[left[0]]})}',
        f"  if these pixels have no label  -> {ignored}",
    ]


def _pixels(data: MaskData, masks: list[MaskFinding]) -> dict[str, np.ndarray]:
    """Count the pixels of each class per split; the last entry counts ignored pixels."""
    totals = {part.name: np.zeros(len(data.classes) + 1, np.int64) for part in data.sets}
    tables = {colour: data.train.rule.table(colour=colour) for colour in (False, True)}
    for mask in masks:
        if mask.facts is None:
            continue
        scale = mask.facts.image_size[0] * mask.facts.image_size[1] / (mask.facts.size[0] * mask.facts.size[1])
        for value, count in mask.facts.counts.items():
            label = tables[mask.facts.colour].get(value)
            if label is not None:
                totals[mask.split][len(data.classes) if label == IGNORE else label] += round(count * scale)
    return totals


def _class_notes(data: MaskData, labelled: dict[str, np.ndarray]) -> list[Note]:
    notes = []
    train = labelled["train"][:-1]
    for split, totals in labelled.items():
        absent = [name for name, count in zip(data.classes, totals[:-1], strict=True) if not count]
        if not absent or not totals.any():  # no mask of it could be read, or none has a class, which is reported as such
            continue
        rest = f"; {100 * totals[-1] / totals.sum():.1f} % of the pixels are ignored" if totals[-1] else ""
        if not totals[:-1].any():
            level: Literal["error", "warning"] = "error" if split == "train" else "warning"
            notes.append(Note(level, "VA-D004", f"all pixels of {split} are ignored: no class is left"))
        else:
            what = "it cannot be learned" if split == "train" else 'its IoU will be "n/a"'
            text = f"{split} has no pixels of {_count(len(absent), 'class')} ({_examples(absent)}): {what}{rest}"
            notes.append(Note("warning", "VA-D004", text))
    shares = train / max(1, int(train.sum()))
    small = [(name, share) for name, share in zip(data.classes, shares, strict=True) if 0 < share < _TINY]
    if small:
        listed = ", ".join(f"{shown(name)} {100 * share:.2g} %" for name, share in sorted(small, key=lambda item: item[1])[:_SHOWN])
        more = f", ... {len(small) - _SHOWN} more" if len(small) > _SHOWN else ""
        text = f"{_count(len(small), 'class')} below {100 * _TINY:g} % of the pixels in train: {listed}{more}"
        text += "  -> a Dice loss, or class weights"
        notes.append(Note("warning", "VA-D019", text))
    everything = sum(totals.sum() for totals in labelled.values())
    ignored = sum(int(totals[-1]) for totals in labelled.values())
    if ignored:
        notes.append(Note("info", "", f"ignored pixels {100 * ignored / everything:.1f} %"))
    return notes


def _rotated_notes(masks: list[MaskFinding]) -> list[Note]:
    rotated = sum(mask.facts is not None and mask.facts.rotated for mask in masks)
    return [Note("info", "", f"{_count(rotated, 'mask')} turned upright by their EXIF orientation")] if rotated else []


def _examples(names: Sequence[str]) -> str:
    return shown(", ".join(names[:3])) + (" ..." if len(names) > 3 else "")


def _count(number: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def _unpack(value: int) -> Colour:
    return value >> 16, value >> 8 & 255, value & 255


def _value(value: int, colour: bool) -> str:
    return str(_unpack(value)) if colour else str(value)


def _range(table: dict[int, int], colour: bool) -> str:
    if colour:
        return f"the {len(table)} colours of the palette"
    values = sorted(table)
    first = [value for value in values if table[value] != IGNORE]
    return f"{first[0]}..{first[-1]}" if first == list(range(first[0], first[-1] + 1)) else ", ".join(map(str, first[:12]))

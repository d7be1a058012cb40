"""Load images with masks: classes, splits and samples from data.root."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from visionattn.data.images.layouts import check_settings, folder_name, groups_from_paths, no_validation_split, require_distinct
from visionattn.data.masks.layouts import MaskLayout, Pair, Pairs, find_mask_layout, near_suffix, read_pairs
from visionattn.data.masks.nnunet import nnunet_classes
from visionattn.data.masks.palettes import ClassEntry, Colour, default_palette, read_classes
from visionattn.data.masks.settings import IGNORE, MaskDataConfig
from visionattn.data.readers import MaskPixels, UnreadableFile, file_content, read_mask, upright_size
from visionattn.data.sources import ChannelFiles, FileImages
from visionattn.data.split_names import SPLITS
from visionattn.data.splits import Data, ManifestRow, Note, content_hash, fold_note, split_folds, split_off
from visionattn.errors import UserError
from visionattn.names import shown

_STRAY = 254  # marks a value that is not a class, until it is rejected
MOST_CLASSES = _STRAY - 1
BACKGROUND = ("background", "bg")  # names of a first class
_MOST_VALUES = 64  # in masks whose classes are asked for; a photograph has more


@dataclass(frozen=True)
class LabelRule:
    """Map the values of a mask file to labels.

    `numbers` gives the label (a class or IGNORE) of each value; `colours` the value of each colour as
    red * 65536 + green * 256 + blue, empty without a palette; `resize`: masks whose size differs from the image are resized.
    """

    num_classes: int
    numbers: Mapping[int, int]
    colours: Mapping[int, int]
    resize: bool = False

    def table(self, *, colour: bool) -> dict[int, int]:
        """Return labels by the values that `read_mask` returns, for colour masks or others."""
        if not colour:
            return dict(self.numbers)
        return {packed: self.numbers[value] for packed, value in self.colours.items() if value in self.numbers}

    def encode(self, pixels: MaskPixels) -> tuple[np.ndarray, list[int]]:
        """Return uint8 labels, and the values that have none."""
        table = self.table(colour=pixels.colour)
        if pixels.values.dtype == np.uint8:
            levels = np.full(256, _STRAY, np.uint8)
            for value, label in table.items():
                if 0 <= value < 256:
                    levels[value] = label
            labels = levels[pixels.values]
        else:
            keys = np.array(sorted(table) or [-1], np.int64)
            found = np.searchsorted(keys, pixels.values).clip(max=len(keys) - 1)
            known = np.array([table.get(int(key), _STRAY) for key in keys], np.uint8)
            labels = np.where(keys[found] == pixels.values, known[found], np.uint8(_STRAY))
        stray = labels == _STRAY
        return labels, np.unique(pixels.values[stray]).tolist() if stray.any() else []


@dataclass(frozen=True)
class MaskSet:
    """One split: images, mask files, and the rule for mask values. Ids are paths relative to data.root."""

    name: str
    images: FileImages
    mask_paths: tuple[str, ...]
    ids: list[str]
    mask_ids: list[str]
    groups: list[str] | None
    rule: LabelRule

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int], name: str | None = None) -> MaskSet:
        """Select the pairs at these positions."""
        return MaskSet(
            name or self.name,
            self.images.take(indices),
            tuple(self.mask_paths[index] for index in indices),
            [self.ids[index] for index in indices],
            [self.mask_ids[index] for index in indices],
            None if self.groups is None else [self.groups[index] for index in indices],
            self.rule,
        )

    def label(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Load the labels of a mask: uint8 (H, W), classes and IGNORE.

        Args:
            size: height and width of the image.

        Raises:
            UnreadableFile: a damaged file, or one that the data check rejects.
        """
        path = self.mask_paths[index]
        labels, stray = self.rule.encode(read_mask(Path(path), max_bytes=self.images.settings.max_bytes))
        if stray:
            raise UnreadableFile(path, f"values without a class: {stray[:8]}", "VA-D012")
        if labels.shape != size:
            if not self.rule.resize:
                raise UnreadableFile(path, f"mask of {_shape(labels.shape)}, image of {_shape(size)}", "VA-D013")
            labels = resize_labels(labels, size)
        return labels


@dataclass(frozen=True)
class MaskData(Data[MaskSet]):
    """Splits of images with masks; classes are in the order of the model's outputs, each with its colour.

    Attributes:
        without_mask: ids of images without a mask.
    """

    classes: list[str]
    palette: list[Colour]
    without_mask: list[str]


def load_mask_data(settings: MaskDataConfig, *, seed: int, in_chans: int) -> MaskData:
    """List the pairs and the classes, without decoding the images.

    Args:
        seed: seed of the hold-out by data.val_fraction.
        in_chans: channels that the images are loaded with.

    Raises:
        UserError: VA-D001 to VA-D003, VA-D021 if no pair is found, VA-C002.
    """
    check_settings(settings)
    layout = find_mask_layout(settings)
    pairs = read_pairs(layout, settings)
    names, palette, rule, notes = _classes(settings, layout, pairs, None)
    notes = [*pairs.notes, *notes]
    parts = _splits(settings, layout, pairs, rule, seed, in_chans, notes)
    if pairs.without_image:
        first = shown(", ".join(pairs.without_image[:3]))
        notes.append(Note("warning", "VA-D021", f"{len(pairs.without_image):,} masks have no image and are left out: {first}"))
    test = parts.get("test")
    return MaskData(folder_name(settings), parts["train"], parts["val"], test, notes, names, palette, pairs.without_mask)


def load_mask_split(settings: MaskDataConfig, split: str, classes: Sequence[str], in_chans: int, *, seed: int = 0) -> MaskSet:
    """Load one split with the classes of a run, for evaluation; a root without splits is used as a whole.

    Raises:
        UserError: VA-M003 if the data has other classes; VA-D001, VA-D002, VA-D021 as in load_mask_data.
    """
    check_settings(settings)
    layout = find_mask_layout(settings)
    pairs = read_pairs(layout, settings)
    names, _, rule, _ = _classes(settings, layout, pairs, classes)
    if names != list(classes):
        raise UserError(
            "VA-M003",
            "the data has other classes than the run",
            where=str(layout.root),
            why=shown(f"data: {', '.join(names[:8])}; run: {', '.join(list(classes)[:8])}"),
            exit_code=4,
        )
    held_out = "val" not in pairs.parts and settings.val_fraction is not None
    if split in ("train", "val") and (held_out or settings.fold is not None):
        return _splits(settings, layout, pairs, rule, seed, in_chans, [])[split]
    found = pairs.parts.get(split, pairs.parts.get("all") if settings.fold is None else None)
    if not found:
        raise UserError(
            "VA-D002",
            f'no split "{split}" in {layout.root}',
            why=f"found: {', '.join(pairs.parts)}",
            fix=f"--split {next(iter(pairs.parts), 'val')}",
        )
    return _mask_set(split, found, settings, rule, in_chans)


def mask_manifest(data: MaskData, hashes: Mapping[str, str] | None) -> list[ManifestRow]:
    """List all images with the path of the mask as label and one hash of both contents.

    Args:
        hashes: by id of images and masks, from the check; missing ones are computed from the files. None leaves them out.
    """

    def digest(name: str, path: str, max_bytes: int) -> str:
        assert hashes is not None
        return hashes.get(name) or content_hash(file_content(Path(path), max_bytes=max_bytes))

    rows = []
    for part in data.sets:
        for index, (name, mask_id) in enumerate(zip(part.ids, part.mask_ids, strict=True)):
            path, mask_path = part.images.path(index), part.mask_paths[index]
            limit = part.images.settings.max_bytes
            parts = "" if hashes is None else f"{digest(name, path, limit)} {digest(mask_id, mask_path, limit)}"
            both = content_hash(parts.encode()) if parts else ""
            rows.append(ManifestRow(name, mask_id, part.name, Path(path).stat().st_size, both))
    return rows


def count_pixels(masks: MaskSet, num_classes: int) -> np.ndarray:
    """Count the pixels of each class, `[classes]`; unreadable masks are skipped."""
    counts = np.zeros(num_classes, np.int64)
    for index in range(len(masks)):
        try:
            size = upright_size(Path(masks.images.path(index)), max_bytes=masks.images.settings.max_bytes)
            counts += np.bincount(masks.label(index, size).ravel(), minlength=256)[:num_classes]
        except UnreadableFile:
            continue
    return counts


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to the nearest pixels, with the pixel centres of a bilinear resize of the image."""
    resized: np.ndarray = cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def _shape(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"


# ---------------------------------------------------------------- splits


def _mask_set(name: str, pairs: Sequence[Pair], settings: MaskDataConfig, rule: LabelRule, in_chans: int) -> MaskSet:
    ids = [pair.id for pair in pairs]
    paths, further = tuple(pair.path for pair in pairs), tuple(pair.further for pair in pairs)
    images = ChannelFiles(paths, settings, in_chans, further=further) if any(further) else FileImages(paths, settings, in_chans)
    groups = groups_from_paths(ids, settings)
    return MaskSet(name, images, tuple(pair.mask_path for pair in pairs), ids, [pair.mask_id for pair in pairs], groups, rule)


def _splits(
    settings: MaskDataConfig, layout: MaskLayout, pairs: Pairs, rule: LabelRule, seed: int, in_chans: int, notes: list[Note]
) -> dict[str, MaskSet]:
    found = {"train": pairs.parts["all"]} if "all" in pairs.parts else dict(pairs.parts)
    if settings.fold is not None:  # of training and validation images, each once
        found["train"] = list({pair.id: pair for part in ("train", "val") for pair in found.get(part, ())}.values())
        found.pop("val", None)
    if not found.get("train"):
        suffix = near_suffix(layout, pairs.without_mask, pairs.without_image)
        raise UserError(
            "VA-D021",
            f"no image of the split {settings.train} has a mask",
            where=shown(", ".join([*pairs.without_mask[:2], *pairs.without_image[:2]])) or str(layout.root),
            why="a mask needs the name of its image and the same place in its folder",
            fix=f"data.mask_suffix={suffix}" if suffix else "set data.images, data.masks and data.mask_suffix",
        )
    parts = {split: _mask_set(split, found[split], settings, rule, in_chans) for split in SPLITS if found.get(split)}
    if "val" in parts:
        if settings.val_fraction is not None:
            notes.append(Note("warning", "VA-D003", f"data.val_fraction is not used: there is a validation split ({settings.val})"))
        return parts
    train = parts["train"]
    if settings.fold is not None:
        train, val = split_folds(train, _classes_present(train), train.groups, settings.fold, seed)
        notes.append(fold_note(len(val), settings.fold, seed))
        return {**parts, "train": train, "val": val}
    if settings.val_fraction is None:
        raise no_validation_split(settings)
    train, val = split_off(train, np.zeros(len(train), np.int64), train.groups, settings.val_fraction, seed)
    notes.append(Note("info", "", f"val: {len(val):,} images held out of train (data.val_fraction, seed {seed})"))
    return {**parts, "train": train, "val": val}


def _classes_present(masks: MaskSet) -> np.ndarray:
    """Whether each mask has each class, zeros and ones `[N, classes]`; a mask that cannot be read has none."""

    def present(index: int) -> np.ndarray:
        row = np.zeros(_STRAY + 2, np.float32)
        with suppress(UnreadableFile):  # the check reports it
            pixels = read_mask(Path(masks.mask_paths[index]), max_bytes=masks.images.settings.max_bytes)
            row[np.unique(masks.rule.encode(pixels)[0])] = 1
        return row[: masks.rule.num_classes]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return np.stack(list(pool.map(present, range(len(masks)))))


# ---------------------------------------------------------------- classes


def _entries(settings: MaskDataConfig, layout: MaskLayout) -> list[ClassEntry] | None:
    given = settings.classes
    if isinstance(given, int):
        _require_few(given)
        return [ClassEntry(number, str(number), None) for number in range(given)]
    if isinstance(given, list):
        return [ClassEntry(number, name, None) for number, name in enumerate(given)]
    root = layout.root if layout.root.is_dir() else layout.root.parent
    entries = None
    if given != "auto":
        entries = read_classes(given)
    elif (root / "classes.txt").is_file():
        entries = read_classes(root / "classes.txt")
    elif isinstance(settings.palette, str) and settings.palette != "auto":
        entries = read_classes(settings.palette)
    elif layout.format == "nnunet":
        entries = nnunet_classes(layout.root)
    elif layout.classes:
        entries = read_classes(layout.classes)
    if entries is not None and layout.mask_suffix.endswith("labelTrainIds.png"):
        kept = [entry for entry in entries if not entry.ignored]
        entries = [ClassEntry(number, entry.name, entry.colour) for number, entry in enumerate(kept)] + [ClassEntry(IGNORE, "void", None)]
    return entries


def _classes(
    settings: MaskDataConfig, layout: MaskLayout, pairs: Pairs, known: Sequence[str] | None
) -> tuple[list[str], list[Colour], LabelRule, list[Note]]:
    """Determine names, colours and mask rule; `known` are the classes of a run, used if the data does not name any."""
    entries = _entries(settings, layout)
    if entries is None and known is not None:
        entries = [ClassEntry(number, name, None) for number, name in enumerate(known)]
    notes = []
    if entries is None:
        values, colours, count = _first_values(pairs, settings)
        if values != {0, 1} or colours:
            raise _no_classes(values, colours, count, settings)
        entries = [ClassEntry(0, "background", None), ClassEntry(1, "object", None)]
        names = "the masks hold 0 and 1: classes background and object; other names: data.classes=[NAME,NAME]"
        notes.append(Note("info", "", names))
    ignored = set() if settings.ignore_index == "none" else {entry.value for entry in entries if entry.ignored}
    if ignored and not layout.classes:
        names = ", ".join(f"{entry.value} ({entry.name})" for entry in entries if entry.value in ignored)
        notes.append(Note("info", "", f"mask value {names} is ignored because of its name; data.ignore_index=none makes it a class"))
    if isinstance(settings.ignore_index, int):
        ignored.add(settings.ignore_index)
    if settings.reduce_zero_label:
        entries = _shifted(entries)
        ignored |= {0, IGNORE}
    kept = [entry for entry in entries if entry.value not in ignored]
    _require_few(len(kept))
    require_distinct([entry.name for entry in kept])
    numbers = {entry.value: number for number, entry in enumerate(kept)} | dict.fromkeys(ignored, IGNORE)
    rule = LabelRule(len(kept), _mapped(numbers, settings.map), _colours(settings, entries), settings.mask_resize == "nearest")
    shown = {value: _unpacked(packed) for packed, value in rule.colours.items()}
    spare = default_palette(len(kept))
    return [entry.name for entry in kept], [shown.get(e.value, spare[i]) for i, e in enumerate(kept)], rule, notes


def _require_few(count: int) -> None:
    if count == 1:
        raise UserError("VA-C002", "data.classes: 1 class is left, expected 2 or more", fix="name the background as a class too")
    if not 1 < count <= MOST_CLASSES:
        raise UserError("VA-C002", f"data.classes: {count:,} classes, expected 2 to {MOST_CLASSES}")


def _shifted(entries: list[ClassEntry]) -> list[ClassEntry]:
    if not any(entry.value == 0 and not entry.ignored for entry in entries):
        return entries
    if entries[0].name.lower() in BACKGROUND:
        raise UserError(
            "VA-C002",
            f'data.reduce_zero_label ignores value 0, but data.classes starts with "{entries[0].name}"',
            fix="leave it out of data.classes, or data.reduce_zero_label=false",
        )
    return [ClassEntry(entry.value + 1, entry.name, entry.colour) for entry in entries]


def _mapped(numbers: dict[int, int], changes: Mapping[int, int]) -> dict[int, int]:
    result = dict(numbers)
    for value, target in changes.items():
        if target not in numbers and target != IGNORE:
            known = ", ".join(map(str, sorted(numbers)[:12]))
            raise UserError("VA-C002", f"data.map: {value} -> {target}, which is not a class", why=f"mask values of classes: {known}")
        result[value] = numbers.get(target, IGNORE)
    return result


def _colours(settings: MaskDataConfig, entries: list[ClassEntry]) -> dict[int, int]:
    """Map colours to mask values; if two share a colour, the first is used."""
    if isinstance(settings.palette, list):
        pairs = [(packed_colour(colour), value) for value, colour in enumerate(settings.palette)]
    else:
        source = entries if settings.palette == "auto" else read_classes(settings.palette)
        pairs = [(packed_colour(entry.colour), entry.value) for entry in source if entry.colour is not None]
    colours: dict[int, int] = {}
    for packed, value in pairs:
        colours.setdefault(packed, value)
    return colours


def packed_colour(colour: Colour) -> int:
    """Pack a colour as red * 65536 + green * 256 + blue."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _unpacked(packed: int) -> Colour:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _first_values(pairs: Pairs, settings: MaskDataConfig) -> tuple[set[int], Counter[int], int]:
    """Values in the first masks as data.map leaves them, pixels of their colours, and how many masks these are."""
    paths = [pair.mask_path for part in pairs.parts.values() for pair in part][:20]
    values: set[int] = set()
    colours: Counter[int] = Counter()
    for path in paths:
        try:
            pixels = read_mask(Path(path), max_bytes=settings.max_bytes)
        except UnreadableFile:
            continue
        found, counts = np.unique(pixels.values, return_counts=True)
        if pixels.colour:
            colours.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        else:
            values.update(settings.map.get(value, value) for value in found.tolist())
    return values, colours, len(paths)


def _no_classes(values: set[int], colours: Counter[int], masks: int, settings: MaskDataConfig) -> UserError:
    """Report the values in the first masks, so that the user can name them."""
    where = f"the first {masks} masks contain"
    if colours:
        listed = [_unpacked(packed) for packed, _ in colours.most_common(_MOST_VALUES)]
        why = f"{where} {len(colours):,} colours, such as {', '.join(map(str, listed[:6]))}"
        fix = "write classes.txt in data.root, a line for each class: index name R G B"
        if len(colours) <= _MOST_VALUES and settings.palette == "auto":
            palette = ",".join(f"[{red},{green},{blue}]" for red, green, blue in listed)
            fix = f"name them in this order: data.classes=[{','.join(_names(len(listed)))}] data.palette=[{palette}]\nor {fix}"
        return UserError("VA-C002", "unknown classes: there is no classes.txt in data.root", why=why, fix=fix)
    why = f"{where} the values {', '.join(map(str, sorted(values)[:12]))}{', ...' * (len(values) > 12)}"
    return UserError("VA-C002", "unknown classes: there is no classes.txt in data.root", why=why, fix=_class_settings(values, settings))


def _class_settings(values: set[int], settings: MaskDataConfig) -> str:
    """The settings that make classes of mask values; of 255 beside others it is asked whether it is one."""
    plain = sorted(values - {IGNORE})
    if len(plain) > _MOST_VALUES:
        if plain[-1] < MOST_CLASSES:
            return f"write classes.txt in data.root, a line for each class, or count them: data.classes={plain[-1] + 1}"
        return "are these files masks? If so, write classes.txt in data.root, a line for each class"

    def named(chosen: list[int]) -> str:
        changes = settings.map | {value: number for number, value in enumerate(chosen) if value != number}
        return " ".join([f"data.classes=[{','.join(_names(len(chosen)))}]", *([map_setting(changes)] if changes else [])])

    without = f"{named(plain)} data.ignore_index={IGNORE}" if IGNORE in values else named(plain)
    if len(plain) > 1 and plain == list(range(1, len(plain) + 1)):
        without = f"data.classes=[{','.join(f'class{value}' for value in plain)}] data.reduce_zero_label=true"
    if IGNORE not in values:
        return f"name them in order of their values: {without}"
    if len(plain) < 2:
        return f"name them in order of their values: {named([*plain, IGNORE])}"
    first = f"name them in order of their values, if 255 is a class: {named([*plain, IGNORE])}"
    return f"{first}\nor, if it marks pixels without a label: {without}"


def _names(count: int) -> list[str]:
    """Stand-ins for the names of classes; there are at least two."""
    return ["background", *(["object"] if count <= 2 else [f"class{number}" for number in range(1, count)])]


def map_setting(changes: Mapping[int, int]) -> str:
    """`data.map` as it is typed in a shell."""
    return f'"data.map={{{", ".join(f"{value}: {target}" for value, target in changes.items())}}}"'

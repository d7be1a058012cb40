"""Repair masks: write files with other values, as palette PNGs, beside the old ones."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.config.messages import Origin
from visionattn.config.read import override_values, validate
from visionattn.config.schema import RunConfig
from visionattn.data.images.layouts import image_walker
from visionattn.data.masks.layouts import find_mask_layout, read_pairs, suggest_folders
from visionattn.data.masks.palettes import Colour, mask_png, read_classes
from visionattn.data.masks.sets import packed_colour
from visionattn.data.masks.settings import MaskDataConfig
from visionattn.data.readers import MaskPixels, UnreadableFile, read_mask
from visionattn.errors import UserError
from visionattn.files import atomic_folder, atomic_write
from visionattn.names import typed

# Settings that tell where masks lie.
_LOCATION = {"format", "images", "masks", "mask_suffix", "train", "val", "test", "exclude"}
_MOST_VALUES = 64  # a photograph has more


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion: the folder, the number of files, pixels changed per `old -> new`, and pixels per new value."""

    out: str
    files: int
    changed: dict[str, int]
    values: dict[int, int]


def parse_map(texts: Sequence[str]) -> dict[int, int]:
    """Parse `128:1` and `128-255:1`, separated by commas.

    Raises:
        UserError: VA-C002.
    """
    result: dict[int, int] = {}
    for text in (part.strip() for item in texts for part in item.split(",")):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?:(\d{1,10})", text)
        if match is None or int(match[3]) > 65535 or int(match[2] or match[1]) - int(match[1]) > 65535:
            raise UserError("VA-C002", f'--map "{text}" is not of the form OLD:NEW', fix="Example: --map 128:1 or --map 128-255:1")
        result.update(dict.fromkeys(range(int(match[1]), int(match[2] or match[1]) + 1), int(match[3])))
    return result


def convert_masks(
    root: Path,
    *,
    map: Mapping[int, int] | None = None,
    palette: str | Path | Sequence[Colour] | None = None,
    out: Path | None = None,
    in_place: bool = False,
    settings: MaskDataConfig | None = None,
) -> Conversion:
    """Write the masks of a dataset, or of a folder of masks, with other values, as .png with the same names.

    Args:
        map: new value by old value; other values are unchanged.
        palette: colours of RGB masks and of stored palettes in order of their values, or a list of classes with colours.
        out: new folder, by default `<root>-masks` beside root. Paths inside it are relative to root.
        in_place: replace the files instead.
        settings: as for training: where the masks lie below root, if that is not one of the known layouts.

    Raises:
        UserError: VA-D001, no masks; VA-D010, an unreadable file; VA-D014, colours missing from the palette, no
            palette, or a file that does not look like a mask; VA-R007, `out` exists. Nothing is written in these cases.
    """
    root, settings = root.expanduser().resolve(), settings or MaskDataConfig()
    if not root.is_dir():
        raise UserError("VA-D001", f'"{root}" is not a folder')
    paths, certain = _mask_files(root, settings)
    if not paths:
        raise UserError("VA-D001", f"no masks below {root}", fix="pass the folder of the masks")
    target = root.with_name(f"{root.name}-masks") if out is None else out.expanduser().resolve()
    if not in_place and target.exists():
        raise UserError("VA-R007", f"{target} exists already", fix="--out NEW_FOLDER, or --in-place")
    names = [Path(os.path.relpath(path, root)).with_suffix(".png") for path in paths]
    twice = [name.as_posix() for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError("VA-C002", f"two masks would both become {twice[0]}", fix="remove one of them")
    colours = _colours(palette)
    shown = [_unpacked(packed) for packed in colours] if [*colours.values()] == [*range(len(colours))] else []
    changed: Counter[str] = Counter()
    values: Counter[int] = Counter()

    def write(folder: Path) -> None:
        for path, name in zip(paths, names, strict=True):
            pixels = _read(path, settings)
            if not certain:
                _require_mask(path, pixels, {*(map or {}), *colours}, settings, root)
            converted = new_values(path, pixels, map or {}, colours, changed, values)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(mask_png(converted, shown))

    if not in_place:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target) as folder:
            write(folder)
        return Conversion(str(target), len(paths), dict(changed), dict(sorted(values.items())))
    staged = root.with_name(f"{root.name}-converted")
    with atomic_folder(staged) as folder:  # convert all first: an unreadable file stops before any is replaced
        write(folder)
    for path, name in zip(paths, names, strict=True):
        atomic_write(root / name, (staged / name).read_bytes())
        (staged / name).unlink()
        if path != str(root / name):
            os.unlink(path)
    for place, _, _ in os.walk(staged, topdown=False):
        os.rmdir(place)
    return Conversion(str(root), len(paths), dict(changed), dict(sorted(values.items())))


class _MaskConfig(RunConfig):
    data: MaskDataConfig = MaskDataConfig()


def mask_settings(overrides: Sequence[str]) -> MaskDataConfig:
    """The `data` section that `key=value` strings give.

    Raises:
        UserError: VA-C001, VA-C002; also for a key outside of `data`.
    """
    origins: dict[str, Origin] = {}
    values = override_values({}, origins, overrides)
    outside = sorted(set(values) - {"data"})
    if outside:
        raise UserError("VA-C001", f"{', '.join(outside)}: only settings of data have a meaning here", where="command line")
    config = validate(values, origins, {"": _MaskConfig})
    assert isinstance(config, _MaskConfig)
    return config.data


def convert_command(settings: MaskDataConfig) -> str:
    """The `visionattn data masks convert` command for data with these settings, without what to change."""
    given = settings.model_dump(mode="json", include=_LOCATION, exclude_defaults=True)
    words = [settings.root, *(f"data.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items())]
    return "visionattn data masks convert " + " ".join(map(typed, words))


def _mask_files(root: Path, settings: MaskDataConfig) -> tuple[list[str], bool]:
    """The mask files, and whether a layout tells them from images."""
    settings = settings.model_copy(update={"root": str(root)})
    try:
        layout = find_mask_layout(settings)
    except UserError as error:
        if settings.images or error.code != "VA-D002":
            raise
        return image_walker(settings).files(root), False
    pairs = read_pairs(layout, settings)
    return sorted({pair.mask_path for part in pairs.parts.values() for pair in part}), True


def _read(path: str, settings: MaskDataConfig) -> MaskPixels:
    try:
        return read_mask(Path(path), max_bytes=settings.max_bytes)
    except UnreadableFile as error:
        raise UserError("VA-D010", f"{error.path} cannot be read: {error.reason}", why="nothing was written") from error


def _require_mask(path: str, pixels: MaskPixels, named: set[int], settings: MaskDataConfig, root: Path) -> None:
    """Stop at a file with more values than a mask has, unless they are named: it may be a photograph."""
    others = set(np.unique(pixels.values).tolist()) - named
    if len(others) > _MOST_VALUES:
        raise UserError(
            "VA-D014",
            f"{path} does not look like a mask: it has {len(others):,} values that are not to be changed",
            why="nothing was written; no known layout of images and masks was found, so every file was taken for a mask",
            fix=f"give the folder of the masks alone, or {suggest_folders(settings, root) or 'data.images=FOLDER data.masks=FOLDER'}",
        )


def _colours(palette: str | Path | Sequence[Colour] | None) -> dict[int, int]:
    """Map packed colours to values."""
    if palette is None:
        return {}
    if isinstance(palette, (str, Path)):
        pairs = [(entry.colour, entry.value) for entry in read_classes(palette) if entry.colour is not None]
    else:
        pairs = [(colour, value) for value, colour in enumerate(palette)]
    colours: dict[int, int] = {}
    for colour, value in pairs:
        colours.setdefault(packed_colour(colour), value)
    return colours


def _unpacked(packed: int) -> Colour:
    return packed >> 16, packed >> 8 & 255, packed & 255


def new_values(
    path: str, pixels: MaskPixels, changes: Mapping[int, int], colours: Mapping[int, int], changed: Counter[str], values: Counter[int]
) -> np.ndarray:
    """The values of a mask after a conversion, which is added to the counts.

    Args:
        changes: new value by old value; others stay.
        colours: value by colour, packed into a number.
        changed: pixels by `old -> new`.
        values: pixels by new value.

    Raises:
        UserError: VA-D014, colours without a value; VA-D012, values that no file holds.
    """
    found, inverse, counts = np.unique(pixels.values, return_inverse=True, return_counts=True)
    old = found.tolist()
    if pixels.palette and colours:  # an index may stand for another colour in each file
        old = [pixels.palette[index] if index < len(pixels.palette) else -1 for index in old]
    if pixels.colour or (pixels.palette and colours):
        stray = [_unpacked(packed) for packed in old if packed not in colours]
        if stray:
            what = f"{len(stray):,} colours without a value, such as {', '.join(map(str, stray[:5]))}"
            raise UserError(
                "VA-D014", what, where=path, why="nothing was written", fix="--palette FILE, a line for each colour: index name R G B"
            )
        old = [colours[packed] for packed in old]
    new = [changes.get(value, value) for value in old]
    outside = [value for value in new if not 0 <= value <= 65535]
    if outside:
        what = f"values outside 0..65535 cannot be written: {', '.join(map(str, outside[:5]))}"
        fix = f"give them others, for example --map {outside[0]}:255" if outside[0] > 0 else ""
        raise UserError("VA-D012", what, where=path, why="nothing was written", fix=fix)
    for before, after, count in zip(old, new, counts.tolist(), strict=True):
        values[after] += count
        if before != after:
            changed[f"{before} -> {after}"] += count
    return np.asarray(new, np.int32)[inverse].reshape(pixels.values.shape)

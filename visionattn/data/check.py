"""The look at the data before training: decode every image once, say what was found, leave out what is broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from visionattn.config import DataConfig, ImageDataConfig
from visionattn.data.images import ImageFacts, UnreadableImage
from visionattn.data.sampling import mix
from visionattn.data.sets import Data, Images, ImageSet, Note, content_hash
from visionattn.data.transforms import EvalTransform, RandAugmentTransform, TrainTransform
from visionattn.errors import UserError
from visionattn.files import atomic_write

# Raised when what is stored per file changes its meaning: older caches are then ignored.
CACHE_VERSION = 1


Transform = TrainTransform | RandAugmentTransform | EvalTransform


@dataclass(frozen=True)
class CheckReport:
    """What the check found.

    `unreadable` and `too_large` give the reason by image id; `counts` are images per split and class; `hashes`
    are content hashes by id.
    """

    notes: list[Note]
    unreadable: dict[str, str]
    too_large: dict[str, str]
    counts: dict[str, dict[str, int]]
    hashes: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for check.json."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """One image: either facts, or why there are none."""

    id: str
    hash16: str
    facts: ImageFacts | None
    code: str
    reason: str


def check_data(data: Data, settings: DataConfig, *, cache_dir: Path, progress: Callable[[int], None] | None = None) -> CheckReport:
    """Decode all images and compare their contents.

    Args:
        cache_dir: where results are kept, per file by path, size and modification time.
        progress: called with the number of images done.
    """
    findings: dict[str, list[Finding]] = {}
    done = 0
    cache_file = cache_dir / f"decoded-{cache_name([part.images for part in data.sets], data.name)}.json"
    cache = read_cache(cache_file)
    kept: dict[str, Any] = {}
    with ThreadPoolExecutor(check_threads(settings)) as pool:
        for part in data.sets:
            found = findings.setdefault(part.name, [])
            for finding, key, record in pool.map(
                lambda index, part=part: examine(part.ids[index], part.images, index, cache), range(len(part))
            ):
                found.append(finding)
                if key and record is not None:
                    kept[key] = record
                done += 1
                if progress is not None:
                    progress(done)
    if kept and kept != cache:
        cache_dir.mkdir(parents=True, exist_ok=True)
        atomic_write(cache_file, json.dumps({"version": CACHE_VERSION, "files": kept}))
    everything = [finding for part in findings.values() for finding in part]
    notes = [
        *data.notes,
        *broken_notes(everything),
        *duplicate_notes(findings),
        *format_notes([finding.facts for finding in everything if finding.facts is not None], settings, data.train.images.in_chans),
    ]
    return CheckReport(
        notes=notes,
        unreadable={finding.id: finding.reason for finding in everything if finding.code in ("VA-D010", "VA-D011")},
        too_large={finding.id: finding.reason for finding in everything if finding.code == "VA-D020"},
        counts={part.name: dict(zip(data.classes, part.class_counts(len(data.classes)), strict=True)) for part in data.sets},
        hashes={finding.id: finding.hash16 for finding in everything if finding.hash16},
    )


def check_threads(settings: ImageDataConfig) -> int:
    return min(8, os.cpu_count() or 1) if settings.workers == "auto" else max(1, settings.workers)


def too_many_unreadable(count: int, total: int, policy: str) -> bool:
    """Whether a run stops: under `stop`, with more than 3 and more than 0.1 % of the images unreadable."""
    return policy == "stop" and count > max(3, 0.001 * total)


def exclude_unreadable(data: Data, report: CheckReport, settings: DataConfig) -> Data:
    """The data without the images that cannot be decoded.

    Raises:
        UserError: VA-D020, VA-D010, as `refuse_unreadable`; VA-D005, a class or a split has no image left.
    """
    refuse_unreadable(report, sum(len(part) for part in data.sets), settings)
    broken = report.unreadable
    if not broken:
        return data
    parts = {part.name: part.take([index for index, name in enumerate(part.ids) if name not in broken]) for part in data.sets}
    for before in data.sets:
        _require_remaining(before, parts[before.name], data.classes)
    return replace(data, train=parts["train"], val=parts["val"], test=parts.get("test"))


def refuse_unreadable(report: CheckReport, total: int, settings: ImageDataConfig) -> None:
    """Stop where leaving out what the check could not read would go too far.

    Raises:
        UserError: VA-D020, an image above data.max_pixels; VA-D010, too many of `total` unreadable for data.on_error.
    """
    if report.too_large:
        name, reason = next(iter(report.too_large.items()))
        raise UserError(
            "VA-D020",
            f"{len(report.too_large)} image(s) above the limit of {settings.max_pixels:,} pixels: {name}, {reason}",
            fix="remove them, or raise data.max_pixels if you trust them",
        )
    broken = report.unreadable
    if too_many_unreadable(len(broken), total, settings.on_error):
        raise UserError(
            "VA-D010",
            f"{len(broken):,} of {total:,} images cannot be decoded",
            where="\n".join(f"{name}: {reason}" for name, reason in list(broken.items())[:5]),
            why="data.on_error=stop accepts 3 of them, or 0.1 %",
            fix="repair or remove them, or data.on_error=skip",
        )


def preview(part: ImageSet, classes: list[str], transform: Transform, count: int, path: Path) -> None:
    """A PNG of images as the network sees them, with their class names, the classes in turn."""
    tiles = []
    for position, index in enumerate(_classes_in_turn(part)[:count]):
        try:
            image = part.images.read(index)
        except UnreadableImage:
            continue
        label = part.labels[index]
        names = [classes[number] for number in np.atleast_1d(label if part.labels.ndim == 1 else np.flatnonzero(label))]
        tensor = transform(image) if isinstance(transform, EvalTransform) else transform(image, mix(0, position))
        tiles.append((transform.normalize.undo(tensor), ";".join(names)))
    if not tiles:
        raise UserError("VA-D010", f"no image of {part.name} could be read for the preview")
    atomic_write(path, contact_sheet(tiles))


def _require_remaining(before: ImageSet, after: ImageSet, classes: list[str]) -> None:
    if not len(after):
        raise UserError("VA-D005", f"{before.name} has no readable image", fix="repair the files listed by visionattn data check")
    if before.name != "train":
        return
    counts = zip(classes, before.class_counts(len(classes)), after.class_counts(len(classes)), strict=True)
    lost = [name for name, had, has in counts if had and not has]
    if lost:
        raise UserError(
            "VA-D005",
            f"no readable training image is left of {', '.join(lost)}",
            fix="repair the files listed by visionattn data check, or remove the class in all splits",
        )


# ---------------------------------------------------------------- one image


def examine(name: str, images: Images, index: int, cache: dict[str, Any]) -> tuple[Finding, str | None, dict[str, Any] | None]:
    """The finding, and what to keep of it in the cache under which key."""
    path = images.path(index)
    key = None
    if path is not None:
        try:
            status = os.stat(path)
        except OSError as error:
            return Finding(name, "", None, "VA-D010", error.strerror or str(error)), None, None
        key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
        known = cache.get(key)
        if known is not None and (known["facts"] is None or _pixels(known) <= images.settings.max_pixels):
            facts = None if known["facts"] is None else ImageFacts(**known["facts"])
            return Finding(name, known["hash16"], facts, known["code"], known["reason"]), key, known
    digest, facts, code, reason = "", None, "", ""
    try:
        digest = content_hash(images.content(index))
        facts = images.facts(index)
    except UnreadableImage as error:
        code, reason = error.code, error.reason
    except UserError as error:  # VA-D020: depends on a setting, so it is not kept
        return Finding(name, digest, None, error.code, error.what), None, None
    record = {"hash16": digest, "facts": None if facts is None else asdict(facts), "code": code, "reason": reason}
    return Finding(name, digest, facts, code, reason), key, record


def _pixels(record: dict[str, Any]) -> int:
    return int(record["facts"]["width"] * record["facts"]["height"])


def cache_name(images: Sequence[Images], name: str) -> str:
    """One file per data set: by the folder that holds its files, or its name."""
    paths = [path for part in images for path in (part.path(0),) if path is not None]
    folder = os.path.commonpath([os.path.abspath(path) for path in paths]) if paths else name
    return blake2b(folder.encode(), digest_size=6).hexdigest()


def read_cache(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: the images are decoded again
        return {}
    return dict(stored["files"]) if isinstance(stored, dict) and stored.get("version") == CACHE_VERSION else {}


def broken_notes(findings: list[Finding]) -> list[Note]:
    level = {"VA-D010": "cannot be decoded", "VA-D011": "is no image"}
    notes = [Note("warning", code, f"{f.id} {level[code]}: {f.reason}") for code in level for f in findings if f.code == code]
    return notes + [Note("error", "VA-D020", f"{f.id}: {f.reason} (data.max_pixels)") for f in findings if f.code == "VA-D020"]


def duplicate_notes(findings: dict[str, list[Finding]]) -> list[Note]:
    notes = []
    seen = {finding.hash16: finding.id for finding in findings["train"] if finding.facts is not None}
    for split in ("val", "test"):
        both = [(seen[f.hash16], f.id) for f in findings.get(split, ()) if f.facts is not None and f.hash16 in seen]
        if both:
            examples = "; ".join(f"{first} = {second}" for first, second in both[:3])
            verb = "images appear" if len(both) > 1 else "image appears"
            notes.append(Note("warning", "VA-D006", f"{len(both):,} {verb} in both train and {split}: {examples}"))
    return notes


def format_notes(facts: list[ImageFacts], settings: ImageDataConfig, in_chans: int) -> list[Note]:
    def count(chosen: list[ImageFacts]) -> str:
        return f"{len(chosen):,} of {len(facts):,} images"

    notes = []
    deep = [fact for fact in facts if fact.low is not None and fact.high is not None]
    if deep:
        low, high = min(fact.low or 0.0 for fact in deep), max(fact.high or 0.0 for fact in deep)
        depths = ", ".join(f"{depth}-bit" for depth in sorted({fact.depth for fact in deep}))
        rule = {"dtype": "scaled by the maximum of their type", "percentile": "scaled from their 1st to their 99th percentile"}
        how = rule.get(str(settings.range), f"scaled from {settings.range}")
        text = f"{count(deep)} are {depths}: {how} (data.range); measured values {low:g} to {high:g}"
        notes.append(Note("info", "VA-D015", text))
    transparent = [fact for fact in facts if fact.alpha]
    if transparent:
        text = f"{count(transparent)} have transparency: laid on {settings.alpha_background} (data.alpha_background)"
        notes.append(Note("info", "VA-D016", text))
    cmyk = [fact for fact in facts if fact.mode == "CMYK"]
    if cmyk:
        notes.append(Note("warning", "VA-D018", f"{count(cmyk)} are CMYK: converted to RGB without a colour profile"))
    several = [fact for fact in facts if fact.more_frames]
    if several:
        notes.append(Note("warning", "VA-D018", f"{count(several)} are animated or have several pages: the first is used"))
    rotated = [fact for fact in facts if fact.rotated]
    if rotated:
        notes.append(Note("info", "", f"{count(rotated)} are turned upright by their EXIF orientation"))
    grey = [fact for fact in facts if fact.grey]
    if grey and in_chans == 3:
        notes.append(Note("info", "", f"{count(grey)} are grey: copied to 3 channels (model.in_chans=1 trains on grey)"))
    if len(grey) < len(facts) and in_chans == 1:
        notes.append(Note("info", "", f"{len(facts) - len(grey):,} of {len(facts):,} images are in colour: reduced to luminance"))
    return notes


# ---------------------------------------------------------------- preview


def _classes_in_turn(part: ImageSet) -> list[int]:
    """All positions, the first of each class before the second of any."""
    classes = part.labels if part.labels.ndim == 1 else part.labels.argmax(1)
    seen: dict[int, int] = {}
    turns = []
    for index, number in enumerate(classes.tolist()):
        turns.append((seen.get(number, 0), number, index))
        seen[number] = seen.get(number, 0) + 1
    return [index for _, _, index in sorted(turns)]


def contact_sheet(tiles: list[tuple[np.ndarray, str]]) -> bytes:
    height, width = tiles[0][0].shape[:2]
    columns = max(1, round(len(tiles) ** 0.5))
    rows = -(-len(tiles) // columns)
    gap, caption = 6, 16
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + caption + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (tile, name) in enumerate(tiles):
        left = gap + position % columns * (width + gap)
        top = gap + position // columns * (height + caption + gap)
        sheet.paste(Image.fromarray(tile[:, :, 0] if tile.shape[2] == 1 else tile), (left, top))
        short = name
        while draw.textlength(short) > width and len(short) > 1:
            short = short[:-1]
        draw.text((left, top + height + 1), short, fill="black")
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()

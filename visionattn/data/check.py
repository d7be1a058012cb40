"""Check the data before training: decode every file once, report findings, exclude broken files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionattn.config.schema import DataConfig
from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import ImageFacts, UnreadableFile
from visionattn.data.sources import Images
from visionattn.data.splits import Data, Note, content_hash
from visionattn.data.stacks import CODECS
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.names import shown

# Increase when the meaning of the stored records changes: older caches are then ignored.
CACHE_VERSION = 3


@dataclass(frozen=True)
class CheckReport:
    """Findings of the data check.

    Attributes:
        notes: findings as messages.
        unreadable: reason by id.
        too_large: reason by id.
        counts: samples (or mask pixels) per split and class.
        hashes: content hash by id; None if the contents were not read.
        size: median height and width of the images in pixels, if known.
    """

    notes: list[Note]
    unreadable: dict[str, str]
    too_large: dict[str, str]
    counts: dict[str, dict[str, int]]
    hashes: dict[str, str] | None
    size: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for check.json."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """Finding for one image: its facts, or the reason they are missing."""

    id: str
    hash16: str
    facts: ImageFacts | None
    code: str
    reason: str


def check_images(
    data: Data[Any], settings: ImageDataConfig, *, in_chans: int, cache_dir: Path, progress: Callable[[int], None] | None = None
) -> CheckReport:
    """Decode all images and compare their contents, as far as data.check asks for it.

    Args:
        in_chans: channels that images are loaded with.
        cache_dir: folder of stored results, keyed by path, size and modification time of each file.
        progress: called with the number of images checked.
    """
    counts = {part.name: data.class_counts(part) for part in data.sets}
    if settings.check == "none":
        return CheckReport([*data.notes, *partial_notes(settings)], {}, {}, counts, None)
    findings: dict[str, list[Finding]] = {}
    done = 0
    cache_file = cache_dir / f"decoded-{cache_name([part.images for part in data.sets], data.name)}.json"
    cache = read_cache(cache_file) if settings.check == "full" else {}  # else a later full check would change what a run finds
    kept: dict[str, Any] = {}
    with ThreadPoolExecutor(check_threads(settings)) as pool:
        for part in data.sets:
            found = findings.setdefault(part.name, [])
            for finding, key, record in pool.map(
                lambda index, part=part: examine(part.ids[index], part.images, index, cache, settings), range(len(part))
            ):
                found.append(finding)
                if key and record is not None:
                    kept[key] = record
                done += 1
                if progress is not None:
                    progress(done)
    everything = [finding for part in findings.values() for finding in part]
    notes = [
        *data.notes,
        *partial_notes(settings),
        *broken_notes(everything),
        *channel_notes(everything, in_chans),
        *duplicate_notes(findings),
        *format_notes([finding.facts for finding in everything if finding.facts is not None], settings, in_chans),
        *write_cache(cache_file, kept, cache, settings),
    ]
    return CheckReport(
        notes=notes,
        unreadable={finding.id: finding.reason for finding in everything if finding.code in ("VA-D010", "VA-D011")},
        too_large={finding.id: finding.reason for finding in everything if finding.code == "VA-D020"},
        counts=counts,
        hashes=None if settings.check != "full" else {finding.id: finding.hash16 for finding in everything if finding.hash16},
        size=median_size(everything),
    )


def median_size(findings: Sequence[Finding]) -> tuple[int, int] | None:
    """Median height and width of images as they are stored; None without any."""
    facts = [finding.facts for finding in findings if finding.facts is not None]
    return (int(np.median([item.height for item in facts])), int(np.median([item.width for item in facts]))) if facts else None


def check_threads(settings: DataConfig) -> int:
    """Number of decoding threads."""
    return min(8, os.cpu_count() or 1) if settings.workers == "auto" else max(1, settings.workers)


def too_many_unreadable(count: int, total: int, policy: str) -> bool:
    """Whether a run stops: under `stop`, if more than 3 and more than 0.1 % of the samples are unreadable."""
    return policy == "stop" and count > max(3, 0.001 * total)


def exclude_unreadable(data: Data[Any], report: CheckReport, settings: DataConfig, unit: str = "image") -> Any:
    """Exclude the samples that cannot be decoded.

    Raises:
        UserError: VA-D010, too many for data.on_error; VA-D005, a split becomes empty.
    """
    refuse_unreadable(report, sum(len(part) for part in data.sets), settings, unit)
    if not report.unreadable:
        return data
    parts = {part.name: part.take([index for index, name in enumerate(part.ids) if name not in report.unreadable]) for part in data.sets}
    for name, part in parts.items():
        if not len(part):
            where = listed_reasons({key: report.unreadable[key] for key in getattr(data, name).ids})
            raise UserError(
                "VA-D005", f"{name} has no readable {unit}", where=where, fix="repair these files, or put others in their place"
            )
    return data.with_sets(parts)


def listed_reasons(unreadable: Mapping[str, str]) -> str:
    """The first files with the reasons why they cannot be read."""
    return "\n".join(f"{shown(name)}: {shown(reason)}" for name, reason in list(unreadable.items())[:5])


def refuse_unreadable(report: CheckReport, total: int, settings: DataConfig, unit: str) -> None:
    """Stop if too many samples would be excluded.

    Raises:
        UserError: VA-D010, too many of `total` are unreadable for data.on_error.
    """
    broken = report.unreadable
    if too_many_unreadable(len(broken), total, settings.on_error):
        package = any(reason.endswith(CODECS) for reason in broken.values())
        raise UserError(
            "VA-D010",
            f"{len(broken):,} of {total:,} {unit}s cannot be decoded",
            where=listed_reasons(broken),
            why="data.on_error=stop accepts 3 of them, or 0.1 %",
            fix=CODECS if package else "repair or remove them, or data.on_error=skip",
        )


# ---------------------------------------------------------------- one image


def examine(
    name: str, images: Images, index: int, cache: dict[str, Any], settings: DataConfig
) -> tuple[Finding, str | None, dict[str, Any] | None]:
    """Examine one image; return the finding, its key in the cache, and the record to store."""
    key = None
    digest, size, facts, code, reason = "", 0, None, "", ""
    try:
        key = images.stamp(index)
        known = None if key is None else cache.get(key)
        if known is not None and fits(known, images.settings.max_bytes):
            facts = None if known["facts"] is None else ImageFacts(**known["facts"])
            return Finding(name, known["hash16"], facts, known["code"], known["reason"]), key, known
        if settings.check == "headers":
            return Finding(name, "", images.header(index), "", ""), None, None
        content = images.content(index)
        digest, size = content_hash(content), len(content)
        facts = images.facts(index)
    except UnreadableFile as error:
        code, reason = error.code, error.reason
        if code == "VA-D020" or settings.check == "headers":  # depends on a setting, or is not all there is to know: it is not stored
            return Finding(name, digest, None, code, reason), None, None
    record = {"hash16": digest, "bytes": size, "facts": None if facts is None else asdict(facts), "code": code, "reason": reason}
    return Finding(name, digest, facts, code, reason), key, record


def fits(record: dict[str, Any], max_bytes: int) -> bool:
    """Whether a file with a stored record is within data.max_bytes."""
    return max(record["bytes"], record["facts"]["decoded"] if record["facts"] else 0) <= max_bytes


def cache_name(images: Sequence[Images], name: str) -> str:
    """Name the cache file of a dataset: a hash of the folder that contains its files, or of its name."""
    paths = [path for part in images for path in (part.path(0),) if path is not None]
    folder = os.path.commonpath([os.path.abspath(path) for path in paths]) if paths else name
    return blake2b(folder.encode(errors="surrogatepass"), digest_size=6).hexdigest()


def read_cache(path: Path) -> dict[str, Any]:
    """Load the results of earlier checks; empty if there are none or they are unusable."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: the images are decoded again
        return {}
    return dict(stored["files"]) if isinstance(stored, dict) and stored.get("version") == CACHE_VERSION else {}


def write_cache(path: Path, kept: dict[str, Any], known: dict[str, Any], settings: DataConfig) -> list[Note]:
    """Store the results of a full check for later ones if they changed; without a place for them, each decodes all files again."""
    if settings.check != "full" or not kept or kept == known:
        return []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"version": CACHE_VERSION, "files": kept}))
    except OSError as error:
        return [Note("info", "", f"results of the check are not kept: {path.parent}: {error.strerror}")]
    return []


def partial_notes(settings: DataConfig) -> list[Note]:
    """Report what a check cannot find that does not decode every file."""
    if settings.check == "full":
        return []
    missed = {
        "headers": "opens files without decoding them: damage behind the header,",
        "none": "lists files without opening them: damaged files, wrong sizes,",
    }[settings.check]
    text = f"data.check={settings.check} {missed} wrong pixel values and duplicates are not found before training"
    return [Note("info", "", text)]


def broken_notes(findings: list[Finding]) -> list[Note]:
    """Report files that cannot be used."""
    level = {"VA-D010": "cannot be decoded", "VA-D011": "is not an image"}
    notes = [Note("warning", code, f"{shown(f.id)} {level[code]}: {shown(f.reason)}") for code in level for f in findings if f.code == code]
    return notes + [Note("error", "VA-D020", f"{shown(f.id)}: {shown(f.reason)}") for f in findings if f.code == "VA-D020"]


def channel_notes(findings: list[Finding], in_chans: int) -> list[Note]:
    """Report how many channels the images have, if they are no pictures, and which of them have others than the model takes."""
    known = [(finding.id, finding.facts) for finding in findings if finding.facts is not None]
    wrong = [(name, facts) for name, facts in known if not facts.fits(in_chans)]
    if not wrong:
        text = f"{len(known):,} images of {in_chans} channels (model.in_chans)"
        return [] if in_chans in (1, 3) else [Note("info", "VA-D022", text)]
    name, facts = wrong[0]
    text = f"{len(wrong):,} of {len(known):,} images do not have {in_chans} channels (model.in_chans): "
    text += f"first {shown(name)} with {facts.channels}"
    if len(wrong) == len(known) and len({facts.channels for _, facts in wrong}) == 1:
        text += f"  -> model.in_chans={facts.channels}"
    else:
        text += "  -> give all images the same channels, or leave these out (data.exclude)"
    return [Note("error", "VA-D022", text)]


def duplicate_notes(findings: dict[str, list[Finding]]) -> list[Note]:
    """Report training images that also appear in another split."""
    notes = []
    seen = {finding.hash16: finding.id for finding in findings["train"] if finding.facts is not None and finding.hash16}
    for split in ("val", "test"):
        both = [(seen[f.hash16], f.id) for f in findings.get(split, ()) if f.facts is not None and f.hash16 in seen]
        if both:
            examples = "; ".join(f"{shown(first)} = {shown(second)}" for first, second in both[:3])
            verb = "images appear" if len(both) > 1 else "image appears"
            notes.append(Note("warning", "VA-D006", f"{len(both):,} {verb} in both train and {split}: {examples}"))
    return notes


def format_notes(facts: list[ImageFacts], settings: ImageDataConfig, in_chans: int) -> list[Note]:
    """Report how unusual formats are converted: deep, transparent, CMYK, animated, rotated, grey."""

    def count(chosen: list[ImageFacts]) -> str:
        return f"{len(chosen):,} of {len(facts):,} images"

    notes = []
    deep = [fact for fact in facts if fact.low is not None and fact.high is not None]
    if deep:
        low, high = min(fact.low or 0.0 for fact in deep), max(fact.high or 0.0 for fact in deep)
        depths = ", ".join(f"{depth}-bit" for depth in sorted({fact.depth for fact in deep}))
        rule = {"dtype": "scaled by the maximum of their type", "percentile": "scaled from their 1st to their 99th percentile"}
        how = rule.get(str(settings.range), f"scaled from {settings.range}")
        if settings.range == "dtype" and all(fact.array and fact.mode.startswith("float") for fact in deep):
            how = "taken as they are"
        text = f"{count(deep)} are {depths}: {how} (data.range); measured values {low:g} to {high:g}"
        notes.append(Note("info", "VA-D015", text))
    transparent = [fact for fact in facts if fact.alpha]
    if transparent:
        text = f"{count(transparent)} have transparency: composited on {settings.alpha_background} (data.alpha_background)"
        notes.append(Note("info", "VA-D016", text))
    spare = [fact for fact in facts if fact.spare_band]
    if spare:
        text = f"{count(spare)} have a fourth band that is not marked as transparency (ExtraSamples): it is not used"
        notes.append(Note("warning", "VA-D016", text))
    cmyk = [fact for fact in facts if fact.mode == "CMYK"]
    if cmyk:
        notes.append(Note("warning", "VA-D018", f"{count(cmyk)} are CMYK: converted to RGB without a colour profile"))
    several = [fact for fact in facts if fact.more_frames and in_chans != fact.pages]
    if several:
        text = f"{count(several)} are animated or have several pages: the first is used"
        pages = {fact.pages for fact in several}
        if len(several) == len(facts) and len(pages) == 1 and max(pages):
            text += f"; if the pages are channels: model.in_chans={max(pages)}"
        notes.append(Note("warning", "VA-D018", text))
    rotated = [fact for fact in facts if fact.rotated]
    if rotated:
        notes.append(Note("info", "", f"{count(rotated)} are rotated upright by their EXIF orientation"))
    grey = [fact for fact in facts if fact.grey]
    if grey and in_chans == 3:
        notes.append(Note("info", "", f"{count(grey)} are grey: copied to 3 channels (model.in_chans=1 trains on grey)"))
    if len(grey) < len(facts) and in_chans == 1:
        notes.append(Note("info", "", f"{len(facts) - len(grey):,} of {len(facts):,} images are in colour: reduced to luminance"))
    return notes


# ---------------------------------------------------------------- preview


def contact_sheet(tiles: list[tuple[np.ndarray, str]]) -> bytes:
    """Render tiles of equal size with captions below them as a PNG."""
    from visionattn.figures import fonts, shortened  # matplotlib takes long to import, and few commands draw

    files = fonts()[:1]
    font = ImageFont.truetype(files[0], 10)
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
        letters = width  # none is narrower than a pixel
        while letters > 1 and font.getlength(shortened(name, letters, files)) > width:
            letters -= 1
        draw.text((left, top + height + 1), shortened(name, letters, files), fill="black", font=font)
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()

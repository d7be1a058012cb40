"""Check volumes and label maps before training: load every pair once, and report each fault in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.check import CheckReport, check_threads, partial_notes, read_cache, write_cache
from visionattn.data.masks.settings import IGNORE
from visionattn.data.readers import UnreadableFile
from visionattn.data.splits import Note, content_hash
from visionattn.data.volumes.files import COMPRESSED, GEOMETRY, SERIES, file_stamp, nifti_grid
from visionattn.data.volumes.sets import VolumeData, VolumeFacts, VolumeSet
from visionattn.data.volumes.settings import VolumeDataConfig
from visionattn.files import counted
from visionattn.names import shown

_LISTED = 5  # faults of a kind that are listed
_THREADS = 4  # a volume is large in memory

# Faults that stop training, with what helps.
_FAULTS = {
    GEOMETRY: "a volume has three axes and an invertible affine: correct the header (or data.exclude)",
    SERIES: "put each DICOM series in a folder of its own, with all of its slices (or data.exclude)",
    COMPRESSED: "install the package, or decompress the files",
    "VA-D012": "correct the label maps, or name the values in dataset.json",
    "VA-D013": "a label map needs the grid of its image: resample it to that (or data.exclude)",
    "VA-D020": "",
    "VA-D021": "",
}


@dataclass(frozen=True)
class VolumeReport(CheckReport):
    """Findings of the check, with the facts of each volume by id."""

    facts: dict[str, VolumeFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class _Finding:
    """Facts of one pair, or the file and the reason why there are none."""

    hash16: str
    facts: VolumeFacts | None
    path: str = ""
    code: str = ""
    reason: str = ""


def check_volumes(data: VolumeData, settings: VolumeDataConfig, *, cache_dir: Path, progress: Callable[[int], None]) -> VolumeReport:
    """Load all volumes and label maps, as far as data.check asks for it; only the cache is written.

    In the report, `counts` are voxels per split and class, `hashes` those of a volume with its label map, by the id of the volume.

    Args:
        cache_dir: folder of stored results, keyed by path, size and modification time of each file, and by the rule of the labels.
        progress: called with the number of volumes checked.
    """
    empty: dict[str, dict[str, int]] = {part.name: {} for part in data.sets}
    if settings.check == "none":
        return VolumeReport([*_missing(data), *data.notes, *partial_notes(settings)], {}, {}, empty, None)
    name = blake2b(data.train.cases[0].source.name.encode(errors="surrogatepass"), digest_size=6).hexdigest()
    cache_file = cache_dir / f"volumes-{name}.json"
    cache = read_cache(cache_file) if settings.check == "full" else {}
    kept: dict[str, Any] = {}
    findings: dict[str, list[_Finding]] = {}
    with ThreadPoolExecutor(min(check_threads(settings), _THREADS)) as pool:
        for part in data.sets:
            found = findings.setdefault(part.name, [])
            for finding, record in pool.map(lambda index, part=part: _examine(part, index, cache, settings), range(len(part))):
                found.append(finding)
                kept.update(record)
                progress(sum(map(len, findings.values())))
    ids = [name for part in data.sets for name in part.ids]
    everything = dict(zip(ids, (finding for part in findings.values() for finding in part), strict=True))
    facts = {name: finding.facts for name, finding in everything.items() if finding.facts is not None}
    counts = {split: _counts(data, [f.facts for f in part if f.facts is not None]) for split, part in findings.items()}
    notes = [
        *_missing(data),
        *data.notes,
        *partial_notes(settings),
        *_fault_notes(everything),
        *(_set_notes(data, facts, counts, findings) if settings.check == "full" else []),
        *write_cache(cache_file, kept, cache, settings),
    ]
    unreadable = {name: finding.reason for name, finding in everything.items() if finding.code == "VA-D010"}
    large = {name: finding.reason for name, finding in everything.items() if finding.code == "VA-D020"}
    hashes = {name: finding.hash16 for name, finding in everything.items()} if settings.check == "full" else None
    return VolumeReport(notes, unreadable, large, counts if settings.check == "full" else empty, hashes, facts=facts)


def _examine(part: VolumeSet, index: int, cache: Mapping[str, Any], settings: VolumeDataConfig) -> tuple[_Finding, dict[str, Any]]:
    """Examine a pair; returns the finding, and the record to store by its key."""
    case = part.cases[index]
    digest = ""
    try:
        if settings.check == "headers":
            grid = case.source.grid()
            if difference := grid.difference(nifti_grid(case.label_path)):
                raise UnreadableFile(case.label_path, difference, "VA-D013")
            return _Finding("", VolumeFacts(grid.canonical_shape, grid.canonical_spacing, [], [], "", 0.0, 0.0)), {}
        key = "||".join([case.source.stamp(), file_stamp(case.label_path), repr(part.rule), str(case.source.channels)])
        if (record := cache.get(key)) is not None:
            return _restored(record), {key: record}
        digest = content_hash(" ".join(content_hash(Path(path).read_bytes()) for path in (*case.source.paths, case.label_path)).encode())
        finding = _Finding(digest, part.facts(index))
    except UnreadableFile as error:
        finding = _Finding(digest, None, error.path, error.code, error.reason)
        if error.code in ("VA-D020", COMPRESSED) or not digest:  # depends on more than the files
            return finding, {}
    except OSError as error:
        return _Finding(digest, None, case.source.name, "VA-D010", error.strerror or str(error)), {}
    return finding, {key: asdict(finding)}


def _restored(record: Mapping[str, Any]) -> _Finding:
    facts = record["facts"]
    if facts is not None:
        facts = VolumeFacts(**{**facts, "shape": tuple(facts["shape"]), "spacing": tuple(facts["spacing"])})
    return _Finding(**{**record, "facts": facts})


# ---------------------------------------------------------------- notes


def _missing(data: VolumeData) -> list[Note]:
    if not data.without_label:
        return []
    text = f"{counted(len(data.without_label), 'volume')} without a label map: {shown(', '.join(data.without_label[:3]))}"
    return [Note("error", "VA-D021", f"{text}{' ...' if len(data.without_label) > 3 else ''}; add it, or data.exclude")]


def _fault_notes(everything: Mapping[str, _Finding]) -> list[Note]:
    """A line per fault, of a kind the first few."""
    notes = []
    count: Counter[str] = Counter()
    for finding in everything.values():
        if not finding.code:
            continue
        count[finding.code] += 1
        if count[finding.code] > _LISTED:
            continue
        level, fix = ("error", _FAULTS[finding.code]) if finding.code in _FAULTS else ("warning", "")
        text = f"{shown(finding.path)}: {shown(finding.reason)}" + (f" -> {fix}" if fix else "")
        notes.append(Note(level, finding.code, text))  # type: ignore[arg-type]  # one of its levels
    for code, number in count.items():
        if number > _LISTED:
            level = "error" if code in _FAULTS else "warning"
            notes.append(Note(level, code, f"{number - _LISTED:,} more like these"))  # type: ignore[arg-type]
    return notes


def _counts(data: VolumeData, facts: Sequence[VolumeFacts]) -> dict[str, int]:
    """Voxels of each class, or region."""
    known = [item.counts for item in facts if item.counts]
    totals = np.sum(known, axis=0) if known else np.zeros(len(data.labels.rule.values) + 1, np.int64)
    regions = data.labels.rule.regions or tuple((place,) for place in range(len(data.labels.names)))
    return {name: int(totals[list(places)].sum()) for name, places in zip(data.labels.names, regions, strict=True)}


def _set_notes(
    data: VolumeData, facts: Mapping[str, VolumeFacts], counts: Mapping[str, dict[str, int]], findings: Mapping[str, list[_Finding]]
) -> list[Note]:
    """What the sets are, and what may be wrong with them as a whole."""
    notes = []
    if facts:
        shapes, sizes = (np.array([getattr(item, name) for item in facts.values()]) for name in ("shape", "spacing"))
        low, high, middle = (
            " x ".join(map(str, bound.tolist())) for bound in (shapes.min(0), shapes.max(0), np.median(shapes, 0).astype(int))
        )
        spacing = " x ".join(
            f"{a:.3g}" if np.isclose(a, b) else f"{a:.3g}-{b:.3g}" for a, b in zip(sizes.min(0), sizes.max(0), strict=True)
        )
        notes.append(Note("info", "", f"voxels {low} to {high}, median {middle}; spacing {spacing} mm"))
        values = f"{min(item.low for item in facts.values()):g} to {max(item.high for item in facts.values()):g}"
        notes.append(Note("info", "", f"values {values}"))
        if rescaled := [item.rescaling for item in facts.values() if item.rescaling]:
            text = f"{counted(len(rescaled), 'volume')} rescaled as DICOM says (the first: {rescaled[0]})"
            notes.append(Note("info", "", f"{text}; a viewer that ignores it shows other values"))
        if constant := [name for name, item in facts.items() if item.low == item.high]:
            notes.append(Note("warning", "VA-D010", f"{counted(len(constant), 'volume')} of one value: {shown(', '.join(constant[:3]))}"))
    for split, table in counts.items():
        absent = [name for name, count in table.items() if not count]
        if absent and any(table.values()):
            what = "it cannot be learned" if split == "train" else 'its scores will be "n/a"'
            notes.append(Note("warning", "VA-D004", f"{split} has no voxels of {shown(', '.join(absent[:5]))}: {what}"))
    ignored = sum(item.counts[-1] for item in facts.values())
    if ignored:
        notes.append(Note("info", "", f"{ignored:,} voxels are ignored (label {IGNORE} in memory)"))
    seen = {finding.hash16: name for finding, name in zip(findings["train"], data.train.ids, strict=True) if finding.facts is not None}
    for part in data.sets[1:]:
        both = [(seen[f.hash16], name) for f, name in zip(findings[part.name], part.ids, strict=True) if f.facts and f.hash16 in seen]
        if both:
            first = f"{shown(both[0][0])} = {shown(both[0][1])}"
            notes.append(Note("warning", "VA-D006", f"{counted(len(both), 'volume')} in both train and {part.name}: {first}"))
    return notes

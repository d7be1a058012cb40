"""Load volumes with label maps: classes, splits, and prepared volumes that are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionattn.data.images.layouts import groups_from_paths
from visionattn.data.masks.settings import IGNORE
from visionattn.data.readers import UnreadableFile
from visionattn.data.sources import KeptImages
from visionattn.data.split_names import SPLITS
from visionattn.data.splits import Data, ManifestRow, Note, fold_note, split_folds, split_off
from visionattn.data.volumes.files import dicom_modality, dicom_rescaling, file_stamp, read_labels
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.labels import LabelRule, LabelSet, classes_of, declared_labels, found_labels, regions_of
from visionattn.data.volumes.layouts import Case, Cases, find_cases
from visionattn.data.volumes.prepare import Plan, Scaling, foreground_quantiles, foreground_scaling, planned_spacing
from visionattn.data.volumes.settings import VolumeDataConfig
from visionattn.errors import UserError
from visionattn.files import atomic_folder, cache_folder, counted
from visionattn.names import from_path, shown, to_path

_FIRST = 20  # label maps whose values are looked at where nothing names the classes
_POINTS = 1000  # of each class that are kept to place patches at


@dataclass(frozen=True)
class VolumeFacts:
    """Properties of one volume.

    Attributes:
        shape, spacing: along the canonical axes, spacing in mm.
        counts: voxels of each position in the rule's values, then those ignored.
        quantiles: of each channel in the foreground.
        modality: of DICOM.
        low, high: smallest and largest voxel.
        rescaling: of the stored values of DICOM; empty for none.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    counts: list[int]
    quantiles: list[list[float]]
    modality: str
    low: float
    high: float
    rescaling: str = ""


@dataclass(frozen=True)
class VolumeSet:
    """One split: volumes, label maps, and the rule of their values."""

    name: str
    cases: tuple[Case, ...]
    rule: LabelRule
    max_bytes: int
    groups: list[str] | None = None

    @property
    def images(self) -> None:
        """Always None: a volume is not an image."""

    @property
    def ids(self) -> list[str]:
        """Paths relative to data.root."""
        return [case.id for case in self.cases]

    def __len__(self) -> int:
        return len(self.cases)

    def take(self, indices: Sequence[int], name: str | None = None) -> VolumeSet:
        """Select the volumes at these positions."""
        groups = None if self.groups is None else [self.groups[index] for index in indices]
        return replace(self, name=name or self.name, cases=tuple(self.cases[index] for index in indices), groups=groups)

    def image(self, index: int) -> tuple[np.ndarray, Grid]:
        """Load voxels `[C, x, y, z]`.

        Raises:
            UnreadableFile: see `Source.read`.
        """
        return self.cases[index].source.read(self.max_bytes)

    def label(self, index: int, grid: Grid) -> np.ndarray:
        """Load labels `[x, y, z]`, uint8: positions in the rule's values, and IGNORE.

        Raises:
            UnreadableFile: a damaged file; VA-D012, stray values; VA-D013, another grid than that of the image.
        """
        path = self.cases[index].label_path
        array, own = read_labels(path, self.max_bytes)
        if difference := grid.difference(own):
            raise UnreadableFile(path, difference, "VA-D013")
        labels, stray = self.rule.encode(grid.from_canonical(own.to_canonical(array)))  # programs turn axes as they like
        if stray:
            listed = ", ".join(map(str, stray[:8])) + (", ..." if len(stray) > 8 else "")
            raise UnreadableFile(path, f"label values that are not among {', '.join(map(str, self.rule.values[:12]))}: {listed}", "VA-D012")
        return labels

    def facts(self, index: int) -> VolumeFacts:
        """Load a volume and its labels, and describe them; raises as `image` and `label`."""
        voxels, grid = self.image(index)
        labels = self.label(index, grid)
        counts = np.bincount(labels.ravel(), minlength=256)
        return VolumeFacts(
            grid.canonical_shape,
            grid.canonical_spacing,
            [*counts[: len(self.rule.values)].tolist(), int(counts[IGNORE])],
            foreground_quantiles(voxels, labels),
            dicom_modality(self.cases[index].source),
            float(voxels.min()),
            float(voxels.max()),
            dicom_rescaling(self.cases[index].source),
        )


@dataclass(frozen=True)
class VolumeData(Data[VolumeSet]):
    """Splits of volumes.

    Attributes:
        labels: names of the outputs, and what the label values are.
        channels: their names.
        without_label: ids of volumes without a label map.
        facts: by id, of the volumes that the check has loaded.
    """

    labels: LabelSet
    channels: list[str]
    without_label: list[str]
    facts: Mapping[str, VolumeFacts] = field(default_factory=dict)

    def label_text(self, part: VolumeSet, index: int) -> str:
        return part.cases[index].label_id


def load_volume_data(settings: VolumeDataConfig, *, seed: int) -> VolumeData:
    """List the volumes and the classes; label maps are read only where nothing names the classes.

    Raises:
        UserError: VA-D001 to VA-D003, VA-D012, VA-C002.
    """
    cases = find_cases(settings)
    labels = _labels(settings, cases, None)
    notes = list(cases.notes)
    parts = _splits(settings, cases, labels.rule, seed, notes)
    name = from_path(Path(to_path(settings.root)).expanduser().resolve().stem)
    test = parts.get("test")
    return VolumeData(name, parts["train"], parts["val"], test, notes, labels, cases.channels, cases.without_label)


def load_volume_split(settings: VolumeDataConfig, split: str, names: Sequence[str], rule: LabelRule, channels: int, seed: int) -> VolumeSet:
    """Load one split with the classes of a run, for evaluation; data without splits are used as a whole.

    Raises:
        UserError: VA-M003, other classes or channels; VA-D002, no such split; as `load_volume_data`.
    """
    cases = find_cases(settings)
    labels = _labels(settings, cases, LabelSet(list(names), rule, ()))
    if labels.names != list(names) or (labels.rule.values, labels.rule.regions) != (rule.values, rule.regions):
        why = shown(f"data: {', '.join(labels.names[:8])}; run: {', '.join(list(names)[:8])}")
        raise UserError("VA-M003", "the data has other classes than the run", where=str(cases.root), why=why, exit_code=4)
    if len(cases.channels) != channels:
        what = f"the volumes have {counted(len(cases.channels), 'channel')}, those of the run {channels}"
        raise UserError("VA-M003", what, where=str(cases.root), exit_code=4)
    held_out = "val" not in cases.parts and settings.val_fraction is not None
    if split in ("train", "val") and (held_out or settings.fold is not None):
        return _splits(settings, cases, labels.rule, seed, [])[split]
    found = cases.parts.get(split) or (cases.parts.get("all") if settings.fold is None else None)
    if not found:
        fix = f"--split {next(iter(cases.parts), 'val')}"
        raise UserError("VA-D002", f'no split "{split}" in {cases.root}', why=f"found: {', '.join(cases.parts)}", fix=fix)
    return _volume_set(split, found, settings, labels.rule)


def volume_manifest(data: VolumeData, hashes: Mapping[str, str] | None) -> list[ManifestRow]:
    """List all volumes with the path of the label map as label; hashes are those of the check, of both contents."""
    rows = []
    for part in data.sets:
        for case in part.cases:
            size = sum(os.path.getsize(path) for path in case.source.paths)
            rows.append(ManifestRow(case.id, case.label_id, part.name, size, "" if hashes is None else hashes.get(case.id, "")))
    return rows


def make_plan(settings: VolumeDataConfig, data: VolumeData) -> Plan:
    """How the volumes of a training set are prepared: see `data.spacing` and `data.intensity`.

    Raises:
        UserError: VA-C002, a spacing or a window that cannot be; VA-D010, no training volume can be read.
    """
    spacing = settings.spacing
    if isinstance(spacing, tuple) and min(spacing) <= 0:
        raise UserError("VA-C002", f"data.spacing: expected three numbers > 0, got {list(spacing)}", fix="data.spacing=auto")
    if isinstance(settings.intensity, tuple) and settings.intensity[0] >= settings.intensity[1]:
        low, high = settings.intensity
        fix = f"data.intensity=[{high:g},{low:g}]" if low > high else "data.intensity=auto"
        raise UserError("VA-C002", f"data.intensity: expected [low, high] with low < high, got [{low:g}, {high:g}]", fix=fix)
    if spacing == "auto":
        spacing = planned_spacing([(facts.shape, facts.spacing) for facts in _train_facts(data, headers=True)])
    return Plan(spacing, _scalings(settings, data))


def _scalings(settings: VolumeDataConfig, data: VolumeData) -> tuple[Scaling | None, ...]:
    given, channels = settings.intensity, data.channels
    if isinstance(given, tuple):
        low, high = given
        return (Scaling(low, high, low, high - low),) * len(channels)
    if given == "none":
        return (Scaling(-3.0e38, 3.0e38, 0.0, 1.0),) * len(channels)
    scanned = dicom_modality(data.train.cases[0].source) if given == "auto" else ""
    is_ct = [given == "ct" or (given == "auto" and (name.upper() == "CT" or scanned == "CT")) for name in channels]
    if not any(is_ct):
        return (None,) * len(channels)
    facts = _train_facts(data)
    return tuple(foreground_scaling([item.quantiles[number] for item in facts]) if ct else None for number, ct in enumerate(is_ct))


def _train_facts(data: VolumeData, *, headers: bool = False) -> list[VolumeFacts]:
    """Facts of the training volumes; those that the check did not load are loaded here.

    Args:
        headers: whether shape and spacing are enough.
    """
    found = []
    for index, case in enumerate(data.train.cases):
        try:
            if case.id in data.facts:
                found.append(data.facts[case.id])
            elif headers:
                grid = case.source.grid()
                found.append(VolumeFacts(grid.canonical_shape, grid.canonical_spacing, [], [], "", 0.0, 0.0))
            else:
                found.append(data.train.facts(index))
        except UnreadableFile as error:
            last = error
    if not found:
        raise UserError("VA-D010", "no training volume can be read", where=shown(last.path), why=shown(last.reason))
    return found


# ---------------------------------------------------------------- splits and classes


def _volume_set(name: str, cases: Sequence[Case], settings: VolumeDataConfig, rule: LabelRule) -> VolumeSet:
    groups = groups_from_paths([case.id for case in cases], settings)
    return VolumeSet(name, tuple(cases), rule, settings.max_bytes, groups)


def _splits(settings: VolumeDataConfig, cases: Cases, rule: LabelRule, seed: int, notes: list[Note]) -> dict[str, VolumeSet]:
    found = dict(cases.parts)
    if "all" in found:
        found["train"] = found.pop("all")
    if settings.fold is not None:  # of training and validation volumes, each once
        found["train"] = [*found.get("train", ()), *found.pop("val", ())]
    if not found.get("train"):
        raise UserError("VA-D002", f"no volume of the split {settings.train} has a label map", where=str(cases.root), fix="data.train=NAME")
    parts = {split: _volume_set(split, found[split], settings, rule) for split in SPLITS if found.get(split)}
    train = parts["train"]
    alike = np.zeros(len(train), np.int64)
    if settings.fold is not None:
        train, val = split_folds(train, alike, train.groups, settings.fold, seed, unit="volume")
        notes.append(fold_note(len(val), settings.fold, seed, "volume"))
        return {**parts, "train": train, "val": val}
    if "val" in parts:
        if settings.val_fraction is not None:
            notes.append(Note("warning", "VA-D003", f"data.val_fraction is not used: there is a validation split ({settings.val})"))
        return parts
    if settings.val_fraction is None:
        why = "volumes are held out of the training set only on request; data.group_by keeps those of a patient together"
        fix = "visionattn train --val-fraction 0.2 ... (or data.val_fraction=0.2)"
        raise UserError("VA-D003", f'no validation split in data.root "{settings.root}"', why=why, fix=fix)
    train, val = split_off(train, alike, train.groups, settings.val_fraction, seed, unit="volume")
    notes.append(Note("info", "", f"val: {len(val):,} volumes held out of train (data.val_fraction, seed {seed})"))
    return {**parts, "train": train, "val": val}


def _labels(settings: VolumeDataConfig, cases: Cases, known: LabelSet | None) -> LabelSet:
    """Classes by the settings, dataset.json, those of a run, or the values in the first label maps."""
    where = str(cases.root)
    if settings.regions:
        return regions_of(settings.regions, None, None, "data.regions")
    if settings.classes != "auto":
        return classes_of(settings.classes, range(len(settings.classes)), None, "data.classes")
    declared = declared_labels(cases.content, cases.root)
    if declared is not None or known is not None:
        return declared or known  # type: ignore[return-value]  # one of them
    values: set[int] = set()
    first: UnreadableFile | None = None
    for case in [case for part in cases.parts.values() for case in part][:_FIRST]:
        try:
            values.update(np.unique(read_labels(case.label_path, settings.max_bytes)[0]).tolist())
        except UnreadableFile as error:  # the check reports it, if others can be read
            first = first or error
    if first is not None and not values:
        raise UserError(first.code, "no label map could be read to find the classes", where=str(first.path), why=first.reason)
    return found_labels(values, where)


# ---------------------------------------------------------------- prepared volumes


class Prepared(NamedTuple):
    """A prepared volume: float32 `[C, x, y, z]`, uint8 `[x, y, z]`, and some voxels of each class `[N, 4]`: class and place."""

    image: np.ndarray
    label: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class PreparedVolumes:
    """Volumes of a split as a plan prepares them, kept as data.cache says.

    On the disk they are in the user's cache folder, under the content of files and plan, and are read patch by patch.
    """

    part: VolumeSet
    plan: Plan
    cache: str
    cache_bytes: int
    _kept: KeptImages = field(default_factory=KeptImages, repr=False, compare=False)
    _points: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _labels: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def read(self, index: int) -> Prepared:
        """Prepare a volume, or take it from where it is kept.

        Raises:
            UnreadableFile: see `VolumeSet.image` and `VolumeSet.label`.
        """
        if index in self._kept.images:
            return Prepared(self._kept.images[index], self._labels[index], self._points[index])
        if self.cache == "disk":
            return self._on_disk(index)
        prepared = self._prepare(index)
        if self.cache == "ram":
            self._kept.keep(index, prepared.image, int(0.8 * self.cache_bytes))  # labels take a quarter of what one channel does
            if index in self._kept.images:
                self._labels[index], self._points[index] = prepared.label, prepared.points
        return prepared

    def _prepare(self, index: int) -> Prepared:
        voxels, grid = self.part.image(index)
        label = self.plan.label(self.part.label(index, grid), grid).numpy()
        return Prepared(self.plan.image(voxels, grid).numpy(), label, foreground_points(label))

    def _on_disk(self, index: int) -> Prepared:
        case = self.part.cases[index]
        key = "|".join([case.source.stamp(), file_stamp(case.label_path), repr(self.plan), repr(self.part.rule)])
        home = cache_folder() / "prepared-volumes"
        folder = home / blake2b(key.encode(errors="surrogatepass"), digest_size=12).hexdigest()
        if not (folder / "points.npy").is_file():
            prepared = self._prepare(index)
            home.mkdir(parents=True, exist_ok=True)
            if _folder_size(home) + prepared.image.nbytes + prepared.label.nbytes > self.cache_bytes:
                return prepared
            with atomic_folder(folder) as temporary:
                for name, array in prepared._asdict().items():
                    np.save(temporary / f"{name}.npy", array)
        load = partial(np.load, mmap_mode="r")
        return Prepared(*(load(folder / f"{name}.npy") for name in Prepared._fields))


def foreground_points(label: np.ndarray) -> np.ndarray:
    """Some voxels of each class from 1 on, `[N, 4]`: the class and the place, spread over its voxels in their order."""
    found = [np.zeros((0, 4), np.int32)]
    for value in np.unique(label).tolist():
        if 0 < value < IGNORE:
            places = np.flatnonzero(label == value)
            chosen = places[np.linspace(0, len(places) - 1, min(len(places), _POINTS)).astype(int)]
            found.append(np.stack([np.full(len(chosen), value), *np.unravel_index(chosen, label.shape)], 1).astype(np.int32))
    return np.concatenate(found)


def _folder_size(folder: Path) -> int:
    return sum(entry.stat().st_size for path in folder.iterdir() if path.is_dir() for entry in os.scandir(path))

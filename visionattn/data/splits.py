"""Splits of a dataset: their contents, holding out part of the training set, and the manifest that pins them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from visionattn.data.sources import Images
from visionattn.errors import UserError
from visionattn.names import shown


@dataclass(frozen=True)
class Note:
    """One message of the data check; `code` is empty for plain information."""

    level: Literal["info", "warning", "error"]
    code: str
    text: str


class Split(Protocol):
    """One split: samples by position, with unique ids."""

    @property
    def name(self) -> str: ...

    @property
    def images(self) -> Images | None:
        """None where samples are not images."""

    @property
    def ids(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int], name: str | None = None) -> Any:
        """Select the samples at these positions."""


S = TypeVar("S", bound=Split)


@dataclass(frozen=True)
class Data(Generic[S]):
    """All data of a run: its splits, and notes from listing them."""

    name: str
    train: S
    val: S
    test: S | None
    notes: list[Note]

    @property
    def sets(self) -> list[S]:
        """The splits that exist."""
        return [part for part in (self.train, self.val, self.test) if part is not None]

    def with_sets(self, sets: Mapping[str, S]) -> Any:
        """Replace the splits, given by name."""
        return replace(self, train=sets["train"], val=sets["val"], test=sets.get("test"))

    def label_text(self, part: S, index: int) -> str:
        """Label of a sample in the manifest."""
        labels = getattr(part, "labels", None)
        return "" if labels is None else str(labels[index])

    def class_counts(self, part: S) -> dict[str, int]:
        """Count samples per class; empty if there are no classes."""
        return {}


# ---------------------------------------------------------------- hold-out


def hold_out(labels: np.ndarray, groups: list[str] | None, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split positions into training and held-out ones: about `fraction` of each class, in whole groups.

    The samples are divided into q stratified folds; p of them are held out, with p / q close to `fraction`. Every class keeps
    a group in training.

    Args:
        labels: class per sample `[N]`, or zeros and ones `[N, classes]`.
    """
    group_of = _group_of(labels, groups)
    strata = _strata(labels)
    most = min(int(np.bincount(strata).max()), len(np.unique(group_of)))
    if most < 2:
        return list(range(len(labels))), []
    finest = min(max(20, round(1 / min(fraction, 1 - fraction))), most)
    share = Fraction(fraction).limit_denominator(finest)
    share = min(max(share, Fraction(1, finest)), Fraction(finest - 1, finest))
    parts = _stratified_folds(strata, group_of, groups is not None, share.denominator, seed)
    total = _counts(labels, range(len(labels)))
    # The most even folds: a group may be larger than a fold should be, and several labels are shared out only nearly.
    parts.sort(key=lambda part: float(np.square(_counts(labels, part) * share.denominator / total.clip(1) - 1).sum()))
    held = np.zeros(len(labels), bool)
    held[np.concatenate(parts[: share.numerator])] = True
    for number in np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(0)):
        member = labels == number if labels.ndim == 1 else labels[:, number] > 0
        if held[member].all():
            held[group_of == group_of[member][0]] = False
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def fold_out(
    labels: np.ndarray, groups: list[str] | None, fold: tuple[int, int], seed: int, *, unit: str = "image"
) -> tuple[list[int], list[int]]:
    """Split positions into those outside of a fold and those in it: each sample is in one of the folds, with its whole group.

    Args:
        labels: class per sample `[N]`, or zeros and ones `[N, classes]`.
        fold: its number, from 1, and how many there are.
        unit: what a sample is called.

    Raises:
        UserError: VA-D003, more folds than samples or groups.
    """
    number, count = fold
    group_of = _group_of(labels, groups)
    found = len(np.unique(group_of))
    strata = _strata(labels)
    if np.bincount(strata).max() < count:  # scikit-learn refuses if no class has a sample for each fold
        strata = np.zeros_like(strata)
    parts = _stratified_folds(strata, group_of, groups is not None, count, seed) if found >= count else []
    if not parts or not all(map(len, parts)):
        units = f"{unit}s" if groups is None else f"groups of {unit}s (data.group_by)"
        fix = f"--folds {found}" if 2 <= found < count else f"more {unit}s, or groups of about the same size"
        raise UserError("VA-D003", f"{count} folds cannot be made of {found:,} {units}", fix=fix)
    held = np.zeros(len(labels), bool)
    held[parts[number - 1]] = True
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def _group_of(labels: np.ndarray, groups: list[str] | None) -> np.ndarray:
    """Number of the group of each sample; without groups, each is one."""
    return np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]


def _stratified_folds(strata: np.ndarray, group_of: np.ndarray, grouped: bool, count: int, seed: int) -> list[np.ndarray]:
    """Positions of the samples of each fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # takes long to import, and few runs need it

    kind = StratifiedGroupKFold if grouped else StratifiedKFold  # the latter is fast for millions of samples
    folds = kind(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer samples than folds
        return [part for _, part in folds.split(np.zeros(len(strata)), strata, group_of)]


def _counts(labels: np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Samples per class among some samples."""
    chosen = labels[np.asarray(indices)]
    return chosen.sum(0) if labels.ndim == 2 else np.bincount(chosen, minlength=int(labels.max()) + 1)


def _strata(labels: np.ndarray) -> np.ndarray:
    """A number per sample that folds share out evenly: its class; of several labels their combination, or the rarest of them
    where no other sample has that combination.
    """
    if labels.ndim == 1:
        return np.unique(labels, return_inverse=True)[1]
    _, combination, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    combination = combination.reshape(-1)
    rarest = np.where(labels > 0, labels.sum(0), np.inf).argmin(1)
    alone = (counts[combination] == 1) & labels.any(1)
    return np.unique(np.where(alone, -1 - rarest, combination), return_inverse=True)[1]


def split_off(train: S, labels: np.ndarray, groups: list[str] | None, fraction: float, seed: int, *, unit: str = "image") -> tuple[S, S]:
    """Split a training set into training and validation samples.

    Raises:
        UserError: VA-D003, nothing can be held out.
    """
    kept, held = hold_out(labels, groups, fraction, seed)
    if not held:
        raise UserError(
            "VA-D003",
            f"data.val_fraction={fraction} leaves no validation {unit}s of {len(train):,}",
            why=f"every class keeps a training {unit}, and groups are not split",
            fix=f"add {unit}s, or provide a validation split",
        )
    return train.take(kept), train.take(held, "val")


def split_folds(
    whole: S, labels: np.ndarray, groups: list[str] | None, fold: tuple[int, int], seed: int, *, unit: str = "image"
) -> tuple[S, S]:
    """Split samples into those outside of a fold, to train on, and those in it, to validate on.

    Raises:
        UserError: VA-D003, more folds than samples or groups.
    """
    kept, held = fold_out(labels, groups, fold, seed, unit=unit)
    return whole.take(kept), whole.take(held, "val")


def fold_note(count: int, fold: tuple[int, int], seed: int, unit: str = "image") -> Note:
    """Report the samples of a fold."""
    return Note("info", "", f"val: fold {fold[0]} of {fold[1]}, {count:,} {unit}s (data.fold, seed {seed}); train: the other folds")


# ---------------------------------------------------------------- manifest


class ManifestRow(NamedTuple):
    """One row of manifest.csv."""

    path: str
    label: str
    split: str
    bytes: int
    hash16: str


def content_hash(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of BLAKE2b."""
    return blake2b(content).hexdigest()[:16]


def image_manifest(data: Data[Any], hashes: Mapping[str, str] | None) -> list[ManifestRow]:
    """List all images with their labels and content hashes.

    Args:
        hashes: by id, from the data check; missing ones are computed. None leaves them out.
    """
    rows = []
    for part in data.sets:
        for index, name in enumerate(part.ids):
            digest = "" if hashes is None else hashes.get(name) or content_hash(part.images.content(index))
            rows.append(ManifestRow(name, data.label_text(part, index), part.name, part.images.size(index), digest))
    return rows


def manifest_hash(rows: Sequence[ManifestRow]) -> str:
    """Return 16 hexadecimal digits that change with any sample, label, split or order."""
    return content_hash("\n".join("\t".join(map(str, row)) for row in rows).encode(errors="surrogatepass"))


def histogram(counts: Mapping[str, int]) -> str:
    """Format counts as `{daisy: 3 images, rose: 1 image, ... 5 more}`."""
    items = [f"{shown(name) or '(empty)'}: {count:,} image{'s' * (count != 1)}" for name, count in list(counts.items())[:8]]
    return "{" + ", ".join([*items, *([f"... {len(counts) - 8} more"] if len(counts) > 8 else [])]) + "}"

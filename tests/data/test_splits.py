"""Held-out samples, and the manifest of a data set."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.images.folders import flowers, load, save, save_npz
from visionattn.data.splits import hold_out, image_manifest, manifest_hash, split_off
from visionattn.errors import UserError

# ---------------------------------------------------------------- hold-out


COUNTS = (100, 37, 10, 2, 1)


@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.1, 0.15, 0.2, 0.33, 0.4, 0.5, 0.8, 0.97])
def test_hold_out_is_stratified(fraction: float) -> None:
    labels = np.repeat(np.arange(5), COUNTS)
    kept, held = hold_out(labels, None, fraction, seed=0)
    assert sorted(kept + held) == list(range(150)) and kept == sorted(kept) and held == sorted(held)
    assert abs(len(held) - fraction * 150) <= 3
    for number, count in enumerate(COUNTS):
        share = int((labels[held] == number).sum())
        assert abs(share - fraction * count) <= 1.5 and count - share >= 1


def test_hold_out_follows_the_seed_alone() -> None:
    labels = np.repeat(np.arange(3), 40)
    groups = [f"g{index // 4}" for index in range(120)]
    for given in (None, groups):
        first = hold_out(labels, given, 0.2, seed=0)
        np.random.seed(5)
        assert hold_out(labels, given, 0.2, seed=0) == first
        assert len({tuple(hold_out(labels, given, 0.2, seed)[1]) for seed in range(4)}) == 4


def test_hold_out_of_several_labels_and_of_none() -> None:
    labels = (np.random.default_rng(0).random((400, 6)) < 0.3).astype(np.float32)
    labels[:40] = 0
    _, held = hold_out(labels, None, 0.25, seed=0)
    np.testing.assert_allclose(labels[held].sum(0) / labels.sum(0), 0.25, atol=0.05)
    assert 8 <= sum(not labels[index].any() for index in held) <= 30


@pytest.mark.parametrize("grouped", [False, True])
def test_hold_out_of_combinations_that_are_all_different(grouped: bool) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 40)) < rng.uniform(0.05, 0.6, 40)).astype(np.float32)
    labels[7, 0], labels[np.arange(2000) != 7, 0] = 1, 0  # a label of one image stays in training
    assert len(np.unique(labels, axis=0)) > 1900
    groups = [f"g{index // 4}" for index in range(2000)] if grouped else None
    kept, held = hold_out(labels, groups, 0.2, seed=0)
    assert len(held) == pytest.approx(400, abs=20) and 7 in kept
    np.testing.assert_allclose((labels[held].sum(0) / labels.sum(0))[1:], 0.2, atol=0.07)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.5])
def test_hold_out_of_groups(fraction: float) -> None:
    rng = np.random.default_rng(1)
    groups = [f"g{number}" for number, size in enumerate(rng.integers(1, 30, 80)) for _ in range(size)]
    labels = rng.integers(0, 3, len(groups))
    kept, held = hold_out(labels, groups, fraction, seed=0)
    assert sorted(kept + held) == list(range(len(groups))) and not {groups[i] for i in kept} & {groups[i] for i in held}
    for number in range(3):
        assert (labels[held] == number).sum() / (labels == number).sum() == pytest.approx(fraction, abs=0.05)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2])
def test_a_group_larger_than_the_share_is_not_held_out(fraction: float) -> None:
    labels = np.arange(100) % 2
    groups = ["large"] * 50 + [f"g{index}" for index in range(50)]
    kept, held = hold_out(labels, groups, fraction, seed=0)
    assert set(range(50)) <= set(kept) and 0.5 * fraction <= len(held) / 100 <= 1.5 * fraction


def test_the_last_group_of_a_class_is_not_held_out() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    groups = ["x"] * 10 + [f"y{index}" for index in range(10)]
    kept, held = hold_out(labels, groups, 0.5, seed=0)
    assert set(range(10)) <= set(kept) and len(held) == 5


@pytest.mark.parametrize(("count", "held"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (9, 2)])
def test_hold_out_of_few_samples(count: int, held: int) -> None:
    for groups in (None, [str(index) for index in range(count)]):
        assert len(hold_out(np.zeros(count, np.int64), groups, 0.2, seed=0)[1]) == held
    assert hold_out(np.arange(count), None, 0.2, seed=0) == (list(range(count)), [])  # each is the last of its class
    assert hold_out(np.zeros(count, np.int64), ["one"] * count, 0.2, seed=0) == (list(range(count)), [])


def test_hold_out_of_many_samples_is_quick() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 100_000)
    start = time.perf_counter()
    for fraction in (0.001, 0.01, 0.2):
        assert len(hold_out(labels, None, fraction, seed=0)[1]) == pytest.approx(fraction * 100_000, rel=0.01)
    assert time.perf_counter() - start < 10


def test_nothing_to_hold_out_is_an_error(tmp_path: Path) -> None:
    train = load(flowers(tmp_path)).train
    with pytest.raises(UserError, match="leaves no validation images of 10") as caught:
        split_off(train, np.arange(10), None, 0.2, seed=0)
    assert (caught.value.code, caught.value.exit_code) == ("VA-D003", 3)
    kept, held = split_off(train, train.labels, None, 0.5, seed=0)
    assert (kept.name, held.name, len(kept), len(held)) == ("train", "val", 5, 5) and not set(kept.ids) & set(held.ids)


# ---------------------------------------------------------------- manifest


def test_manifest(tmp_path: Path) -> None:
    root = flowers(tmp_path / "f")
    rows = image_manifest(load(root), {})
    assert len(rows) == 17 and rows[0].path == "train/rose/0.png" and rows[0].label == "rose" and rows[0].split == "train"
    assert rows[0].bytes == (root / "train/rose/0.png").stat().st_size and len(rows[0].hash16) == 16
    assert image_manifest(load(root), {row.path: row.hash16 for row in rows}) == rows
    before = manifest_hash(rows)
    assert before == manifest_hash(image_manifest(load(root), {})) and len(before) == 16
    save(root / "val/rose/0.png", 999)
    assert manifest_hash(image_manifest(load(root), {})) != before
    assert len(image_manifest(load(save_npz(tmp_path / "x.npz")), {})) == 21

"""Images by position: kept in memory, sent to loader processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.images.folders import flowers, load, save
from visionattn.tasks.classification.settings import ClassifyConfig
from visionattn.tasks.images import image_files


def test_cache_in_memory(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    cached, plain = load(root, cache="ram").train.images, load(root).train.images
    first = cached.read(0)
    (root / "train/rose/0.png").write_bytes(b"")
    np.testing.assert_array_equal(cached.read(0), first)
    with pytest.raises(Exception, match="empty file"):
        plain.read(0)


def test_cache_in_memory_is_bounded(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    images = load(root, cache="ram", cache_bytes=3 * 10 * 8 * 3).train.images
    for index in range(10):
        images.read(index)
    for index in (*range(3), 9):
        (root / images.paths[index]).write_bytes(b"")  # type: ignore[attr-defined]
    assert images.read(2).shape == (8, 10, 3)
    with pytest.raises(Exception, match="empty file"):
        images.read(9)


def test_prediction_keeps_no_image(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    config = ClassifyConfig.model_validate({"data": {"cache": "ram"}})
    dataset = image_files(config, [tmp_path / "1.png"], lambda image: torch.zeros(1))
    dataset.load(0, None)
    assert dataset.images._kept.images == {}


def test_sets_are_picklable(tmp_path: Path) -> None:
    data = load(flowers(tmp_path))
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again.train.images.read(3), data.train.images.read(3))

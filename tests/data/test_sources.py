"""Images by position: kept in memory, sent to loader processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.images.folders import flowers, load


def test_cache_in_memory(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    cached, plain = load(root, cache="ram").train.images, load(root).train.images
    first = cached.read(0)
    (root / "train/rose/0.png").write_bytes(b"")
    np.testing.assert_array_equal(cached.read(0), first)
    with pytest.raises(Exception, match="empty file"):
        plain.read(0)


def test_sets_are_picklable(tmp_path: Path) -> None:
    data = load(flowers(tmp_path))
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again.train.images.read(3), data.train.images.read(3))

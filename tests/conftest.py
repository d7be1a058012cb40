"""Shared fixtures: quiet libraries, a cache of its own, tiny image folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.faults.harness import Server

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run side by side; sums are compared between processes, and depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="Try faults as often as `make soak` does.")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts commands in processes of their own, at little cost."""
    started = Server(tmp_path_factory.mktemp("cache"))
    yield started
    started.close()


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A folder of coloured noise: three classes that a network can tell apart, train 8, val 4, test 2 images each."""
    rng = np.random.default_rng(0)
    root = tmp_path / "flowers"
    for split, count in (("train", 8), ("val", 4), ("test", 2)):
        for index, name in enumerate(("daisy", "rose", "tulip")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., index] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root

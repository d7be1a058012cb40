"""A run of few steps on volumes that are oblique and anisotropic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import visionattn as va
from tests.data.volumes.made import folders
from visionattn.console import Console
from visionattn.tasks import load_config

NAMES = {"labels": {"0": "background", "1": "front", "2": "back"}}
TINY = (
    "task=volumes",
    "model.args={width: 4, depth: 3}",
    "model.img_size=[32, 32, 16]",
    "data.workers=0",
    "log.images=2",
    "train.epochs=2",
    "train.precision=fp32",
    "optim.lr=0.01",
    "schedule.name=constant",
)


def train(root: Path, out: Path, *more: str) -> Any:
    """Train, and return the result; further settings take the place of those of TINY."""
    given = {text.partition("=")[0] for text in more}
    tiny = [text for text in TINY if text.partition("=")[0] not in given]
    config = load_config(None, [*tiny, f"data.root={root}", f"output.dir={out}", *more])
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(out / "cache"))
        result = va.train(config, console=Console(quiet=True))
    assert result is not None
    return result


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four, two and one volumes."""
    return folders(tmp_path_factory.mktemp("volumes") / "balls", {"train": 4, "val": 2, "test": 1}, NAMES)


@pytest.fixture(scope="session")
def volume_run(root: Path) -> Path:
    """Two epochs of a small 3D network."""
    run: Path = train(root, root.parent / "runs").run
    return run

"""Tiny data of both tasks, and what `make soak` writes."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import CLASSES, picture

SHARED = (
    "model.name=eca_resnet18",
    "model.img_size=32",
    "train.save_every=2",
    "train.epochs=3",
    "train.ema=0.9",
    "log.every_steps=1",
    "schedule.warmup_epochs=0",
)
SMALL = {
    "classify": (
        "model.args={width: 8}",
        "train.batch_size=4",
        "model.drop_rate=0.1",
        "model.drop_path_rate=0.2",
        "augment.color_jitter=0.3",
        "augment.rotate=20",
        "augment.mixup=0.4",
        "augment.cutmix=1.0",
        "optim.layer_decay=0.9",
    ),
    "segment": ("model.args={width: 8}", "model.head.name=segformer", "model.head.args={width: 16}", "train.batch_size=4"),
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Settings of a tiny run of each task: 9 steps, saved every second, with all that is random."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in enumerate(CLASSES):
            for number in range(count):
                picture(root / "classify" / split / name / f"{number}.png", channel, 100 * channel + 10 * count + number)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            mask = np.zeros((40, 40), np.uint8)
            mask[rng.integers(5, 20) :, : rng.integers(15, 35)] = 1
            pixels = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8) + 120 * mask[..., None]
            for kind, array in (("images", pixels.astype(np.uint8)), ("masks", mask)):
                path = root / "segment" / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "segment" / "classes.txt").write_text("background\nroad\n")
    return {task: [f"task={task}", f"data.root={root / task}", "data.workers=1", *SHARED, *more] for task, more in SMALL.items()}


@pytest.fixture
def repeated(request: pytest.FixtureRequest) -> bool:
    """Whether faults are tried as often as `make soak` does."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write what was tried into docs/reliability.md, after `make soak`."""
    if not config.getoption("--soak") or terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        return
    figures = [text for report in terminalreporter.stats.get("passed", []) for name, text in report.user_properties if name == "figure"]
    page = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- soak -->\n")
    _, end, after = rest.partition("<!-- end -->")
    facts = f"{date.today()}, Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    lines = [f"{facts}:\n", *(f"- {figure}" for figure in sorted(figures))]
    page.write_text("".join([before, begin, "\n".join(lines), "\n", end, after]), encoding="utf-8")

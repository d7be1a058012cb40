"""Run commands in this process on tiny data, and look at what they print and leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from visionattn.cli import app
from visionattn.runs.folder import RunFolder

RUNNER = CliRunner()
TINY = (
    "model.name=eca_resnet18",
    "model.args={width: 8}",
    "model.img_size=32",
    "train.epochs=1",
    "train.batch_size=8",
    "data.workers=0",
    "log.to=[]",
)
CLASSES = ("daisy", "rose", "tulip")


def va(*args: object) -> Result:
    """Run a command in this process; fail on an internal error or a traceback."""
    result = RUNNER.invoke(app, [str(arg) for arg in args])
    assert "VA-X001" not in result.stderr and "Traceback" not in result.output, result.output
    return result


def done(*args: object) -> Result:
    """Run a command that succeeds."""
    result = va(*args)
    assert result.exit_code == 0, result.output
    return result


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with contents."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(watched: Path, code: str, exit_code: int, *args: object) -> str:
    """Run a command that stops: one block on standard error, nothing below `watched` is changed; returns the block."""
    before = tree(watched)
    result = va(*args)
    assert result.exit_code == exit_code, result.output
    assert result.stderr.startswith(f"error {code}: "), result.output
    assert tree(watched) == before
    return result.stderr


def settings(tmp_path: Path, *more: str) -> list[str]:
    """Tiny settings, with runs in tmp_path/runs."""
    return [*TINY, f"output.dir={tmp_path / 'runs'}", *more]


def only_run(tmp_path: Path) -> Path:
    """The one run below tmp_path/runs."""
    (config,) = (tmp_path / "runs").glob("*/*/config.yaml")
    return config.parent


def lockable(run: Path) -> bool:
    """Whether no process holds a run."""
    with RunFolder(run).locked():
        return True


def picture(path: Path, channel: int, number: int, size: tuple[int, int] = (48, 40)) -> None:
    """Noise with one strong channel; different for each number."""
    pixels = np.random.default_rng(number).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., channel] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def flower_pictures(folder: Path) -> Path:
    """Three classes with 8 images to train on and 4 to validate, in folder/flowers."""
    for split, count in (("train", 8), ("val", 4)):
        for index, name in enumerate(CLASSES):
            for number in range(count):
                picture(folder / "flowers" / split / name / f"{number}.png", index, 1000 + 30 * index + number)
    return folder / "flowers"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def save_npz(path: Path, labels: Callable[[int], np.ndarray] = lambda count: np.arange(count) % 3) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 18), ("val", 9)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels(count)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@dataclass(frozen=True)
class Trained:
    """A run of two epochs that many tests look at; those that change it take a copy."""

    run: Path
    data: Path
    result: Result

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.run, folder / "copy"))

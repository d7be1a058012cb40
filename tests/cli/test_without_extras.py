"""Without the extras of volumes and bags everything on images works; what needs an extra names the command that installs it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands import Trained, done, refused, settings
from tests.data.bags.bags import slides
from tests.data.volumes.made import folders
from tests.tasks.segmentation.garden import CLASSES, picture

PACKAGE = Path(__file__).parents[2] / "visionattn"
EXTRAS = ("h5py", "monai", "nibabel", "pydicom")


def garden(root: Path) -> Path:
    for split in ("train", "val"):
        for number in range(2):
            image, label = picture(number + 10 * (split == "val"))
            for kind, pixels in (("images", image[..., ::-1]), ("masks", label)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), np.ascontiguousarray(pixels))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return root


def test_images_need_none_of_them(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = garden(tmp_path / "garden")
    for name in EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)
    done("eval", trained.run)
    done("predict", trained.run, "--source", trained.data / "test", "--out", tmp_path / "out")
    done("features", trained.run, trained.data / "test", "--out", tmp_path / "features")
    done("train", "--data", trained.data, "--dry-run", *settings(tmp_path))
    assert "task        segment" in done("train", "--data", root, "--dry-run", *settings(tmp_path, "train.batch_size=2")).stdout
    assert "task        segment" in done("data", "check", root).stdout


def test_what_needs_one_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, bags = folders(tmp_path / "volumes", {"train": 1, "val": 1}), slides(tmp_path / "bags", 6)
    monkeypatch.chdir(tmp_path)
    for name in EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)
    for command in (("train", "--data", volumes), ("data", "check", volumes)):
        text = refused(tmp_path, "VA-R007", 7, *command)
        assert "volumes need the package nibabel" in text and 'pip install "visionattn[medical]"' in text
    assert 'pip install "visionattn[bags]"' in refused(tmp_path, "VA-C005", 2, "train", "--data", bags, "--val-fraction", 0.3)


def test_no_file_imports_an_extra_before_it_is_used() -> None:
    extras = {*EXTRAS, "datasets", "mlflow"}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if any(f"import {name}" in text or f"from {name}" in text for name in extras) else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & extras, path

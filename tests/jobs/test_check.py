"""The data check as users meet it: all findings at once, what is left out, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images import folders
from tests.data.masks.pairs import NAMES, mask, pairs
from visionattn.config import RunConfig
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.jobs.check import check, check_data, preview_data, write_data
from visionattn.tasks import config_from_dict, task_of


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Findings are written into the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def labelled(tmp_path: Path, **data: object) -> RunConfig:
    root = tmp_path / "flowers"
    if not root.exists():
        folders.flowers(root)
    return config_from_dict({"data": {"root": str(root), "workers": 1, **data}, "model": {"img_size": 32}})


def masked(tmp_path: Path, **data: object) -> RunConfig:
    root = tmp_path / "cracks"
    if not root.exists():
        pairs(root)
    given = {"root": str(root), "classes": NAMES, "workers": 1, **data}
    return config_from_dict({"task": "segment", "data": given, "model": {"img_size": 32}})


def refused(config: RunConfig, code: str, *, strict: bool = False) -> UserError:
    with pytest.raises(UserError) as caught:
        check(config, strict=strict)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    return caught.value


@pytest.mark.parametrize("kind", [labelled, masked])
def test_clean_data(kind: Callable[..., RunConfig], tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = kind(tmp_path)
    report = check(config, strict=True)
    assert not [note for note in report.notes if note.level != "info"] and list(elsewhere.iterdir()) == []
    shown = capsys.readouterr().out
    assert "check: 0 warnings" in shown and f"{config.task} (" in shown and "classes)" in shown


def test_too_large_images_are_errors_all_of_them(tmp_path: Path, elsewhere: Path) -> None:
    for name in ("train/rose/8.png", "val/tulip/9.png"):
        folders.flowers(tmp_path / "flowers")
        folders.save(tmp_path / "flowers" / name, 1, (100, 80))
    (tmp_path / "flowers/train/tulip/0.png").write_bytes(b"")
    error = refused(labelled(tmp_path, max_bytes=47_999, on_error="skip"), "VA-D020")
    assert error.what == "the data check found 2 errors and 1 warning"
    assert "train/rose/8.png" in error.where and "val/tulip/9.png" in error.where and error.where.count("data.max_bytes=48000") == 2
    found = json.loads((elsewhere / "flowers-check.json").read_text())
    assert set(found["too_large"]) == {"train/rose/8.png", "val/tulip/9.png"} and set(found["unreadable"]) == {"train/tulip/0.png"}
    assert check(labelled(tmp_path)).too_large == {}


def test_all_errors_of_masks_at_once(tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = masked(tmp_path)
    root = tmp_path / "cracks"
    (root / "masks/train/train0.png").unlink()
    mask(root / "masks/train/train1.png", 1, values=(0, 1, 128))
    mask(root / "masks/train/train2.png", 1, size=(10, 8))
    mask(root / "masks/train/lonely.png")
    error = refused(config, "VA-D021")
    assert error.what == "the data check found 3 errors and 1 warning"
    assert error.where.index("VA-D021") < error.where.index("VA-D013") < error.where.index("VA-D012")
    shown = capsys.readouterr()
    assert "1 masks have no image" in shown.out + shown.err and "full list: cracks-check.json" in shown.out
    assert [path.name for path in elsewhere.iterdir()] == ["cracks-check.json"]
    codes = [note["code"] for note in json.loads((elsewhere / "cracks-check.json").read_text())["notes"] if note["level"] == "error"]
    assert codes == ["VA-D021", "VA-D013", "VA-D012"]


def test_strict_stops_at_warnings(tmp_path: Path, elsewhere: Path) -> None:
    config = labelled(tmp_path)
    (tmp_path / "flowers/train/tulip/0.png").write_bytes(b"")
    assert len(check(config).unreadable) == 1
    error = refused(config, "VA-D011", strict=True)
    assert "train/tulip/0.png" in error.what and "--strict" in error.why and list(elsewhere.iterdir()) == []


def test_too_many_unreadable_and_a_lost_class(tmp_path: Path) -> None:
    config = labelled(tmp_path)
    for number in range(4):
        (tmp_path / f"flowers/train/tulip/{number}.png").write_bytes(b"")
    assert "4 of 17 images cannot be decoded" in refused(config, "VA-D010").what
    assert "tulip" in refused(labelled(tmp_path, on_error="skip"), "VA-D005").what
    for path in (tmp_path / "flowers/val").rglob("*.png"):
        path.write_bytes(b"")
    assert "val has no readable image" in refused(labelled(tmp_path, on_error="skip"), "VA-D005").what


@pytest.mark.parametrize("kind", [labelled, masked])
def test_what_a_run_keeps_of_its_data(kind: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = kind(tmp_path)
    broken = tmp_path / ("flowers/train/rose/0.png" if kind is labelled else "cracks/masks/train/train0.png")
    broken.write_bytes(broken.read_bytes()[:60])
    task = task_of(config)
    checked = check_data(task, config, Console(quiet=True), keep=False)
    assert len(checked.report.unreadable) == 1
    assert [len(part) for part in checked.data.sets] == ([9, 5, 2] if kind is labelled else [3, 2])
    assert len(checked.rows) == sum(len(part) for part in checked.data.sets)
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder, task, config, task.build_model(config, checked.target), checked)
    names = ["check.json", "classes.txt", "manifest.csv", "preview_train.png", "preview_val.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "classes.txt").read_text().split() == checked.target["classes"]
    lines = (folder / "manifest.csv").read_text().splitlines()
    assert lines[0] == "path,label,split,bytes,hash16" and len(lines) == 1 + len(checked.rows)
    assert json.loads((folder / "check.json").read_text()) == json.loads(json.dumps(checked.report.as_dict()))


@pytest.mark.parametrize("kind", [labelled, masked])
def test_preview(kind: Callable[..., RunConfig], tmp_path: Path) -> None:
    preview_data(kind(tmp_path), tmp_path / "p.png", 4)
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (6 + 2 * (32 + 6), 6 + 2 * (32 + 16 + 6)) and np.asarray(sheet).std() > 20

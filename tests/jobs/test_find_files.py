"""The files that `predict` takes, and what it says of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands import picture
from visionattn.config.schema import DataConfig
from visionattn.console import Console
from visionattn.data.walk import IMAGE_SUFFIXES
from visionattn.errors import UserError
from visionattn.jobs.predict import find_files


def find(*sources: Path) -> dict[str, str]:
    """Places by path."""
    found = find_files(sources, IMAGE_SUFFIXES, DataConfig().exclude, Console())
    return {str(path): place.as_posix() for path, place in found.items()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.JPG", ".thumbnails/t.png", "a/.ipynb_checkpoints/1.png", "__MACOSX/3.png"):
        picture(tmp_path / "photos" / name, 0, 1)
    picture(tmp_path / "elsewhere/5.png", 0, 2)
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/self").symlink_to(".")
    (tmp_path / "photos/a/self").symlink_to(".")
    (tmp_path / "photos/9.jp2").write_bytes(b"")
    os.mkfifo(tmp_path / "photos/a/x.png")
    return tmp_path / "photos"


def test_a_folder_is_read_as_for_training(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(find(photos).values()) == ["a/1.png", "a/2.JPG", "linked/5.png"]
    said = capsys.readouterr().out
    for line in (
        "3 hidden or system files and folders skipped",
        "1 file of other types left out (.jp2)",
        "1 left out because they are not regular files",
    ):
        assert line in said
    assert "2 links to folders that are read already left out" in said


def test_globs(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(find(photos / "**" / "*.png").values()) == ["a/1.png", "linked/5.png"]
    assert list(find(photos / "*" / "*.png").values()) == ["a/1.png", "linked/5.png"]
    assert "not regular files (x.png)" in capsys.readouterr().out
    assert list(find(photos / "a" / "*").values()) == ["1.png", "2.JPG"]


@pytest.mark.parametrize("name", ["a/x.png", "zero.png", "a/x.*"])
def test_fifos_and_devices(photos: Path, name: str) -> None:
    (photos / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="regular file") as caught:
        find(photos / name)
    assert caught.value.code == "VA-D001"

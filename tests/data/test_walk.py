"""The walk through folders: each folder once, regular files only, and a count of everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from visionattn.data.walk import IMAGE_SUFFIXES, Walker, matches


def walker() -> Walker:
    return Walker(IMAGE_SUFFIXES, [".*", "__MACOSX"])


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def below(root: Path, walk: Walker) -> list[str]:
    return [os.path.relpath(path, root) for path in walk.files(root)]


def test_links_are_followed_and_each_folder_is_entered_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "a/1.png", "b/c/2.JPG")
    touch(tmp_path / "elsewhere", "x/3.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "self").symlink_to(".")
    (root / "a" / "self2").symlink_to(root / "a")  # two such links have 2 ** 40 paths
    (root / "0").symlink_to(root / "b" / "c")  # sorts before the folder that it leads to
    (root / "round1").symlink_to("round2")
    (root / "round2").symlink_to("round1")
    walk = walker()
    assert below(root, walk) == ["a/1.png", "b/c/2.JPG", "linked/x/3.png"]
    assert set(walk.repeated) == {"self", "self2", "0"}


def test_a_file_belongs_to_the_folder_it_lies_in(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/deep/2.png")
    (tmp_path / "cat" / "0").symlink_to(tmp_path / "dog" / "deep")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    walk = walker()
    cat, dog = walk.files_of(walk.folders(tmp_path), above=[tmp_path])
    assert [Path(path).name for path in cat] == ["1.png"] and [Path(path).name for path in dog] == ["2.png"]


def test_folders_beside_and_above_are_no_other_folders(tmp_path: Path) -> None:
    touch(tmp_path / "set", "cat/1.png", "dog/1.png", ".git/1.png")
    (tmp_path / "set/again").symlink_to(tmp_path / "set")
    (tmp_path / "set/a_cat").symlink_to(tmp_path / "set/cat")
    walk = walker()
    assert [path.name for path in walk.folders(tmp_path / "set", above=[tmp_path])] == ["cat", "dog"]
    assert set(walk.repeated) == {"again", "a_cat"}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "1.png", "2.jp2", "3.jp2", "README", ".hidden/4.png", "._1.png")
    os.mkfifo(root / "pipe.png")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "lost.png").symlink_to("nowhere")
    walk = walker()
    assert below(root, walk) == ["1.png", "lost.png"], "reading a link that leads nowhere gives the reason"
    hidden, others, special = walk.report()
    assert hidden.startswith("2 hidden or system files") and others == "3 files of other types left out (.jp2, README)"
    assert special.startswith("2 left out because they are not regular files") and "zero.png" in special
    assert ".hidden" in hidden and ".hidden" not in walk.report(hidden_names=False)[0]


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a/b/c.png", "**/*.png", True),
        ("c.png", "**/*.png", True),
        ("a/masks/c.png", "**/masks/*", True),
        ("masks/d/c.png", "**/masks/*", False),
        ("a/x/b/c.png", "a/**/b/**/*.png", True),
        ("c.jpg", "**/*.png", False),
    ],
)
def test_matches(path: str, pattern: str, expected: bool) -> None:
    assert matches(path.split("/"), pattern.split("/")) == expected

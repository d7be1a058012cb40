"""Lists of images: whole relative paths, or names where they are unique."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionattn.data.names import find_listed
from visionattn.errors import UserError

ROOT = Path("/set")
FILES = [f"/set/images/{name}" for name in ("a/000.png", "b/000.png", "b/001.jpg", "weed (3).jpg", "v1.2.png", "twin.jpg", "twin.png")]


def find(*listed: str) -> list[str]:
    found = find_listed(listed, FILES, ROOT / "images", ROOT, where=ROOT / "list.txt")
    return [path.removeprefix("/set/images/") for path in found]


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("a/000.png", "a/000.png"),
        ("images/b/000.png", "b/000.png"),
        ("./b\\000.png", "b/000.png"),
        ("b/000", "b/000.png"),
        ("001", "b/001.jpg"),
        ("b/001.png", "b/001.jpg"),
        ("weed (3)", "weed (3).jpg"),
        ("v1.2", "v1.2.png"),
        ("twin.png", "twin.png"),
    ],
)
def test_entries(entry: str, file: str) -> None:
    assert find(entry) == [file]


def test_names_that_fit_no_image_or_several() -> None:
    with pytest.raises(UserError, match=r"2 of 3 images listed in list\.txt do not exist") as caught:
        find("weed", "001", "c/001.jpg")
    assert caught.value.code == "VA-D001" and "weed" in caught.value.where and "c/001.jpg" in caught.value.where
    for entry in ("000", "000.png", "twin"):
        with pytest.raises(UserError, match=r"1 of 1 name in list\.txt fit more than one image") as caught:
            find(entry)
        assert caught.value.code == "VA-D002" and entry in caught.value.where

"""The pages that tools write are up to date, and the site can be built."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import ROOT
from tests.tools import tool


@pytest.mark.parametrize("name", ["make_reference", "make_families", "make_zoo"])
def test_written_pages_are_up_to_date(name: str) -> None:
    with tool(name, "--check") as module:
        assert not module.main(), f"run: python tools/{name}.py"


def test_links_of_the_readme() -> None:
    """The site checks those of its own pages."""
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page}: {target}"


def test_counts_of_models() -> None:
    """README.md and the first page give those of the table of families, which a tool writes."""
    readme, first = ((ROOT / page).read_text() for page in ("README.md", "docs/index.md"))
    counts = [int(count) for count in re.findall(r"^\| \*\*.*?\| (\d+): `", readme, re.MULTILINE)]
    assert f" {sum(counts)} models" in readme.partition("\n##")[0]
    assert f"[{len(counts)} families, {sum(counts)} models]" in first.partition("\n##")[0]


def test_every_family_has_its_drawing() -> None:
    with tool("families") as families:
        described = {entry.file for entry in families.DESCRIPTIONS.values()}
    pages = {path.stem for path in (ROOT / "docs/families").glob("*.md")} - {"index"}
    assert pages <= described, "a family without a description in tools/families.py"
    assert all((ROOT / "docs/families" / f"{page}.svg").is_file() for page in pages)

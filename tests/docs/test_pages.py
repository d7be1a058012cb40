"""The pages that tools write are up to date, and the site can be built."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.blocks import ROOT
from tests.tools import tool
from visionattn.attention import ATTENTION


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


def test_pages_name_the_operations_of_their_family() -> None:
    pages = {path.stem for path in (ROOT / "docs/kernels").glob("*.md")}
    with tool("make_families") as families:
        for section, (modules, _, _) in families.FAMILIES.items():
            names = [name for module in modules for name in vars(importlib.import_module(f"visionattn.backbones.{module}"))]
            assert pages.intersection(names) <= set(families.description(section).kernels), section


def test_every_attention_module_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", (ROOT / "docs/modules.md").read_text(), re.MULTILINE))))
    assert set(ATTENTION) <= documented

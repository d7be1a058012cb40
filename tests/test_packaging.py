"""The wheel holds what the installed package reads, and nothing else; the source distribution holds the project.

Both are installed by tests/release/installed.py, which `make test-wheel` runs.
"""

from __future__ import annotations

import ast
import re
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

import visionattn
from tests.release.build import ROOT, build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> zipfile.ZipFile:
    return zipfile.ZipFile(built[1])


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_every_file_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    wanted = [
        *ROOT.glob("visionattn/**/*.py"),
        *ROOT.glob("visionattn/**/*.yaml"),
        *ROOT.glob("visionattn/**/*.json"),
        *ROOT.glob("visionattn/report/templates/*"),
        *ROOT.glob("visionattn/data/masks/classes/*.txt"),
        ROOT / "visionattn" / "py.typed",
    ]
    missing = {path.relative_to(ROOT).as_posix() for path in wanted} - names
    assert len([name for name in names if name.endswith(".yaml")]) >= 4 and not missing
    assert {"visionattn/report/templates/report.html", "visionattn/data/masks/classes/ade20k.txt"} <= names
    kinds = {path.suffix for path in ROOT.glob("visionattn/**/*") if path.is_file()}
    # one more belongs above and in pyproject.toml
    assert kinds - {".pyc"} == {".py", ".yaml", ".json", ".html", ".css", ".js", ".txt", ".typed"}


def test_nothing_but_the_package_is_installed(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = tops - {"visionattn"}
    assert info.startswith("visionattn-") and info.endswith(".dist-info")
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_the_source_distribution_holds_the_project(built: tuple[Path, Path]) -> None:
    """Tests, records, documentation and tools, so that a distributor can run and build them."""
    with tarfile.open(built[0]) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    folders = ("visionattn", "tests", "docs", "examples", "tools")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wanted = {path.relative_to(ROOT).as_posix() for path in paths if path.name != ".DS_Store"}
    wanted |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile", "NOTICE", "README.md", ".ci/run"}
    assert not wanted - names
    assert {name.partition("/")[0] for name in names if "/" in name} == {*folders, ".ci", "visionattn.egg-info"}


def test_licence_and_entry_point(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    for name in ("LICENSE", "NOTICE"):
        (found,) = (member for member in names if member.endswith(f".dist-info/licenses/{name}"))
        assert wheel.read(found) == (ROOT / name).read_bytes()
    (entries,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "visionattn = visionattn.cli:main" in wheel.read(entries).decode()


def test_there_is_one_version(metadata: Message) -> None:
    assert metadata["Version"] == visionattn.__version__ and metadata["License-Expression"] == "Apache-2.0"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == visionattn.__version__ and {"cff-version", "message", "title", "authors"} <= set(citation)


def test_classifiers_begin_at_the_python_that_is_required() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [int(name.removeprefix(prefix)) for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert minors == list(range(minors[0], minors[-1] + 1)) and PROJECT["requires-python"] == f">=3.{minors[0]}"


def test_each_extra_has_a_line_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = set(PROJECT["optional-dependencies"]) - {"test"}
    assert set(re.findall(r'pip install "visionattn\[(\w+)\]"', readme)) == extras


def test_notice_names_what_is_followed() -> None:
    """Every repository that a file gives with a commit."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  (\S+/\S+) +([0-9a-f]{7}) +\S", notice, re.MULTILINE))
    named = set()
    for path in (ROOT / "visionattn").rglob("*.py"):
        text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
        named |= set(re.findall(r"([\w.-]+/[\w.-]+),? (?:commit|at) ([0-9a-f]{7})", text))
    assert len(named) > 20 and listed == named


def test_names_of_the_package_have_types() -> None:
    """They are imported when first used; type checkers read the imports beside them."""
    tree = ast.parse(Path(visionattn.__file__).read_text(encoding="utf-8"))
    imports = [node for branch in tree.body if isinstance(branch, ast.If) for node in branch.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imports for alias in node.names if alias.asname == alias.name}
    assert typed == {**visionattn._EXPORTS, "kernels": "visionattn"}


def test_the_image_is_built_from_what_docker_sees() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = {line[1:] for line in lines if line.startswith("!")}
    assert {"pyproject.toml", "visionattn", PROJECT["readme"], *PROJECT["license-files"]} == seen

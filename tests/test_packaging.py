"""The wheel holds what the installed package reads, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build folder is left in the checkout and none that lies there is read."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("visionattn", "tests", "tools", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


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


def test_licence_and_entry_point(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    for name in ("LICENSE", "NOTICE"):
        (found,) = (member for member in names if member.endswith(f".dist-info/licenses/{name}"))
        assert wheel.read(found) == (ROOT / name).read_bytes()
    (entries,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "visionattn = visionattn.cli:main" in wheel.read(entries).decode()


def test_version_is_that_of_the_package(wheel: zipfile.ZipFile) -> None:
    from visionattn import __version__

    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    assert fields["Version"] == __version__ and fields["License-Expression"] == "Apache-2.0"

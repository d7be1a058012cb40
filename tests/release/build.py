"""Build the source distribution, and the wheel out of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What builds, tests and runs leave at the top of a checkout.
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "*.egg-info", "build", "dist", "runs", "site")


def build(folder: Path) -> tuple[Path, Path]:
    """Return both files.

    The source is a copy, so that no build folder is left in the checkout and none that lies there is read. The build uses the installed
    setuptools.
    """
    source, out = folder / "source", folder / "dist"
    shutil.copytree(ROOT, source, ignore=lambda at, names: LEFT_BEHIND(at, names) if Path(at) == ROOT else {"__pycache__"} & set(names))
    call = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    run([sys.executable, "-c", call], cwd=source)
    (sdist,) = out.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    run([sys.executable, "-m", "pip", "wheel", *options, str(sdist)], cwd=folder)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def run(command: list[str], **options: object) -> str:
    """Run a command, and return what it prints on standard output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return str(done.stdout)

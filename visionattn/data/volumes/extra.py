"""The libraries of `visionattn[medical]`, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from visionattn.errors import UserError

LIBRARIES = ("nibabel", "pydicom", "monai")


def library(name: str) -> Any:
    """Import a library of the extra, or a module of one.

    Raises:
        UserError: VA-R007, it is not installed.
    """
    package = name.partition(".")[0]
    if find_spec(package) is None:
        fix = 'pip install "visionattn[medical]"'
        raise UserError("VA-R007", f"volumes need the package {package}, which is not installed", fix=fix)
    return import_module(name)


def require_libraries() -> None:
    """Check that the whole extra is there, without importing it.

    Raises:
        UserError: VA-R007.
    """
    for name in LIBRARIES:
        if find_spec(name) is None:
            library(name)

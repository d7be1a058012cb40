"""Run the files of tools/ in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

TOOLS = Path(__file__).parents[1] / "tools"
NAMES = sorted(path.stem for path in TOOLS.glob("*.py"))


@contextmanager
def tool(name: str, *arguments: str) -> Iterator[Any]:
    """A module of tools/, with the arguments of its command."""
    with patch.object(sys, "path", [str(TOOLS), *sys.path]), patch.object(sys, "argv", [f"{name}.py", *arguments]):
        try:
            yield importlib.import_module(name)
        finally:
            for imported in NAMES:
                sys.modules.pop(imported, None)

"""Every file of tools/ can be imported, and every command there explains itself."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
NAMES = sorted(path.stem for path in TOOLS.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(TOOLS)  # as for a script, so that tools import each other
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    try:
        tool = importlib.import_module(name)
        if hasattr(tool, "main") and hasattr(tool, "argparse"):
            with pytest.raises(SystemExit) as ended:
                tool.main()
            assert not ended.value.code and capsys.readouterr().out.startswith(f"usage: {name}.py")
    finally:
        for imported in NAMES:
            sys.modules.pop(imported, None)

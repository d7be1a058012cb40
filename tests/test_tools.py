"""Every file of tools/ can be imported, and every command there explains itself."""

from __future__ import annotations

import pytest

from tests.tools import NAMES, tool


@pytest.mark.parametrize("name", NAMES)
def test_it_starts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with tool(name, "--help") as module:
        if hasattr(module, "main") and hasattr(module, "argparse"):
            with pytest.raises(SystemExit) as ended:
                module.main()
            assert not ended.value.code and capsys.readouterr().out.startswith(f"usage: {name}.py")

"""Config files to read, and the error of reading one."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionattn.errors import UserError
from visionattn.tasks import load_config


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(code: str, source: str | Path | None, *overrides: str) -> UserError:
    """The error of loading; config errors exit with 2."""
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    assert (caught.value.code, caught.value.exit_code) == (code, 2), caught.value.block()
    return caught.value

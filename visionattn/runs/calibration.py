"""Settings of evaluation that were fitted on the validation split of a run: `calibration.json`, which belongs to certain weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visionattn.config.schema import RunConfig
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.names import shown, typed
from visionattn.tasks import saved_config

_FILE = "calibration.json"
_SHOWN = 4  # thresholds in a line


@dataclass(frozen=True)
class Calibration:
    """What was fitted.

    Attributes:
        weights: sha256 of the weights that it belongs to.
        count: validation samples it was fitted on.
        eval: settings of the section `eval`.
        before: metrics of the validation split without it.
    """

    weights: str
    count: int
    eval: dict[str, Any]
    before: dict[str, float | None]

    def text(self) -> str:
        """The settings in one line."""
        parts = []
        for key, value in self.eval.items():
            if isinstance(value, dict):
                first = [f"{name}: {number:.3g}" for name, number in list(value.items())[:_SHOWN]]
                parts.append(f"eval.{key}={{{', '.join(first)}{', ...' * (len(value) > _SHOWN)}}}")
            else:
                parts.append(f"eval.{key}={value:.4g}")
        return shown(", ".join(parts))


def write_calibration(run: Path, calibration: Calibration) -> None:
    """Write the file."""
    atomic_write(run / _FILE, json.dumps(asdict(calibration), indent=1))  # in ASCII, so that every name comes back as it was


def read_calibration(run: Path) -> Calibration | None:
    """The calibration of a run, of whichever weights; None if there is none.

    Raises:
        UserError: VA-W005, a damaged file.
    """
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(**content)
        if not (isinstance(found.weights, str) and isinstance(found.count, int) and isinstance(found.eval, dict)):
            raise TypeError("weights, count or eval is of another type")
        found.text()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(run, str(error)) from error
    return found


def with_calibration(config: RunConfig, run: Path, calibration: Calibration) -> RunConfig:
    """The config with the settings that were fitted.

    Raises:
        UserError: VA-W005, settings that the task does not have.
    """
    values = config.model_dump(mode="json")
    try:
        return saved_config({**values, "eval": {**values["eval"], **calibration.eval}})
    except UserError as error:
        raise _damaged(run, error.what) from error


def _damaged(run: Path, why: str) -> UserError:
    fix = f"remove it, or fit it anew: visionattn eval {typed(run)} --calibrate"
    return UserError("VA-W005", f"{_FILE} of the run is damaged", where=str(run / _FILE), why=why, fix=fix)

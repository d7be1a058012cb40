"""Names of splits, in settings, folders and files; needs neither numpy nor torch."""

from __future__ import annotations

from visionattn.config.schema import DataConfig
from visionattn.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")
# Names of a validation split if data.val has its default.
_VAL_NAMES = ("val", "valid", "validation")
# Splits by the names that programs give their folders.
KNOWN_NAMES = {"train": "train", "training": "train", **dict.fromkeys(_VAL_NAMES, "val"), "test": "test", "testing": "test"}


def split_names(settings: DataConfig) -> dict[str, tuple[str, ...]]:
    """The names that each split may have by the settings."""
    return {"train": (settings.train,), "val": _VAL_NAMES if settings.val == "val" else (settings.val,), "test": (settings.test,)}


def require_split(name: str) -> None:
    """Check the name of a split that a user gave.

    Raises:
        UserError: VA-D002.
    """
    if name not in SPLITS:
        raise UserError("VA-D002", f'no split "{name}"', why=f"found: {', '.join(SPLITS)}", fix=did_you_mean(name, SPLITS))

"""Checkpoints of a run: `checkpoints/last`, `prev` and `best`, each a folder that is complete or absent.

A folder holds `model.safetensors`, `ema.safetensors` (with a moving average), `state.pt` (optimizer,
random generators, position) and `meta.json`, written last, with the sha256 of the others and all
that evaluation needs: the config and the meaning of the outputs. A folder laid out as on the Hugging Face hub, which
`visionattn push` writes, holds the same as a section of its `config.json`.

Only the holder of the run's lock writes here, and only it removes leftovers (`recover_checkpoints`). Readers may look at any
time: what they read may be renamed meanwhile, so they read again if it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from visionattn.errors import UserError
from visionattn.files import atomic_folder, require_space, sha256_of, sweep_temporary, sync_folder
from visionattn.models.weights.hub import CONFIG, RUN, is_run_folder, read_json
from visionattn.models.weights.load import read_file
from visionattn.names import typed

State = dict[str, torch.Tensor]
T = TypeVar("T")

WEIGHTS = ("model.safetensors", "ema.safetensors")
PARTS = (*WEIGHTS, "state.pt")
# Newest first: a kill between the last renames of a save leaves `next` and `prev`.
_ORDER = ("next", "last", "prev")


def save_checkpoint(folder: Path, *, model: State, ema: State | None, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write `folder/last`; the former `last` becomes `prev`.

    Raises:
        UserError: VA-R004, the disk is full; the checkpoints there before are intact.
        OSError: another reason not to write, or an error of torch or safetensors with such a cause.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.values())
    require_space(folder, (5 if ema else 4) * size + 2**20)  # weights, two moments of the optimizer, reserve
    with atomic_folder(folder / "next") as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}, temporary / "model.safetensors")
        if ema is not None:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in ema.items()}, temporary / "ema.safetensors")
        with (temporary / "state.pt").open("wb") as file:  # given a path, torch would hide the system's error
            torch.save(state, file)
        hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        (temporary / "meta.json").write_text(json.dumps({**meta, "sha256": hashes}, indent=1), encoding="utf-8")
    _shift(folder)


def _shift(folder: Path) -> None:
    """Make `next` the last checkpoint, and the last one the previous."""
    last, prev = folder / "last", folder / "prev"
    if last.exists():
        shutil.rmtree(prev, ignore_errors=True)
        last.rename(prev)
    (folder / "next").rename(last)
    sync_folder(folder)


def keep_best(checkpoint: Path) -> None:
    """Make the run's `best` what this checkpoint is; the files are shared, not copied, where the disk can."""
    with atomic_folder(checkpoint.with_name("best")) as temporary:
        for path in checkpoint.iterdir():
            try:
                os.link(path, temporary / path.name)
            except OSError:
                shutil.copy2(path, temporary / path.name)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; nothing is changed."""
    return next((folder / name for name in _ORDER if (folder / name).is_dir() and damage(folder / name) is None), None)


def recover_checkpoints(folder: Path, warn: Callable[[str], object]) -> Path | None:
    """The checkpoint to resume from, for the holder of the run's lock: what a kill left is removed, what is damaged is kept aside.

    Args:
        warn: takes a line for each damaged checkpoint.

    Returns:
        `last`, or `prev` if `last` is damaged; None if no checkpoint was ever saved.

    Raises:
        UserError: VA-W005, all are damaged; they are left where they are.
    """
    sweep_temporary(folder)
    there = [name for name in _ORDER if (folder / name).is_dir()]
    reasons = {}
    for name in there:
        reason = damage(folder / name)
        if reason is None:
            break
        reasons[name] = reason
    else:
        if not there and not (folder / "best").is_dir():
            return None
        raise _all_damaged(folder, reasons)
    for damaged, reason in reasons.items():
        aside = folder / f"damaged-{damaged}-{time.strftime('%Y%m%d-%H%M%S')}"
        (folder / damaged).rename(aside)
        warn(f"VA-W005 checkpoints/{damaged} is damaged ({reason}): kept as {aside.name}, going on from {name}")
    if name == "next":  # the kill came before the last rename
        _shift(folder)
        return folder / "last"
    return folder / name


def missing_checkpoint(folder: Path) -> UserError:
    """Why there is none to read: VA-W005, all are damaged; VA-W006, none was saved yet."""
    reasons = {name: reason for name in _ORDER if (folder / name).is_dir() and (reason := damage(folder / name)) is not None}
    if reasons:
        return _all_damaged(folder, reasons)
    fix = f"visionattn train --resume {typed(folder.parent)}"
    return UserError("VA-W006", "the run has no checkpoint yet", where=str(folder), fix=fix)


def _all_damaged(folder: Path, reasons: dict[str, str]) -> UserError:
    what = "every checkpoint of the run is damaged" if reasons else "the checkpoints of the run are gone"
    why = "\n".join(f"{name}: {reason}" for name, reason in reasons.items())
    best = folder / "best"
    fix = "restore a copy of them, or start a new run"
    if best.is_dir() and damage(best) is None:
        fix = (
            f"the best one is whole: use it (visionattn eval {typed(best)}), or start a new run from it ({typed(f'model.weights={best}')})"
        )
    return UserError("VA-W005", what, where=str(folder), why=why, fix=fix)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        for name, digest in read_meta(checkpoint)["sha256"].items():
            _verify(checkpoint / name, digest)
    except UserError as error:
        return f"{error.what}: {error.why}" if error.why else error.what
    return None


def read_while_written(checkpoint: Path, read: Callable[[], T]) -> T:
    """Read a checkpoint of a run that may be training; again, if another one took its place meanwhile.

    Raises:
        UserError: what `read` raises for a checkpoint that stays as it is.
    """
    while True:
        before = _stamp(checkpoint)
        try:
            return read()
        except (UserError, OSError):
            time.sleep(0.1)  # between two renames of a save
            if _stamp(checkpoint) == before:
                raise


def _stamp(checkpoint: Path) -> tuple[int, int] | None:
    try:
        status = (checkpoint / "meta.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """The `meta.json` of a checkpoint folder, or the section for it in the `config.json` of a model of the hub.

    Raises:
        UserError: VA-W005, not readable; VA-W006, no checkpoint there.
    """
    path = checkpoint / "meta.json"
    if not path.is_file() and is_run_folder(checkpoint):
        path = checkpoint / CONFIG
        return _checked_meta(read_json(path)[RUN], path)
    if not path.is_file():
        raise UserError(
            "VA-W006", f'"{checkpoint}" is not a checkpoint: it has no meta.json', fix="give a run folder or one of its checkpoints"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError("VA-W005", "meta.json of the checkpoint is damaged", where=str(path), why=str(error)) from error
    return _checked_meta(meta, path)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is the folder of a checkpoint, in a run or laid out as on the hub."""
    return (path / "meta.json").is_file() or is_run_folder(path)


def _checked_meta(meta: Any, path: Path) -> dict[str, Any]:
    hashes = meta.get("sha256") if isinstance(meta, dict) else None
    # The names are paths below the checkpoint, so only known ones are taken.
    if not isinstance(hashes, dict) or "model.safetensors" not in hashes or not hashes.keys() <= set(PARTS):
        raise UserError(
            "VA-W005", f"{path.name} of the checkpoint is damaged", where=str(path), why="it does not list the checkpoint's files"
        )
    if not isinstance(meta.get("step"), int):
        raise UserError("VA-W005", f"{path.name} of the checkpoint is damaged", where=str(path), why="it does not say which step it is of")
    return dict(meta)


def read_weights(checkpoint: Path, name: str | None = None) -> State:
    """The weights to evaluate: the named file, or the moving average if there is one; its hash is verified.

    Raises:
        UserError: VA-W005, VA-W006.
    """
    hashes = read_meta(checkpoint)["sha256"]
    name = name or weights_name(hashes)
    if name not in hashes or name not in WEIGHTS:
        known = ", ".join(known for known in WEIGHTS if known in hashes)
        raise UserError("VA-W006", f'"{name}" is not a weights file of the checkpoint', where=str(checkpoint), fix=f"one of {known}")
    _verify(checkpoint / name, hashes[name])
    return dict(read_file(checkpoint / name))


def weights_name(hashes: Collection[str]) -> str:
    """The file of the weights to evaluate, among those of a checkpoint."""
    return "ema.safetensors" if "ema.safetensors" in hashes else "model.safetensors"


def load_weights(model: nn.Module, checkpoint: Path, name: str | None = None) -> None:
    """Load the weights to evaluate (see `read_weights`) into the model of the checkpoint's config; every tensor has to fit.

    Raises:
        UserError: VA-W003, the model differs from the one that was saved; VA-W005, VA-W006.
    """
    try:
        model.load_state_dict(read_weights(checkpoint, name))
    except RuntimeError as error:
        raise UserError(
            "VA-W003",
            "the weights of the checkpoint do not fit the model of its config",
            where=str(checkpoint),
            why="\n".join(line.strip() for line in str(error).splitlines()[:4]),
            fix="the code of the model changed since they were saved: use the version in env.txt of the run",
        ) from error


def read_checkpoint(checkpoint: Path) -> tuple[State, State | None, dict[str, Any]]:
    """Model, moving average and training state; hashes are verified.

    Raises:
        UserError: VA-W005, VA-W006.
    """
    hashes = read_meta(checkpoint)["sha256"]
    for name, digest in hashes.items():
        _verify(checkpoint / name, digest)
    model, ema = (dict(read_file(checkpoint / name)) if name in hashes else None for name in WEIGHTS)
    assert model is not None  # `read_meta` requires it
    return model, ema, dict(read_file(checkpoint / "state.pt"))


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise UserError("VA-W006", f'"{path}" is missing from the checkpoint')
    found = sha256_of(path)
    if found != digest:
        raise UserError(
            "VA-W005",
            f"{path.name} of the checkpoint was changed or damaged",
            where=str(path),
            why=f"sha256 {found[:16]}, expected {digest[:16]}",
        )

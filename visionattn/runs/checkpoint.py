"""Checkpoints of a run: `checkpoints/last`, `prev` and `best`, each a folder that is complete or absent.

A folder holds `model.safetensors`, `ema.safetensors` (with a moving average), `state.pt` (optimizer,
random generators, position) and `meta.json`, written last, with the sha256 of the others and all
that evaluation needs: the config and the meaning of the outputs.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from visionattn.errors import UserError
from visionattn.files import atomic_folder, disk_full, require_space, sha256_of, sweep_temporary

State = dict[str, torch.Tensor]


def save_checkpoint(folder: Path, *, model: State, ema: State | None, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write `folder/last`; the former `last` becomes `prev`.

    Raises:
        UserError: VA-R004, the disk is full; the checkpoints there before are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.values())
    require_space(folder, (5 if ema else 4) * size + 2**20)  # weights, two moments of the optimizer, reserve
    last, prev = folder / "last", folder / "prev"
    try:
        with atomic_folder(folder / "next") as temporary:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}, temporary / "model.safetensors")
            if ema is not None:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in ema.items()}, temporary / "ema.safetensors")
            torch.save(state, temporary / "state.pt")
            hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
            (temporary / "meta.json").write_text(json.dumps({**meta, "sha256": hashes}, indent=1), encoding="utf-8")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(folder, str(error)) from error
        raise
    # A kill between the renames leaves `next` and `prev`: latest_checkpoint knows both.
    if last.exists():
        shutil.rmtree(prev, ignore_errors=True)
        last.rename(prev)
    (folder / "next").rename(last)


def keep_best(folder: Path) -> None:
    """Make `best` what `last` is now; the files are shared, not copied, where the disk can."""
    with atomic_folder(folder / "best") as temporary:
        for path in (folder / "last").iterdir():
            try:
                os.link(path, temporary / path.name)
            except OSError:
                shutil.copy2(path, temporary / path.name)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; leftovers of a killed save are removed."""
    sweep_temporary(folder)
    for name in ("next", "last", "prev"):
        path = folder / name
        if path.is_dir() and _whole(path):
            if name == "next":  # the kill came before the last rename
                last = folder / "last"
                if last.exists():
                    shutil.rmtree(folder / "prev", ignore_errors=True)
                    last.rename(folder / "prev")
                return path.rename(last)
            return path
    return None


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """The `meta.json` of a checkpoint folder.

    Raises:
        UserError: VA-W005, not readable; VA-W006, no checkpoint there.
    """
    path = checkpoint / "meta.json"
    if not path.is_file():
        raise UserError(
            "VA-W006", f'"{checkpoint}" is not a checkpoint: it has no meta.json', fix="give a run folder or one of its checkpoints"
        )
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("VA-W005", "meta.json of the checkpoint is damaged", where=str(path), why=str(error)) from error
    return meta


def read_weights(checkpoint: Path, name: str | None = None) -> State:
    """The weights to evaluate: the named file, or the moving average if there is one; its hash is verified.

    Raises:
        UserError: VA-W005, VA-W006.
    """
    hashes = read_meta(checkpoint)["sha256"]
    name = name or ("ema.safetensors" if "ema.safetensors" in hashes else "model.safetensors")
    if name not in hashes:
        raise UserError(
            "VA-W006", f'"{name}" is not a weights file of the checkpoint', where=str(checkpoint), fix=f"one of {', '.join(hashes)}"
        )
    _verify(checkpoint / name, hashes[name])
    return load_file(checkpoint / name)


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
    ema = load_file(checkpoint / "ema.safetensors") if "ema.safetensors" in hashes else None
    state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    return load_file(checkpoint / "model.safetensors"), ema, state


def _whole(checkpoint: Path) -> bool:
    try:
        hashes = read_meta(checkpoint)["sha256"]
        return all((checkpoint / name).is_file() and sha256_of(checkpoint / name) == digest for name, digest in hashes.items())
    except UserError:
        return False


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

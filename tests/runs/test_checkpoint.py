"""Checkpoints: complete or absent, whatever interrupts a save."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.commands import tree
from visionattn.errors import UserError
from visionattn.files import sha256_of
from visionattn.runs.checkpoint import (
    keep_best,
    latest_checkpoint,
    load_weights,
    read_checkpoint,
    read_meta,
    read_weights,
    read_while_written,
    recover_checkpoints,
    save_checkpoint,
)


def checkpoint_parts(value: float) -> dict[str, Any]:
    model = {"weight": torch.full((200, 200), value)}
    return {"model": model, "ema": None, "state": {"step": int(value)}, "meta": {"step": int(value), "classes": [], "config": {}}}


def damage(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")


def refused(code: str, read: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        read()
    assert caught.value.code == code
    return caught.value


def test_checkpoints_rotate_and_damage_is_found(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, **checkpoint_parts(value))
    assert latest_checkpoint(tmp_path) == tmp_path / "last"
    assert read_checkpoint(tmp_path / "prev")[2]["step"] == 1
    damage(tmp_path / "last")
    refused("VA-W005", lambda: read_checkpoint(tmp_path / "last"))
    assert latest_checkpoint(tmp_path) == tmp_path / "prev"  # the one before is whole


def test_a_damaged_checkpoint_is_said_and_kept_aside(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, **checkpoint_parts(value))
    damage(tmp_path / "last")
    said: list[str] = []
    assert recover_checkpoints(tmp_path, said.append) == tmp_path / "prev"
    (aside,) = tmp_path.glob("damaged-last-*")
    assert len(said) == 1 and "checkpoints/last is damaged (model.safetensors" in said[0] and aside.name in said[0]
    save_checkpoint(tmp_path, **checkpoint_parts(3.0))
    assert [read_meta(tmp_path / name)["step"] for name in ("last", "prev")] == [3, 1] and aside.is_dir()


@pytest.mark.parametrize("best", [True, False])
def test_if_all_are_damaged_nothing_is_touched_and_the_best_one_is_named(tmp_path: Path, best: bool) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, **checkpoint_parts(value))
    if best:
        shutil.copytree(tmp_path / "last", tmp_path / "best")
    damage(tmp_path / "last")
    (tmp_path / "prev" / "state.pt").unlink()
    before = tree(tmp_path)
    error = refused("VA-W005", lambda: recover_checkpoints(tmp_path, print))
    assert error.what == "every checkpoint of the run is damaged" and "last: model.safetensors" in error.why and "prev: " in error.why
    assert (f"visionattn eval {tmp_path / 'best'}" in error.fix) == best and tree(tmp_path) == before
    for name in ("last", "prev"):
        shutil.rmtree(tmp_path / name)
    if best:  # it was saved once, so the run never starts over by itself
        assert refused("VA-W005", lambda: recover_checkpoints(tmp_path, print)).what == "the checkpoints of the run are gone"
    else:
        assert recover_checkpoints(tmp_path, print) is None


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        '{"sha256": []}',
        '{"sha256": {"model.safetensors": "0", "../../x": "0"}, "step": 1}',
        '{"sha256": {"model.safetensors": "0"}, "step": "one"}',
        "[" * 100_000,
    ],
)
def test_a_meta_file_of_anything_else(tmp_path: Path, text: str) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, **checkpoint_parts(value))
    (tmp_path / "last" / "meta.json").write_text(text)
    refused("VA-W005", lambda: read_meta(tmp_path / "last"))
    assert latest_checkpoint(tmp_path) == tmp_path / "prev"


def test_files_that_this_program_did_not_write(tmp_path: Path) -> None:
    """Their hashes are right, because whoever wrote them wrote the meta file too."""
    for name in ("state.pt", "model.safetensors"):
        save_checkpoint(tmp_path, **checkpoint_parts(1.0))
        (tmp_path / "last" / name).write_bytes(b"something else")
        meta = json.loads((tmp_path / "last" / "meta.json").read_text())
        meta["sha256"][name] = sha256_of(tmp_path / "last" / name)
        (tmp_path / "last" / "meta.json").write_text(json.dumps(meta))
        assert name in refused("VA-W005", lambda: read_checkpoint(tmp_path / "last")).what
    refused("VA-W006", lambda: read_weights(tmp_path / "last", "state.pt"))


def test_readers_write_nothing_and_follow_a_run_that_saves(tmp_path: Path) -> None:
    """What a reader has found is renamed under its feet: it reads the one that took its place."""
    save_checkpoint(tmp_path, **checkpoint_parts(1.0))
    (tmp_path / ".tmp-of-the-writer").mkdir()
    before = tree(tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / "last" and tree(tmp_path) == before
    tries: list[int] = []

    def read() -> Any:
        meta = read_meta(tmp_path / "last")
        tries.append(meta["step"])
        if len(tries) < 3:
            save_checkpoint(tmp_path, **checkpoint_parts(meta["step"] + 1.0))
        if meta["step"] != read_meta(tmp_path / "last")["step"]:
            raise UserError("VA-W005", "parts of two moments")
        return read_weights(tmp_path / "last")

    assert (read_while_written(tmp_path / "last", read)["weight"] == 3).all() and tries == [1, 2, 3]
    refused("VA-W006", lambda: read_while_written(tmp_path / "none", lambda: read_meta(tmp_path / "none")))


def test_a_folder_that_two_processes_write_is_whole(tmp_path: Path) -> None:
    """Two evaluations of a run write the same folder."""
    save_checkpoint(tmp_path, **checkpoint_parts(1.0))

    def write(_: int) -> None:
        for _ in range(20):
            keep_best(tmp_path / "last")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert read_meta(tmp_path / "best")["step"] == 1 and not list(tmp_path.glob(".tmp-*"))


def save_for_ever(folder: Path, saved: Connection) -> None:
    for value in count(1):
        model = {str(index): torch.full((400, 400), float(value)) for index in range(8)}
        save_checkpoint(folder, model=model, ema=None, state={"step": value}, meta={"step": value})
        saved.send_bytes(str(value).encode())


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    generator = random.Random(0)
    fork = multiprocessing.get_context("fork")  # torch is imported
    for _ in range(3):
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=save_for_ever, args=(tmp_path, theirs))
        process.start()
        theirs.close()
        known = int(ours.recv_bytes())
        time.sleep(generator.uniform(0, 0.25))
        process.kill()
        with suppress(EOFError):
            while True:
                known = int(ours.recv_bytes())
        process.join()
        found = recover_checkpoints(tmp_path, print)
        assert found is not None
        model, _, state = read_checkpoint(found)
        assert all((tensor == state["step"]).all() for tensor in model.values())  # parts of one moment
        assert state["step"] >= known
        assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_that_was_moved_away_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_checkpoint(tmp_path / "run" / "checkpoints", **checkpoint_parts(1.0))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "run" / "checkpoints", **checkpoint_parts(2.0))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, **checkpoint_parts(1.0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(UserError) as caught:
        save_checkpoint(tmp_path, **checkpoint_parts(2.0))
    assert (caught.value.code, caught.value.exit_code) == ("VA-R004", 7)
    assert read_checkpoint(tmp_path / "last")[2]["step"] == 1
    assert not list(tmp_path.glob(".tmp-*"))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, **checkpoint_parts(3.0))
    model = nn.Linear(200, 200, bias=False)
    load_weights(model, tmp_path / "last")
    assert (model.weight == 3).all()
    for other, text in ((nn.Linear(200, 100, bias=False), "size mismatch"), (nn.Linear(200, 200), "bias")):
        with pytest.raises(UserError) as caught:
            load_weights(other, tmp_path / "last")
        assert caught.value.code == "VA-W003" and text in caught.value.why

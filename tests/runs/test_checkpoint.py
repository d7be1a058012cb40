"""Checkpoints: complete or absent, whatever interrupts a save."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from visionattn.errors import UserError
from visionattn.runs.checkpoint import latest_checkpoint, load_weights, read_checkpoint, save_checkpoint


def checkpoint_parts(value: float) -> dict[str, Any]:
    model = {"weight": torch.full((200, 200), value)}
    return {"model": model, "ema": None, "state": {"step": int(value)}, "meta": {"step": int(value), "classes": [], "config": {}}}


def test_checkpoints_rotate_and_damage_is_found(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, **checkpoint_parts(value))
    assert latest_checkpoint(tmp_path) == tmp_path / "last"
    assert read_checkpoint(tmp_path / "prev")[2]["step"] == 1
    with (tmp_path / "last" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "last")
    assert caught.value.code == "VA-W005"
    assert latest_checkpoint(tmp_path) == tmp_path / "prev"  # the one before is whole


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom visionattn.runs.checkpoint import save_checkpoint\n"
        "value = 0\nwhile True:\n    value += 1\n"
        "    model = {str(i): torch.full((400, 400), float(value)) for i in range(8)}\n"
        "    save_checkpoint(Path(sys.argv[1]), model=model, ema=None, state={'step': value}, meta={'step': value})\n"
        "    print(value, flush=True)\n"
    )
    generator = random.Random(0)
    known = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(generator.uniform(0, 0.25))
        process.kill()
        known = max([1, *(int(line) for line in process.communicate()[0].split())])
        found = latest_checkpoint(tmp_path)
        assert found is not None
        model, _, state = read_checkpoint(found)
        assert all((tensor == state["step"]).all() for tensor in model.values())  # parts of one moment
        assert state["step"] >= known
        assert not list(tmp_path.glob(".tmp-*"))


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

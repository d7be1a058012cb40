"""Two processes train one model; every image of an evaluation counts once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import visionattn as va
from visionattn.console import Console


@pytest.mark.slow
def test_two_processes_write_one_run_and_count_each_image_once(flowers: Path) -> None:
    (flowers / "val" / "rose" / "3.png").unlink()  # 11 images: one process has one more
    settings = [
        "model.name=eca_resnet18",
        "model.args={width: 8}",
        "model.img_size=32",
        "train.batch_size=3",
        "train.epochs=2",
        "data.workers=0",
        "schedule.warmup_epochs=0",
        f"data.root={flowers}",
        f"output.dir={flowers.parent / 'runs'}",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "visionattn",
        "train",
        *settings,
    ]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    (run,) = (flowers.parent / "runs").glob("*/*")
    # The gloo backend now and then aborts after all work is done; the files tell whether it was.
    state = json.loads((run / "run.json").read_text())
    assert state["state"] == "done", done.stdout + done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [4, 8]  # 24 images, 2 processes of batch 3
    alone = va.evaluate(run, console=Console(quiet=True))
    assert alone.count == 11
    best = next(line for line in lines if line["kind"] == "epoch" and line["epoch"] == state["best"]["epoch"])
    assert best["val_top1"] == alone.metrics["top1"]
    assert best["val_loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)

"""Two processes train one model: each sample counts once, and what one process meets leads to one decision on both.

Every launch is a process group of its own that is killed after a time limit: a rank that waits for ever fails its test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import visionattn as va
from tests.faults.harness import Server, free_port, start_pair
from visionattn.config.schema import TrainConfig
from visionattn.console import Console
from visionattn.engine.devices import open_accelerator
from visionattn.errors import UserError
from visionattn.runs.checkpoint import read_checkpoint

LIMIT = 150  # seconds

# A plug-in that makes the second process misbehave at its third step; `how` is the body of the function.
SABOTAGE = """
import os, signal, time
import torch
from visionattn.tasks.classification.objective import ClassificationObjective

true_loss, calls = ClassificationObjective.loss, []

def loss(self, outputs, batch):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        {how}
    return true_loss(self, outputs, batch)

ClassificationObjective.loss = loss
"""


@dataclass(frozen=True)
class Launched:
    """Output and run folder of a launch with two processes."""

    code: int
    output: str
    run: Path

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.run / "run.json").read_text())

    def epochs(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == "epoch"]


TINY = ("model.img_size=32", "train.batch_size=3", "train.epochs=2", "data.workers=0", "log.to=[]", "output.name=two")
SMALL = "model={name: eca_resnet18, args: {width: 8}}"


def two(server: Server, folder: Path, *settings: str, how: str = "", resume: Path | None = None) -> Launched:
    """Train or resume with two processes in `folder`, started as launchers do."""
    settings = (*((*TINY, f"data.root={folder / 'flowers'}") if resume is None else ("--resume", str(resume))), *settings)
    if how:
        (folder / "sabotage.py").write_text(SABOTAGE.format(how=how))
        settings = (*settings, "plugins=[sabotage.py]")
    commands = start_pair(server, ["train", *settings], folder)
    codes = [command.code or 0 for command in commands]
    output = "".join(command.text for command in commands)
    return Launched(max(codes, key=abs), output, folder / "runs" / "two" / "001")


def launch(folder: Path, *settings: str) -> Launched:
    """Train with two processes in `folder`, started on two nodes by accelerate, which starts them by torchrun."""
    address = ["--main_process_ip=127.0.0.1", f"--main_process_port={free_port()}"]
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines=2",
        "--num_processes=2",
        *address,
        "--mixed_precision=no",
    ]
    arguments = ["-m", "visionattn", "train", *TINY, SMALL, f"data.root={folder / 'flowers'}", *settings]
    started = [
        subprocess.Popen(
            [sys.executable, *launcher, f"--machine_rank={rank}", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        output = "".join(process.communicate(timeout=LIMIT)[0] for process in started)
    except subprocess.TimeoutExpired:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
        output = "".join(process.communicate()[0] for process in started)
        pytest.fail(f"a process still waits after {LIMIT} s:\n{output}")
    return Launched(max(process.returncode for process in started), output, folder / "runs" / "two" / "001")


@pytest.mark.slow
def test_two_processes_write_one_run_and_count_each_image_once(flowers: Path) -> None:
    """Two launchers stand in for two nodes; one process resumes the run afterwards."""
    (flowers / "val" / "rose" / "3.png").unlink()  # 11 images: one process has one more
    done = launch(flowers.parent)
    # The gloo backend now and then aborts after all work is done; the files tell whether it was.
    assert done.state["state"] == "done", done.output
    assert [line["step"] for line in done.epochs()] == [4, 8]  # 24 images, 2 processes of batch 3
    alone = va.evaluate(done.run, console=Console(quiet=True))
    assert alone.count == 11
    best = next(line for line in done.epochs() if line["epoch"] == done.state["best"]["epoch"])
    assert best["val_top1"] == alone.metrics["top1"]
    assert best["val_loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)

    config = va.load_config(done.run / "config.yaml", ["train.epochs=3"])
    with pytest.raises(UserError) as caught:
        va.train(config, resume=done.run, console=Console(quiet=True))
    assert caught.value.code == "VA-C010" and caught.value.fix == "train.batch_size=6"
    va.train(
        va.load_config(done.run / "config.yaml", ["train.epochs=3", "train.batch_size=6"]), resume=done.run, console=Console(quiet=True)
    )
    assert [line["step"] for line in done.epochs()] == [4, 8, 12]
    assert "2 -> 1 processes: order and learning rate go on" in (done.run / "log.txt").read_text()


@pytest.mark.slow
def test_shared_out_weights_are_those_of_one_process(server: Server, flowers: Path) -> None:
    """Without batch statistics two processes compute what one does with their batches together, also after they resume."""
    small = "model.args={patch_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [1, 2], window_size: 4}"
    chosen = ["model.name=swin_tiny", small, "train.precision=fp32", "schedule.name=constant", "optim.name=adamw"]
    first = two(server, flowers.parent, *chosen, "train.shard=true", "train.epochs=1")
    assert first.state["state"] == "done", first.output
    again = two(server, flowers.parent, "train.epochs=2", resume=first.run)
    assert again.state["state"] == "done" and len(first.epochs()) == 2, again.output
    tiny = ["train.epochs=2", "train.batch_size=6", "model.img_size=32", "data.workers=0", "log.to=[]"]
    config = va.load_config(None, [*chosen, *tiny, f"data.root={flowers}", f"output.dir={flowers.parent / 'one'}"])
    one = va.train(config, console=Console(quiet=True))
    assert one is not None
    state, whole = (read_checkpoint(run / "checkpoints" / "last") for run in (first.run, one.run))
    assert state[0].keys() == whole[0].keys() and all(torch.allclose(state[0][name], whole[0][name], atol=1e-5) for name in whole[0])
    moments = [[values["exp_avg"].shape for values in part[2]["optimizer"]["state"].values()] for part in (state, whole)]
    assert moments[0] == moments[1]
    last = va.evaluate(first.run / "checkpoints" / "last", console=Console(quiet=True))
    assert first.epochs()[1]["val_loss"] == pytest.approx(last.metrics["loss"])


@pytest.mark.slow
def test_time_that_is_over_ends_both_after_the_same_step(server: Server, flowers: Path) -> None:
    """With options that the processes have to agree on: who sees which of the balanced classes, what is frozen, and what fits."""
    options = ("data.sampler=balanced", "train.freeze=[stem, stages.0]", "optim.name=lamb", "train.batch_size=auto", "optim.lr_batch=8")
    first = two(server, flowers.parent, SMALL, *options, "train.epochs=5000", "train.max_time=1s", "train.patience=5000")
    assert first.state["state"] == "done", first.output
    saved = json.loads((first.run / "checkpoints/last/meta.json").read_text())
    assert "train.max_time=1s: 0:0" in first.output and saved["step"] < 15000 and saved["samples_per_step"] == 8
    assert first.epochs()[-1]["step"] == saved["step"] and first.epochs()[-1]["val_count"] == 12


@pytest.mark.slow
def test_a_batch_without_a_readable_image_on_one_process_is_skipped_by_both(server: Server, flowers: Path) -> None:
    (flowers.parent / "breaking.py").write_text(
        "import os\nfrom visionattn.data.readers import UnreadableFile\nfrom visionattn.tasks.images import LabelledImages\n"
        "true_load = LabelledImages.load\n"
        "def load(self, index, seed):\n"
        "    if os.environ['RANK'] == '1' and seed is not None and self.broken < 3:\n"
        "        self.broken += 1\n"
        "        raise UnreadableFile('x', 'gone')\n"
        "    return true_load(self, index, seed)\n"
        "LabelledImages.load, LabelledImages.broken = load, 0\n"
    )
    done = two(server, flowers.parent, SMALL, "plugins=[breaking.py]", "data.on_error=skip")
    assert done.state["state"] == "done", done.output
    assert done.output.count("unreadable, left out") == 3  # told once, by the first process
    steps = [line for line in map(json.loads, (done.run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "step"]
    assert [line["step"] for line in done.epochs()] == [4, 8] and all(line["loss"] >= 0 for line in steps)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_both(server: Server, flowers: Path) -> None:
    done = two(server, flowers.parent, SMALL, "train.epochs=50", how="os.kill(os.getpid(), signal.SIGINT)")
    assert done.state["state"] == "interrupted", done.output
    assert json.loads((done.run / "checkpoints/last/meta.json").read_text())["step"] == 3
    assert f"resume with:  visionattn train --resume {done.run.relative_to(flowers.parent)}" in done.output


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_stops_both(server: Server, flowers: Path) -> None:
    done = two(server, flowers.parent, SMALL, how="return {'loss': true_loss(self, outputs, batch)['loss'] * float('nan')}")
    assert done.state["state"] == "failed" and done.state["reason"] == "VA-R002", done.output
    assert done.output.count("error VA-R002") == 1
    record = json.loads((done.run / "diverged.json").read_text())
    assert record["step"] == 2 and len(record["samples"]) == 3 and "loss is nan" in record["what"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise RuntimeError('out of luck')", "out of luck"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(600)", ""),
    ],
    ids=["error", "killed", "hanging"],
)
def test_an_error_on_one_process_ends_the_other_with_its_reason(server: Server, flowers: Path, how: str, reason: str) -> None:
    started = time.monotonic()
    done = two(server, flowers.parent, SMALL, "train.epochs=50", "train.process_timeout=5", how=how)
    assert done.code != 0 and time.monotonic() - started < LIMIT
    assert done.state["state"] == "failed", done.output
    if reason:
        assert done.state["failure"] == {"rank": 1, "what": f"RuntimeError: {reason}"}
        assert f"error VA-R006: process 1 failed: RuntimeError: {reason}" in done.output
    else:
        assert done.state["reason"] == "VA-R006" and "error VA-R006: another process of the run does not answer" in done.output


@pytest.mark.slow
def test_a_fault_in_the_data_is_reported_once(server: Server, flowers: Path) -> None:
    for path in (flowers / "val").rglob("*.png"):
        path.write_bytes(b"")
    done = two(server, flowers.parent, SMALL)
    assert done.code != 0 and done.output.count("error VA-D010") == 1 and not done.run.exists()


def test_accelerate_on_the_cpu_says_that_it_starts_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu` sets this variable for its one process and tells it of no others."""

    class Launcher:
        def cmdline(self) -> list[str]:
            return ["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "visionattn", "train"]

    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr("visionattn.engine.devices.psutil.Process.parent", lambda process: Launcher())
    with pytest.raises(UserError) as caught, open_accelerator(TrainConfig()):
        pass
    assert caught.value.code == "VA-R006" and "2 processes were asked for, but accelerate launch starts only one" in caught.value.what
    assert "torchrun --nproc_per_node 2 -m visionattn" in caught.value.fix

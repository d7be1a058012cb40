"""`--processes` and `--devices`: processes are started, signalled and ended, and their exit codes are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, refused
from tests.faults.harness import Server, steps
from visionattn.cli import launch
from visionattn.cli.launch import Launch, plan_launch, run_processes
from visionattn.config.schema import TrainConfig
from visionattn.errors import UserError


def started(code: str, count: int = 2) -> int:
    """The exit code of processes that run this code; `rank` is their number."""
    return run_processes(
        [sys.executable, "-c", f"import os, signal, sys, time; rank = int(os.environ.get('RANK', 0)); {code}"], Launch(count)
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(7 if rank == 0 else 1)", 7),  # that of the first process, which prints
        ("sys.exit(5 * rank)", 5),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank else sys.exit(0)", 137),
    ],
)
def test_exit_codes(code: str, expected: int) -> None:
    assert started(code) == expected


def test_the_environment_of_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    names = "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT', 'OMP_NUM_THREADS')"
    assert started(f"open(f'{tmp_path}/{{rank}}', 'w').write(repr([os.environ[name] for name in {names}]))") == 0
    (first, second) = (eval((tmp_path / name).read_text()) for name in "01")
    assert (first[:3], second[:3]) == (["0", "0", "2"], ["1", "1", "2"]) and first[3:] == second[3:] and int(first[4]) >= 1
    assert started("sys.exit('WORLD_SIZE' in os.environ)", 1) == 0  # one process is none of several


def test_what_hangs_after_a_failure_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    began = time.monotonic()
    assert started("signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.exit(6) if rank else time.sleep(60)") == 6
    assert time.monotonic() - began < 20 and "process 1 ended with exit code 6; the others were ended" in capsys.readouterr().err


def test_signals_are_passed_on_and_saving_may_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that has nothing to save ends before the other."""
    code = (
        "import os, pathlib, signal, sys, time; from visionattn.cli import launch; launch.PATIENCE = 0.2\n"
        "child = '''import os, pathlib, signal, sys, time\n"
        "rank = os.environ['RANK']\n"
        "def stop(number, frame):\n"
        "    time.sleep(1.0 if rank == '0' else 0); pathlib.Path('saved' + rank).write_text(str(number)); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGUSR1, stop)\n"
        "pathlib.Path('up' + rank).touch(); time.sleep(60)'''\n"
        "sys.exit(launch.run_processes([sys.executable, '-c', child], launch.Launch(2), save_signal='SIGUSR1'))\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        place = tmp_path / number.name
        place.mkdir()
        process = subprocess.Popen([sys.executable, "-c", code], cwd=place)
        while not ((place / "up0").exists() and (place / "up1").exists()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(30) == 130
        assert [(place / f"saved{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2


@pytest.mark.slow
def test_two_processes_train_are_interrupted_and_say_how_to_resume(server: Server, flowers: Path) -> None:
    place = flowers.parent
    more = ["train.epochs=100000", "train.batch_size=3", f"output.dir={place / 'runs'}", "output.name=two"]
    command = server.start(["train", "--data", str(flowers), "--processes", "2", "--device", "cpu", *TINY, *more], place / "out.txt")
    run = place / "runs" / "two" / "001"
    assert command.until(lambda: steps(run) > 0), command.text
    command.signal(signal.SIGINT)
    assert command.wait() == 130, command.text
    state = json.loads((run / "run.json").read_text())
    saved = json.loads((run / "checkpoints/last/meta.json").read_text())
    assert state["state"] == "interrupted" and saved["processes"] == 2 and saved["step"] > 0
    assert f"resume with:  visionattn train --resume {run} --processes 2" in command.text
    assert command.text.count("finishing this step, saving") == 1


def test_launches_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert plan_launch(None, None, TrainConfig()) is None
    assert plan_launch(2, None, TrainConfig()) == Launch(2)
    assert plan_launch(None, "1", TrainConfig()) == Launch(1, {"CUDA_VISIBLE_DEVICES": "1"})
    assert plan_launch(2, "1,0", TrainConfig()) == Launch(2, {"CUDA_VISIBLE_DEVICES": "1,0"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert plan_launch(None, "1", TrainConfig()) == Launch(1, {"CUDA_VISIBLE_DEVICES": "6"})
    assert plan_launch(8, None, TrainConfig(device="cpu")) == Launch(8)
    wrong: list[tuple[int | None, str | None, str, str]] = [
        (3, None, "auto", "--processes 2, or --device cpu"),
        (None, "0,2", "auto", "--devices 0,1"),
        (None, "0,0", "auto", "--devices 0,1"),
        (None, "a", "auto", "--devices 0,1"),
        (3, "0,1", "auto", "leave --processes out"),
        (None, "0,1", "cpu", "--processes 2 instead of --devices"),
        (2, None, "cuda:1", "--device auto"),
        (2, None, "mps", "--device cpu"),
    ]
    for processes, devices, device, fix in wrong:
        with pytest.raises(UserError) as caught:
            plan_launch(processes, devices, TrainConfig(device=device))  # type: ignore[arg-type]
        assert caught.value.code == "VA-C002" and caught.value.fix == fix
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no GPUs"):
        plan_launch(None, "0", TrainConfig())
    monkeypatch.setenv("RANK", "0")
    for option in (["--processes", "2"], ["--devices", "0,1"]):
        text = refused(tmp_path, "VA-C002", 2, "train", "--config", "quickstart", *option)
        assert "within a launch: the processes are started already" in text


def test_a_mistake_starts_no_process(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run_processes", lambda *given, **more: os.abort())
    refused(flowers, "VA-C001", 2, "train", "--data", flowers, "--processes", 2, "optim.lrr=1")
    refused(flowers, "VA-D001", 3, "train", "--data", flowers / "no", "--processes", 2)

"""Kills, signals, full disks and a lack of memory, at random moments: a few here, many in `make soak`."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Server, killed_until_done, left, start_pair, steps
from visionattn.files import counted

Small = dict[str, list[str]]
Record = Callable[[str, object], None]

pytestmark = pytest.mark.slow


def placed(small: Small, task: str, place: Path, *more: str) -> list[str]:
    return [*small[task], f"output.dir={place / 'runs'}", "data.workers=0", "log.to=[]", *more]


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_killed_runs_resume_to_the_same_bits(
    server: Server, small: Small, place: Path, repeated: bool, record_property: Record, task: str
) -> None:
    wanted, chance, kills, runs = 50 if repeated else 2, random.Random(task), 0, 0
    settings = placed(small, task, place, "data.workers=1")
    straight = server.run(["train", *settings, "output.name=straight"], place / "straight.txt")
    assert straight.code == 0, straight.text
    reference = left(place / "runs" / "straight" / "001")
    while kills < wanted:
        run, more = killed_until_done(server, settings, place, f"killed{runs}", chance, wanted - kills)
        found, kills = left(run), kills + more
        assert found.keys() == reference.keys() and all(found[key] == reference[key] for key in found), f"after {kills} kills"
        runs += 1
    record_property("figure", f"{task}: {kills} of {kills} random SIGKILLs in {counted(runs, 'run')}: bit-equal")


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_one_and_two_processes_give_equal_metrics(server: Server, small: Small, place: Path, record_property: Record, task: str) -> None:
    """On a validation set of an odd number, shared out unevenly."""
    settings = placed(small, task, place, "train.epochs=1", "train.ema=null", "train.batch_size=2", "output.name=two")
    root = Path(next(text for text in settings if text.startswith("data.root=")).removeprefix("data.root="))
    shutil.copytree(root, place / "odd")
    for path in (place / "odd").glob("val/*/0.png" if task == "classify" else "*/val/0.png"):
        path.unlink()
    commands = start_pair(server, ["train", *settings, f"data.root={place / 'odd'}"], place)
    assert [command.code for command in commands] == [0, 0], commands[0].text + commands[1].text
    run = place / "runs" / "two" / "001"
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    by_two = {key.removeprefix("val_"): value for key, value in lines[-1].items() if key.startswith("val_")}
    count = by_two.pop("count")
    alone = server.run(["eval", str(run / "checkpoints" / "last"), "--json"], place / "alone.txt")
    assert alone.code == 0, alone.text
    by_one = json.loads(alone.text[alone.text.index("{") : alone.text.rindex("}") + 1])
    assert count == by_one["count"] == 3 and by_two.keys() == by_one["metrics"].keys()
    for name, value in by_one["metrics"].items():
        assert by_two[name] == (value if name != "loss" else pytest.approx(value, rel=1e-4)), name
    record_property("figure", f"{task}: 1 and 2 processes give equal metrics")


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGTERM to the group", "SIGUSR1"])
def test_signals_save_and_exit_with_130(
    server: Server, small: Small, place: Path, repeated: bool, record_property: Record, kind: str
) -> None:
    count, chance = 20 if repeated else 1, random.Random(kind)
    for number in range(count):
        task = ("classify", "segment")[number % 2]
        settings = placed(small, task, place, "train.epochs=10000", "data.workers=2", f"output.name=s{number}", "train.save_every=0")
        command = server.start(["train", *settings, "train.save_signal=SIGUSR1"], place / f"{number}.txt")
        run = place / "runs" / f"s{number}" / "001"
        assert command.until(lambda run=run: steps(run) > 0), command.text
        time.sleep(chance.uniform(0, 0.5))  # also in an evaluation and in a save
        command.signal(signal.Signals[kind.split()[0]], group="group" in kind)
        assert command.wait() == 130, command.text
        state = json.loads((run / "run.json").read_text())
        assert state["state"] == "interrupted" and "saved checkpoints/last" in command.text
        assert command.text.count("finishing this step, saving") == 1 and f"visionattn train --resume {run}" in command.text
        saved = json.loads((run / "checkpoints" / "last" / "meta.json").read_text())["step"]
        last = [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())][-1]
        assert saved == last > 0, "what was trained is saved"
    record_property("figure", f"{kind}: {count} of {count} saved, exit 130")


@pytest.mark.parametrize("size", [2**12, 2**16, 2**18])
def test_files_that_cannot_grow(server: Server, small: Small, place: Path, record_property: Record, size: int) -> None:
    """A limit on file sizes takes the same path as a full disk or a quota, and setting one needs no root."""
    settings = placed(small, "classify", place, "output.name=full")
    command = server.run(["train", *settings], place / "out.txt", RLIMIT_FSIZE=size)
    assert command.code == 7 and "error VA-R004: " in command.text, command.text
    record_property("figure", f"files of at most {size >> 10} KiB: VA-R004, exit 7")


def test_a_disk_that_fills_up_leaves_what_was_written(
    server: Server, small: Small, place: Path, repeated: bool, record_property: Record
) -> None:
    """On a real file system of a few MiB, in a mount namespace; every size fills it at another moment."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount")
    codes = []
    for size in range(2000, 18000, 1000) if repeated else (6000,):
        folder = place / f"disk{size}"
        folder.mkdir()
        settings = placed(small, "classify", folder, "train.epochs=6", "log.to=[tensorboard]")
        script = (
            f"mount --make-rprivate / && mount -t tmpfs -o size={size}k tmpfs {folder} && mkdir {folder}/runs && "
            f'{sys.executable} -m visionattn train "$@" output.name=full; code=$?; cp -r {folder}/runs {place}/kept{size}; exit $code'
        )
        done = subprocess.run(["unshare", "-m", "bash", "-c", script, "bash", *settings], capture_output=True, text=True, timeout=300)
        codes.append(done.returncode)
        assert done.returncode in (0, 7), done.stdout + done.stderr
        assert done.returncode == 0 or "error VA-R004: " in done.stderr, done.stderr
        for checkpoint in place.glob(f"kept{size}/full/001/checkpoints/*/meta.json"):
            again = server.run(["eval", str(checkpoint.parent)], place / f"eval{size}.txt")
            assert again.code == 0, again.text
    kept = len(list(place.glob("kept*/full/001/checkpoints/last")))
    assert 7 in codes and kept
    record_property(
        "figure", f"disks of {len(codes)} sizes: {codes.count(7)} filled up (VA-R004, exit 7), {kept} with checkpoints, all whole"
    )


def test_a_lack_of_memory(server: Server, small: Small, place: Path, record_property: Record) -> None:
    settings = placed(small, "classify", place, "model.img_size=512", "train.batch_size=12", "output.name=large", "model.args={width: 256}")
    command = server.run(["train", *settings], place / "out.txt", RLIMIT_AS=6 * 2**30)
    assert command.code == 6 and "error VA-R001: out of memory" in command.text, command.text
    record_property("figure", "6 GiB of address space: VA-R001, exit 6")


def test_a_run_folder_that_is_deleted_while_it_trains(server: Server, small: Small, place: Path, record_property: Record) -> None:
    settings = placed(small, "classify", place, "train.epochs=10000", "output.name=gone")
    command = server.start(["train", *settings], place / "out.txt")
    run = place / "runs" / "gone" / "001"
    assert command.until(lambda: steps(run) > 1), command.text
    run.rename(place / "elsewhere")
    assert command.wait() == 7 and "error VA-R007: the run folder was deleted or moved" in command.text, command.text
    assert not run.exists()
    record_property("figure", "run folder deleted: VA-R007, exit 7")

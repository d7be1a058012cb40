"""A run folder: nothing in it leads out of it, and its lock is the system's."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest

from visionattn.errors import UserError
from visionattn.runs.folder import RunFolder


def run_folder(parent: Path) -> Path:
    run = RunFolder.create(parent / "runs").path
    for name in ("config.yaml", "log.txt", "metrics.jsonl"):
        (run / name).write_text("")
    return run


@pytest.mark.parametrize("part", ["eval", "checkpoints/best", "log.txt", "tb/events", ".lock"])
@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "broken link", "pipe"])
def test_a_part_that_leads_out_of_a_run_is_refused(tmp_path: Path, part: str, kind: str) -> None:
    photos, run = tmp_path / "photos", run_folder(tmp_path)
    photos.mkdir()
    (photos / "one.jpg").write_text("mine")
    place = run / part
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to({"link to a folder": photos, "link to a file": photos / "one.jpg"}.get(kind, tmp_path / "gone"))
    with pytest.raises(UserError) as caught:
        RunFolder.open(run)
    assert caught.value.code == "VA-R008" and caught.value.exit_code == 2
    assert caught.value.what.startswith(f"{part} of the run is ") and ("a pipe" in caught.value.what) == (kind == "pipe")


def test_a_link_to_a_run_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(run_folder(tmp_path))
    assert RunFolder.open(tmp_path / "current").path == tmp_path / "current"


def _try_to_hold(run: Path, held: multiprocessing.Queue[int]) -> None:
    for _ in range(100):
        try:
            with RunFolder(run).locked():
                descriptor = os.open(run / "inside", os.O_CREAT | os.O_EXCL)
                os.close(descriptor)
                (run / "inside").unlink()
        except UserError:
            continue
        except FileExistsError:
            held.put(1)


def test_two_processes_never_hold_a_run_at_once(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (run / ".lock").write_text("[]")  # of a holder that is gone
    context = multiprocessing.get_context("fork")
    held: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_try_to_hold, args=(run, held)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert held.empty() and all(worker.exitcode == 0 for worker in workers)


@pytest.mark.parametrize("text", ["{}", "[]", "not json", "[" * 100_000])
def test_a_state_file_of_anything_else(tmp_path: Path, text: str) -> None:
    run = RunFolder(run_folder(tmp_path))
    (run.path / "run.json").write_text(text)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": "x"}\n{"ste')
    assert run.read_state() == {} and run.read_metrics() == [{"step": 1}]


def test_a_run_is_opened_while_it_saves(tmp_path: Path) -> None:
    """Folders are renamed and deleted between the moment they are listed and the moment they are looked into."""
    run = run_folder(tmp_path)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            for name in ("a", "b"):
                (run / "checkpoints" / f".tmp-{name}" / "inside").mkdir(parents=True)
            for name in ("a", "b"):
                shutil.rmtree(run / "checkpoints" / f".tmp-{name}")

    writer = threading.Thread(target=save)
    writer.start()
    try:
        for _ in range(300):
            RunFolder.open(run)
    finally:
        stop.set()
        writer.join()

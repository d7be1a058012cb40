"""Loader processes: errors come out of them whole, signals leave them alone, and none outlives the process that it loads for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import psutil
import pytest
import torch

from visionattn.data.loading import Loader, eval_loader, train_loader
from visionattn.data.sampling import TrainSampler
from visionattn.errors import UserError
from visionattn.tasks.batch import SampleDataset

FORK = get_context("fork")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks for processes that ended every five seconds."""
    monkeypatch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


class Samples(SampleDataset):
    """Numbered tensors; making sample 2 does something."""

    def __init__(self, act: Callable[[], Any], count: int = 4) -> None:
        super().__init__([str(index) for index in range(count)])
        self.act = act

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        more = self.act() if index == 2 else None
        return {"image": torch.full((3, 5), float(index)), "few": torch.tensor([index % 2 == 0]), "more": more}


def fail() -> None:
    raise UserError("VA-D020", "too large", where="2.png", fix="data.max_pixels=9")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_for_the_user_is_raised_as_it_is(workers: int) -> None:
    """After the batches before it."""
    found = iter(eval_loader(Samples(fail), 1, workers))
    assert [next(found).ids, next(found).ids] == [["0"], ["1"]]
    with pytest.raises(UserError) as caught:
        next(found)
    assert caught.value.__dict__ == UserError("VA-D020", "too large", where="2.png", fix="data.max_pixels=9").__dict__


def test_full_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have 64 MiB of it."""

    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # which loader processes inherit
    lines: list[str] = []
    found = list(eval_loader(Samples(lambda: None), 2, 1, warn=lines.append))
    assert [batch["image"][:, 0, 0].tolist() for batch in found] == [[0, 1], [2, 3]]
    assert found[1]["image"].shape == (2, 3, 5) and found[1]["few"].tolist() == [[True], [False]] and found[1]["few"].dtype == torch.bool
    assert len(lines) == 1 and "--shm-size" in lines[0] and "data.workers=0" in lines[0]


@pytest.mark.parametrize(("number", "why"), [("SIGKILL", "memory runs out"), ("SIGBUS", "/dev/shm"), ("SIGUSR1", "SIGUSR1")])
def test_a_process_that_ends_is_reported_with_the_reason(number: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        list(eval_loader(Samples(lambda: os.kill(os.getpid(), getattr(signal, number))), 1, 1))
    error = caught.value
    assert (error.code, error.exit_code) == ("VA-R009", 7) and why in error.why and "data.workers=0" in error.fix


def test_its_end_is_reported_by_the_loader_alone() -> None:
    """torch would raise it wherever this process is, for example while it saves a checkpoint."""
    found = iter(eval_loader(Samples(lambda: os.kill(os.getpid(), signal.SIGKILL)), 1, 1))
    next(found)
    time.sleep(0.3)


def test_a_batch_that_cannot_be_sent_is_not_waited_for() -> None:
    with pytest.raises(UserError, match="VA-R009"):
        list(eval_loader(Samples(lambda: lambda: None), 1, 1))


def test_processes_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    with pytest.raises(UserError) as caught:
        list(eval_loader(Samples(lambda: None), 1, 2))
    assert caught.value.code == "VA-R009" and "Cannot allocate memory" in caught.value.why and "data.workers=0" in caught.value.fix


def test_signals_to_all_processes_leave_loader_processes_alone() -> None:
    seen: list[int] = []

    def signals() -> list[int]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return seen

    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        found = list(eval_loader(Samples(signals), 1, 1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [batch.ids for batch in found] == [["0"], ["1"], ["2"], ["3"]] and found[2]["more"] == [[]] and seen == []


def loading(workers: Any, seconds: float) -> None:
    """Load in a process of its own, report the loader processes, and leave in the middle."""
    dataset = Samples(lambda: time.sleep(seconds))
    dataset.seed = 0
    held: Loader = train_loader(dataset, TrainSampler(4, 1, seed=0), 2, pin_memory=False)
    found = iter(held)
    next(found)
    workers.send([child.pid for child in psutil.Process().children()])
    if seconds:
        time.sleep(60)
    raise SystemExit(3)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may collect it in a container
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_no_process_outlives_the_one_it_loads_for(seconds: float) -> None:
    """One that leaves with its loader open, and one that is killed while a sample is being made."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=loading, args=(sender, seconds))
    process.start()
    assert receiver.poll(60)
    pids = receiver.recv()
    if seconds:
        process.kill()
    process.join(60)
    assert process.exitcode == (-signal.SIGKILL if seconds else 3) and len(pids) == 2
    deadline = time.monotonic() + 20
    while not all(ended(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(ended(pid) for pid in pids)

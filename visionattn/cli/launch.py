"""`--processes` and `--devices`: start the processes of a run, pass signals on to them, and end as one process would.

torchrun would do it too, but it ends every failure with exit code 1 and a block of its own, and kills processes that need more than 30
seconds to save.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from visionattn.errors import EXIT_INTERRUPTED, UserError
from visionattn.runs.interrupts import passing_on, stop_signals

if TYPE_CHECKING:
    from visionattn.config.schema import TrainConfig

PATIENCE = 15.0  # seconds that the other processes have to end when one has failed
_POLL = 0.05  # seconds


@dataclass(frozen=True)
class Launch:
    """How many processes to start, and what is different in their environment."""

    count: int
    environment: Mapping[str, str] = field(default_factory=dict)


def plan_launch(processes: int | None, devices: str | None, train: TrainConfig) -> Launch | None:
    """The launch that the options ask for; None for none.

    Raises:
        UserError: VA-C002, options that cannot be followed.
    """
    if processes is None and devices is None:
        return None
    option = "--processes" if devices is None else "--devices"
    if any(name in os.environ for name in ("RANK", "WORLD_SIZE")):
        fix = f"leave {option} out, or start without torchrun and accelerate launch"
        raise UserError("VA-C002", f"{option} within a launch: the processes are started already", fix=fix)
    if train.device not in ("auto", "cpu", "cuda"):
        fix = "--device cpu" if train.device == "mps" else "--device auto"
        raise UserError("VA-C002", f"{option} and --device {train.device}: that is one device", fix=fix)
    if devices is None:
        count = processes or 1
        found = 0 if train.device == "cpu" else _gpus()
        if 0 < found < count:
            what = f"--processes {count}: each takes a GPU, and there {'is' if found == 1 else 'are'} {found}"
            raise UserError("VA-C002", what, fix=f"--processes {found}, or --device cpu")
        return Launch(count)
    numbers = _numbers(devices)
    if train.device == "cpu":
        raise UserError("VA-C002", "--devices are GPUs, and --device is cpu", fix=f"--processes {len(numbers)} instead of --devices")
    if processes not in (None, len(numbers)):
        raise UserError("VA-C002", f"--processes {processes}, and --devices names {len(numbers)}", fix="leave --processes out")
    found = _gpus()
    if max(numbers) >= found:
        what = f"--devices {devices}: there {'is' if found == 1 else 'are'} {found or 'no'} GPU{'s' * (found != 1)}"
        why = f"they are numbered from 0 to {found - 1}" if found else "torch sees none"
        fix = f"--devices {','.join(map(str, range(found)))}" if found else f"--processes {len(numbers)} instead of --devices"
        raise UserError("VA-C002", what, why=why, fix=fix)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(found)))
    chosen = [visible.split(",")[number] for number in numbers]
    return Launch(len(numbers), {"CUDA_VISIBLE_DEVICES": ",".join(chosen)})


def run_processes(command: Sequence[str], launch: Launch, *, save_signal: str | None = None, to_stderr: bool = False) -> int:
    """Run a command as the processes of a launch; returns the exit code as a shell has it.

    It is that of the first process, which prints the reason, if it failed; otherwise that of the one that failed first. When one has
    failed, the others end by themselves, because their connections break; what still runs after `PATIENCE` is ended.

    Args:
        save_signal: of train.save_signal, passed on like Ctrl-C and SIGTERM.
        to_stderr: print everything on standard error.
    """
    running: dict[int, subprocess.Popen[bytes]] = {}
    codes: dict[int, int] = {}  # in the order of their ends
    failed_at, ended_by_us = 0.0, False

    def send(number: int) -> None:
        for process in running.values():
            process.send_signal(number)

    with passing_on(stop_signals(save_signal), send):
        try:
            for rank, environment in enumerate(_environments(launch)):
                running[rank] = subprocess.Popen(command, env=environment, stdout=2 if to_stderr else None)
            while running:
                for rank, process in list(running.items()):
                    if (code := process.poll()) is not None:
                        codes[rank] = code
                        del running[rank]
                        failed_at = failed_at or (time.monotonic() if code not in (0, EXIT_INTERRUPTED) else 0.0)
                if failed_at and running and time.monotonic() - failed_at > PATIENCE:
                    ended_by_us = True
                    _end(running)
                time.sleep(_POLL)
        finally:
            _end(running)
    failed = {rank: code if code > 0 else 128 - code for rank, code in codes.items() if code}
    if not failed:
        return 0
    first = next(iter(failed))
    if ended_by_us and first:  # the first process was silent: it waited for this one
        print(f"process {first} ended with exit code {failed[first]}; the others were ended", file=sys.stderr)
        return failed[first]
    return failed.get(0, failed[first])


def _end(running: Mapping[int, subprocess.Popen[bytes]]) -> None:
    """End processes, at once if they do not do it soon."""
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in running.values():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environments(launch: Launch) -> list[dict[str, str]]:
    """The environment of each process, by which accelerate finds the others."""
    common = {**os.environ, **launch.environment}
    if launch.count == 1:
        return [common]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    common.setdefault("OMP_NUM_THREADS", str(max(1, cores // launch.count)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common |= {"WORLD_SIZE": str(launch.count), "LOCAL_WORLD_SIZE": str(launch.count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(launch.count)]


def _numbers(devices: str) -> list[int]:
    words = [word.strip() for word in devices.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words) or len(set(map(int, words))) < len(words):
        raise UserError("VA-C002", f'--devices: expected numbers of GPUs, got "{devices}"', fix="--devices 0,1")
    return list(map(int, words))


def _gpus() -> int:
    """Number of CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count()

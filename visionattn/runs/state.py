"""The state of a run while a job writes in it: logged, and with a reason when it ends."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import Any

import torch.distributed as dist

from visionattn.console import Console
from visionattn.errors import Interrupted, UserError
from visionattn.files import write_error
from visionattn.runs.checkpoint import latest_checkpoint, read_meta
from visionattn.runs.folder import RunFolder, process_facts
from visionattn.runs.interrupts import ignore

_LOST = re.compile("timed out|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


@contextmanager
def running(run: RunFolder, console: Console, *, rank: int, signals: Sequence[Signals], **facts: Any) -> Iterator[None]:
    """Record how a locked run ends: `run.json` is `running` inside, and afterwards has the reason of an interrupt or a failure.

    The first process logs and writes. One that fails alone records its reason, because the first may never return from an
    operation that waits for it; and a process whose connections break reports the reason that another one recorded.

    Args:
        rank: of this process.
        signals: those that interrupt it.
        **facts: entries of `run.json`.

    Raises:
        UserError: VA-R006, another process of this run failed; VA-R004 and VA-R007, the disk refuses a write.
    """
    try:
        if rank == 0:
            console.log_to(run.path / "log.txt")
            run.write_state("running", reason=None, failure=None, stopped=None, **process_facts(), **facts)
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        ignore(signals)
        if rank == 0:
            with suppress(OSError):  # a disk that is full does not hide what happened
                run.write_state("interrupted", reason="interrupted")
                console.field("", f"{_saved(run, error)}\nresume with:  {resume_command(run.path)}")
        raise
    except BaseException as error:
        ignore(signals)
        failure = run.read_state().get("failure")
        if isinstance(failure, dict) and failure.get("rank") != rank and not isinstance(error, UserError):
            what = f"process {failure.get('rank')} failed: {failure.get('what')}"
            raise UserError("VA-R006", what, where=str(run.path / "log.txt")) from error
        told = _told(run, error)
        with suppress(OSError):
            if rank == 0 or run.read_state().get("state") == "running":
                code, what = (told.code, told.what) if isinstance(told, UserError) else ("internal", f"{type(told).__name__}: {told}")
                run.write_state("failed", reason=code, failure={"rank": rank, "what": what})
                console.log(told.block() if isinstance(told, UserError) else traceback.format_exc())
        if told is error:
            raise
        raise told from error


def resume_command(run: Path, options: Sequence[str] = ()) -> str:
    """What resumes a run, with as many processes if all of them are on this machine."""
    world = os.environ.get("WORLD_SIZE", "1")
    alike = ["--processes", world] if world != "1" and os.environ.get("LOCAL_WORLD_SIZE") == world else []
    return f"visionattn train --resume {shlex.join([str(run), *alike, *options])}"


def _told(run: RunFolder, error: BaseException) -> BaseException:
    """The error as a user can act on it: a write was refused, the run folder is gone, a process does not answer."""
    if isinstance(error, UserError):
        return error
    if not run.path.is_dir():
        fix = "the weights are lost unless a copy of the folder exists: start again"
        return UserError("VA-R007", "the run folder was deleted or moved while the run wrote in it", where=str(run.path), fix=fix)
    if isinstance(error, RuntimeError) and dist.is_initialized() and _LOST.search(str(error)):
        fix = f"see why it stopped, then {resume_command(run.path)}\ntrain.process_timeout=SECONDS waits longer"
        why = str(error).splitlines()[0]
        return UserError("VA-R006", "another process of the run does not answer", where=str(run.path), why=why, fix=fix)
    return write_error(error, f"free space or correct the rights, then {resume_command(run.path)}") or error


def _saved(run: RunFolder, error: BaseException) -> str:
    """What is left of an interrupted run."""
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return "nothing is saved yet: the run begins anew when it is resumed"
    if isinstance(error, Interrupted):
        return f"saved checkpoints/last ({error})"
    return f"stopped at once: what came after step {read_meta(checkpoint)['step']} (checkpoints/{checkpoint.name}) is lost"

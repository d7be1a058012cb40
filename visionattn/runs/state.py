"""The state of a run while a job writes in it: logged, and with a reason when it ends."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from signal import Signals
from typing import Any

from visionattn.console import Console
from visionattn.errors import Interrupted, UserError
from visionattn.files import write_error
from visionattn.runs.checkpoint import latest_checkpoint, read_meta
from visionattn.runs.folder import RunFolder, process_facts
from visionattn.runs.interrupts import ignore


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
                console.field("", f"{_saved(run, error)}\nresume with:  visionattn train --resume {run.path}")
        raise
    except BaseException as error:
        ignore(signals)
        told = _told(run, error)
        failure = run.read_state().get("failure")
        if isinstance(failure, dict) and failure.get("rank") != rank and not isinstance(told, UserError):
            what = f"process {failure.get('rank')} failed: {failure.get('what')}"
            raise UserError("VA-R006", what, where=str(run.path / "log.txt")) from error
        with suppress(OSError):
            if rank == 0 or run.read_state().get("state") == "running":
                code, what = (told.code, told.what) if isinstance(told, UserError) else ("internal", f"{type(told).__name__}: {told}")
                run.write_state("failed", reason=code, failure={"rank": rank, "what": what})
                console.log(told.block() if isinstance(told, UserError) else traceback.format_exc())
        if told is error:
            raise
        raise told from error


def _told(run: RunFolder, error: BaseException) -> BaseException:
    """The error as a user can act on it, where a write was refused or the run folder is gone."""
    if isinstance(error, UserError):
        return error
    if not run.path.is_dir():
        fix = "the weights are lost unless a copy of the folder exists: start again"
        return UserError("VA-R007", "the run folder was deleted or moved while the run wrote in it", where=str(run.path), fix=fix)
    return write_error(error, f"free space or correct the rights, then visionattn train --resume {run.path}") or error


def _saved(run: RunFolder, error: BaseException) -> str:
    """What is left of an interrupted run."""
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return "nothing is saved yet: the run begins anew when it is resumed"
    if isinstance(error, Interrupted):
        return f"saved checkpoints/last ({error})"
    return f"stopped at once: what came after step {read_meta(checkpoint)['step']} (checkpoints/{checkpoint.name}) is lost"

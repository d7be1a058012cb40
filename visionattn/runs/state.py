"""The state of a run while a job writes in it: locked, logged, and with a reason when it ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from visionattn.console import Console
from visionattn.errors import Interrupted, UserError
from visionattn.runs.folder import RunFolder, process_facts

# Seconds that a process waits for the reason of another one that ended.
REASON_WAIT = 5.0


@contextmanager
def running(run: RunFolder, console: Console, *, rank: int, world: int, **facts: Any) -> Iterator[None]:
    """Hold a run while it is trained: `run.json` is `running` inside, and afterwards records an interrupt or a failure.

    The first process locks, logs and writes. One that fails alone records its reason, because the first may never return from
    an operation that waits for it; and a process whose connections break reports the reason that another one recorded.

    Args:
        rank: of this process among `world`.
        **facts: entries of `run.json`.

    Raises:
        UserError: VA-R005, another process holds the run; VA-R006, another process of this run failed.
    """
    if rank == 0:
        with run.locked():
            console.log_to(run.path / "log.txt")
            run.write_state("running", reason=None, failure=None, stopped=None, **process_facts(), **facts)
            with _recorded(run, console, rank, world):
                yield
    else:
        with _recorded(run, console, rank, world):
            yield


@contextmanager
def _recorded(run: RunFolder, console: Console, rank: int, world: int) -> Iterator[None]:
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        if rank == 0:
            run.write_state("interrupted", reason="interrupted")
            saved = f"saved checkpoints/last ({error})\n" if (run.checkpoints / "last").exists() else ""
            console.field("", f"{saved}resume with:  visionattn train --resume {run.path}")
        raise
    except BaseException as error:
        if world > 1 and not isinstance(error, UserError) and (other := _reason_of_another(run, rank)) is not None:
            raise other from error
        if rank == 0 or run.read_state().get("state") == "running":
            code, what = (error.code, error.what) if isinstance(error, UserError) else ("internal", f"{type(error).__name__}: {error}")
            run.write_state("failed", reason=code, failure={"rank": rank, "what": what})
            console.log(error.block() if isinstance(error, UserError) else traceback.format_exc())
        raise


def _reason_of_another(run: RunFolder, rank: int) -> UserError | None:
    """The failure that another process recorded, waiting a little for it."""
    deadline = time.monotonic() + REASON_WAIT
    while time.monotonic() < deadline:
        state = run.read_state()
        failure = state.get("failure")
        if failure is not None and failure["rank"] != rank:
            return UserError("VA-R006", f"process {failure['rank']} failed: {failure['what']}", where=str(run.path / "log.txt"))
        time.sleep(0.2)
    return None

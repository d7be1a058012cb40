"""The state of a run while a job writes in it: locked, logged, and with a reason when it ends."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from visionattn.console import Console
from visionattn.errors import Interrupted, UserError
from visionattn.runs.folder import RunFolder, process_facts


@contextmanager
def running(run: RunFolder, console: Console, *, rank: int, **facts: Any) -> Iterator[None]:
    """Hold a run while it is trained: `run.json` is `running` inside, and afterwards records an interrupt or a failure.

    The first process locks, logs and writes. One that fails alone records its reason, because the first may never return from
    an operation that waits for it; and a process whose connections break reports the reason that another one recorded.

    Args:
        rank: of this process.
        **facts: entries of `run.json`.

    Raises:
        UserError: VA-R005, another process holds the run; VA-R006, another process of this run failed.
    """
    with _sigterm_interrupts() as ignore_sigterm, ExitStack() as stack:
        if rank == 0:
            stack.enter_context(run.locked())
            console.log_to(run.path / "log.txt")
            run.write_state("running", reason=None, failure=None, stopped=None, **process_facts(), **facts)
        stack.enter_context(_recorded(run, console, rank, ignore_sigterm))
        yield


@contextmanager
def _sigterm_interrupts() -> Iterator[Callable[[], object]]:
    """Let SIGTERM end the block as Ctrl-C does; the handler from before returns on leaving.

    Yields a function that ignores SIGTERM from then on: launchers send it to all processes when one has failed, and the reason
    is still to be written.
    """

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the caller handles signals
        yield lambda: None
        return
    try:
        yield lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _recorded(run: RunFolder, console: Console, rank: int, ignore_sigterm: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        ignore_sigterm()
        if rank == 0:
            run.write_state("interrupted", reason="interrupted")
            saved = f"saved checkpoints/last ({error})\n" if (run.checkpoints / "last").exists() else ""
            console.field("", f"{saved}resume with:  visionattn train --resume {run.path}")
        raise
    except BaseException as error:
        ignore_sigterm()
        state = run.read_state()
        failure = state.get("failure")
        if failure is not None and failure["rank"] != rank and not isinstance(error, UserError):
            what = f"process {failure['rank']} failed: {failure['what']}"
            raise UserError("VA-R006", what, where=str(run.path / "log.txt")) from error
        if rank == 0 or state.get("state") == "running":
            code, what = (error.code, error.what) if isinstance(error, UserError) else ("internal", f"{type(error).__name__}: {error}")
            run.write_state("failed", reason=code, failure={"rank": rank, "what": what})
            console.log(error.block() if isinstance(error, UserError) else traceback.format_exc())
        raise

"""Ctrl-C, SIGTERM and the signal of `train.save_signal`: the first one ends a run after its step and a save, the next at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Seconds within which signals are one event: GNU timeout signals a process and its group, launchers pass on what a terminal or
# a scheduler has sent to all processes already.
ONE_EVENT = 2.0

Handler = Callable[[int, Any], Any]


def stop_signals(save_signal: str | None) -> tuple[signal.Signals, ...]:
    """The signals that end a run.

    Args:
        save_signal: name of one more.
    """
    chosen = () if save_signal is None else (signal.Signals[save_signal],)
    return (signal.SIGINT, signal.SIGTERM, *chosen)


@contextmanager
def interrupting(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Let each of these signals end the block as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _handled(signals, stop):
        yield


@contextmanager
def first_signal(signals: Sequence[signal.Signals], handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` at the first of these signals; a later one ends the block at once."""
    process, first = os.getpid(), 0.0

    def stop(number: int, frame: Any) -> None:
        nonlocal first
        if os.getpid() != process:  # a loader process that was just forked
            return
        if not first:
            first = time.monotonic()
            handle()
        elif time.monotonic() - first > ONE_EVENT:
            raise KeyboardInterrupt

    with _handled(signals, stop):
        yield


@contextmanager
def passing_on(signals: Sequence[signal.Signals], send: Callable[[int], None]) -> Iterator[None]:
    """Call `send` with each of these signals, instead of ending."""
    with _handled(signals, lambda number, frame: send(number)):
        yield


def ignore(signals: Sequence[signal.Signals]) -> None:
    """Ignore these signals from now on: launchers send them to all processes when one has failed, and the reason is still to be
    written.
    """
    try:
        for name in signals:
            signal.signal(name, signal.SIG_IGN)
    except ValueError:  # not the main thread
        return


@contextmanager
def _handled(signals: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """Handle signals; the handlers from before return on leaving. Outside the main thread the caller handles them."""
    try:
        before = {name: signal.signal(name, handler) for name in signals}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(name, old)

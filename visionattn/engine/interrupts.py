"""Ctrl-C and SIGTERM: the first one ends a run after its step and a save, the second at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_signal(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` at the first signal and leave the next ones to the handlers from before, which return on leaving."""

    def stop(number: int, frame: Any) -> None:
        handle()
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller handles signals
        before = {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)

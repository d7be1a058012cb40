"""Errors that a user can fix: one code, what, where, why, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from visionattn.names import shown, shown_lines

# Exit code of the command line by the letter of the error code.
EXIT_CODES = {"C": 2, "M": 2, "D": 3, "W": 4, "R": 7}
EXIT_DIVERGED = 5
EXIT_OUT_OF_MEMORY = 6
EXIT_INTERRUPTED = 130

# torch on GPUs, on CPUs (Linux, Windows) and its CUDA libraries; C++; OpenCV; the system, when it maps or forks.
_LACKS_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "_status_alloc_failed",
    "bad_alloc",
    "insufficient memory",
    "cannot allocate memory",
)


class UserError(ValueError):
    """A mistake or a circumstance the user can fix; printed as one block, without a traceback.

    Args:
        code: `VA-` code, for example `VA-D001`; its letter gives the exit code.
        what: what is wrong, in one line.
        where: file, key or step.
        why: the reason, if it is not obvious from `what`.
        fix: what to do, as a command or a config key if possible.
        exit_code: instead of the exit code of the letter.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str = "",
        why: str = "",
        fix: str = "",
        exit_code: int | None = None,
    ) -> None:
        super().__init__(what)
        self.code, self.what, self.where, self.why, self.fix = code, what, where, why, fix
        self.exit_code = EXIT_CODES[code[3]] if exit_code is None else exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process boundaries: from loader workers, and between the processes of a run."""
        facts = (self.code, self.what, self.where, self.why, self.fix, self.exit_code)
        return _rebuild, (type(self), facts)

    def block(self) -> str:
        """Format the message as one block of lines."""
        lines = [f"error {self.code}: {self.what}"]
        for label, text in (("where", self.where), ("why", self.why), ("fix", self.fix)):
            if text:
                lines.append(f"  {label:<6}" + text.replace("\n", "\n" + " " * 8))
        return shown_lines("\n".join(lines))

    def __str__(self) -> str:
        return self.block()


def _rebuild(cls: type[UserError], facts: tuple[Any, ...]) -> UserError:
    code, what, where, why, fix, exit_code = facts
    return cls(code, what, where=where, why=why, fix=fix, exit_code=exit_code)


class ArgumentError(UserError, TypeError):
    """An argument that the called class does not take."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after the state of the run was saved."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error reports a lack of memory, of the CPU or a GPU: libraries have no common type for it."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _LACKS_MEMORY)


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """`Did you mean a, b?` with the closest known words, or an empty string."""
    close = get_close_matches(word, list(known), n=count, cutoff=0.55)
    return f"Did you mean {shown(', '.join(close))}?" if close else ""

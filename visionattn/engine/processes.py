"""Let processes decide together: all of them learn of an event on one before any of them acts.

In every step each process raises its flags (a batch without a sample, an interrupt, a loss that is not finite), and all act on
every flag that any of them raised. An error on one process cannot be agreed on, because the others may be inside a collective
operation: the one that fails records the reason in the run folder and ends, which breaks the others' connections, and they report
that reason.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import nn

T = TypeVar("T")


class Processes:
    """The processes of a run; with a single process no method communicates.

    Args:
        timeout: seconds that they wait for each other.

    Attributes:
        rank: number of this process; 0 writes and prints.
        world: number of processes.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        # Flags are exchanged between CPUs, so that a GPU keeps computing.
        self._hosts: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if self.world > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def any_of(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process raised it."""
        if self._hosts is None:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._hosts)
        return [bool(flag) for flag in raised.tolist()]

    def gather(self, item: T) -> list[T]:
        """The items of all processes, in their order."""
        return [item] if self.world == 1 else gather_object([item])  # type: ignore[no-any-return]

    def from_main(self, item: T) -> T:
        """The item of process 0."""
        if self.world == 1:
            return item
        items = [item]
        broadcast_object_list(items)
        return items[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of process 0: batch statistics are each process' own otherwise."""
        if self.world > 1:
            for buffer in model.buffers():
                broadcast(buffer)

    def together(self, work: Callable[[], T], *, main_first: bool = False) -> T:
        """Do the same work on all processes; an error on one is raised on all.

        Args:
            main_first: process 0 finishes before the others begin, because it writes what they read.
        """
        if self.world == 1:
            return work()
        result, error = (None, None) if main_first and not self.is_main else _outcome(work)
        if main_first:
            error = self.from_main(error)
            if error is None and not self.is_main:
                result, error = _outcome(work)
        for failed in self.gather(error):
            if failed is not None:
                raise failed
        return result  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._hosts is not None:
            dist.barrier(group=self._hosts)


def _outcome(work: Callable[[], T]) -> tuple[T | None, Any]:
    try:
        return work(), None
    except Exception as error:
        try:
            pickle.dumps(error)
        except Exception:  # not every error can be sent
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error

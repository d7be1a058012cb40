"""Data loaders: training loaders can resume at any step, evaluation loaders cover a split exactly once.

What goes wrong in a loader process is raised by the loader: errors for the user as they are, a process that ended with its reason.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, get_worker_info

from visionattn.config.schema import DataConfig
from visionattn.data.sampling import TrainSampler, eval_indices
from visionattn.errors import UserError

# Below this number of samples, starting processes costs more than it saves.
FEW_SAMPLES = 64


def train_loader(
    dataset: Any, sampler: TrainSampler, workers: int, *, pin_memory: bool, warn: Callable[[str], object] = lambda text: None
) -> Loader:
    """Create a loader of a training set in the sampler's order; its processes live as long as it does.

    Args:
        warn: takes a line for the user.
    """
    return Loader(dataset, sampler, workers, warn, pin_memory=pin_memory, persistent_workers=workers > 0)


def eval_loader(
    dataset: Any, batch_size: int, workers: int, rank: int = 0, world: int = 1, *, warn: Callable[[str], object] = lambda text: None
) -> Loader:
    """Create a loader of this process' share of a split, in order; across processes each sample occurs exactly once.

    Args:
        warn: takes a line for the user.
    """
    return Loader(dataset, BatchSampler(eval_indices(len(dataset), rank, world), batch_size, drop_last=False), workers, warn)


class Loader:
    """The batches of a dataset, in order.

    Args:
        dataset: samples by key, and their `collate`.
        batches: keys of each batch, and the `batch_size`.
        workers: number of loader processes; 0 loads in this one.
        warn: takes a line for the user.
        **settings: of torch's loader.
    """

    def __init__(self, dataset: Any, batches: Any, workers: int, warn: Callable[[str], object], **settings: Any) -> None:
        self.batch_size: int = batches.batch_size
        self.workers, self.warn = workers, warn
        self._processes: list[Any] = []
        self._loader: DataLoader[Any] = DataLoader(
            _Batches(dataset),
            batch_size=None,  # `batches` forms them
            sampler=batches,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # separate: creating an iterator would otherwise draw from the global stream that dropout uses
            worker_init_fn=partial(start_worker, leaving=_leaving(os.getpid())) if workers else None,
            **settings,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Load the batches.

        Raises:
            UserError: VA-R009, loader processes could not be started, or one ended; and those of the dataset.
        """
        found = self._started()
        try:
            for batch in found:
                if isinstance(batch, UserError):
                    raise batch
                yield self._received(batch)
        except (RuntimeError, OSError, EOFError) as error:
            # The end of a process is also one of a connection, while it is asked for what it shared.
            reported = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) or "exited unexpectedly" in str(error)
            if not reported or str(error).startswith("Caught "):  # the second is one of the dataset
                raise
            raise self._ended(error) from error

    def _started(self) -> Iterator[Any]:
        before = multiprocessing.active_children()
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        # Loader processes begin with the signals held back that they will ignore: one could end them before they do.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ignored()) if hasattr(signal, "pthread_sigmask") else None
        try:
            found = iter(self._loader)
        except OSError as error:
            what = f"{self.workers} loader processes could not be started"
            raise UserError("VA-R009", what, why=str(error), fix="data.workers=0, or fewer than now") from error
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._processes += [child for child in multiprocessing.active_children() if child not in before]
        if handler is not None and threading.current_thread() is threading.main_thread():
            # torch's handler raises when a loader process ends, wherever this one is: in the middle of saving, say. The loader asks too.
            signal.signal(signal.SIGCHLD, handler)
        return found

    def _ended(self, error: Exception) -> UserError:
        closed = wait([child.sentinel for child in self._processes], timeout=1)  # a connection can break before its process is gone
        for child in self._processes:
            if child.sentinel in closed:
                child.join()
        codes = [child.exitcode for child in self._processes if child.exitcode]
        ends = [signal.Signals(-code).name if code < 0 else f"exit code {code}, its error is above" for code in codes]
        why, fix = ", ".join(ends) or f"{type(error).__name__}: {error}", "data.workers=0, or fewer than now"
        if "SIGKILL" in ends:
            why, fix = "it was killed, which the system does when memory runs out", f"{fix}: each takes memory; or a smaller batch"
        elif "SIGBUS" in ends:
            why, fix = "shared memory (/dev/shm) ran out", f"--shm-size=2g where a container is started\nor {fix}"
        return UserError("VA-R009", "a loader process ended before its work was done", why=why, fix=fix)

    def _received(self, batch: Any) -> Any:
        """Restore tensors that came through a pipe, which is reported once."""
        piped = {key: value.tensor() for key, value in batch.data.items() if isinstance(value, _Piped)}
        if not piped:
            return batch
        self.warn(
            f"shared memory (/dev/shm) is too small for the batches of {self.workers} loader processes: they take a slower way. "
            "A container gets more with --shm-size=2g; data.workers=0 needs none"
        )
        self.warn = lambda text: None
        return replace(batch, data={**batch.data, **piped})


def worker_count(settings: DataConfig) -> int:
    """Number of loader processes: data.workers, or the number of cores, at most 8."""
    if settings.workers != "auto":
        return settings.workers
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


# ---------------------------------------------------------------- in a loader process


def start_worker(worker: int, *, leaving: Connection) -> None:
    """Prepare a loader process.

    Ctrl-C reaches all processes of a terminal, and SIGTERM all of a group, a job or a service. Workers ignore both, and whatever else
    their parent handles (train.save_signal), so that the step and the checkpoint can finish; they end with the process that they load
    for. Workers already run in parallel, so OpenCV uses no extra threads.

    Args:
        leaving: see `_leaving`.
    """
    ignored = _ignored()
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    threading.Thread(target=_end_with_parent, args=(leaving,), daemon=True).start()
    # A batch that cannot be sent is dropped otherwise, and waited for without end.
    Queue._on_queue_feeder_error = staticmethod(_end_after_error)  # type: ignore[attr-defined]
    cv2.setNumThreads(0)


def _ignored() -> set[signal.Signals]:
    """Signals that a loader process leaves to its parent."""
    handled = {number for number in signal.valid_signals() if callable(signal.getsignal(number))}
    return {signal.SIGINT, signal.SIGTERM, *handled} - {getattr(signal, "SIGCHLD", None)}


@cache
def _leaving(process: int) -> Connection:
    """A pipe that loader processes can read from when a process leaves: Python then waits for their end, after a signal they ignore."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    Finalize(None, writer.send_bytes, (b"leaving",), exitpriority=0)
    return reader


def _end_with_parent(leaving: Connection) -> None:
    """End even in the middle of a batch; torch looks for the parent only between batches."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([leaving, parent.sentinel])
    os._exit(1)


def _end_after_error(error: Exception, item: Any, report: Callable[..., Any] = Queue._on_queue_feeder_error) -> None:  # type: ignore[attr-defined]
    report(error, item)
    os._exit(1)


class _Batches(torch.utils.data.Dataset[Any]):
    """Batches by the keys of their samples; an error for the user is a value, because torch rebuilds exceptions from their text alone."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: Sequence[Any]) -> Any:
        try:
            batch = self.dataset.collate([self.dataset[key] for key in keys])
        except UserError as error:
            return error
        return batch if get_worker_info() is None else replace(batch, data={key: _shared(value) for key, value in batch.data.items()})


@dataclass(frozen=True)
class _Piped:
    """A tensor on its way through a pipe."""

    content: np.ndarray
    dtype: torch.dtype
    shape: torch.Size

    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.content).view(self.dtype).reshape(self.shape)


def _shared(value: Any) -> Any:
    """Move a tensor to shared memory, or where that is full make it ready for a pipe.

    torch does the former in a thread of its own, where an error would only be printed.
    """
    if not isinstance(value, torch.Tensor):
        return value
    try:
        return value.share_memory_()
    except RuntimeError:
        return _Piped(value.contiguous().reshape(-1).view(torch.uint8).numpy(), value.dtype, value.shape)


def _unchanged(batch: Any) -> Any:
    return batch

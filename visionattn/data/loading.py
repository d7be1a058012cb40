"""Data loaders: training loaders can resume at any step, evaluation loaders cover a split exactly once."""

from __future__ import annotations

import os
import signal
import typing
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch.utils.data import DataLoader

from visionattn.config.schema import DataConfig
from visionattn.data.sampling import TrainSampler, eval_indices

if TYPE_CHECKING:
    from torch.utils.data import Dataset

# Below this number of samples, starting processes costs more than it saves.
FEW_SAMPLES = 64


def train_loader(dataset: Any, sampler: TrainSampler, workers: int, *, pin_memory: bool) -> DataLoader[Any]:
    """Create a loader of a training set in the sampler's order."""
    return DataLoader(
        typing.cast("Dataset[Any]", dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate,
        generator=torch.Generator(),  # separate: creating an iterator would otherwise draw from the global stream that dropout uses
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
    )


def eval_loader(dataset: Any, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Create a loader of this process' share of a split, in order; across processes each sample occurs exactly once."""
    return DataLoader(
        typing.cast("Dataset[Any]", dataset),
        batch_size=batch_size,
        sampler=list(eval_indices(len(dataset), rank, world)),
        num_workers=workers,
        collate_fn=dataset.collate,
        generator=torch.Generator(),  # separate, so that evaluation does not change the random state of training
        worker_init_fn=start_worker,
    )


def start_worker(worker: int) -> None:
    """Prepare a loader process.

    Ctrl-C reaches all processes of a terminal; workers ignore it, so that the step and the checkpoint can finish. Workers
    already run in parallel, so OpenCV uses no extra threads.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


def worker_count(settings: DataConfig) -> int:
    """Number of loader processes: data.workers, or the number of cores, at most 8."""
    if settings.workers != "auto":
        return settings.workers
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

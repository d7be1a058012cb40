"""One evaluation, used by the training loop and by `visionattn eval`."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset

from visionattn.data.sampling import eval_indices
from visionattn.data.sets import Samples
from visionattn.errors import UserError
from visionattn.tasks import Scores, Task
from visionattn.tasks.base import Batch, Metrics
from visionattn.training.console import Console


@dataclass(frozen=True)
class Evaluation:
    """Result on a split, each image counted once.

    Attributes:
        task: name of the task, as configs have it.
        split: name of the split.
        count: images evaluated.
        metrics: those of the task and `loss`, averaged over images; None where not defined.
        scores: all that the task tells: per class, per image, intervals, details.
        unreadable: (index, reason) of images that could not be decoded.
    """

    task: str
    split: str
    count: int
    metrics: Metrics
    scores: Scores
    unreadable: list[tuple[int, str]]


def eval_loader(dataset: Samples, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Batches of this process' share of a split, in order; no image twice, none left out."""
    return DataLoader(
        typing.cast("Dataset[Any]", dataset),
        batch_size=batch_size,
        sampler=list(eval_indices(len(dataset), rank, world)),
        num_workers=workers,
        collate_fn=dataset.collate,
        generator=torch.Generator(),  # its own, so that evaluating leaves the training's random state alone
    )


def evaluate_model(
    model: nn.Module,
    task: Task,
    loader: DataLoader[Any],
    *,
    split: str,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    gather: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Run the model over a split.

    With `gather` all processes call it, each with its own share, and each gets the result of all.

    Raises:
        UserError: VA-D010, no image of the split could be read.
    """
    was_training = model.training
    model.eval()
    meter = task.meter()
    unreadable: list[tuple[int, str]] = []
    loss, done = 0.0, 0
    progress = (console or Console(quiet=True)).progress(split, len(loader))
    with progress as bar, torch.inference_mode():
        for step, batch in enumerate(loader):
            unreadable += batch["unreadable"]
            if count := len(batch["index"]):
                with autocast():
                    prediction = task.predict(model, batch["image"].to(device))
                batch = to_device(batch, prediction.device)  # which may be the CPU, where large images are put together
                loss += float(task.loss(prediction, batch)["loss"]) * count
                done += count
                meter.update(prediction, batch)
            bar.update(step + 1)
    model.train(was_training)
    gathered = [(meter.state(), unreadable, loss, done)]
    if gather:
        gathered = gather_object(gathered)
    unreadable = sorted(item for shard in gathered for item in shard[1])
    count = sum(shard[3] for shard in gathered)
    if not count:
        raise UserError("VA-D010", f"no image of the {split} split could be read", why=unreadable[0][1] if unreadable else "it is empty")
    whole = task.meter()
    whole.merge([shard[0] for shard in gathered])
    scores = whole.result()
    metrics = {**scores.metrics, "loss": sum(shard[2] for shard in gathered) / count}
    return Evaluation(task.name, split, count, metrics, scores, unreadable)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All tensors of a batch on a device."""
    fast = device.type == "cuda"  # elsewhere a copy that is not waited for may be read too early
    return {key: value.to(device, non_blocking=fast) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

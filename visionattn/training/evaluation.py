"""One evaluation, used by the training loop and by `visionattn eval`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from visionattn.data.sampling import eval_indices
from visionattn.data.sets import ClassificationDataset, collate
from visionattn.errors import UserError
from visionattn.tasks import Classification
from visionattn.tasks.classification import Metrics, wilson_interval
from visionattn.training.console import Console


@dataclass(frozen=True)
class Evaluation:
    """Result on a split, each image counted once.

    Attributes:
        split: name of the split.
        count: images evaluated.
        metrics: fractions from 0 to 1; None where not defined.
        interval: 95 % interval of top-1 (None for multi-label).
        per_class: a row per class.
        probabilities: `[count, classes]`.
        labels: `[count]` or `[count, classes]`.
        indices: index of each row in the split.
        unreadable: (index, reason) of images that could not be decoded.
    """

    split: str
    count: int
    metrics: Metrics
    interval: tuple[float, float] | None
    per_class: list[dict[str, Any]]
    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    unreadable: list[tuple[int, str]]


def eval_loader(dataset: ClassificationDataset, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Batches of this process' share of a split, in order; no image twice, none left out."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=list(eval_indices(len(dataset), rank, world)),
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # its own, so that evaluating leaves the training's random state alone
    )


def evaluate_model(
    model: nn.Module,
    task: Classification,
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
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    unreadable: list[tuple[int, str]] = []
    loss, done = 0.0, 0
    progress = (console or Console(quiet=True)).progress(split, len(loader))
    with progress as bar, torch.inference_mode():
        for step, batch in enumerate(loader):
            unreadable += batch["unreadable"]
            if len(batch["index"]):
                image, label = batch["image"].to(device), batch["label"].to(device)
                with autocast():
                    logits = model(image)
                loss += float(task.loss(logits, {"label": label})["loss"]) * len(label)
                done += len(label)
                parts.append((task.outputs(logits).cpu().numpy(), batch["label"].numpy(), np.asarray(batch["index"])))
            bar.update(step + 1)
    model.train(was_training)
    gathered = [(parts, unreadable, loss, done)]
    if gather:
        gathered = gather_object(gathered)
    parts = [part for shard in gathered for part in shard[0]]
    unreadable = sorted(item for shard in gathered for item in shard[1])
    if not parts:
        raise UserError("VA-D010", f"no image of the {split} split could be read", why=unreadable[0][1] if unreadable else "it is empty")
    probabilities, labels, indices = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(indices, kind="stable")
    probabilities, labels, indices = probabilities[order], labels[order], indices[order]
    metrics, per_class = task.metrics(probabilities, labels)
    metrics["loss"] = sum(shard[2] for shard in gathered) / sum(shard[3] for shard in gathered)
    top1 = metrics.get("top1")
    interval = wilson_interval(top1, len(labels)) if top1 is not None else None
    return Evaluation(split, len(labels), metrics, interval, per_class, probabilities, labels, indices, unreadable)

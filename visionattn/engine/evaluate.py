"""One evaluation, used by the training loop and by `visionattn eval`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.engine.processes import Processes
from visionattn.errors import Interrupted, UserError
from visionattn.tasks.base import Evaluation, Objective, Target, Task


def evaluate_model(
    task: Task,
    config: RunConfig,
    target: Target,
    model: nn.Module,
    objective: Objective,
    loader: DataLoader[Any],
    *,
    split: str,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    processes: Processes | None = None,
    console: Console | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run a model over a split.

    Args:
        model: on `device`; its mode is restored.
        loader: all samples, or with `processes` the share of this process.
        processes: they all call this, and each returns the result of all.
        stopped: whether to give up; asked before each batch.

    Raises:
        UserError: VA-D010, no sample of the split could be read.
        Interrupted: `stopped` on any process.
    """
    was_training = model.training
    model.eval()
    predictor, meter = task.predictor(config, target, model, device), task.meter(config, target)
    unreadable: list[tuple[str, str]] = []
    loss, done = 0.0, 0
    progress = (console or Console(quiet=True)).progress(split, len(loader))
    with progress as bar, torch.inference_mode():
        # One process may have a batch more than another, and all are asked equally often.
        batches, most = iter(loader), len(loader) if processes is None else max(processes.gather(len(loader)))
        for step in range(most):
            if stopped() if processes is None else processes.any_of(stopped())[0]:
                raise Interrupted(f"in the evaluation of {split}")
            batch = next(batches, None)
            if batch is None:
                continue
            unreadable += batch.unreadable
            if len(batch):
                with autocast():
                    predictions = predictor(batch)
                loss += float(objective.loss(predictions, batch)["loss"]) * len(batch)
                done += len(batch)
                meter.update(predictions, batch)
            bar.update(step + 1)
    model.train(was_training)
    shares = [(meter.state(), unreadable, loss, done)]
    if processes is not None:
        shares = processes.gather(shares[0])
    unreadable = sorted(item for share in shares for item in share[1])
    count = sum(share[3] for share in shares)
    if not count:
        raise UserError(
            "VA-D010", f"no {task.unit} of the {split} split could be read", why=unreadable[0][1] if unreadable else "it is empty"
        )
    whole = task.meter(config, target)
    whole.merge([share[0] for share in shares])
    scores = whole.result()
    metrics = {**scores.metrics, "loss": sum(share[2] for share in shares) / count}
    return Evaluation(task.name, split, count, metrics, scores, unreadable)

"""One evaluation, used by the training loop and by `visionattn eval`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.data.loading import Loader
from visionattn.engine.diagnosis import memory_explained, out_of_memory_in_inference
from visionattn.engine.processes import Processes
from visionattn.errors import Interrupted, UserError
from visionattn.tasks.base import Evaluation, Objective, Predictor, Target, Task
from visionattn.tasks.batch import Batch


def evaluate_model(
    task: Task,
    config: RunConfig,
    target: Target,
    model: nn.Module,
    objective: Objective,
    loader: Loader,
    *,
    split: str,
    predictor: Predictor | None = None,
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
        predictor: inference of several models; default: the task's, of `model`.
        processes: they all call this, and each returns the result of all.
        stopped: whether to give up; asked before each batch.

    Raises:
        UserError: VA-D010, no sample of the split could be read; VA-R001, out of memory; VA-R009, a loader process ended.
        Interrupted: `stopped` on any process.
    """
    predictor, meter = predictor or task.predictor(config, target, model, device), task.meter(config, target)
    unreadable: list[tuple[str, str]] = []
    loss, done = 0.0, 0

    def score(batch: Batch) -> float:
        """Sum of the losses of samples; their outputs are gone when it returns, before those of the next batch are made."""
        with autocast():
            predictions = predictor(batch)
        meter.update(predictions, batch)
        return float(objective.loss(predictions, batch)["loss"]) * len(batch)

    progress = (console or Console(quiet=True)).progress(split, len(loader))
    explained = memory_explained(partial(out_of_memory_in_inference, f"the evaluation of {split}", loader.batch_size))
    with _evaluating(model), progress as bar, torch.inference_mode(), explained:
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
                loss += score(batch)
                done += len(batch)
            bar.update(step + 1)
    shares = [(meter.state(), unreadable, loss, done)]
    if processes is not None:
        shares = processes.gather(shares[0])
    unreadable = sorted(item for share in shares for item in share[1])
    count = sum(share[3] for share in shares)
    if not count:
        raise UserError(
            "VA-D010", f"no {task.unit} of the {split} split could be read", why=unreadable[0][1] if unreadable else "it is empty"
        )
    if len(shares) > 1:
        meter = task.meter(config, target)
        meter.merge([share[0] for share in shares])
    scores = meter.result()
    metrics = {**scores.metrics, "loss": sum(share[2] for share in shares) / count}
    return Evaluation(task.name, split, count, metrics, scores, unreadable)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the mode from before returns on leaving."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)

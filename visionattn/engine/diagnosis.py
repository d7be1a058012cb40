"""Where a step went wrong, and the errors that report it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from visionattn.config.schema import RunConfig
from visionattn.errors import EXIT_DIVERGED, EXIT_OUT_OF_MEMORY, UserError, lacks_memory
from visionattn.tasks.base import Task
from visionattn.tasks.batch import Batch


def first_bad_module(task: Task, model: nn.Module, batch: Batch, accelerator: Accelerator) -> str:
    """Name the first module whose output is not finite, by running the batch once more; empty if there is none."""
    if not batch.finite():
        return "the input"
    bad: list[str] = []

    def check(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and not bad and not torch.isfinite(output).all():
            bad.append(name)

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(partial(check, name)) for name, module in leaves]
    try:
        with torch.no_grad(), accelerator.autocast():
            task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return bad[0] if bad else ""


def first_bad_gradient(model: nn.Module) -> str:
    """Name the module whose gradient broke first; the backward pass runs from the last layer to the first."""
    gradients = [(name, p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad) for name, p in model.named_parameters()]
    bad = [name for name, gradient in gradients if gradient is not None and not torch.isfinite(gradient).all()]
    return bad[-1].rpartition(".")[0] if bad else "unknown"


def diverged(config: RunConfig, record: dict[str, Any], place: str, precision: str, file: str) -> UserError:
    """VA-R002 from the record of a step that is not finite."""
    hint = "train.precision=bf16 or fp32, " if precision == "fp16" else ""
    return UserError(
        "VA-R002",
        f"{record['what']} at {place}",
        where=f"first module that is not finite: {record['module']}",
        why=f"lr {record['lr']:.2e}; the batch is listed in {file}; the last checkpoint is intact",
        fix=f"{hint}a lower optim.lr (now {config.optim.lr:g}), a longer schedule.warmup_epochs, or optim.clip_grad=1",
        exit_code=EXIT_DIVERGED,
    )


@contextmanager
def memory_explained(out_of_memory: Callable[[Exception], UserError]) -> Iterator[None]:
    """Raise a lack of memory as an error that says what to change.

    Args:
        out_of_memory: VA-R001 of the job.

    Raises:
        UserError: VA-R001.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise out_of_memory(error) from error
        raise


def out_of_memory_in_training(config: RunConfig, step: int, precision: str, error: Exception) -> UserError:
    """VA-R001 with what to change, in the order to try it."""
    train, (height, width) = config.train, config.model.size
    factor = next((number for number in range(2, train.batch_size + 1) if train.batch_size % number == 0), None)
    smaller = f"train.batch_size={train.batch_size // factor} train.accum={train.accum * factor} (same effective batch)\n" if factor else ""
    return UserError(
        "VA-R001",
        f"out of memory at step {step + 1}: batch {train.batch_size}, {height}x{width} px, {precision}",
        why=_reason(error),
        fix=f"in this order: {smaller}model.grad_checkpointing=true\ntrain.precision=bf16\na smaller model.img_size; then start a new run",
        exit_code=EXIT_OUT_OF_MEMORY,
    )


def out_of_memory_in_inference(what: str, batch_size: int, error: Exception) -> UserError:
    """VA-R001 of an evaluation or a prediction, with what to change, in the order to try it."""
    smaller = f"--batch-size {max(1, batch_size // 2)} (batch_size in Python)\n" if batch_size > 1 else ""
    return UserError(
        "VA-R001",
        f"out of memory in {what}: batch {batch_size}",
        why=_reason(error),
        fix=f"in this order: {smaller}data.workers=0 if the CPU's memory ran out\neval.mode=slide where the task has it\n"
        "train.device=cpu if a GPU's memory ran out",
        exit_code=EXIT_OUT_OF_MEMORY,
    )


def _reason(error: Exception) -> str:
    """The line of an error that says what happened; one from a loader process ends with it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if lines[0].startswith("Caught ") else lines[0]


def single_value_norm(config: RunConfig, count: int, error: Exception) -> UserError:
    """VA-C011: a batch norm saw a single value per channel."""
    return UserError(
        "VA-C011",
        f"batch norm over a single value: {count} sample in a batch, {config.model.name} pools it to one pixel",
        fix="train.batch_size=2 or more, or a larger model.img_size where the last map is one pixel",
    )

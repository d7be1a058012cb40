"""The batch that fits a device, for `train.batch_size=auto`."""

from __future__ import annotations

import gc
import math
import os
from itertools import islice
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from visionattn.config.schema import RunConfig
from visionattn.engine.diagnosis import forward, out_of_memory_in_training
from visionattn.engine.freezing import freeze, keep_frozen
from visionattn.engine.optim import build_optimizer
from visionattn.engine.processes import Processes
from visionattn.engine.setup import Setup
from visionattn.errors import lacks_memory
from visionattn.layers import mean_regularizer
from visionattn.tasks.batch import Batch

GPU_SHARE = 0.9  # of its free memory that a step may take: memory becomes fragmented
CPU_SHARE = 0.5  # of the available memory: the data and other programs need some too
CPU_LARGEST = 64  # larger batches are not faster there
_DECODED = 8  # samples that trials read; larger batches repeat them


def samples_per_step(config: RunConfig, size: int, world: int) -> int:
    """Samples of a step on each process that the learning rate is for: optim.lr_batch on all of them, or the default batch on each.

    Args:
        size: samples in the training set; where they are too few for a step, it is the largest power of two that they fill.
    """
    default: int = type(config.train).model_fields["batch_size"].default
    wanted = default if config.optim.lr_batch is None else max(1, config.optim.lr_batch // world)
    most = max(1, size // world)
    return wanted if wanted <= most else 2 ** int(math.log2(most))


def with_batch(config: RunConfig, size: int, accum: int) -> RunConfig:
    """The config with these samples per step and device, and steps per update."""
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size, "accum": accum})})


def fit_batch(setup: Setup, accelerator: Accelerator, processes: Processes) -> RunConfig:
    """The config with the largest batch that fits, and the accumulation that keeps the samples of a step.

    Args:
        setup: with all samples of a step in one batch. Its model is trained for some steps, and of no use afterwards.

    Raises:
        UserError: VA-R001, not even a single sample fits.
    """
    samples = int(setup.config.train.batch_size)
    sizes = [size for size in range(samples, 0, -1) if samples % size == 0]
    find = _largest_in_ram if accelerator.device.type == "cpu" else _largest_on_gpu
    size = min(processes.gather(processes.together(lambda: find(setup, accelerator, sizes, processes.world))))
    return with_batch(setup.config, size, samples // size)


def _largest_on_gpu(setup: Setup, accelerator: Accelerator, sizes: list[int], world: int) -> int:
    """Try steps, from the largest batch on."""
    device, config, cuda = accelerator.device, setup.config, accelerator.device.type == "cuda"
    copies = (config.train.ema is not None) + (world > 1)  # the moving average, and gradients on their way
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) if cuda else math.inf
    failed: Exception = MemoryError("no batch was tried")
    for size in sizes:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            _train_steps(setup, accelerator, size)
        except Exception as error:
            if not lacks_memory(error):
                raise
            failed = error.with_traceback(None)  # whose frames hold the tensors
        else:
            peak = torch.cuda.max_memory_allocated(device) + copies * _bytes(setup.model) if cuda else 0
            if peak <= GPU_SHARE * free:
                return size
            failed = MemoryError(f"out of memory: a step takes {peak / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
        finally:
            setup.model.zero_grad(set_to_none=True)
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()
    raise out_of_memory_in_training(with_batch(config, sizes[-1], 1), 0, accelerator.mixed_precision, failed)


def _largest_in_ram(setup: Setup, accelerator: Accelerator, sizes: list[int], world: int) -> int:
    """Estimate from what a small batch keeps for the backward pass: the system kills a process that takes too much, without an error."""
    count = min(2, sizes[0])
    per_sample = 2 * _kept_bytes(setup, accelerator, count) / count  # with temporary tensors
    copies = 4 + (setup.config.train.ema is not None)  # weights, gradients, two moments
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # processes on this machine
    room = CPU_SHARE * available_memory() / neighbours - copies * _bytes(setup.model)
    return next((size for size in sizes if size <= CPU_LARGEST and size * per_sample <= room), sizes[-1])


def available_memory() -> int:
    """Bytes of memory that this process may take, in a container within its limit."""
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used, facts = ((group / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return available
    if limit.strip() == "max":
        return available
    cached = dict(line.split() for line in facts.splitlines()).get("inactive_file", "0")  # files that make room when it is needed
    return min(available, max(0, int(limit) - int(used) + int(cached)))


def _train_steps(setup: Setup, accelerator: Accelerator, size: int) -> None:
    """Two steps on real samples: the second one finds the state of the optimizer in memory."""
    config, model = setup.config, setup.model.to(accelerator.device)
    frozen = freeze(model, config.train.frozen)
    model.set_grad_checkpointing(config.model.grad_checkpointing)  # type: ignore[operator]
    optimizer = build_optimizer(model, config.optim.model_copy(update={"lr": 1e-12}), size)
    model.train()
    keep_frozen(model, frozen)
    for _ in range(2):
        _loss(setup, accelerator, size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _kept_bytes(setup: Setup, accelerator: Accelerator, size: int) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, without weights."""
    config, model = setup.config, setup.model
    keep_frozen(model.train(), freeze(model, config.train.frozen))
    model.set_grad_checkpointing(config.model.grad_checkpointing)  # type: ignore[operator]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(setup, accelerator, size)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    total = sum(count for pointer, count in kept.items() if pointer not in weights)
    del loss  # until here what it keeps has its place in memory
    return total


def _loss(setup: Setup, accelerator: Accelerator, size: int) -> torch.Tensor:
    batch = setup.objective.mix(_batch(setup, size).to(accelerator.device))
    with accelerator.autocast():
        outputs = forward(setup.task, setup.config, setup.model, batch)
    return setup.objective.loss(outputs, batch)["loss"] + mean_regularizer(setup.model)


def _batch(setup: Setup, size: int) -> Batch:
    """The first samples that can be read, repeated to a batch."""
    dataset = setup.train_set
    read = (dataset[0, index] for index in range(len(dataset)))
    samples = list(islice((sample for sample in read if "unreadable" not in sample), min(size, _DECODED)))
    return dataset.collate([samples[index % len(samples)] for index in range(size)])


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

"""Devices, precision and processes of a job, put back when it ends."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from visionattn.config.schema import TrainConfig
from visionattn.errors import UserError

ACCELERATE_DEVICE = "ACCELERATE_TORCH_DEVICE"  # environment variable with the device that accelerate takes


@contextmanager
def open_accelerator(config: TrainConfig, *, leaves_unused: bool = False) -> Iterator[Accelerator]:
    """Device, precision and processes; on leaving, processes are disconnected and accelerate forgets its state.

    Args:
        leaves_unused: whether parameters may take no part in a step.

    Raises:
        UserError: VA-C002, a device that is not there, or a precision it lacks; VA-R006, processes that do not find each other.
    """
    _require_device(config.device)
    cpu = _on_cpu(config)
    precision = {"auto": "bf16" if fast_bf16(cpu) else "no", "fp32": "no"}.get(config.precision, config.precision)
    if precision == "fp16" and cpu:
        raise UserError("VA-C002", "train.precision: fp16 needs a GPU", fix="train.precision=auto")
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))]
    if leaves_unused:
        handlers.append(DistributedDataParallelKwargs(find_unused_parameters=True))
    AcceleratorState._reset_state()  # a job in the same process that ended in an error may have left its precision
    try:
        with _one_gpu(config.device):
            # Without a GPU the CPU is requested explicitly: processes would not find each other otherwise.
            accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers)
            _require_processes(accelerator.num_processes)
            yield accelerator
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def inference_settings(config: TrainConfig, report: Callable[[str], object]) -> TrainConfig:
    """The settings to use a trained model with: a device or a precision that only its training had becomes auto, which is reported."""
    if config.device not in ("auto", *_devices()):
        report(f"trained on {config.device}, which is not here: train.device=auto")
        config = config.model_copy(update={"device": "auto"})
    if config.precision != "fp16" or not _on_cpu(config):
        return config
    report(f"trained in fp16, which a CPU does not compute: this is {'bf16' if fast_bf16(cpu=True) else 'fp32'}")
    return config.model_copy(update={"precision": "auto"})


def _on_cpu(config: TrainConfig) -> bool:
    return config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def _devices() -> list[str]:
    """Values of `train.device` that this machine has."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *(["mps"] if torch.backends.mps.is_available() else []), *(["cuda", *gpus] if gpus else [])]


def _require_device(device: str) -> None:
    """Stop if a device is not there, or is one for several processes.

    Raises:
        UserError: VA-C002.
    """
    found, processes = _devices(), int(os.environ.get("WORLD_SIZE", "1"))
    if device not in ("auto", *found):
        raise UserError("VA-C002", f"train.device: {device} is not there", why=f"found: {', '.join(found)}", fix="train.device=auto")
    if processes > 1 and ":" in device:
        fix = "train.device=cuda; the environment variable CUDA_VISIBLE_DEVICES chooses among them"
        raise UserError("VA-C002", f"train.device: {device} is one GPU, and {processes} processes take one each", fix=fix)


@contextmanager
def _one_gpu(device: str) -> Iterator[None]:
    """Make a GPU with a number the current one, for accelerate and for kernels; on leaving, the former one returns."""
    if ":" not in device:
        yield
        return
    before = os.environ.get(ACCELERATE_DEVICE)
    os.environ[ACCELERATE_DEVICE] = device
    try:
        with torch.cuda.device(device):
            yield
    finally:
        os.environ.pop(ACCELERATE_DEVICE)
        if before is not None:
            os.environ[ACCELERATE_DEVICE] = before


def _require_processes(found: int) -> None:
    """Stop if other processes were started or asked for than this one sees.

    Raises:
        UserError: VA-R006.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if found != expected:
        fix = "start with torchrun --nproc_per_node N"
        raise UserError("VA-R006", f"{expected} processes were started, but this one sees {found}", fix=fix)
    if "ACCELERATE_USE_CPU" not in os.environ or "WORLD_SIZE" in os.environ:
        return
    # accelerate launch --cpu starts one process whatever --num_processes says, and passes the number to nobody.
    parent = psutil.Process().parent()
    asked = re.search(r"--num[_-]processes[= ](\d+)", " ".join(parent.cmdline()) if parent is not None else "")
    if asked is not None and int(asked[1]) > 1:
        what = f"{asked[1]} processes were asked for, but accelerate launch starts only one on the CPU"
        launchers = (f"torchrun --nproc_per_node {asked[1]}", f"accelerate launch --multi_gpu --num_processes {asked[1]}")
        raise UserError("VA-R006", what, fix="\nor ".join(f"{launcher} -m visionattn ..." for launcher in launchers))


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use deterministic operations where torch has them; the process' own setting returns on leaving."""
    if not enabled:
        yield
        return
    memory = torch.utils.deterministic
    was_on, warned_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, workspace = memory.fill_uninitialized_memory, os.environ.get("CUBLAS_WORKSPACE_CONFIG")  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time at every allocation
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned_only)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


def fast_bf16(cpu: bool) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if not cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

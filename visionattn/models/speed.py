"""Measure the speed of models on this machine, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from visionattn.models.factory import create_model


@dataclass(frozen=True)
class Speed:
    """Time per batch in milliseconds: median, minimum and maximum over the rounds."""

    name: str
    batch: int
    median_ms: float
    min_ms: float
    max_ms: float

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch / self.median_ms


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Measure a call: CUDA events on a GPU; CPU time if torch has a single thread, otherwise wall time."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for _ in range(repeats):
        call()
    return 1000 * (clock() - started) / repeats


def compare_speed(
    models: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    img_size: int = 224,
    batch_size: int = 8,
    rounds: int = 5,
    device: str | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Speed]:
    """Time forward passes in float32 with random weights; models alternate, so that drift affects all of them equally.

    Args:
        models: names and arguments of `create_model`.
        img_size: side of the images, px.
        batch_size: images per call.
        rounds: measured calls per model, after one warm-up call.
        device: None for CUDA if available, otherwise the CPU.
        tick: called after each of the `(rounds + 1) * len(models)` calls.

    Raises:
        UserError: VA-M001 unknown name.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    image = torch.randn(batch_size, 3, img_size, img_size, device=where)
    calls = [partial(create_model(name, **args).to(where).eval(), image) for name, args in models]
    times: list[list[float]] = [[] for _ in models]
    order = range(len(models))
    with torch.inference_mode():
        for number in range(rounds + 1):
            for index in order if number % 2 else reversed(order):
                elapsed = milliseconds(calls[index], where)
                if number:
                    times[index].append(elapsed)
                tick()
    return [Speed(name, batch_size, median(values), min(values), max(values)) for (name, _), values in zip(models, times, strict=True)]

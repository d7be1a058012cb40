"""Measure the speed of models on this machine, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    names: Sequence[str],
    *,
    img_size: int = 224,
    batch_size: int = 8,
    rounds: int = 5,
    device: str | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Speed]:
    """Time forward passes in float32 with random weights; models alternate, so that drift affects all of them equally.

    Args:
        names: models.
        img_size: side of the images, px.
        batch_size: images per call.
        rounds: measured calls per model, after one warm-up call.
        device: None for CUDA if available, otherwise the CPU.
        tick: called after each of the `(rounds + 1) * len(names)` calls.

    Raises:
        UserError: VA-M001 unknown name.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    image = torch.randn(batch_size, 3, img_size, img_size, device=where)
    calls = {name: partial(create_model(name).to(where).eval(), image) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name in names if number % 2 else reversed(names):
                elapsed = milliseconds(calls[name], where)
                if number:
                    times[name].append(elapsed)
                tick()
    return [Speed(name, batch_size, median(values), min(values), max(values)) for name, values in times.items()]

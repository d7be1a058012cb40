"""Measure latency, throughput and peak memory of models on this machine, side by side."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil
import torch
import torch.nn.functional as F

from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError, lacks_memory
from visionattn.kernels.dispatch import BackendError
from visionattn.models.factory import create_model

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Side = TypeVar("Side", bound=Hashable)

_WARM_UP = {"cpu": 2, "cuda": 5}  # calls before the rounds: the first ones choose kernels, and in training make the optimizer's state
_CALLS = {"cpu": 1, "cuda": 10}  # per round: a GPU computes most models in less time than it takes to start a measurement


@dataclass(frozen=True)
class Workload:
    """What one call of a model does.

    Attributes:
        size: side of the images, px.
        batch: images per call.
        train: a training step (forward pass, cross-entropy, backward pass, AdamW) instead of inference.
        precision: "fp32", or "bf16" or "fp16" by autocast: the weights stay in float32.
        device: "cpu", "cuda", "cuda:1".
    """

    size: int = 224
    batch: int = 8
    train: bool = False
    precision: str = "fp32"
    device: str = "cpu"


@dataclass(frozen=True)
class Candidate:
    """A model that is measured.

    Attributes:
        name: of the model.
        attn: attention module in the blocks of a CNN; empty: that of the model.
    """

    name: str
    attn: str = ""

    @property
    def args(self) -> dict[str, Any]:
        """Arguments of `create_model`."""
        return {"attn": self.attn} if self.attn else {}

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.args.items())])


@dataclass(frozen=True)
class Speed:
    """Results of one model.

    Attributes:
        name: of the candidate.
        batch: images per call.
        times: milliseconds per call, one value per round; empty if the model could not be measured.
        memory: peak memory in bytes, see `measure_models`; None if it was not measured.
        reason: why the model could not be measured; empty otherwise.
    """

    name: str
    batch: int
    times: Sequence[float] = ()
    memory: int | None = None
    reason: str = ""

    @property
    def median_ms(self) -> float:
        return median(self.times)

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch / self.median_ms

    def as_dict(self) -> dict[str, Any]:
        """Entry in the output of `--json`."""
        if not self.times:
            return {"name": self.name, "reason": self.reason}
        facts = {"ms": self.median_ms, "ms_min": min(self.times), "ms_max": max(self.times)}
        memory = {} if self.memory is None else {"peak_bytes": self.memory}
        return {"name": self.name, **facts, "images_per_second": self.images_per_second, **memory}


def measure_models(
    candidates: Sequence[Candidate],
    workload: Workload,
    *,
    rounds: int = 5,
    memory: bool = False,
    tick: Callable[[str], None] = lambda name: None,
) -> list[Speed]:
    """Measure models with random weights. They take turns, so that drift affects all of them equally, and are in memory together.

    Peak memory is that of a model alone. On a GPU it is what torch has allocated at most for weights, activations, gradients and
    optimizer, without its CUDA context and the part of the cache that is unused. On a CPU it is by how much the resident memory of a
    process of its own grows, from after the imports; a model that such a process cannot compute is not computed here either.

    Args:
        candidates: models.
        rounds: measured rounds, after calls that do not count.
        memory: measure peak memory, too.
        tick: called with the name of a candidate after each step, `step_count` times.

    Returns:
        Results in the order of `candidates`; of a model that failed (memory, a size that it does not take) the reason.

    Raises:
        UserError: VA-M001, unknown name.
    """
    where = torch.device(workload.device)
    for candidate in candidates:
        get_variant(candidate.name)
    reasons: dict[Candidate, str] = {}
    peaks: dict[Candidate, int | None] = {}
    sides: dict[Candidate, Callable[[], float]] = {}

    def attempt(candidate: Candidate, step: Callable[[], Any]) -> Any:
        """The result of a step; None after a failure, which ends the measurement of this model only."""
        result = None
        if candidate not in reasons:
            try:
                result = step()
            except Exception as error:
                reasons[candidate] = _reason(error)
        if candidate in reasons:
            sides.pop(candidate, None)
            if where.type == "cuda":
                torch.cuda.empty_cache()
        tick(str(candidate))
        return result

    def prepare(candidate: Candidate) -> None:
        with _peak_on_gpu(where) as peak:
            call = _call(candidate, workload)
            for _ in range(_WARM_UP[where.type]):
                call()
        if memory and where.type == "cuda":
            peaks[candidate] = peak[0]
        sides[candidate] = partial(milliseconds, call, where, _CALLS[where.type])

    def measure(candidate: Candidate) -> float:
        return sides[candidate]()

    with torch.cuda.device(where) if where.type == "cuda" else nullcontext():  # events belong to the current GPU
        for one in candidates:
            if memory and where.type == "cpu":
                peaks[one] = attempt(one, partial(_peak_of_process, one, workload))
            attempt(one, partial(prepare, one))
        turns = {one: partial(attempt, one, partial(measure, one)) for one in candidates}
        times = interleave(turns, rounds)
    return [
        Speed(str(one), workload.batch, reason=reasons[one])
        if one in reasons
        else Speed(str(one), workload.batch, times[one], peaks.get(one))
        for one in candidates
    ]


def step_count(candidates: Sequence[Candidate], workload: Workload, rounds: int, memory: bool) -> int:
    """How often `measure_models` calls `tick`."""
    return len(candidates) * (rounds + 1 + (memory and torch.device(workload.device).type == "cpu"))


def interleave(sides: Mapping[Side, Callable[[], float]], rounds: int) -> dict[Side, list[float]]:
    """Collect the result of each side per round; every second round runs in reverse order, so that drift favours no side."""
    values: dict[Side, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(list(sides)):
            values[name].append(sides[name]())
    return values


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


def clock_name(device: torch.device) -> str:
    """What `milliseconds` reads."""
    return "CUDA events" if device.type == "cuda" else "thread CPU time" if torch.get_num_threads() == 1 else "wall"


def machine(device: torch.device) -> dict[str, Any]:
    """Facts that results depend on besides the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()}, {os.cpu_count()} cores"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"torch": torch.__version__, "timm": version("timm"), "visionattn": version("visionattn")}
    return {"device": name, **versions, "date": date, "threads": torch.get_num_threads()}


def cpu_name() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_device(name: str) -> str:
    """The device of a name; "auto" is a GPU if there is one.

    Raises:
        UserError: VA-C002, it is not there.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if name == "auto":
        return "cuda" if gpus else "cpu"
    known = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if name not in known:
        raise UserError("VA-C002", f"--device: {name} is not there", why=f"found: {', '.join(known)}", fix="--device auto")
    return name


def _call(candidate: Candidate, workload: Workload) -> Callable[[], Any]:
    """One call of a model with random weights."""
    device = torch.device(workload.device)
    torch.manual_seed(0)
    model = create_model(candidate.name, **candidate.args).to(device).train(workload.train)
    image = torch.randn(workload.batch, 3, workload.size, workload.size, device=device)
    dtype = PRECISIONS[workload.precision]

    def autocast() -> Any:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def infer() -> Any:
        with torch.inference_mode(), autocast():
            return model(image)

    if not workload.train:
        return infer
    label = torch.arange(workload.batch, device=device) % 1000
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=workload.precision == "fp16")

    def train() -> Any:
        with autocast():
            logits = model(image)
        loss = F.cross_entropy(logits.float(), label)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return train


def _reason(error: Exception) -> str:
    """Why a model could not be measured, in one line.

    Raises:
        BackendError: the backend that the environment names cannot run, which is no fault of the model.
    """
    if isinstance(error, BackendError):
        raise error
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, ProcessFailed):
        return first
    if lacks_memory(error):
        return f"out of memory: {first}"
    return error.what if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


# ---------------------------------------------------------------- memory


@contextmanager
def _peak_on_gpu(device: torch.device) -> Iterator[list[int]]:
    """What torch allocates at most within a block beyond what it had before; unchanged on a CPU."""
    peak = [0]
    if device.type != "cuda":
        yield peak
        return
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    torch.cuda.synchronize(device)
    peak[0] = torch.cuda.max_memory_allocated(device) - before


class ProcessFailed(RuntimeError):
    """A model failed in a process of its own."""


def _peak_of_process(candidate: Candidate, workload: Workload) -> int:
    """By how much the resident memory of a process grows that computes a model.

    Raises:
        ProcessFailed: it gave a reason, or was ended, as the system does where memory runs out.
    """
    code = "from visionattn.models.speed import print_peak; print_peak()"
    words = json.dumps({"candidate": asdict(candidate), "threads": torch.get_num_threads(), "workload": asdict(workload)})
    done = subprocess.run([sys.executable, "-c", code, words], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "peak" in answer:
            return int(answer["peak"])
        raise ProcessFailed(answer["reason"])
    if done.returncode == -9:
        raise ProcessFailed("out of memory: the system ended the process in which its memory was measured")
    raise ProcessFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])


def print_peak() -> None:
    """Run a workload in this process, which was started for it, and print the growth of its memory as JSON."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    workload = Workload(**given["workload"])
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the imports' own peak is forgotten
    before = psutil.Process().memory_info().rss
    try:
        call = _call(Candidate(**given["candidate"]), workload)
        for _ in range(2):
            call()
    except Exception as error:
        print(json.dumps({"reason": _reason(error)}))
        return
    print(json.dumps({"peak": max(0, _highest_resident() - before)}))


def _highest_resident() -> int:
    """The most resident memory that this process had, in bytes.

    On Linux not by `getrusage`, which a new process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes

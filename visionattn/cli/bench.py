"""`visionattn bench`, and what `models compare` shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.files import counted
from visionattn.names import shown

if TYPE_CHECKING:
    from visionattn.models.speed import Candidate, Speed, Workload

ModelNames = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names or globs, see: visionattn models list.")]
ImageSize = Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per call; 1 for the latency of an image.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds that are measured; in each of them the models take turns.")]


def bench(
    names: ModelNames,
    size: ImageSize = 224,
    batch: BatchSize = 8,
    train: Annotated[bool, typer.Option("--train", help="A training step (AdamW) instead of inference.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16 (by autocast).")] = "fp32",
    rounds: Rounds = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or a GPU.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure latency, throughput and peak memory of models with random weights on this machine."""
    from visionattn.engine.devices import fast_bf16
    from visionattn.models.speed import PRECISIONS, Candidate, Workload, clock_name, machine, usable_device

    if precision not in PRECISIONS:
        raise UserError("VA-C002", f'--precision: expected {", ".join(PRECISIONS)}, got "{precision}"', fix="--precision fp32")
    found = usable_device(device)
    if precision == "fp16" and found == "cpu":
        raise UserError("VA-C002", "--precision: fp16 needs a GPU", fix="--precision bf16")
    import torch

    where, console = torch.device(found), console_for(as_json)
    workload = Workload(size, batch, train, precision, found)
    facts = {**machine(where), "clock": clock_name(where)}
    if precision == "bf16" and not fast_bf16(cpu=where.type == "cpu"):
        console.warn("this device has no hardware for bf16: what is measured is its emulation")
    speeds = measured([Candidate(name) for name in chosen_models(names)], workload, rounds, memory=True, console=console)
    memory = "allocated by torch" if where.type == "cuda" else "growth of a process"
    if as_json:
        setting = {"size": size, "batch": batch, "train": train, "precision": precision, "rounds": rounds, "memory": memory}
        print_json({**facts, **setting, "models": [speed.as_dict() for speed in speeds]})
    else:
        rows = [[speed.name, *speed_cells(speed), "n/a" if speed.memory is None else f"{speed.memory / 2**20:.0f}"] for speed in speeds]
        console.table(["name", *speed_columns(batch), "peak MiB"], rows)
        print_failures(speeds, console)
        console.line(f"{describe(workload)}, median of {rounds} (smallest-largest); peak memory: {memory}, for one model alone")
        console.line("  ".join(f"{key} {value}" for key, value in facts.items()))
    require_one(speeds)


def chosen_models(names: Sequence[str]) -> list[str]:
    """Models by names and globs.

    Raises:
        UserError: VA-M001, an unknown name, before anything is measured.
    """
    from visionattn.backbones import list_models
    from visionattn.backbones.registry import get_variant

    chosen = list(dict.fromkeys(found for name in names for found in list_models(name) or [name]))
    for name in chosen:
        get_variant(name)
    return chosen


def measured(candidates: Sequence[Candidate], workload: Workload, rounds: int, *, memory: bool, console: Console) -> list[Speed]:
    """Measure models behind a progress bar."""
    from visionattn.models.speed import measure_models, step_count

    total = step_count(candidates, workload, rounds, memory)
    with console.progress("measure", total) as bar:
        done = iter(range(1, total + 1))
        return measure_models(candidates, workload, rounds=rounds, memory=memory, tick=lambda name: bar.update(next(done), name))


def speed_columns(batch: int) -> list[str]:
    """Names of the columns of `speed_cells`."""
    return [f"ms per {batch} images" if batch > 1 else "ms per image", "images/s"]


def speed_cells(speed: Speed) -> list[str]:
    """Columns of a table: milliseconds per call, images per second."""
    if not speed.times:
        return ["failed", "n/a"]
    digits = 0 if speed.median_ms >= 100 else 2
    low, high = min(speed.times), max(speed.times)
    return [f"{speed.median_ms:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})", f"{speed.images_per_second:.1f}"]


def print_failures(speeds: Sequence[Speed], console: Console) -> None:
    """Why models could not be measured."""
    for speed in speeds:
        if speed.reason:
            console.warn(f"{speed.name}: {shown(speed.reason)}")


def require_one(speeds: Sequence[Speed]) -> None:
    """Stop if no model could be measured.

    Raises:
        UserError: VA-M004.
    """
    if not any(speed.times for speed in speeds):
        raise UserError("VA-M004", "none of the models could be measured", where=speeds[0].name, why=shown(speeds[0].reason))


def describe(workload: Workload) -> str:
    """What was measured, in a line."""
    import torch

    from visionattn.models.speed import machine

    facts = machine(torch.device(workload.device))
    threads = f", {counted(facts['threads'], 'thread')}" if workload.device == "cpu" else ""
    what = "training step" if workload.train else "inference"
    return f"{what}, {workload.precision}, {workload.size} px, batch {workload.batch}, {facts['device']}{threads}"

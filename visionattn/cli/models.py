"""`visionattn models`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visionattn.cli.bench import (
    BatchSize,
    ImageSize,
    ModelNames,
    Rounds,
    chosen_models,
    describe,
    measured,
    print_failures,
    require_one,
    speed_cells,
    speed_columns,
)
from visionattn.cli.options import Json, console_for, print_json
from visionattn.console import Console
from visionattn.errors import UserError

if TYPE_CHECKING:
    from visionattn.figures import Point
    from visionattn.models.speed import Workload

PLOT_SUFFIXES = (".png", ".svg", ".pdf")

app = typer.Typer(no_args_is_help=True, help="Models and their figures: list, info, compare.")


@app.command("list", epilog='Example: visionattn models list "swin*"')
def models_list(
    pattern: Annotated[str, typer.Argument(help="Glob on the name.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models with published weights.")] = False,
    license: Annotated[str | None, typer.Option(help="Only models with weights under this licence, for example mit.")] = None,
    as_json: Json = False,
) -> None:
    """List models with parameters, cost, published top-1 and weights."""
    from visionattn.models.weights.records import list_records, records_of, shipped_facts

    facts = shipped_facts()  # of all families, none of which is imported for it
    if pretrained or license is not None:
        names = [name for name in dict.fromkeys(record.model for record in list_records(pattern, license=license)) if name in facts]
    else:
        names = [name for name in facts if fnmatch(name, pattern)]
    if not names:
        raise UserError("VA-M001", f'no model matches "{pattern}"', fix="visionattn models list")
    if as_json:
        print_json([{"name": name, **facts[name], "weights": [record.name for record in records_of(name)]} for name in names])
        return
    rows = []
    for name in names:
        published, fact = records_of(name), facts[name]
        top1 = published[0].top1 if published else None
        tags = ", ".join(record.tag for record in published) or "-"
        row = [name, f"{fact['params'] / 1e6:.1f}M", f"{fact['gmacs']:.1f}", fact["input_size"][1]]
        rows.append([*row, "-" if top1 is None else top1, tags])
    console = console_for()
    console.table(["name", "params", "GMACs", "px", "top-1 (publisher)", "weights"], rows)
    console.line(f"{len(names)} models. `visionattn models info {names[0]}` for details.")


@app.command("info", epilog="Example: visionattn models info swin_tiny")
def models_info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model, or timm:NAME for one of timm.")], as_json: Json = False
) -> None:
    """Print everything about one model: cost, channels, arguments, preprocessing, weights, source."""
    from visionattn.models import model_info

    facts = model_info(name)
    if as_json:
        print_json(facts)
        return
    console = console_for()
    for key, value in facts.items():
        text = "\n".join(f"{inner} = {item}" for inner, item in value.items()) if isinstance(value, dict) else str(value)
        console.field(key, text)


@app.command(
    "compare",
    epilog="Examples: visionattn models compare swin_tiny nat_tiny van_b2 --plot models.png, or resnet50 --attn eca,ela_b,triplet,cbam",
)
def models_compare(
    names: ModelNames,
    size: ImageSize = 224,
    batch: BatchSize = 8,
    rounds: Rounds = 5,
    attn: Annotated[str, typer.Option(metavar="NAME,...", help="CNNs: also with each of these attention modules in their blocks.")] = "",
    plot: Annotated[
        str | None, typer.Option(help="Draw published top-1 over speed: a .png, .svg or .pdf file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Put models side by side: parameters, cost, published top-1, and the speed of inference on this machine."""
    if plot is not None and Path(plot).suffix.lower() not in PLOT_SUFFIXES:
        what = f'--plot: expected a file that ends in {", ".join(PLOT_SUFFIXES)}, got "{plot}"'
        raise UserError("VA-C002", what, fix=f"--plot {Path(plot).stem or 'models'}.png")
    from visionattn.models.factory import computed_facts, model_info
    from visionattn.models.speed import Candidate, Workload, usable_device
    from visionattn.models.weights.records import records_of

    chosen = [Candidate(name, module) for name in chosen_models(names) for module in ("", *filter(None, attn.split(",")))]
    # An unknown module stops before anything is measured.
    facts = [computed_facts(one.name, **one.args) if one.attn else model_info(one.name) for one in chosen]
    published = [None if one.attn else next(iter(records_of(one.name)), None) for one in chosen]
    top1 = [None if record is None else record.top1 for record in published]
    workload = Workload(size, batch, device=usable_device("auto"))
    speeds = measured(chosen, workload, rounds, memory=False, console=(console := console_for(as_json)))
    if plot is not None:
        from visionattn.figures import Point

        shown_points = zip(facts, speeds, published, strict=True)
        points = [
            Point(fact["name"], fact["family"], speed.images_per_second, record.top1, size == record.input_size[1])
            for fact, speed, record in shown_points
            if speed.times and record is not None and record.top1 is not None
        ]
        _draw(points, Path(plot), workload, len(chosen), console)
    if as_json:
        common = {"size": size, "batch": batch}
        columns = zip(chosen, facts, speeds, top1, strict=True)
        print_json(
            [
                {
                    **speed.as_dict(),
                    "name": one.name,
                    **one.args,
                    "params": fact["params"],
                    "gmacs": fact["gmacs"],
                    "top1_published": best,
                    **common,
                }
                for one, fact, speed, best in columns
            ]
        )
        require_one(speeds)
        return
    first = next((speed.images_per_second for speed in speeds if speed.times), 0.0)
    rows = [
        [
            speed.name,
            f"{fact['params'] / 1e6:.{1 + bool(attn)}f}M",
            f"{fact['gmacs']:.{1 + 2 * bool(attn)}f}",
            "-" if best is None else best,
            *speed_cells(speed),
            f"{speed.images_per_second / first:.2f}x" if speed.times else "n/a",
        ]
        for fact, speed, best in zip(facts, speeds, top1, strict=True)
    ]
    base = next((speed.name for speed in speeds if speed.times), chosen[0])
    console.table(["name", "params", "GMACs", "top-1 (publisher)", *speed_columns(batch), f"of {base}"], rows)
    print_failures(speeds, console)
    console.line(f"{describe(workload)}, median of {rounds} (smallest-largest); GMACs and top-1 at the published size")
    require_one(speeds)


def _draw(points: Sequence[Point], path: Path, workload: Workload, count: int, console: Console) -> None:
    """Write the figure of accuracy over speed."""
    from visionattn.figures import scatter_figure
    from visionattn.files import atomic_path

    if not points:
        console.warn("no figure: none of the models was measured and has a published top-1")
        return
    rings = [point for point in points if not point.filled]
    note = f"top-1 on ImageNet-1k as published with the default weights; {describe(workload)}"
    note += f"; rings: published at another size than {workload.size} px" * bool(rings)
    figure = scatter_figure(points, "Accuracy and speed", "images per second on this machine", "top-1, %", note)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    left_out = f" ({count - len(points)} left out: not measured, or without a published top-1)" if count > len(points) else ""
    console.field("written", f"{path}: {len(points)} models{left_out}")

"""`visionattn models`."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json
from visionattn.errors import UserError

app = typer.Typer(no_args_is_help=True, help="The zoo: list, info, compare.")


@app.command("list", epilog='Example: visionattn models list "swin*"')
def models_list(
    pattern: Annotated[str, typer.Argument(help="Glob.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models with published weights.")] = False,
    license: Annotated[str | None, typer.Option(help="Only models with weights under this licence, for example mit.")] = None,
    as_json: Json = False,
) -> None:
    """Names, parameters and cost of all models."""
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
def models_info(name: str, as_json: Json = False) -> None:
    """Everything about one model."""
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
    epilog="Examples: visionattn models compare swin_tiny nat_tiny van_b2 --size 224 --batch 8, or resnet50 --attn eca,ela_b,triplet,cbam",
)
def models_compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models or globs.")],
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each model that count; they take turns.")] = 5,
    attn: Annotated[str, typer.Option(metavar="NAME,...", help="Also with each of these attention modules in the blocks of a CNN.")] = "",
    as_json: Json = False,
) -> None:
    """Parameters, cost, published top-1, and the speed of inference on this machine, side by side."""
    from visionattn.backbones import list_models
    from visionattn.models.factory import computed_facts, model_info
    from visionattn.models.speed import compare_speed
    from visionattn.models.weights.records import records_of

    chosen = list(dict.fromkeys(found for name in names for found in list_models(name) or [name]))
    modules: list[dict[str, str]] = [{}, *({"attn": module} for module in attn.split(",") if module)]
    models = [(name, args) for name in chosen for args in modules]
    # An unknown name stops before anything is measured.
    facts = [computed_facts(name, **args) if args else model_info(name) for name, args in models]
    console = console_for(as_json)
    with console.progress("compare", (rounds + 1) * len(models)) as bar:
        calls = iter(range(1, (rounds + 1) * len(models) + 1))
        speeds = compare_speed(models, img_size=size, batch_size=batch, rounds=rounds, tick=lambda: bar.update(next(calls)))
    top1 = [None if args else next((record.top1 for record in records_of(name)), None) for name, args in models]
    labels = [" ".join([name, *(f"attn={module}" for module in args.values())]) for name, args in models]
    if as_json:
        shown = zip(models, facts, speeds, top1, strict=True)
        print_json(
            [
                {
                    "name": name,
                    **args,
                    **{key: fact[key] for key in ("params", "gmacs")},
                    "top1_published": best,
                    "size": size,
                    "batch": batch,
                    "ms": speed.median_ms,
                    "ms_min": speed.min_ms,
                    "ms_max": speed.max_ms,
                    "images_per_second": speed.images_per_second,
                }
                for (name, args), fact, speed, best in shown
            ]
        )
        return
    first = speeds[0].images_per_second
    rows = [
        [
            label,
            f"{fact['params'] / 1e6:.1f}M" if not attn else f"{fact['params'] / 1e6:.2f}M",
            f"{fact['gmacs']:.1f}" if not attn else f"{fact['gmacs']:.3f}",
            "-" if best is None else best,
            f"{speed.median_ms:.0f} ({speed.min_ms:.0f}-{speed.max_ms:.0f})",
            f"{speed.images_per_second:.1f}",
            f"{speed.images_per_second / first:.2f}x",
        ]
        for label, fact, speed, best in zip(labels, facts, speeds, top1, strict=True)
    ]
    console.table(["name", "params", "GMACs", "top-1 (publisher)", f"ms per {batch} images", "images/s", f"of {chosen[0]}"], rows)
    console.line(f"inference, fp32, {size} px, median of {rounds} (smallest-largest); GMACs at the published size")

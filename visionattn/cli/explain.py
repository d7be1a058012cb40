"""`visionattn explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from visionattn.cli.options import Json, UsedDevice, console_for, print_json, sources_and_settings
from visionattn.cli.run import require_models
from visionattn.errors import UserError


def explain(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|KEY=VALUE", help="Run, checkpoint or weights. Settings that differ, for example augment.resize=[512,512]."
        ),
    ],
    image: Annotated[str | None, typer.Option(help="Image to explain.", show_default=False)] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Pixel (column, row) from which attention is drawn; in segmentation its class is explained.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="One or several, with commas: attention, routing, relevance, gradcam, gradcam++, hirescam, layercam, xgradcam, "
            "eigencam, scorecam.",
            show_default="the first four",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=1, help="Stage, counted from 1: draw its attention head by head, and maps of its output.", show_default=False),
    ] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="Class to explain.", show_default="the predicted one")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the deletion and insertion scores; 0: no scores.")] = 16,
    out: Annotated[str | None, typer.Option(help="New folder for the results.", show_default="explain/NAME in the run")] = None,
    device: UsedDevice = None,
    as_json: Json = False,
) -> None:
    """Draw what a model looked at in an image: attention from a point, routing, maps of a class and their scores."""
    sources, settings = sources_and_settings(arguments, device)
    require_models(sources, "explain")
    if image is None:
        raise UserError("VA-C005", "no image to explain: give --image FILE")
    point = None if query is None else _point(query)
    if len(sources) > 1:
        raise UserError("VA-M004", f"explanations are of one model, and there are {len(sources)}", fix="use them one at a time")
    from visionattn.jobs.explain import explain as run_explanation

    found = run_explanation(
        sources[0],
        image,
        point=point,
        class_name=class_name,
        methods=[] if method is None else [name.strip() for name in method.split(",")],
        stage=layer,
        steps=steps,
        out=out,
        settings=settings,
        console=console_for(as_json),
    )
    if as_json:
        print_json(found.as_dict())


def _point(text: str) -> tuple[float, float]:
    """Column and row.

    Raises:
        UserError: VA-C002.
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        what = f'--query: expected X,Y, column and row in pixels, got "{text}"'
        raise UserError("VA-C002", what, fix="Example: --query 200,80") from error
    return x, y

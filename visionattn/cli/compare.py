"""`visionattn compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json, sources_and_settings


def compare(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RUN RUN|KEY=VALUE", help="Run folders, or that of --folds; plugins=[own.py] where runs need it.")
    ],
    html: Annotated[str | None, typer.Option(help="New file for a page with curves.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Put runs side by side: metrics with intervals, settings that differ, curves, time, parameters."""
    runs, settings = sources_and_settings(arguments, None)
    from visionattn.jobs.compare import compare as run_comparison

    found = run_comparison(runs, html=html, settings=settings, console=console_for(as_json))
    if as_json:
        print_json(found.as_dict())

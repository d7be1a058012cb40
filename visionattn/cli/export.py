"""`visionattn export`."""

from __future__ import annotations

from typing import Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json, sources_and_settings
from visionattn.cli.run import require_models
from visionattn.errors import UserError


def export(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RUN|KEY=VALUE", help="Run, checkpoint or weights. Settings that differ, for example eval.threshold=0.7."),
    ],
    format: Annotated[str, typer.Option(help="onnx, pt2 (a program of torch.export) or safetensors.")] = "onnx",
    out: Annotated[str | None, typer.Option(help="File to write.", show_default="RUN/export/model.FORMAT")] = None,
    dynamic: Annotated[str, typer.Option(help="Axes that stay open: batch, or batch,size where the family allows it.")] = "batch,size",
    verify: Annotated[str, typer.Option(help="Batch sizes at which the file is compared with the model.")] = "1,3,8",
    quantize: Annotated[
        str | None,
        typer.Option(
            help="int8: weights and activations of 8 bits (ONNX only), calibrated on training images; prints the metric before and after."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model to one file, with classes and preprocessing in its metadata, and compare it with the model in its runtime."""
    sources, settings = sources_and_settings(arguments, None)
    require_models(sources, "export")
    from visionattn.jobs.export import export as run_export

    try:
        batches = [int(word) for word in verify.split(",")]
    except ValueError:
        what = f'--verify: expected numbers of images, got "{verify}"'
        raise UserError("VA-C002", what, fix="--verify 1,3,8") from None
    axes = [word.strip() for word in dynamic.split(",")]
    result = run_export(
        sources,
        format=format,
        out=out,
        dynamic=axes,
        verify=batches,
        quantize=quantize,
        settings=settings,
        console=console_for(as_json),
    )
    if as_json:
        print_json(result.as_dict())

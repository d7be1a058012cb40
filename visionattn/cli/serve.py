"""`visionattn serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from visionattn.cli.options import Thresholds, UsedDevice, console_for, sources_and_settings
from visionattn.cli.run import require_models
from visionattn.errors import UserError


def serve(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|KEY=VALUE", help="Run, checkpoint, weights or exported file. Settings that differ, for example eval.flips=both."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    max_mb: Annotated[float, typer.Option(min=0.01, help="Largest upload in megabytes.")] = 20,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Largest image in millions of pixels.")] = 36,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; further ones are refused with 503.")] = 16,
    threshold: Thresholds = None,
    device: UsedDevice = None,
) -> None:
    """Serve a model: a page to drop an image on, and JSON for programs."""
    sources, settings = sources_and_settings(arguments, device, threshold)
    require_models(sources, "serve")
    if len(sources) > 1:
        raise UserError("VA-M004", f"one model is served, and there are {len(sources)}", fix="name one of them")
    from visionattn.jobs.serve import serve as run_server
    from visionattn.jobs.service import Limits

    limits = Limits(int(max_mb * 1e6), int(max_megapixels * 1e6), queue)
    run_server(sources[0], host=host, port=port, limits=limits, settings=settings, console=console_for())

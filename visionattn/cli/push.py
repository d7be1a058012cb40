"""`visionattn push`."""

from __future__ import annotations

from typing import Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json
from visionattn.names import typed


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or one of its checkpoints.")],
    target: Annotated[str, typer.Argument(metavar="OWNER/NAME|FOLDER", help="Model on the Hugging Face hub, or a new folder here.")],
    license: Annotated[str, typer.Option(help="Licence under which you share the weights, for example mit.")] = "",
    public: Annotated[bool, typer.Option("--public", help="Create a new model on the hub as public; default: private.")] = False,
    as_json: Json = False,
) -> None:
    """Share a trained model: weights, config and a model card, on the Hugging Face hub or as a folder."""
    from visionattn.jobs.push import push as run_push

    console = console_for(as_json)
    done = run_push(run, target, license=license, public=public, console=console)
    if as_json:
        print_json({"source": done.source, "address": done.address, "files": done.files})
        return
    console.field("written", done.address)
    console.field("next", f"visionattn predict {typed(done.source)} --source FILE_OR_FOLDER")

"""`visionattn config`."""

from __future__ import annotations

from typing import Annotated

import typer

from visionattn.cli.options import Json, Overrides, print_json
from visionattn.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Shipped configs and the meaning of every key: list, show, schema.")


@app.command("list")
def config_list(as_json: Json = False) -> None:
    """List the shipped configs, with the first line of each."""
    from visionattn.config.read import find_config, shipped_names

    heads = {name: find_config(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name in shipped_names()}
    if as_json:
        print_json(heads)
        return
    width = max(map(len, heads))
    for name, head in heads.items():
        typer.echo(f"{name:<{width}}  {head}")


@app.command("show", epilog="Example: visionattn config show quickstart train.epochs=3")
def config_show(
    name: Annotated[str | None, typer.Argument(help="Path or shipped name; without it the defaults of a task (task=segment).")] = None,
    overrides: Overrides = None,
) -> None:
    """Print a config with all its values, each with its meaning."""
    from visionattn.config.read import describe
    from visionattn.tasks import load_config

    if name is not None and "=" in name:
        overrides, name = [name, *(overrides or [])], None
    typer.echo(describe(load_config(name, overrides or [])), nl=False)


@app.command("schema")
def config_schema(
    task: Annotated[str | None, typer.Option(help="classify, segment, volumes or bags; default: classify.", show_default=False)] = None,
    as_json: Json = True,
) -> None:
    """Print the JSON schema of a task's config, for editors."""
    from visionattn.tasks import TASKS

    name = task or next(iter(TASKS))
    if name not in TASKS:
        raise UserError("VA-C002", f'--task: expected one of {", ".join(TASKS)}, got "{name}"')
    print_json(TASKS[name].config.model_json_schema())

"""The `visionattn` command: its groups, its version, and what an error prints.

Nothing heavy is imported at the top: `visionattn --help` must not load torch.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from visionattn.cli import bench, compare, config, data, doctor, explain, export, features, kernels, models, push, run, serve, weights
from visionattn.cli.options import TYPED
from visionattn.cli.unknown import unknown_option
from visionattn.errors import EXIT_CODES, EXIT_INTERRUPTED, EXIT_OUT_OF_MEMORY, Interrupted, UserError, lacks_memory
from visionattn.files import write_error
from visionattn.names import shown_lines

_verbose = False


class Commands(TyperGroup):
    """Turns what a user can fix into one block on standard error and the exit code that goes with it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        with _explained(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _explained(ctx):
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except UserError as error:
            _fail(error.block(), error.exit_code)
        except (Interrupted, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            fix = "choose another folder: output.dir=FOLDER, --out FOLDER, or the environment variable VISIONATTN_CACHE"
            if (told := write_error(error, fix)) is not None:
                _fail(told.block(), told.exit_code)
            dispatch = sys.modules.get("visionattn.kernels.dispatch")  # loaded where an operation can have raised
            if dispatch is not None and isinstance(error, dispatch.BackendError):
                fix = "unset VISIONATTN_BACKEND: the fastest backend that can run is chosen then\nvisionattn kernels list"
                _fail(UserError("VA-C002", str(error), where="environment variable VISIONATTN_BACKEND", fix=fix).block(), EXIT_CODES["C"])
            if lacks_memory(error):
                fix = "fewer data.workers, a smaller batch or smaller inputs"
                _fail(UserError("VA-R001", "out of memory", why=str(error), fix=fix).block(), EXIT_OUT_OF_MEMORY)
            hint = "run again with: visionattn -v ...  to see where, and report it with the output of: visionattn doctor"
            _fail(f"error VA-X001: internal fault: {type(error).__name__}: {error}\n  fix   {hint}", 1)


@contextmanager
def _explained(context: Any) -> Iterator[None]:
    """Say what an unknown option means."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "NoSuchOption":  # click's, of which typer may have a copy of its own
            raise
        raise unknown_option(error, context.meta[TYPED]) from None


def _fail(text: str, code: int) -> NoReturn:
    if _verbose:
        typer.echo(shown_lines(traceback.format_exc()), err=True, nl=False)
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one prints
        typer.secho(shown_lines(text), err=True, fg=None if os.environ.get("NO_COLOR") else typer.colors.RED)
    sys.exit(code)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attention backbones for vision: train, evaluate, predict, explain, export.",
    epilog="Start with: visionattn train --config quickstart",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from visionattn import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    global _verbose
    _verbose = verbose


app.command(epilog="Example: visionattn train --data flowers --model swin_tiny train.epochs=30")(run.train)
app.command("eval", epilog="Example: visionattn eval runs/quickstart/001 --split test")(run.evaluate)
app.command(epilog="Example: visionattn predict runs/quickstart/001 --source photos/ --out predictions")(run.predict)
app.command(epilog="Example: visionattn compare runs/quickstart/001 runs/quickstart/002 --html compare.html")(compare.compare)
app.command(epilog="Example: visionattn explain runs/quickstart/001 --image digit.png --query 14,14")(explain.explain)
app.command(epilog="Example: visionattn features runs/quickstart/001 photos/ --out features")(features.features)
app.command(epilog="Example: visionattn neighbors runs/quickstart/001 photos/ --k 5")(features.neighbors)
app.command(epilog="Example: visionattn export runs/quickstart/001 --format onnx")(export.export)
app.command(epilog="Example: visionattn push runs/quickstart/001 ./quickstart-model")(push.push)
app.command(epilog="Example: visionattn serve runs/quickstart/001 --port 8000")(serve.serve)
app.command(epilog='Example: visionattn bench swin_tiny "nat_*" --batch 1')(bench.bench)
app.command()(doctor.doctor)
for name, group in {"models": models, "weights": weights, "data": data, "kernels": kernels, "config": config}.items():
    app.add_typer(group.app, name=name)


def main() -> None:
    """Entry point of the `visionattn` command."""
    app(prog_name="visionattn")

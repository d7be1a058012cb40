"""`visionattn kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json
from visionattn.errors import EXIT_CODES, UserError

if TYPE_CHECKING:
    import torch

app = typer.Typer(no_args_is_help=True, help="The operations behind the networks: list, selftest.")

KernelDevice = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; default: the GPU if there is one.")]


@app.command("list", epilog="Example: visionattn kernels list --device cuda")
def kernels_list(device: KernelDevice = None, as_json: Json = False) -> None:
    """List which backends of each operation run on a device, and why others do not."""
    from visionattn.kernels.selftest import list_backends

    place = device_named(device)
    found = list_backends(place)
    if as_json:
        print_json({"device": str(place), "backends": found})
        return
    rows = [[op, *(reason or "ok" for reason in reasons.values())] for op, reasons in found.items()]
    console = console_for()
    console.table(["operation", *next(iter(found.values()))], rows)
    console.line(f"on {place}, for float32; the first that is ok runs. VISIONATTN_BACKEND=NAME asks for one.")


@app.command("selftest", epilog="Example: visionattn kernels selftest --dtype bfloat16")
def kernels_selftest(
    device: KernelDevice = None,
    dtype: Annotated[str | None, typer.Option(help="float64, float32, float16 or bfloat16; default: those of the device.")] = None,
    as_json: Json = False,
) -> None:
    """Compare every backend that runs on a device with the definition in float64, forward and backward pass."""
    from visionattn.kernels.selftest import choose_dtypes, selftest

    place = device_named(device)
    try:
        dtypes = choose_dtypes(place, dtype)
    except ValueError as error:
        raise UserError("VA-C002", f"--{error}") from error
    results = list(selftest(place, dtypes))
    failed = sum(not result.ok for result in results)
    if as_json:
        print_json({"device": str(place), "failed": failed, "results": [{**item._asdict(), "ok": item.ok} for item in results]})
    else:
        rows = [[item.op, item.case, item.backend, item.dtype, *item.figures(), "ok" if item.ok else "FAILED"] for item in results]
        console = console_for()
        console.table(["operation", "case", "backend", "dtype", "forward (limit)", "gradients (limit)", ""], rows)
        for item in results:
            if item.fault:
                console.warn(f"{item.op}, {item.case}, {item.backend}, {item.dtype}: {item.fault}")
        console.line(f"{failed or 'none'} of {len(results)} failed on {place}; largest difference from float64 over largest value")
    if failed:
        raise typer.Exit(EXIT_CODES["R"])


def device_named(name: str | None) -> torch.device:
    """A device on which something was computed just now."""
    import torch

    place = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(1, device=place).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError("VA-C002", f'--device: no device "{place}" here', why=str(error).splitlines()[0]) from error

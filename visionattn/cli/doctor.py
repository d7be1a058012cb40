"""`visionattn doctor`."""

from __future__ import annotations

import typer

from visionattn.cli.options import Json, console_for, print_json


def doctor(as_json: Json = False) -> None:
    """Print versions, devices, optional packages and a self-check, to paste into an issue."""
    from visionattn.jobs.doctor import diagnose, diagnosis_text

    console = console_for(as_json)
    report = diagnose(console=console)
    if as_json:
        print_json(report)
    else:
        console.line(diagnosis_text(report))
    if report["problems"]:
        raise typer.Exit(7)

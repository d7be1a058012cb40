"""`visionattn features` and `neighbors`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from visionattn.cli.options import Json, UsedDevice, console_for, print_json, sources_and_settings
from visionattn.cli.run import is_model, require_models
from visionattn.console import percent
from visionattn.errors import UserError

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|FILE|KEY=VALUE",
        help="Run, checkpoint or weights; then files, folders or globs (with --split a data set); then settings that differ.",
    ),
]
Images = Annotated[int, typer.Option(min=1, help="Images per step (classifiers).")]
_MOST_ROWS = 40  # of a table on the terminal


def features(
    arguments: Words,
    out: Annotated[str | None, typer.Option(help="NAME.npy, or a folder.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test: images of a data set, with labels.", show_default=False)] = None,
    bags: Annotated[bool, typer.Option("--bags", help="Write one file per folder of patches, for task=bags.")] = False,
    batch_size: Images = 32,
    device: UsedDevice = None,
    as_json: Json = False,
) -> None:
    """Write the features of images, as the classifier sees them: an array, and a table of ids and labels."""
    model, data, settings = _words(arguments, device, "features")
    if out is None:
        raise UserError("VA-C005", "no place for the features: give --out FOLDER, or --out NAME.npy")
    from visionattn.jobs.features import extract_bags, extract_features, feature_files

    console = console_for(as_json)
    if bags:
        if len(data) != 1 or split is not None:
            raise UserError("VA-C005", "--bags: give one folder of folders of patches, and no --split")
        written = extract_bags(model, data[0], out, batch_size=batch_size, settings=settings, console=console)
        if as_json:
            print_json({"files": [str(path) for path in written]})
        return
    found = extract_features(model, data or None, split=split, out=out, batch_size=batch_size, settings=settings, console=console)
    if as_json:
        files = [str(path) for path in feature_files(Path(out))]
        print_json({"files": files, "shape": list(found.values.shape), "unreadable": len(found.unreadable)})


def neighbors(
    arguments: Words,
    data: Annotated[str | None, typer.Option(help="Data set whose training images are searched; default: that of the run.")] = None,
    features: Annotated[str | None, typer.Option(help="Search features saved by visionattn features instead.")] = None,
    split: Annotated[str | None, typer.Option(help="Instead of files: train, val or test; prints the share of right labels.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours per image.")] = 5,
    out: Annotated[str | None, typer.Option(help="Folder for neighbors.csv and neighbors.png.")] = None,
    batch_size: Images = 32,
    device: UsedDevice = None,
    as_json: Json = False,
) -> None:
    """Find the training images nearest to files by their features; with --split, measure how often their labels are right."""
    model, query, settings = _words(arguments, device, "neighbors")
    from visionattn.jobs.neighbors import COLUMNS, find_neighbors

    console = console_for(as_json)
    found = find_neighbors(
        model,
        query or None,
        data=data,
        features=features,
        split=split,
        k=k,
        out=out,
        batch_size=batch_size,
        settings=settings,
        console=console,
    )
    if split is None:
        rows = list(islice(found.table(), _MOST_ROWS))
        shown = [index for index in range(len(COLUMNS)) if any(row[index] != "" for row in rows)]
        console.table([COLUMNS[index] for index in shown], [[row[index] for index in shown] for row in rows])
        if found.rows.size > len(rows):
            console.line(f"... and {found.rows.size - len(rows)} more")
    else:
        names = {"nearest_top1": "nearest", "knn_top1": f"most of {found.rows.shape[1]}"}
        accuracy = "  ".join(f"{names[name]} {percent(value)} %" for name, value in found.metrics.items())
        console.field(split, f"{len(found.rows)} images with the label of their neighbours: {accuracy}")
    if as_json:
        pairs = [] if split else [dict(zip(COLUMNS, row, strict=True)) for row in found.table()]
        print_json({"count": len(found.rows), "k": found.rows.shape[1], "metrics": found.metrics, "neighbors": pairs})


def _words(arguments: list[str], device: str | None, command: str) -> tuple[str | list[str], list[str], list[str]]:
    """The model (or several, which the job refuses), files or data, and settings.

    Raises:
        UserError: VA-C005, no model.
    """
    words, settings = sources_and_settings(arguments, device)
    require_models(words, command)
    models = [words[0], *filter(is_model, words[1:])]
    return words[0] if len(models) == 1 else models, words[1:], settings

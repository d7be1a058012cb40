"""`visionattn weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionattn.cli.options import Json, console_for, print_json
from visionattn.errors import EXIT_CODES, UserError

app = typer.Typer(no_args_is_help=True, help="Checkpoint files: list, download, import, verify.")


@app.command("list", epilog='Example: visionattn weights list "swin*"')
def weights_list(
    pattern: Annotated[str, typer.Argument(help="Glob on model.tag.")] = "*",
    license: Annotated[str | None, typer.Option(help="Only weights under this licence, for example mit.")] = None,
    as_json: Json = False,
) -> None:
    """List published weights: metrics, licences, sources, what their hash is checked against, whether they are in the cache."""
    from visionattn.models.weights.download import cached_path
    from visionattn.models.weights.records import list_records, list_segmenters

    found = [*list_records(pattern, license=license), *list_segmenters(pattern, license=license)]
    if not found:
        raise UserError("VA-W007", f'no weights match "{pattern}"', fix="visionattn weights list")
    paths = [cached_path(record) for record in found]
    if as_json:
        pairs = zip(found, paths, strict=True)
        print_json(
            [
                {"name": item.name, **item.model_dump(mode="json"), "hash_check": item.hash_check, "path": path and str(path)}
                for item, path in pairs
            ]
        )
        return
    rows = [
        [
            item.name,
            *item.display_figures,
            item.display_licenses,
            next((source.host for source in item.sources if source.fetchable), "by hand"),
            item.hash_check,
            f"{path.stat().st_size / 2**20:,.0f} MiB" if path else "-",
        ]
        for item, path in zip(found, paths, strict=True)
    ]
    console = console_for()
    console.table(["name", "px", "publisher's figure", "licence: weights, code", "from", "hash", "local"], rows)
    console.line("hash: the published sha256, its first digits, or none: then that of the first use is pinned and required from then on.")
    console.line(f"{len(found)} files. `visionattn weights download {found[0].name}` fetches one, or explains how to download it by hand.")


@app.command("download", epilog="Example: visionattn weights download swin_tiny swin_base.in22k")
def weights_download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="model (its default weights) or model.tag.")],
    as_json: Json = False,
) -> None:
    """Download published weights into the cache; files already there are checked."""
    from visionattn.models.weights.download import fetch
    from visionattn.models.weights.records import find_weights

    console = console_for(as_json)
    wanted = [find_weights(name) for name in names]  # a wrong name fails before any download
    done = []
    for record in wanted:
        file = fetch(record)
        console.field(record.name, f"{file.path}\nsha256 {file.sha256} ({file.checked})")
        done.append({"name": record.name, "path": str(file.path), "sha256": file.sha256, "checked": file.checked})
    if as_json:
        print_json({"files": done})


@app.command("import", epilog="Example: visionattn weights import swin_tiny_patch4_window7_224.pth")
def weights_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help=".pth or .safetensors, in the authors' layout or another known one.")],
    model: Annotated[str | None, typer.Option(help="Needed only if several models fit and the file name contains none.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag to import it under; default: the published one, or the name of the file.")] = None,
    classes: Annotated[str | None, typer.Option(help="Text file with one class per line, if not ImageNet's.")] = None,
    as_json: Json = False,
) -> None:
    """Import a local file: its model is recognised from its content; train, eval and predict then take it by name."""
    from visionattn.models.weights.importing import import_file

    console = console_for(as_json)
    if classes is not None and not Path(classes).is_file():
        raise UserError("VA-D001", f'--classes "{classes}" not found')
    try:
        names = Path(classes).read_text(encoding="utf-8").split("\n") if classes else []
    except UnicodeDecodeError as error:
        raise UserError("VA-D001", f'--classes "{classes}" is not UTF-8 text', why=str(error)) from error
    done = import_file(file, model=model, tag=tag, class_names=[name.strip() for name in names if name.strip()], report=console.line)
    record, found = done.record, done.recognised
    facts = {
        "name": record.name,
        "model": record.model,
        "tag": record.tag,
        "published": bool(record.sources),
        "num_classes": found.num_classes,
        "in_chans": found.in_chans,
        "args": found.args,
        "path": str(done.file.path),
        "sha256": done.file.sha256,
        "checked": done.file.checked,
        "report": done.report.reason,
    }
    if as_json:
        print_json(facts)
        return
    traits = [f"{found.num_classes} classes", f"{found.in_chans} channels", *(f"{key} {value}" for key, value in found.args.items())]
    traits += [f"head {found.decoder.head}"] if found.decoder else []
    console.field("recognised", f"{record.model}: {', '.join(traits)}\n{done.report.reason}")
    console.field("weights", f"{record.name}  sha256 {done.file.sha256[:16]} ({done.file.checked})  {done.file.path}")
    if done.report.not_finite:
        console.warn(f"VA-W005 {done.report.not_finite}")
    train = f"visionattn train --model {record.model} model.weights={record.tag} --data FOLDER"
    if not found.num_classes:
        console.field("use", train)
        return
    console.field("use", f"visionattn predict {record.name} --source FILE_OR_FOLDER")
    if found.decoder:
        console.field("", f'segmenter_from_file("{record.name}") of visionattn.models')
        return
    console.field("", train)


@app.command("verify", epilog="Example: visionattn weights verify")
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="model or model.tag; default: all in the cache.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the hashes of files in the cache with the published ones, or with those of the first use."""
    from visionattn.models.weights.download import cached_path, check_cached
    from visionattn.models.weights.records import find_weights, list_segmenters, local_records, records

    console = console_for(as_json)
    known = (*records(), *list_segmenters(), *local_records())
    wanted = [find_weights(name) for name in names] if names else [record for record in known if cached_path(record)]
    done: list[dict[str, str | None]] = []
    for record in wanted:
        path = cached_path(record)
        if path is None:
            done.append({"name": record.name, "path": None, "sha256": None, "result": "missing"})
            continue
        try:
            file = check_cached(record, path)
            done.append({"name": record.name, "path": str(path), "sha256": file.sha256, "result": file.checked})
        except UserError as error:  # continue with the others
            console.warn(error.block())
            done.append({"name": record.name, "path": str(path), "sha256": None, "result": "mismatch"})
    if as_json:
        print_json({"files": done})
    else:
        console.table(["name", "result", "sha256"], [[item["name"], item["result"], (item["sha256"] or "-")[:16]] for item in done])
        console.line(f"{len(done)} files.")
    if any(item["result"] in ("missing", "mismatch") for item in done):
        raise typer.Exit(EXIT_CODES["W"])

"""`visionattn data`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from visionattn.cli.options import Json, Overrides, console_for, key_value, print_json, with_task
from visionattn.errors import UserError
from visionattn.files import counted

app = typer.Typer(no_args_is_help=True, help="Check data before training, make masks: check, preview, masks.")
masks_app = typer.Typer(no_args_is_help=True, help="Masks for segmentation: from (annotations), convert (values).")
app.add_typer(masks_app, name="masks")

Task = Annotated[str | None, typer.Option(help="classify, segment, volumes or bags; default: by the layout.", show_default=False)]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Number, names (a,b,c) or text file of the classes; of masks also ade20k, cityscapes, voc, camvid.", show_default=False
    ),
]


@app.command("check", epilog="Example: visionattn data check flowers")
def data_check(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Folder of images, volumes or bags, CSV lists, or a file with all of them.")],
    overrides: Overrides = None,
    task: Task = None,
    classes: Classes = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: Json = False,
) -> None:
    """Decode every file once and report what would stop or mislead a training."""
    config = _config(root, overrides, task, classes)
    from visionattn.jobs.check import check

    report = check(config, console=console_for(as_json), strict=strict)
    if as_json:
        print_json(report.as_dict())


@app.command("preview", epilog="Example: visionattn data preview flowers --out preview.png")
def data_preview(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Folder of images, volumes or bags, CSV lists, or a file with all of them.")],
    overrides: Overrides = None,
    task: Task = None,
    classes: Classes = None,
    out: Annotated[str, typer.Option(help="Picture to write.")] = "preview.png",
    count: Annotated[int, typer.Option(min=1, max=200, help="Images in the picture.")] = 24,
) -> None:
    """Draw training images as the network sees them, augmented."""
    config = _config(root, overrides, task, classes)
    from visionattn.jobs.check import preview_data

    path = Path(out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    preview_data(config, path, count)
    console_for().line(out)


@masks_app.command("convert", epilog="Example: visionattn data masks convert mydata --map 128:1")
def masks_convert(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Data set, or a folder of masks.")],
    overrides: Overrides = None,
    map: Annotated[
        list[str] | None, typer.Option(metavar="OLD:NEW", help="Value to change, or a range (128-255:1); may be given several times.")
    ] = None,
    palette: Annotated[
        str | None, typer.Option(help="Colours of RGB and palette masks: a file of `index name R G B`, or ade20k, cityscapes, voc, camvid.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="New folder; default: DIR-masks.", show_default=False)] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Overwrite the masks instead of writing copies.")] = False,
    as_json: Json = False,
) -> None:
    """Write copies of masks with other values, as PNGs of class numbers; the old ones stay."""
    from dataclasses import asdict

    from visionattn.data.masks.convert import convert_masks, mask_settings, parse_map

    if not map and palette is None:
        raise UserError("VA-C002", "nothing to convert: give --map or --palette", fix="Example: --map 128:1")
    settings, target = mask_settings(overrides or []), Path(out).expanduser() if out else None
    done = convert_masks(
        Path(root).expanduser(), map=parse_map(map or []), palette=palette, out=target, in_place=in_place, settings=settings
    )
    if as_json:
        print_json(asdict(done))
        return
    console = console_for()
    console.field("written", f"{done.files:,} masks in {done.out}")
    for change, count in done.changed.items():
        console.field("", f"{change}: {count:,} pixels")
    console.field("values", ", ".join(f"{value}: {count:,}" for value, count in list(done.values.items())[:20]))


@masks_app.command("from", epilog="Example: visionattn data masks from coco --out coco-masks")
def masks_from(
    source: Annotated[
        str,
        typer.Argument(metavar="FOLDER_OR_FILE", help="Annotations of COCO, YOLO, LabelMe, CVAT, Roboflow or Label Studio."),
    ],
    images: Annotated[str | None, typer.Option(help="Folder of the images; default: below the annotations.", show_default=False)] = None,
    out: Annotated[str | None, typer.Option(help="New folder; default: FOLDER_OR_FILE-masks.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Draw annotations as masks, in a new folder that training reads, and report their classes and faults."""
    from dataclasses import asdict

    from visionattn.data.masks.annotations.draw import draw_masks

    console = console_for(as_json)
    pictures, folder = (Path(given).expanduser() if given else None for given in (images, out))
    done = draw_masks(Path(source).expanduser(), images=pictures, out=folder, console=console)
    if as_json:
        print_json(asdict(done))
        return
    console.field("recognised", f"{done.format}: {counted(done.files, 'file')}")
    parts = ", ".join(f"{split} {count:,}" for split, count in done.images.items() if split != "all")
    console.field("written", f"{counted(sum(done.images.values()), 'image')} with masks in {done.out}" + (f": {parts}" if parts else ""))
    columns = ["value", "class", "objects", "images", "pixels", "smallest", "median", "largest"]
    rows = [[c.value, c.name, c.objects, c.images, c.pixels, c.smallest, c.median, c.largest] for c in done.classes]
    console.table(columns, rows)
    for remark in done.remarks():
        console.field("", remark)
    console.field("report", str(Path(done.out) / "report.json"))
    console.field("next", f"visionattn train --data {shlex.quote(done.out)}" + ("" if "val" in done.images else " --val-fraction 0.2"))


def _config(root: str, overrides: list[str] | None, task: str | None, classes: str | None) -> Any:
    from visionattn.tasks import load_config, task_of

    settings = [key_value("data.root", root)]
    if task is not None:
        settings.append(key_value("task", task))
    if classes is not None:
        several = [name.strip() for name in classes.split(",")]
        settings.append(key_value("data.classes", int(classes) if classes.isdigit() else several if len(several) > 1 else classes))
    config = load_config(None, with_task(root, [*settings, *(overrides or [])]))
    task_of(config).check_source(config)
    return config

"""The command line: each command parses, calls one library function, prints.

Nothing heavy is imported at the top: `visionattn --help` must not load torch.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from visionattn.errors import EXIT_CODES, EXIT_INTERRUPTED, Interrupted, UserError

if TYPE_CHECKING:
    import torch

    from visionattn.training.console import Console

_verbose = False


class Commands(TyperGroup):
    """Turns what a user can mend into one block on standard error and the exit code that goes with it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except UserError as error:
            _fail(error.block(), error.exit_code)
        except (Interrupted, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            fix = "choose another folder: output.dir=FOLDER, --out FOLDER, or the environment variable VISIONATTN_CACHE"
            _fail(f"error VA-R007: cannot read or write there: {error.strerror}\n  where {error.filename}\n  fix   {fix}", EXIT_CODES["R"])
        except Exception as error:
            dispatch = sys.modules.get("visionattn.kernels.dispatch")  # loaded where an operation can have raised
            if dispatch is not None and isinstance(error, dispatch.BackendError):
                fix = "unset VISIONATTN_BACKEND: the fastest backend that can run is chosen then\nvisionattn kernels list"
                _fail(UserError("VA-C002", str(error), where="environment variable VISIONATTN_BACKEND", fix=fix).block(), EXIT_CODES["C"])
            hint = "run again with: visionattn -v ...  to see where, and report it with the output of: visionattn doctor"
            _fail(f"error VA-X001: internal fault: {type(error).__name__}: {error}\n  fix   {hint}", 1)


def _fail(text: str, code: int) -> NoReturn:
    if _verbose:
        traceback.print_exc()
    typer.secho(text, err=True, fg=None if os.environ.get("NO_COLOR") else typer.colors.RED)
    sys.exit(code)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attention backbones for vision: train, evaluate, predict.",
    epilog="Begin with: visionattn train --config quickstart",
)
models_app = typer.Typer(no_args_is_help=True, help="The zoo: list, info, compare.")
weights_app = typer.Typer(no_args_is_help=True, help="Checkpoint files: list, download, import, verify.")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training: check, preview.")
masks_app = typer.Typer(no_args_is_help=True, help="Masks of segmentation data: convert.")
config_app = typer.Typer(no_args_is_help=True, help="Shipped configs and the meaning of every key: list, show, schema.")
kernels_app = typer.Typer(no_args_is_help=True, help="The operations behind the networks: list, selftest.")
app.add_typer(models_app, name="models")
app.add_typer(weights_app, name="weights")
app.add_typer(data_app, name="data")
app.add_typer(kernels_app, name="kernels")
data_app.add_typer(masks_app, name="masks")
app.add_typer(config_app, name="config")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, text for people on standard error.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any config key, for example optim.lr=1e-4.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="What differs from the run, for example eval.flips=both.", show_default=False),
]
KernelDevice = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; default: the GPU where there is one.")]
Task = Annotated[str | None, typer.Option(help="classify or segment; default: read from the layout.", show_default=False)]
Classes = Annotated[
    str | None,
    typer.Option(help="How many, names (a,b,c) or a text file; of masks also ade20k, cityscapes, voc, camvid.", show_default=False),
]


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


@app.command(epilog="Example: visionattn train --data flowers --model swin_tiny train.epochs=30")
def train(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="Path or shipped name, see: visionattn config list.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder of images (data.root).")] = None,
    model: Annotated[str | None, typer.Option(help="Backbone (model.name).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set (train.epochs).")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Hold out this share for validation (data.val_fraction).")] = None,
    resume: Annotated[str | None, typer.Option(help="Run folder to go on with, bit for bit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, run one step, write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings of the data check stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model and evaluate it; the task is read from the layout of --data, or from the config (task)."""
    settings = list(overrides or [])
    flags = {"data.root": data, "model.name": model, "train.epochs": epochs, "data.val_fraction": val_fraction}
    settings += [_setting(key, value) for key, value in flags.items() if value is not None]
    from visionattn.config import load_config

    if data is not None and config is None and resume is None:
        settings = _with_task(data, settings)
    if config is None and resume is None and not settings:
        fix = "visionattn train --config quickstart\nvisionattn train --data FOLDER"
        raise UserError("VA-C005", "nothing to train on: give --data or --config", fix=fix)
    source = config if config is not None or resume is None else Path(resume) / "config.yaml"
    if resume is not None and not Path(resume, "config.yaml").is_file():
        source = None  # `train` says what is wrong with the run
    given = load_config(source, settings)  # before torch is loaded: a mistake is said at once
    from visionattn.training.jobs import train as run_training

    result = run_training(given, resume=resume, dry_run=dry_run, strict=strict, console=_console(as_json))
    if as_json and result is not None:
        _print_json({"run": str(result.run), "best": result.best, "metrics": result.metrics})


@app.command("eval", epilog="Example: visionattn eval runs/digits-swin_tiny/001 --split test")
def evaluate(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder, checkpoint folder or weights file in one.")],
    overrides: Changes = None,
    data: Annotated[str | None, typer.Option(help="Other data than the run's.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    as_json: Json = False,
) -> None:
    """Metrics of a run or a checkpoint on a split."""
    from visionattn.training.inference import evaluate as run_evaluation
    from visionattn.training.report import evaluation_dict, print_evaluation

    console = _console(as_json)
    result = run_evaluation(source, data=data, split=split, batch_size=batch_size, settings=overrides or (), console=console)
    print_evaluation(result, console)
    if as_json:
        _print_json(evaluation_dict(result))


@app.command(epilog="Example: visionattn predict runs/digits-swin_tiny/001 --source photos/ --out predictions")
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder, checkpoint folder or weights file in one.")],
    source: Annotated[list[str], typer.Option(help="File, folder or glob; may be given several times.")],
    overrides: Changes = None,
    out: Annotated[str | None, typer.Option(help="Folder for the results.")] = None,
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write to --out: json,csv of classes; mask,overlay,json,csv of pixels.", show_default="json,csv or mask,overlay"
        ),
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes per image.")] = 5,
    as_json: Json = False,
) -> None:
    """Classes of images, or of their pixels."""
    formats = [] if save is None else [name.strip() for name in save.split(",")]
    if unknown := set(formats) - {"json", "csv", "mask", "overlay"}:
        raise UserError("VA-C002", f"--save: expected json, csv, mask or overlay, got {', '.join(sorted(unknown))}")
    from visionattn.training.inference import predict as run_prediction
    from visionattn.training.inference import predictions_dict

    console = _console(as_json)
    predictions, unreadable = run_prediction(run, source, topk=topk, out=out, save=formats, settings=overrides or (), console=console)
    shown = [item.shown() for item in predictions[:20]]
    console.table(list(shown[0]), [list(row.values()) for row in shown])
    if len(predictions) > len(shown):
        console.line(f"... and {len(predictions) - len(shown)} more")
    for path, reason in unreadable:
        console.warn(f"unreadable: {path} ({reason})")
    if as_json:
        _print_json(predictions_dict(predictions, unreadable))


@models_app.command("list", epilog='Example: visionattn models list "swin*"')
def models_list(
    pattern: Annotated[str, typer.Argument(help="Glob.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models with published weights.")] = False,
    license: Annotated[str | None, typer.Option(help="Only models with weights under this licence, for example mit.")] = None,
    as_json: Json = False,
) -> None:
    """Names, parameters and cost of all models."""
    from visionattn.models import model_info
    from visionattn.models.records import list_models, records_of

    names = list_models(pattern, pretrained=pretrained, license=license)
    if not names:
        raise UserError("VA-M001", f'no model matches "{pattern}"', fix="visionattn models list")
    facts = [model_info(name) for name in dict.fromkeys(name.partition(".")[0] for name in names)]
    if as_json:
        _print_json(facts)
        return
    rows = []
    for fact in facts:
        published = records_of(fact["name"])
        top1 = published[0].top1 if published else None
        tags = ", ".join(record.tag for record in published) or "-"
        row = [fact["name"], f"{fact['params'] / 1e6:.1f}M", f"{fact['gmacs']:.1f}", fact["cfg"]["input_size"][1]]
        rows.append([*row, "-" if top1 is None else top1, tags])
    console = _console()
    console.table(["name", "params", "GMACs", "px", "top-1 (publisher)", "weights"], rows)
    console.line(f"{len(facts)} models. `visionattn models info {facts[0]['name']}` for details.")


@models_app.command("info", epilog="Example: visionattn models info swin_tiny")
def models_info(name: str, as_json: Json = False) -> None:
    """Everything about one model."""
    from visionattn.models import model_info

    facts = model_info(name)
    if as_json:
        _print_json(facts)
        return
    console = _console()
    for key, value in facts.items():
        text = "\n".join(f"{inner} = {item}" for inner, item in value.items()) if isinstance(value, dict) else str(value)
        console.say(key, text)


@models_app.command("compare", epilog="Example: visionattn models compare swin_tiny nat_tiny van_b2 --size 224 --batch 8")
def models_compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models or globs.")],
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each model that count; they take turns.")] = 5,
    as_json: Json = False,
) -> None:
    """Parameters, cost, published top-1, and the speed of inference on this machine, side by side."""
    from visionattn.backbones import list_models
    from visionattn.models.factory import model_info
    from visionattn.models.records import records_of
    from visionattn.models.speed import compare_speed

    chosen = list(dict.fromkeys(found for name in names for found in list_models(name) or [name]))
    facts = [model_info(name) for name in chosen]  # says what is no model before anything is measured
    console = _console(as_json)
    with console.progress("compare", (rounds + 1) * len(chosen)) as bar:
        calls = iter(range(1, (rounds + 1) * len(chosen) + 1))
        speeds = compare_speed(chosen, img_size=size, batch_size=batch, rounds=rounds, tick=lambda: bar.update(next(calls)))
    top1 = [next((record.top1 for record in records_of(name)), None) for name in chosen]
    if as_json:
        shown = zip(facts, speeds, top1, strict=True)
        _print_json(
            [
                {
                    **{key: fact[key] for key in ("name", "params", "gmacs")},
                    "top1_published": best,
                    "size": size,
                    "batch": batch,
                    "ms": speed.median_ms,
                    "ms_min": speed.min_ms,
                    "ms_max": speed.max_ms,
                    "images_per_second": speed.images_per_second,
                }
                for fact, speed, best in shown
            ]
        )
        return
    first = speeds[0].images_per_second
    rows = [
        [
            fact["name"],
            f"{fact['params'] / 1e6:.1f}M",
            f"{fact['gmacs']:.1f}",
            "-" if best is None else best,
            f"{speed.median_ms:.0f} ({speed.min_ms:.0f}-{speed.max_ms:.0f})",
            f"{speed.images_per_second:.1f}",
            f"{speed.images_per_second / first:.2f}x",
        ]
        for fact, speed, best in zip(facts, speeds, top1, strict=True)
    ]
    console.table(["name", "params", "GMACs", "top-1 (publisher)", f"ms per {batch} images", "images/s", f"of {chosen[0]}"], rows)
    console.line(f"inference, fp32, {size} px, median of {rounds} (smallest-largest); GMACs at the published size")


@weights_app.command("list", epilog='Example: visionattn weights list "swin*"')
def weights_list(
    pattern: Annotated[str, typer.Argument(help="Glob on model.tag.")] = "*",
    license: Annotated[str | None, typer.Option(help="Only weights under this licence, for example mit.")] = None,
    as_json: Json = False,
) -> None:
    """Published weights: what they reach, where they come from, under which licence, and whether they are here."""
    from visionattn.models.download import cached_path
    from visionattn.models.records import Weights, find_record, list_models, list_segmenters

    found: list[Weights] = [find_record(name) for name in list_models(pattern, pretrained=True, license=license)]
    found += list_segmenters(pattern, license=license)
    if not found:
        raise UserError("VA-W007", f'no weights match "{pattern}"', fix="visionattn weights list")
    paths = [cached_path(record) for record in found]
    if as_json:
        shown = zip(found, paths, strict=True)
        _print_json([{"name": item.name, **item.model_dump(mode="json"), "path": path and str(path)} for item, path in shown])
        return
    rows = [
        [
            item.name,
            *item.shown,
            item.weights_license or "not stated",
            next((source.host for source in item.sources if source.fetchable), "by hand"),
            f"{path.stat().st_size / 2**20:,.0f} MiB" if path else "-",
        ]
        for item, path in zip(found, paths, strict=True)
    ]
    console = _console()
    console.table(["name", "px", "publisher's figure", "weights licence", "from", "local"], rows)
    console.line(f"{len(found)} files. `visionattn weights download {found[0].name}` fetches one; by hand: it tells how.")


@weights_app.command("download", epilog="Example: visionattn weights download swin_tiny swin_base.in22k")
def weights_download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="model (its default weights) or model.tag.")],
    as_json: Json = False,
) -> None:
    """Fetch published weights into the cache; what is there already is checked."""
    from visionattn.models.download import fetch
    from visionattn.models.records import find_weights

    console = _console(as_json)
    wanted = [find_weights(name) for name in names]  # a wrong name is said before anything is fetched
    done = []
    for record in wanted:
        file = fetch(record)
        console.say(record.name, f"{file.path}\nsha256 {file.sha256} ({file.checked})")
        done.append({"name": record.name, "path": str(file.path), "sha256": file.sha256, "checked": file.checked})
    if as_json:
        _print_json({"files": done})


@weights_app.command("import", epilog="Example: visionattn weights import swin_tiny_patch4_window7_224.pth")
def weights_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help=".pth or .safetensors, in the authors' layout or another known one.")],
    model: Annotated[str | None, typer.Option(help="Only where several models have the same tensors and its name does not tell.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name among the weights of the model; default: the published one, or the file's.")] = None,
    classes: Annotated[str | None, typer.Option(help="Text file with a class per line, where they are not ImageNet's.")] = None,
    as_json: Json = False,
) -> None:
    """Keep a file that you have: what it is, is read from its content; train, eval and predict take it by name."""
    from visionattn.models.importing import import_file

    console = _console(as_json)
    if classes is not None and not Path(classes).is_file():
        raise UserError("VA-D001", f'--classes "{classes}" not found')
    names = Path(classes).read_text(encoding="utf-8").split("\n") if classes else []
    done = import_file(file, model=model, tag=tag, class_names=[name.strip() for name in names if name.strip()], say=console.line)
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
        "report": done.report.reason,
    }
    if as_json:
        _print_json(facts)
        return
    told = [f"{found.num_classes} classes", f"{found.in_chans} channels", *(f"{key} {value}" for key, value in found.args.items())]
    told += [f"head {found.decoder.head}"] if found.decoder else []
    console.say("recognised", f"{record.model}: {', '.join(told)}\n{done.report.reason}")
    console.say("weights", f"{record.name}  sha256 {done.file.sha256[:16]}  {done.file.path}")
    console.say("use", f"visionattn predict {record.name} --source FILE_OR_FOLDER")
    if found.decoder:
        console.say("", f'segmenter_from_file("{record.name}") of visionattn.models')
        return
    console.say("", f"visionattn train --model {record.model} model.weights={record.tag} --data FOLDER")


@weights_app.command("verify", epilog="Example: visionattn weights verify")
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="model or model.tag; default: all in the cache.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash files in the cache and compare with what was published, or with the hash seen on first use."""
    from visionattn.models.download import cached_path, check_cached
    from visionattn.models.records import find_weights, list_segmenters, local_records, records

    console = _console(as_json)
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
        except UserError as error:  # the others are checked all the same
            console.warn(error.block())
            done.append({"name": record.name, "path": str(path), "sha256": None, "result": "mismatch"})
    if as_json:
        _print_json({"files": done})
    else:
        console.table(["name", "result", "sha256"], [[item["name"], item["result"], (item["sha256"] or "-")[:16]] for item in done])
        console.line(f"{len(done)} files.")
    if any(item["result"] in ("missing", "mismatch") for item in done):
        raise typer.Exit(EXIT_CODES["W"])


@data_app.command("check", epilog="Example: visionattn data check flowers")
def data_check(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Folder of images, CSV lists, or an .npz file.")],
    overrides: Overrides = None,
    task: Task = None,
    classes: Classes = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: Json = False,
) -> None:
    """Decode every image once and report what training would stumble over."""
    from visionattn.training.jobs import check

    console = _console(as_json)
    report = check(_data_config(root, overrides, task, classes), console=console, strict=strict)
    if as_json:
        _print_json(report.as_dict())


@data_app.command("preview", epilog="Example: visionattn data preview flowers --out preview.png")
def data_preview(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Folder of images, CSV lists, or an .npz file.")],
    overrides: Overrides = None,
    task: Task = None,
    classes: Classes = None,
    out: Annotated[str, typer.Option(help="Picture to write.")] = "preview.png",
    count: Annotated[int, typer.Option(min=1, max=200, help="Images.")] = 24,
) -> None:
    """A picture of training images as the network would see them, augmented."""
    from visionattn.training.jobs import preview_data

    Path(out).parent.mkdir(parents=True, exist_ok=True)
    preview_data(_data_config(root, overrides, task, classes), Path(out), count)
    typer.echo(out)


@kernels_app.command("list", epilog="Example: visionattn kernels list --device cuda")
def kernels_list(device: KernelDevice = None, as_json: Json = False) -> None:
    """Which backends of each operation run on a device, and why others do not."""
    from visionattn.kernels.selftest import list_backends

    place = _device(device)
    found = list_backends(place)
    if as_json:
        _print_json({"device": str(place), "backends": found})
        return
    rows = [[op, *(reason or "ok" for reason in reasons.values())] for op, reasons in found.items()]
    console = _console()
    console.table(["operation", *next(iter(found.values()))], rows)
    console.line(f"on {place}, for float32; the first that is ok runs. VISIONATTN_BACKEND=NAME asks for one.")


@kernels_app.command("selftest", epilog="Example: visionattn kernels selftest --dtype bfloat16")
def kernels_selftest(
    device: KernelDevice = None,
    dtype: Annotated[str | None, typer.Option(help="float64, float32, float16 or bfloat16; default: all that are usual there.")] = None,
    as_json: Json = False,
) -> None:
    """Compare every backend that runs on a device with the definition in float64, forward and backward pass."""
    from visionattn.kernels.selftest import choose_dtypes, selftest

    place = _device(device)
    try:
        dtypes = choose_dtypes(place, dtype)
    except ValueError as error:
        raise UserError("VA-C002", f"--{error}") from error
    results = list(selftest(place, dtypes))
    failed = sum(not result.ok for result in results)
    if as_json:
        _print_json({"device": str(place), "failed": failed, "results": [{**item._asdict(), "ok": item.ok} for item in results]})
    else:
        rows = [[item.op, item.case, item.backend, item.dtype, *item.figures(), "ok" if item.ok else "FAILED"] for item in results]
        console = _console()
        console.table(["operation", "case", "backend", "dtype", "forward (limit)", "gradients (limit)", ""], rows)
        for item in results:
            if item.fault:
                console.warn(f"{item.op}, {item.case}, {item.backend}, {item.dtype}: {item.fault}")
        console.line(f"{failed or 'none'} of {len(results)} failed on {place}; largest difference from float64 over largest value")
    if failed:
        raise typer.Exit(EXIT_CODES["R"])


@masks_app.command("convert", epilog="Example: visionattn data masks convert mydata --map 128:1")
def masks_convert(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Data set, or a folder of masks.")],
    map: Annotated[list[str] | None, typer.Option(metavar="OLD:NEW", help="Value to change, also a range: 128-255:1.")] = None,
    palette: Annotated[
        str | None, typer.Option(help="Colours of RGB masks: a file of `index name R G B`, or ade20k, cityscapes, voc, camvid.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="New folder; default: DIR-masks.", show_default=False)] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the masks themselves.")] = False,
    as_json: Json = False,
) -> None:
    """Write masks anew with other values, as PNGs of class numbers; the old ones stay."""
    from dataclasses import asdict

    from visionattn.data.mask_convert import convert_masks, parse_map

    if not map and palette is None:
        raise UserError("VA-C002", "nothing to convert: give --map or --palette", fix="Example: --map 128:1")
    done = convert_masks(Path(root), map=parse_map(map or []), palette=palette, out=Path(out) if out else None, in_place=in_place)
    if as_json:
        _print_json(asdict(done))
        return
    console = _console()
    console.say("written", f"{done.files:,} masks in {done.out}")
    for change, count in done.changed.items():
        console.say("", f"{change}: {count:,} pixels")
    console.say("values", ", ".join(f"{value}: {count:,}" for value, count in list(done.values.items())[:20]))


@config_app.command("list")
def config_list(as_json: Json = False) -> None:
    """Names of the shipped configs, with the first line of each."""
    from visionattn.config import find_config, shipped_names

    heads = {name: find_config(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name in shipped_names()}
    if as_json:
        _print_json(heads)
        return
    width = max(map(len, heads))
    for name, head in heads.items():  # not through the console, whose package loads torch
        typer.echo(f"{name:<{width}}  {head}")


@config_app.command("show", epilog="Example: visionattn config show quickstart train.epochs=3")
def config_show(
    name: Annotated[str | None, typer.Argument(help="Path or shipped name; default: all defaults (of a task: task=segment).")] = None,
    overrides: Overrides = None,
) -> None:
    """A config with all its values, each with its meaning."""
    from visionattn.config import describe, load_config

    if name is not None and "=" in name:
        overrides, name = [name, *(overrides or [])], None
    typer.echo(describe(load_config(name, overrides or [])), nl=False)


@config_app.command("schema")
def config_schema(
    task: Annotated[str, typer.Option(help="classify or segment.")] = "classify",
    as_json: Json = True,
) -> None:
    """JSON schema of a task's config, for editors."""
    from visionattn.config import CONFIGS

    if task not in CONFIGS:
        raise UserError("VA-C002", f'--task: expected {" or ".join(CONFIGS)}, got "{task}"')
    _print_json(CONFIGS[task].model_json_schema())


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, optional parts and a self-check: a report to paste into an issue."""
    from visionattn.training.doctor import diagnose, diagnosis_text

    report = diagnose()
    if as_json:
        _print_json(report)
    else:
        _console().line(diagnosis_text(report))
    if report["problems"]:
        raise typer.Exit(7)


def main() -> None:
    """Entry point of the `visionattn` command."""
    app(prog_name="visionattn")


def _console(as_json: bool = False) -> Console:
    from visionattn.training.console import Console

    return Console(stderr=as_json)


def _device(name: str | None) -> torch.device:
    """A device on which something was computed just now."""
    import torch

    place = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(1, device=place).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError("VA-C002", f'--device: no device "{place}" here', why=str(error).splitlines()[0]) from error


def _data_config(root: str, overrides: list[str] | None, task: str | None, classes: str | None) -> Any:
    from visionattn.config import load_config

    settings = [_setting("data.root", root)]
    if task is not None:
        settings.append(_setting("task", task))
    if classes is not None:
        several = [name.strip() for name in classes.split(",")]
        settings.append(_setting("data.classes", int(classes) if classes.isdigit() else several if len(several) > 1 else classes))
    return load_config(None, _with_task(root, [*settings, *(overrides or [])]))


def _with_task(root: str, settings: list[str]) -> list[str]:
    """The settings with the task that the layout of the data tells, unless they name one."""
    from visionattn.data.guess import guess_task

    named = any(setting.partition("=")[0].strip() == "task" for setting in settings)
    task = "classify" if named else guess_task(root)
    return settings if task == "classify" else [f"task={task}", *settings]


def _setting(key: str, value: Any) -> str:
    """`key=value` in which text stays text: a folder may be called 2024."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))

"""Export the model of a run, a checkpoint or published weights to one file, and check the file in its runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from visionattn.backbones import Sizes
from visionattn.console import Console
from visionattn.errors import UserError, did_you_mean, lacks_memory
from visionattn.files import atomic_path, require_space
from visionattn.jobs.quantize import Quantized, quantize_static
from visionattn.kernels.dispatch import use_backend
from visionattn.models.weights.hub import LOCAL_DIR
from visionattn.names import shown, typed
from visionattn.runs.exported import Facts, OnnxNetwork, quiet_libraries, require_onnx
from visionattn.runs.load import LoadedModel, load_models
from visionattn.runs.shareable import shareable
from visionattn.tasks import CHANGEABLE, change_config, name_plugins

FORMATS = ("onnx", "pt2", "safetensors")
TOLERANCE = 1e-4  # of the largest output
OLDEST_TORCH = "2.8"  # torch.export of 2.7 stops at an open number of images
TRIED_TORCH = "2.14"

# Least side, in pixels, of the image that an ONNX graph of open size is traced with. On smaller ones a map may be a single window, whose
# number would become a constant of the graph, and larger images would fail. A program of torch.export has to hold for the size of the model
# itself, and refuses others by its guards.
_TRACED_SIDE = 832

_LARGEST = 3 * 2**29  # bytes of weights; a file of ONNX cannot hold 2 GiB

Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Check:
    """The largest difference between the outputs of an exported file and of the model, relative to the largest output."""

    batch: int
    size: tuple[int, int]
    difference: float


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: the file.
        format: one of `FORMATS`.
        sizes: sizes of images that it holds for.
        checks: comparisons with the model that were made in the runtime of the format.
        quantized: metrics on the validation split, of a file of int8.
    """

    path: Path
    format: str
    sizes: Sizes
    checks: list[Check]
    quantized: Quantized | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": str(self.path), "bytes": self.path.stat().st_size}


def export(
    source: str | Path | Sequence[str | Path],
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    dynamic: Collection[str] = ("batch", "size"),
    verify: Sequence[int] = (1, 3, 8),
    quantize: str | None = None,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Exported:
    """Write a model to one file, with classes, preprocessing, sizes and licences in the metadata.

    The file takes normalised images `[B, C, H, W]`, float32, of any number and, where the family allows it, of any size. Its outputs are
    compared with those of the model before it gets its name: a file that differs by more than 1e-4 is deleted.

    Args:
        source: see `load_model`; one of them.
        format: "onnx", run by ONNX Runtime and by `predict` and `eval`; "pt2", a program of torch.export; "safetensors", the weights.
        out: the file; default `export/model.<format>` in the folder of the run, or `<name>.<format>` here.
        dynamic: axes that stay open: "batch", and "size" where the family allows it.
        verify: numbers of images of the comparisons.
        quantize: "int8" for weights and activations of 8 bits, calibrated on training images, with the metrics before and after.
        settings: `key=value` strings that differ from the run, of the keys in `CHANGEABLE`: `eval.threshold=0.7`.
        console: where progress is printed.

    Raises:
        UserError: VA-C002, a wrong argument, or a model that is not exported; VA-M005, a graph that cannot be exported, or that computes
            something else; VA-R004, VA-R007, the file cannot be written, an extra is missing, or torch is too old; as `load_model`.
    """
    _require_arguments(format, dynamic, verify, quantize)
    _require_torch(format)
    console = console or Console(quiet=True)
    if format == "onnx":
        require_onnx()
    settings = name_plugins(settings)
    given = [source] if isinstance(source, (str, Path)) else list(source)
    models = load_models(given, lambda text: console.field("", text))
    name, loaded = str(given[0]), models[0]
    if len(models) > 1 or isinstance(loaded.model, OnnxNetwork):
        what = "several models cannot be exported to one file" if len(models) > 1 else f"{shown(name)} is an exported file already"
        raise UserError("VA-C002", what, fix="export one run")
    loaded = replace(loaded, config=change_config(loaded.config, settings, CHANGEABLE))
    channels, *size = loaded.task.network_input(loaded.config)
    path = _place(name, loaded, format, quantize, out)
    sizes = _sizes(loaded.model, (size[0], size[1]), "size" in dynamic)
    facts = Facts.of(shareable(loaded), loaded.target, loaded.model, sizes, _licences(loaded))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in loaded.model.state_dict().values())
    if format == "onnx" and weights > _LARGEST:
        why = f"{weights / 2**30:.1f} GiB of weights; a file of ONNX holds less than 2 GiB"
        raise UserError("VA-C002", "the model is too large for one ONNX file", why=why, fix="--format pt2")
    home = next(folder for folder in path.absolute().parents if folder.is_dir())
    require_space(home, weights, what="the exported file", fix="--out FILE")
    with atomic_path(path) as temporary:
        text = _WRITERS[format](loaded.model, channels, facts, temporary)
        console.field("exporter", f"{text}, dynamic batch, {sizes.text()}")
        checks = _checks(loaded.model, _runner(temporary, format), channels, sizes, verify, console)
        quantized = None if quantize is None else quantize_static(temporary, loaded, facts, console)
    console.field("written", f"{path} ({path.stat().st_size / 2**20:,.1f} MiB)")
    return Exported(path, format, sizes, checks, quantized)


def _require_arguments(format: str, dynamic: Collection[str], verify: Sequence[int], quantize: str | None) -> None:
    if format not in FORMATS:
        fix = f"{did_you_mean(format, FORMATS)} There are: {', '.join(FORMATS)}".strip()
        raise UserError("VA-C002", f'--format: "{format}" is not a format', fix=fix)
    if "batch" not in dynamic or not set(dynamic) <= {"batch", "size"}:
        what = f"--dynamic: expected batch or batch,size, got {','.join(dynamic)}"
        raise UserError("VA-C002", what, fix="--dynamic batch for images of one size")
    if not verify or min(verify) < 1:
        raise UserError("VA-C002", f"--verify: expected numbers of images from 1, got {','.join(map(str, verify))}", fix="--verify 1,3,8")
    if quantize not in (None, "int8") or (quantize and format != "onnx"):
        raise UserError("VA-C002", f'--quantize: expected int8, of an ONNX file, got "{quantize}" as {format}', fix="--quantize int8")


def _require_torch(format: str) -> None:
    """Check that this torch exports a graph for any number of images.

    Raises:
        UserError: VA-R007.
    """
    if format != "safetensors" and torch.__version__ < OLDEST_TORCH:
        what = f"export to {format} needs a newer torch than {torch.__version__}"
        why = f"torch.export before {OLDEST_TORCH} stops at an open number of images"
        fix = f'pip install "torch>={TRIED_TORCH}" torchvision, or --format safetensors'
        raise UserError("VA-R007", what, why=why, fix=fix)


def _place(source: str, loaded: LoadedModel, format: str, quantize: str | None, out: str | Path | None) -> Path:
    """The file to write.

    Raises:
        UserError: VA-C002, another ending than that of the format; VA-R007, it exists.
    """
    ending = f".{quantize}.{format}" if quantize else f".{format}"
    named = Path(source.removeprefix(LOCAL_DIR))
    home = Path.cwd() / (named.resolve() if named.exists() else named).name if loaded.run is None else loaded.run.path / "export" / "model"
    path = home.with_name(home.name + ending) if out is None else Path(out).expanduser()
    if path.suffix != f".{format}":
        what = f"--out: a file of format {format} ends in .{format}, got {shown(path.name)}"
        raise UserError("VA-C002", what, fix=f"--out {typed(path.with_suffix('.' + format))}")
    if path.exists():
        raise UserError("VA-R007", f"{shown(str(path))} exists already", fix="another --out FILE, or remove it")
    return path


def _sizes(model: Any, size: tuple[int, int], open_size: bool) -> Sizes:
    """Sizes of images that the exported graph holds for: what the model states, else the size of its config only."""
    stated = getattr(model, "export_sizes", None)
    return stated(size) if open_size and stated is not None else Sizes(size)


def _licences(loaded: LoadedModel) -> dict[str, Any]:
    """Licence of this code, and of the code and the weights that training began with."""
    record = loaded.task.published_weights(loaded.config)
    if record is None:
        return {"visionattn": "Apache-2.0"}
    facts = {"weights": record.name, "weights_license": record.weights_license, "code_license": record.code_license}
    return {"visionattn": "Apache-2.0", **facts}


# ---------------------------------------------------------------- formats


def _write_onnx(model: Any, channels: int, facts: Facts, path: Path) -> str:
    program = _program(model, channels, facts.sizes, least=_TRACED_SIDE)
    names = {0: "batch", 2: "height", 3: "width"} if facts.sizes.step else {0: "batch"}
    with _explained("converted to ONNX", facts.sizes), quiet_libraries():
        graph: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["image"], output_names=["output"], dynamic_shapes=(names,)
        )
        for node in graph.model.graph.all_nodes():
            node.metadata_props.clear()  # lines of code in files of this machine
        graph.model.metadata_props.update(facts.texts())
        graph.save(str(path))
    return f"dynamo, opset {graph.model.opset_imports['']}"


def _write_program(model: Any, channels: int, facts: Facts, path: Path) -> str:
    program = _program(model, channels, facts.sizes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of code in files of this machine
    torch.export.save(program, path, extra_files={"visionattn.json": json.dumps(facts.texts())})
    return "torch.export"


def _write_weights(model: Any, channels: int, facts: Facts, path: Path) -> str:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path, facts.texts())
    return "weights"


_WRITERS: dict[str, Callable[[Any, int, Facts, Path], str]] = {
    "onnx": _write_onnx,
    "pt2": _write_program,
    "safetensors": _write_weights,
}


def _program(model: Any, channels: int, sizes: Sizes, *, least: int = 0) -> torch.export.ExportedProgram:
    """The graph of a model, of plain operations of PyTorch.

    Args:
        least: smallest side, in pixels, of the image that a graph of open size is traced with.
    """
    open_axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if sizes.step:
        open_axes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    height, width = (max(side, -(-least // sizes.step) * sizes.step) if sizes.step else side for side in sizes.size)
    image = torch.randn(2, channels, height, width)
    # The definition of each operation: the fast forms cut the work by the size of the map, which would freeze it.
    with _explained("traced", sizes), quiet_libraries(), torch.no_grad(), use_backend("reference"):
        return torch.export.export(model, (image,), dynamic_shapes=(open_axes,), strict=False)  # newer releases default to it


@contextmanager
def _explained(what: str, sizes: Sizes) -> Iterator[None]:
    """Report what the exporter does not support.

    Raises:
        UserError: VA-M005.
    """
    try:
        yield
    except Exception as error:  # exporters raise errors of many kinds
        if lacks_memory(error):
            raise
        why = _reason(error)
        fix = "images of one size may work: --dynamic batch" if sizes.step else ""
        raise UserError("VA-M005", f"the model cannot be {what}", why=why, fix=fix) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error message, at most 300 characters."""
    text = error.why or error.what if isinstance(error, UserError) else str(error)
    return text.strip().partition("\n")[0][:300] or type(error).__name__


# ---------------------------------------------------------------- check


def _runner(path: Path, format: str) -> Run:
    """The file, loaded as its users load it."""
    if format == "pt2":
        program: Run = torch.export.load(path).module()  # type: ignore[assignment]
        return program
    model: Run = load_models(path)[0].model
    return model


def _checks(model: Any, run: Run, channels: int, sizes: Sizes, batches: Sequence[int], console: Console) -> list[Check]:
    """Compare a file with the model at every batch and at two sizes where it holds for several.

    Raises:
        UserError: VA-M005, they differ.
    """
    checks = []
    generator = torch.Generator().manual_seed(0)
    for size in filter(None, (sizes.size, sizes.another())):
        for batch in batches:
            image = torch.randn(batch, channels, *size, generator=generator)
            with torch.inference_mode():
                checks.append(Check(batch, size, _difference(_outputs(run, image), model(image))))
        texts = [f"batch {check.batch}: {check.difference:.1e}" for check in checks if check.size == size]
        console.field("check", f"{size[0]}x{size[1]} px, largest relative difference   {'   '.join(texts)}")
    worst = max(checks, key=lambda check: check.difference)
    if not worst.difference <= TOLERANCE:
        what = f"the exported file differs from the model by {worst.difference:.1e} of the largest output, and was not kept"
        where = f"{worst.batch} images of {worst.size[0]}x{worst.size[1]} px"
        fix = "images of one size may work: --dynamic batch" if sizes.step else ""
        raise UserError("VA-M005", what, where=where, why=f"at most {TOLERANCE:.0e} is accepted", fix=fix)
    return checks


def _outputs(run: Run, image: torch.Tensor) -> torch.Tensor:
    """Outputs of a file.

    Raises:
        UserError: VA-M005, its runtime fails.
    """
    try:
        return run(image)
    except Exception as error:  # runtimes raise errors of many kinds
        if lacks_memory(error):
            raise
        why, where = _reason(error), f"{len(image)} images of {image.shape[2]}x{image.shape[3]} px"
        raise UserError("VA-M005", "the exported file cannot be run, and was not kept", where=where, why=why) from error


def _difference(found: Any, wanted: Any) -> float:
    """Largest difference relative to the largest wanted value; infinite where shapes differ or a value is not finite."""
    if found.shape != wanted.shape:
        return float("inf")
    difference = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny))
    return difference if difference == difference else float("inf")

"""A report on the installation: versions, devices, optional parts, one forward pass per family."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from visionattn.backbones import list_models
from visionattn.backbones.registry import get_variant
from visionattn.console import Console
from visionattn.engine.devices import fast_bf16
from visionattn.files import cache_folder
from visionattn.kernels.selftest import list_backends, selftest
from visionattn.models import create_model
from visionattn.models.weights.download import SUFFIXES, offline, weights_folder
from visionattn.models.weights.records import shipped_facts
from visionattn.runs.folder import environment

# Packages that the commands of each extra import, and Triton, which comes with some builds of torch.
OPTIONAL = ("triton", "onnxruntime", "datasets", "mlflow", "h5py", "monai", "nibabel", "pydicom", "pytorch_grad_cam", "fastapi")


def diagnose(*, self_check: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Collect the report; `problems` lists what does not work.

    Args:
        self_check: run one model of each family.
        console: where progress is shown.
    """
    started, threads = time.perf_counter(), torch.get_num_threads()
    smallest = _smallest_models() if self_check else {}
    with (console or Console(quiet=True)).progress("self-check", len(smallest) + 1) as bar, _one_thread():
        kernels, faults = _kernel_checks(self_check)
        families = {}
        for done, (family, name) in enumerate(smallest.items(), 1):
            bar.update(done, name)
            families[family] = _forward_check(name)
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": environment()["versions"],
        "machine": platform.platform(),
        "devices": {
            "cpu": f"{threads} threads, {'bf16 in hardware' if fast_bf16(cpu=True) else 'fp32 (no bf16 in hardware)'}",
            "cuda": ", ".join(cuda) or "not available",
            "mps": "available" if torch.backends.mps.is_available() else "not available",
        },
        "optional": {**{name: "found" if find_spec(name) else "missing" for name in OPTIONAL}, "mmsegmentation": mmseg_text()},
        "cache": str(cache_folder()),
        "weights": {"files": len(cached := _cached_weights()), "bytes": sum(cached), "offline": offline()},
        "kernels": kernels,
        "families": families,
        "seconds": round(time.perf_counter() - started, 1),
        "problems": [*faults, *(f"{family}: {text}" for family, text in families.items() if text != "ok")],
    }


def diagnosis_text(report: dict[str, Any]) -> str:
    """Format the report for the terminal."""
    versions = dict(report["versions"])
    own = versions.pop("visionattn", "?")
    lines = [("visionattn", own + "   " + "   ".join(f"{name} {number}" for name, number in versions.items()))]
    lines.append(("machine", report["machine"]))
    lines += [("devices" if name == "cpu" else "", f"{name}: {text}") for name, text in report["devices"].items()]
    lines += [("" if index else "kernels", f"{op}: {text}") for index, (op, text) in enumerate(report["kernels"].items())]
    optional = dict(report["optional"])
    others = [("", f"{name}: {optional.pop(name)}") for name in list(optional) if len(optional[name]) > len("missing")]
    lines += [("optional", "   ".join(f"{name}: {text}" for name, text in optional.items())), *others]
    kept = report["weights"]
    files = f"{kept['files']} files of weights, {kept['bytes'] / 2**20:,.0f} MiB"
    lines.append(("cache", f"{report['cache']} ({files})   offline: {kept['offline'] or 'no'}"))
    if report["families"]:
        good = sum(text == "ok" for text in report["families"].values())
        lines.append(("self-check", f"{good} of {len(report['families'])} networks forward ok in {report['seconds']} s"))
        lines += [("", f"! {problem}") for problem in report["problems"]]
        lines.append(("", "nothing to fix" if not report["problems"] else f"{len(report['problems'])} problems"))
    return "\n".join(f"{label:<11} {text}" for label, text in lines)


def mmseg_text() -> str:
    """Whether mmsegmentation can be used; what is wrong with it is in mmcv more often than not, and shows only in the import."""
    if find_spec("mmseg") is None:
        return "missing"
    try:
        import_module("mmseg.models")
    except Exception as error:  # of compiled code that does not fit, of versions, of packages that are missing
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if "mmcv" not in why.lower():
            return f"found, not usable ({why})"
        cause = "mmcv has no compiled operations that fit this torch" if "_ext" in why else "mmcv is missing or of another version"
        fix = 'pip uninstall mmcv mmcv-lite mmengine mmsegmentation, then pip install "visionattn[mmseg]", which needs no compiler'
        return f"found, not usable ({why}): {cause}; {fix}"
    return "usable"


def _cached_weights() -> list[int]:
    """Sizes of the downloaded and imported files."""
    folder = weights_folder()
    return [path.stat().st_size for path in folder.iterdir() if path.suffix in SUFFIXES] if folder.is_dir() else []


def _kernel_checks(compare: bool) -> tuple[dict[str, str], list[str]]:
    """The backend that runs of each operation, whether it agrees with the definition, and why no faster one runs; and what is wrong."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = list(selftest(device, [torch.float32])) if compare else []
    lines, faults = {}, []
    for op, reasons in list_backends(device).items():
        name = next(name for name, reason in reasons.items() if not reason)
        wrong = [result for result in results if result.op == op and not result.ok]
        faults += [f"{op}, {bad.case}, {bad.backend}: {bad.fault or ' and '.join(bad.figures())}" for bad in wrong]
        checked = f" ({'FAILED' if wrong else 'ok'})" if compare else ""
        why = f"   triton: {reasons['triton']}" if reasons["triton"] and not reasons["triton"].startswith("it has no") else ""
        lines[op] = name + checked + why
    return lines, faults


def _smallest_models() -> dict[str, str]:
    """The model with the fewest parameters of each family."""
    facts = shipped_facts()
    families = sorted({get_variant(name).family for name in list_models()})
    return {family: min(list_models(family=family), key=lambda name: facts.get(name, {"params": 0})["params"]) for family in families}


def _forward_check(name: str) -> str:
    """One forward pass of a model: ok, or what went wrong."""
    try:
        with torch.no_grad():
            finite = bool(torch.isfinite(create_model(name).eval()(torch.zeros(1, 3, 64, 64))).all())
        return "ok" if finite else f"{name}: output is not finite"
    except Exception as error:  # a report names every fault instead of ending at the first
        return f"{name}: {type(error).__name__}: {error}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: with such small tensors several spend most of their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

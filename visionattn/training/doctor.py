"""A report on the installation: versions, devices, optional parts, one forward pass per family."""

from __future__ import annotations

import platform
import time
from importlib.util import find_spec
from typing import Any

import torch

from visionattn.backbones import list_models
from visionattn.backbones.registry import get_variant
from visionattn.files import cache_folder
from visionattn.models import create_model
from visionattn.training.build import fast_bf16
from visionattn.training.console import Console
from visionattn.training.run import environment

OPTIONAL = ("triton", "onnx", "monai", "mmseg")


def diagnose() -> dict[str, Any]:
    """Everything the report shows; `problems` lists what does not work."""
    problems: list[str] = []
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    started = time.perf_counter()
    checks = {}
    for family in sorted({get_variant(name).family for name in list_models()}):
        name = min(list_models(family=family), key=lambda name: len(get_variant(name).name))
        try:
            with torch.no_grad():
                finite = bool(torch.isfinite(create_model(name).eval()(torch.zeros(1, 3, 64, 64))).all())
            checks[family] = "ok" if finite else "output is not finite"
        except Exception as error:  # a report names every fault instead of ending at the first
            checks[family] = f"{type(error).__name__}: {error}"
        if checks[family] != "ok":
            problems.append(f"{name}: {checks[family]}")
    return {
        "versions": environment()["versions"],
        "machine": platform.platform(),
        "devices": {
            "cpu": f"{torch.get_num_threads()} threads, {'bf16 in hardware' if fast_bf16(cpu=True) else 'fp32 (no bf16 in hardware)'}",
            "cuda": ", ".join(cuda) or "not available",
            "mps": "available" if torch.backends.mps.is_available() else "not available",
        },
        "optional": {name: "found" if find_spec(name) else "missing" for name in OPTIONAL},
        "cache": str(cache_folder()),
        "families": checks,
        "seconds": round(time.perf_counter() - started, 1),
        "problems": problems,
    }


def print_diagnosis(report: dict[str, Any], console: Console) -> None:
    """The report as text."""
    versions = dict(report["versions"])
    console.line(f"visionattn {versions.pop('visionattn', '?')}   " + "   ".join(f"{name} {number}" for name, number in versions.items()))
    console.say("machine", report["machine"])
    console.say("devices", "\n".join(f"{name}: {text}" for name, text in report["devices"].items()))
    console.say("optional", "   ".join(f"{name}: {text}" for name, text in report["optional"].items()))
    console.say("cache", report["cache"])
    good = sum(text == "ok" for text in report["families"].values())
    console.say("self-check", f"{good} of {len(report['families'])} families forward ok in {report['seconds']} s")
    for problem in report["problems"]:
        console.warn(problem)
    console.line("nothing to fix" if not report["problems"] else f"{len(report['problems'])} problems")

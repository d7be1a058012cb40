"""Run timm's model tests on our models.

`python tools/timm_acceptance.py --timm-source DIR` takes the source tree of the installed timm (unpacked sdist or
checkout; the wheel has no tests), runs its tests/test_models.py in a process where timm's registry contains only our
names, and prints a table. The exit code is 0 if every test that timm has for a name ran and passed.

That process also imports this file: test_models.py imports the module named in TORCH_BACKEND
before it lists timm's names.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import timm

from visionattn.integrations.timm import register

# timm's tests for every model -> heading in the table.
TESTS = {
    "test_model_forward": "forward",
    "test_model_backward": "backward",
    "test_model_default_cfgs": "cfgs",
    "test_model_forward_features": "features",
    "test_model_forward_intermediates_features": "getter",
    "test_model_forward_intermediates": "intermediates",
    "test_prune_intermediate_layers_contract": "prune",
    "test_model_forward_fx": "fx forward",
    "test_model_backward_fx": "fx backward",
}
# Models that timm's tests exclude because of their size.
LEFT_OUT = {"test_prune_intermediate_layers_contract": ("*huge*", "*giant*")}
SCRIPT_TESTS = {"test_model_forward_torchscript": "script", "test_model_forward_fx_torchscript": "fx script"}
PATTERN = "VISIONATTN_TIMM_MODELS"  # environment variable that passes --models to the test process


def names(pattern: str) -> list[str]:
    """List our names in timm's registry that match one of several globs, separated by commas."""
    return sorted(name for name in register() if any(fnmatch(name, glob) for glob in pattern.split(",")))


def narrow(pattern: str) -> None:
    """Keep only our names in timm's registry. Collecting tests for all of timm's takes longer than running ours.

    Some tests apply only to listed modules, so our names are added to every module.
    """
    from timm.models import _registry as registry

    ours = set(names(pattern))
    for name in set(registry._model_entrypoints) - ours:
        del registry._model_entrypoints[name]
    for module in list(registry._module_to_models):
        registry._module_to_models[module] = ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-source", type=Path, required=True, metavar="DIR", help="source tree of the installed timm")
    parser.add_argument("--models", default="va_*", metavar="GLOB,...", help="names to test (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, by pytest-xdist (default %(default)s)")
    parser.add_argument("--torchscript", action="store_true", help="also run timm's TorchScript tests; our models do not support it")
    args = parser.parse_args()

    source = args.timm_source.resolve()
    found = re.search(r"__version__ = ['\"](.+?)['\"]", (source / "timm" / "version.py").read_text())
    if found is None or found[1] != timm.__version__:
        parser.error(f"{source} is timm {found[1] if found else '?'}, installed is {timm.__version__}")
    models = names(args.models)
    if not models:
        parser.error(f"--models: no name matches {args.models!r}")
    tests = {**TESTS, **(SCRIPT_TESTS if args.torchscript else {})}

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--disable-warnings", "-p", "no:cacheprovider"]
        command += ["--import-mode=importlib", f"--junitxml={report}", "-c", str(source / "pyproject.toml")]
        command += ["-n", str(args.jobs)] if args.jobs > 1 else []
        command += [f"{source / 'tests' / 'test_models.py'}::{test}" for test in tests]
        env = {**os.environ, "TORCH_BACKEND": Path(__file__).stem, PATTERN: args.models, "HF_HUB_OFFLINE": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
        env.pop("GITHUB_ACTIONS", None)  # timm excludes large models there
        # Not in the source tree, whose timm would shadow the installed one. Table on stdout, the rest on stderr.
        code = subprocess.run(command, cwd=folder, env=env, stdout=sys.stderr).returncode
        if code not in (0, 1):  # neither passed nor failed: nothing ran
            return code
        results = sorted(read(report), key=lambda result: result[2] != "ok")  # of several tags of a model, a failed one is kept

    cells = {(model, test): (state, seconds, why) for model, test, state, seconds, why in results if model in models}
    left_out = [(model, test) for model in models for test, globs in LEFT_OUT.items() if any(fnmatch(model, glob) for glob in globs)]
    cells |= dict.fromkeys(left_out, ("-", 0.0, "timm excludes it"))
    print("| model |", " | ".join(tests.values()), "| seconds |")
    print("|---|" + "---|" * len(tests) + "---:|")
    for model in models:
        row = [cells.get((model, test), ("not run", 0.0, "")) for test in tests]
        print(f"| {model} |", " | ".join(state for state, _, _ in row), f"| {sum(seconds for _, seconds, _ in row):.0f} |")
    states = [cells[model, test][0] if (model, test) in cells else "not run" for model in models for test in tests]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("ok", "FAIL", "skip", "not run"))
    counts += f", {len(left_out)} excluded by timm" if left_out else ""
    print(f"\ntimm {timm.__version__}: {len(models)} models, {counts}")
    for (model, test), (state, _, why) in cells.items():
        if state != "ok":
            print(f"{state} {model} {test}: {why}")
    return int(states.count("ok") + len(left_out) < len(states))


def read(report: Path) -> Iterator[tuple[str, str, str, float, str]]:
    """Yield model (without its tag), test, state, seconds and reason of each test in a JUnit file."""
    for case in ET.parse(report).iter("testcase"):
        found = re.fullmatch(r"(\w+)\[(?:\d+-)?(\w+)(\..+)?\]", case.get("name", ""))
        if found is None:
            continue
        state, why = "ok", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                state = "skip" if child.tag == "skipped" else "FAIL"
                why = " ".join(child.get("message", "").split())[:300]
        yield found[2], found[1], state, float(case.get("time", 0)), why


if __name__ == "__main__":
    sys.exit(main())
elif PATTERN in os.environ:
    narrow(os.environ[PATTERN])

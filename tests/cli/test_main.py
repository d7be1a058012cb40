"""The program: help, version, what an error prints, and what starting costs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.commands import RUNNER, done, refused, va
from visionattn import __version__
from visionattn.cli import app
from visionattn.config.read import shipped_names
from visionattn.tasks import load_config


def commands() -> list[tuple[str, Any]]:
    """All commands with their full name; the program itself has the empty name."""
    found: list[tuple[str, Any]] = []

    def walk(command: Any, name: str) -> None:
        found.append((name, command))
        for child, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {child}".strip())

    walk(typer.main.get_command(app), "")
    return found


def test_the_commands() -> None:
    names = {name for name, _ in commands()}
    assert {
        "train",
        "eval",
        "predict",
        "features",
        "neighbors",
        "models list",
        "models info",
        "data check",
        "data preview",
        "kernels list",
        "kernels selftest",
        "doctor",
    } <= names
    assert {"config list", "config show", "config schema", "weights list", "weights download", "weights verify"} <= names


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_help(name: str, command: Any) -> None:
    text = done(*name.split(), "--help").stdout
    squeezed = re.sub(r"\s", "", text)
    assert "Usage:" in text and (command.help is None or re.sub(r"\s", "", command.help.splitlines()[0]) in squeezed)
    if command.epilog:
        assert squeezed.endswith(re.sub(r"\s", "", command.epilog))
    assert done(*name.split(), "-h").stdout == text


@pytest.mark.parametrize("epilog", [command.epilog for _, command in commands() if command.epilog])
def test_examples_of_the_help_are_accepted(epilog: str) -> None:
    program, *words = shlex.split(epilog.partition(": ")[2])
    assert program == "visionattn"
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context("example", words)
    if name := context.params.get("config"):
        assert name in shipped_names()
    if overrides := context.params.get("overrides"):
        load_config(None, overrides)


# What is answered without a network, and with which exit code.
LIGHT = {
    "--help": 0,
    "train --help": 0,
    "config list": 0,
    "config show": 0,
    "config show task=segment": 0,
    "config schema": 0,
    "weights list": 0,
    "weights list swin_t* --license mit --json": 0,
    "models list": 0,
    "models list --json": 0,
    "models list --pretrained": 0,
    "train optim.lrr=1": 2,
    "train flowers": 2,
    "predict RUN": 2,
    "train --data nowhere": 3,
    "train --data nowhere task=segment": 3,
    "data check nowhere": 3,
}


@pytest.mark.parametrize("line", LIGHT)
def test_what_needs_no_network_loads_no_library_of_it(line: str, tmp_path: Path) -> None:
    code = (
        "import sys; from visionattn.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as error: code = error.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'accelerate', 'numpy', 'scipy', 'sklearn', 'cv2', 'PIL', 'matplotlib', 'tensorboard'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"{LIGHT[line]} []"


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the CPU time of a child")
@pytest.mark.parametrize("line", ["weights list", "models list", "config show", "train --data nowhere"])
def test_what_needs_no_network_takes_less_than_two_seconds_of_cpu(line: str, tmp_path: Path) -> None:
    def seconds() -> float:
        command = [sys.executable, "-m", "visionattn", *line.split()]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == LIGHT[line]
        return usage.ru_utime + usage.ru_stime

    assert min(seconds() for _ in range(3)) < 2


def test_completion_is_offered_without_loading_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *given: ("bash", "/bin/bash"))
    script = RUNNER.invoke(app, ["--show-completion"], prog_name="visionattn").stdout
    assert "_VISIONATTN_COMPLETE=complete_bash" in script and "visionattn" in script.splitlines()[-1]
    assert "--install-completion" in done("--help").stdout and "--install-completion" not in done("train", "--help").stdout
    asked = {"_VISIONATTN_COMPLETE": "complete_bash", "COMP_WORDS": "visionattn data ch", "COMP_CWORD": "2"}
    code = (
        "import sys, atexit; from visionattn.cli import main\n"
        "atexit.register(lambda: print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr)); main()"
    )
    answer = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["check"] and answer.stderr.splitlines()[-1] == "[]"


def test_completion_is_installed_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *given: ("bash", "/bin/bash"))
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert RUNNER.invoke(app, ["--install-completion"], prog_name="visionattn").exit_code == 0
    assert "visionattn" in (tmp_path / ".bashrc").read_text()


def test_python_m_version() -> None:
    shown = subprocess.run([sys.executable, "-m", "visionattn", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout == f"{__version__}\n" and re.fullmatch(r"\d+\.\d+\.\d+\S*", __version__)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("plain", [True, False])
def test_no_color_is_obeyed_on_a_terminal(plain: bool) -> None:
    ours, theirs = os.openpty()
    environ = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "visionattn", "config", "show", "nothing"]
    code = subprocess.run(command, env={**environ, **({"NO_COLOR": "1"} if plain else {})}, stderr=theirs, check=False).returncode
    text = os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    assert code == 2 and b"VA-C004" in text and (b"\x1b[31m" not in text) == plain


def test_verbose_shows_where() -> None:
    result = RUNNER.invoke(app, ["-v", "config", "show", "nothing"])
    assert result.exit_code == 2 and "Traceback" in result.stderr and "error VA-C004" in result.stderr
    assert "Traceback" not in va("config", "show", "nothing").output


def test_train_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "visionattn train --config quickstart" in refused(tmp_path, "VA-C005", 2, "train")

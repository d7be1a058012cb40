"""What the package suggests works: each command and setting in a message is followed here, word for word."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import Result

from tests.advice.cases import CASES, FIRST, Case, Step
from tests.commands import va
from visionattn.errors import EXIT_CODES


def ids(case: Case) -> str:
    return f"{case.source}-{case.code}-{case.command[:40]}"


def call(command: str) -> Result:
    """Run a command as it is typed, without the name of the program."""
    return va(*shlex.split(command))


def told(result: Result) -> str:
    """Everything printed, continued lines without their indentation."""
    return (result.stdout + result.stderr).replace("\n" + " " * 8, "\n")


def followed(case: Case, step: Step) -> str:
    """The command that following a piece of advice leads to, after what it does before."""
    text = step.text
    for name, value in step.fill.items():
        text = text.replace(name, value)
    if step.kind == "run":
        own = f"{text.removeprefix('visionattn ')} {step.extra}"
        if not step.again:
            return own
        assert call(own).exit_code == 0
        return case.command
    if step.kind == "edit":
        file = Path("my.yaml")
        file.write_text(file.read_text().replace(step.old, text))
        return case.command
    assert step.kind in ("add", "instead") and step.old in case.command
    return f"{case.command} {text}" if step.kind == "add" else case.command.replace(step.old, text)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_advice_works_when_it_is_followed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for number, step in enumerate(case.steps):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if case.with_run:
            shutil.copytree(request.getfixturevalue("trained").run, folder / "runs/flowers/001")
        case.make(folder)
        if number == 0:
            result = call(case.command)
            assert result.exit_code == (EXIT_CODES[case.code[3]] if case.code else 0), result.output
            assert result.stderr.count("error VA-") == result.stderr.startswith(f"error {case.code}: ") == bool(case.code), result.stderr
            assert case.advice in told(result), told(result)
        assert step.text in case.advice
        after = call(command := followed(case, step))
        assert after.exit_code == 0 and case.advice not in told(after), f"{command}\n{after.output}"


def test_a_newcomers_mistakes_are_many() -> None:
    assert len({case.command for case in FIRST}) >= 20 and len(FIRST) >= 25 and all(case.code and case.steps for case in FIRST)

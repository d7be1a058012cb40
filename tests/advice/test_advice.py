"""Follow every command and setting that a message suggests, word for word."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.advice.cases import CASES, FIRST, TINY, Case, Step
from tests.advice.elsewhere import NOT_FOLLOWED
from tests.advice.texts import Suggestion, suggestions
from tests.commands import Trained, va
from tests.data.masks.annotated import coco, label_studio, yolo
from visionattn.config.messages import count_unknown
from visionattn.errors import EXIT_CODES, UserError
from visionattn.models import create_segmenter
from visionattn.tasks import TASKS


def ids(case: Case) -> str:
    return f"{case.source}-{case.code}-{case.command[:40]}"


def call(command: str) -> Result:
    """Run a command as it is typed, without the name of the program."""
    return va(*shlex.split(command))


def told(result: Result) -> str:
    """Everything printed, continued lines without their indentation, with HERE for this folder."""
    return (result.stdout + result.stderr).replace("\n" + " " * 8, "\n").replace(str(Path.cwd()), "HERE")


def followed(case: Case, step: Step, monkeypatch: pytest.MonkeyPatch) -> str:
    """The command that following a piece of advice leads to, after what it does before."""
    text = step.text
    for name, value in {"HERE": str(Path.cwd()), **step.fill}.items():
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
    if step.kind == "env":
        monkeypatch.setenv(*text.split("="))
        return case.command
    assert step.kind in ("add", "instead") and step.old in case.command
    return f"{case.command} {text}" if step.kind == "add" else case.command.replace(step.old, text)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_advice_works_when_it_is_followed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert case.steps
    for number, step in enumerate(case.steps):
        if case.code or number == 0:  # what a command that succeeds suggests is done after it
            folder = tmp_path / str(number)
            folder.mkdir()
            monkeypatch.chdir(folder)
            if case.with_run:
                shutil.copytree(request.getfixturevalue("trained").run, folder / "runs/flowers/001")
            case.make(folder)
        if number == 0:
            case.patch(monkeypatch)
            result = call(case.command)
            assert result.exit_code == (case.exit_code or EXIT_CODES[case.code[3]] if case.code else 0), result.output
            assert result.stderr.count("error VA-") == result.stderr.startswith(f"error {case.code}: ") == bool(case.code), result.stderr
            assert case.advice in told(result), told(result)
        assert step.text in case.advice
        after = call(command := followed(case, step, monkeypatch))
        assert after.exit_code == 0 and case.advice not in told(after), f"{command}\n{after.output}"


def test_every_suggestion_is_followed() -> None:
    """A new one needs a case in cases.py, or a place in elsewhere.py with the reason why it cannot be followed here."""
    found = suggestions()
    here = {item for item in found for case in CASES if case.source == item.source and any(item.text in step.text for step in case.steps)}
    listed = {Suggestion(source, text) for source, texts in NOT_FOLLOWED.items() for text in texts}
    assert found - here - listed == set(), "suggested, and nobody has tried it"
    assert listed - found == set(), "not suggested any more"
    assert listed & here == set(), "is followed here"


def test_reasons_name_tests_that_exist() -> None:
    reasons = {reason for texts in NOT_FOLLOWED.values() for reason in texts.values()}
    named = {word.rstrip(",.") for reason in reasons for word in reason.split() if word.startswith("tests/")}
    assert named and all((Path(__file__).parents[2] / name).is_file() for name in named)


def test_a_newcomers_mistakes_are_many() -> None:
    assert len({case.command for case in FIRST}) >= 20 and len(FIRST) >= 25 and all(case.code for case in FIRST)


def test_settings_that_are_named_exist() -> None:
    """Every key in a message exists in some task."""
    keys = {item.text.partition("=")[0] for item in suggestions() if re.match(r"[a-z_]+\.[a-z_.]+=", item.text)}
    known = {key for task in TASKS.values() for key in keys if not count_unknown(nested(key), task.config)}
    assert keys - known == set()


def nested(key: str) -> dict[str, object]:
    """A config with one dotted key."""
    value: object = None
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_the_report_of_a_run_says_how_to_repeat_it(trained: Trained) -> None:
    page = html.unescape((trained.run / "report.html").read_text())
    command = re.search(r"visionattn (train --config \S*config\.yaml)", page)
    assert command is not None and call(f"{command[1]} --dry-run").exit_code == 0


@pytest.mark.parametrize("make", [coco, yolo, label_studio])
def test_annotations_without_a_validation_split(make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that is suggested prints the one that trains, and holds images out."""
    monkeypatch.chdir(tmp_path)
    make(Path("pets"))
    for path in list(Path("pets").rglob("*val*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = call("data check pets").stderr
    assert text.endswith("\n  fix   visionattn data masks from pets\n"), text
    drawn = call("data masks from pets")
    assert drawn.exit_code == 0, drawn.output
    train = drawn.stdout.partition("next ")[2].strip()
    assert train == f"visionattn train --data {tmp_path / 'pets-masks'} --val-fraction 0.2"
    after = call(f"{train.removeprefix('visionattn ')} {TINY} model.head.name=fcn train.batch_size=1 model.img_size=64 --dry-run")
    assert after.exit_code == 0, after.output


def test_a_segmenter_of_no_classes() -> None:
    with pytest.raises(UserError, match="num_classes") as caught:
        create_segmenter("eca_resnet18", "fcn", num_classes=0, backbone_args={"width": 8})
    assert caught.value.fix == "create_segmenter(..., num_classes=2)"
    assert create_segmenter("eca_resnet18", "fcn", num_classes=2, backbone_args={"width": 8}).num_classes == 2

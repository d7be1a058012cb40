"""Options that are not there, and arguments without `=`: one block, exit code 2, and a command that works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.commands import done, va
from visionattn.cli import app
from visionattn.cli.unknown import _KEYS, _OWN, SHORTCUTS, config_keys
from visionattn.tasks import load_config

# What is typed, and what is suggested.
MISTAKES = {
    "train --data flowers --learning-rate 0.01 --strict": "train --data flowers --lr 0.01 --strict",
    "train --data flowers --batch 16": "train --data flowers --batch-size 16",
    "train --data flowers -b16": "train --data flowers --batch-size 16",
    "train --data flowers -lr 0.1 -bs=4": "train --data flowers --lr 0.1 --batch-size 4",
    "train --data=flowers --img-size=96": "train --data=flowers model.img_size=96",
    "train --data flowers --imgsz 96 64": "train --data flowers 'model.img_size=[96,64]'",
    "train --optimizer AdamW --wd 0.1 --workers=2 --data flowers": (
        "train optim.name=adamw optim.weight_decay=0.1 data.workers=2 --data flowers"
    ),
    "train --data flowers --seed 3": "train --data flowers seed=3",
    "train --data flowers --amp train.epochs=2": "train --data flowers train.precision=auto train.epochs=2",
    "train --data flowers --pretrained": "train --data flowers --weights pretrained",
    "train --data flowers --pretrained in1k": "train --data flowers --weights in1k",
    "train --gpus 2 --data flowers": "train --processes 2 --data flowers",
    "train --gpus 0,1 --data flowers": "train --devices 0,1 --data flowers",
    "train --data flowers --output out": "train --data flowers output.dir=out",
    "train --data flowers --train.epochs 3": "train --data flowers --epochs 3",
    "train --data flowers --num-classes 5 --epcohs 3": "train --data flowers --epochs 3",
    "train --data flowers --wandb": "train --data flowers log.to=wandb",
    "train --data flowers --report-to mlflow": "train --data flowers log.to=mlflow",
    "train --data flowers --momentum=0.8": "train --data flowers optim.momentum=0.8",
    "--data flowers train": "train --data flowers",
    "--data flowers": "train --data flowers",
    "eval RUN --img-size 96": "eval RUN",
    "eval RUN --batch 8 --num-workers 2": "eval RUN --batch-size 8 data.workers=2",
    "predict --weights RUN --data photos --save-dir out": "predict RUN --source photos --out out",
    "predict RUN photos --conf 0.7": "predict RUN photos --threshold 0.7",
    "export RUN --output model.onnx": "export RUN --out model.onnx",
    "export --model RUN -o model.onnx --imgsz 96": "export RUN --out model.onnx",
    "features --model RUN --data photos --output out": "features RUN photos --out out",
    "neighbors RUN --image one.png --topk 3": "neighbors RUN one.png --k 3",
    "data check --data flowers --seed 3": "data check flowers seed=3",
    "models list --pretraind": "models list --pretrained",
    "config show --epochs 3": "config show train.epochs=3",
    "train flowers": "train --data flowers",
    "train flowers --lr 0.1 train.epochs=2": "train --data flowers --lr 0.1 train.epochs=2",
    "train quickstart": "train --config quickstart",
    "train my.yaml": "train --config my.yaml",
    "train --data flowers more": "train --data flowers",
    "train --data flowers train.epochs 5": "train --data flowers train.epochs=5",
}


def parsed(words: list[str]) -> Any:
    """The context of a command that is typed correctly."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return command.make_context("typed", words)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_the_command_that_was_meant(line: str) -> None:
    result = va(*shlex.split(line))
    assert result.exit_code == 2 and result.stderr.startswith("error VA-C00") and not result.stdout
    fix = next(text for text in result.stderr.splitlines() if text.startswith("  fix "))
    assert fix == f"  fix   visionattn {MISTAKES[line]}"
    settings = parsed(shlex.split(MISTAKES[line])).params.get("overrides") or []
    load_config(None, settings)  # the keys are there, and take such a value


def test_what_nobody_knows_gets_the_help() -> None:
    text = va("train", "--data", "flowers", "--foo", 3).stderr
    assert text == (
        "error VA-C001: visionattn train has no option --foo\n  fix   visionattn train --help\n        visionattn config show\n"
    )
    assert "fix   visionattn models list --help" in va("models", "list", "--seed", 3).stderr  # which takes no keys
    assert va("train", "-hb").stderr.startswith("error VA-C001: visionattn train has no option -b\n")


def test_a_key_is_named_beside_its_option() -> None:
    assert "it is --lr, or the key optim.lr\n" in va("train", "--learning-rate", 0.1).stderr
    assert "did you mean the key optim.weight_decay?\n" in va("train", "--weigth-decay", 0.1).stderr
    text = va("predict", "RUN", "--imgsz", 96).stderr
    assert "model.img_size is fixed by the trained model; what can change: eval, data," in text


def test_all_that_is_suggested_exists() -> None:
    keys = set(config_keys())
    assert {meaning.partition("=")[0] for meaning in _KEYS.values()} <= keys and SHORTCUTS.keys() <= keys
    for meaning in _KEYS.values():
        if "=" in meaning:
            load_config(None, [meaning])
    for command, meanings in _OWN.items():
        options = va(*command.split(), "--help").stdout
        assert all(re.search(rf"{option}\b", options) for option in meanings.values() if option), command


def test_a_run_given_to_train_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "001"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    assert f"fix   visionattn train --resume {run}" in va("train", run).stderr


def test_flags_are_keys(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("visionattn.jobs.train.train", lambda config, **more: given.append(config))
    done("train", "--data", flowers, "--lr", 0.25, "--batch-size", 3, "--weights", "in1k", "--device", "cpu", "optim.lr=1")
    (config,) = given
    assert (config.optim.lr, config.train.batch_size, config.model.weights, config.train.device) == (0.25, 3, "in1k", "cpu")
    text = va("train", "--data", flowers, "--batch-size", "many").stderr
    assert text.startswith("error VA-C002: command line train.batch_size: expected integer >= 1")

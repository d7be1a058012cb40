"""Every block of code of README.md and docs/ is run, or at least read as far as that is possible without its data."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image

import visionattn
from tests.commands import RUNNER, picture
from tests.docs.blocks import BLOCKS, COMMANDS, ROOT, Block, Command
from tests.docs.elsewhere import BEFORE, CHANGES, KERNELS, LAYOUTS, NOT_HERE, PROGRAMS, PYTHON
from visionattn.attention import ATTENTION
from visionattn.backbones.registry import _VARIANTS
from visionattn.cli import app
from visionattn.errors import UserError
from visionattn.heads import HEADS
from visionattn.tasks import TASKS, load_config

CLI: Any = typer.main.get_command(app)
TINY: dict[str, Any] = {"train.batch_size": 2, "train.steps": 1, "model.img_size": 32, "data.workers": 0, "log.to": []}

# What is run for real; of the other commands the job is left out, once it has got settings that are right.
RUN = {"models list", "models info", "config list", "config show", "config schema", "weights list", "kernels list"}
JOBS = (
    "visionattn.jobs.train.train",
    "visionattn.jobs.folds.train_folds",
    "visionattn.jobs.folds.resume_folds",
    "visionattn.cli.launch.run_processes",
    "visionattn.jobs.evaluate.evaluate",
    "visionattn.jobs.predict.predict",
    "visionattn.jobs.compare.compare",
    "visionattn.jobs.explain.explain",
    "visionattn.jobs.export.export",
    "visionattn.jobs.push.push",
    "visionattn.jobs.serve.serve",
    "visionattn.jobs.features.extract_features",
    "visionattn.jobs.features.extract_bags",
    "visionattn.jobs.neighbors.find_neighbors",
    "visionattn.jobs.check.check",
    "visionattn.jobs.check.preview_data",
    "visionattn.data.masks.convert.convert_masks",
    "visionattn.data.masks.annotations.draw.draw_masks",
)
# Files that pages tell a reader to write -> what the block of their contents has in it.
FILES = {"medusa.py": "import Medusa", "own.py": "class Near(", "count.py": 'f"counts/{split}.csv"'}
STOPPED = {"train", "eval", "predict", "compare", "explain", "export", "push", "serve", "features", "neighbors"}
STOPPED |= {"data check", "data preview", "data masks convert", "data masks from"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name."""
    folder = tmp_path_factory.mktemp("reader")
    for split, count in (("train", 2), ("val", 2), ("test", 1)):
        for channel, name in enumerate(("daisy", "rose", "tulip")):
            for number in range(count):
                picture(folder / "flowers" / split / name / f"{number}.png", channel, number, (40, 40))
    for name, layout in LAYOUTS.items():
        LAYOUT[layout](folder / name)
    for path in (ROOT / "examples").glob("*.py"):
        shutil.copy(path, folder)
    for name, begin in FILES.items():
        (folder / name).write_text(next(block.text for block in BLOCKS if begin in block.text))
    (folder / "my.yaml").write_text("model:\n  name: swin_tiny\noptim: {weigth_decay: 0.05}\n")
    return folder


def masks(root: Path) -> None:
    for split in ("train", "val", "test"):
        for number in range(2):
            picture(root / "images" / split / f"{number}.png", 0, number, (40, 40))
            for kind in ("masks", "instances"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.eye(40, dtype=np.uint8)).save(root / kind / split / f"{number}.png")
    (root / "classes.txt").write_text("background\nroad\n")


def volumes(root: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
            (root / kind / split / "case1.nii.gz").write_bytes(b"")


def bags(root: Path) -> None:
    for split in ("train", "val"):
        for label in ("normal", "tumour"):
            (root / split / label).mkdir(parents=True)
            np.save(root / split / label / "slide1.npy", np.zeros((3, 8), np.float32))


LAYOUT = {"masks": masks, "volumes": volumes, "bags": bags}


@pytest.fixture
def reader(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in that folder; what a page registers is forgotten afterwards."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the folders of plug-ins join it
    tables: list[dict[str, Any]] = [_VARIANTS, HEADS, ATTENTION, TASKS]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield place
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for name in set(sys.modules) - modules:
        if (place / f"{name}.py").is_file():
            del sys.modules[name]


# ---------------------------------------------------------------- Python and YAML


def ids(item: Block | Command) -> str:
    return item.place if isinstance(item, Block) else f"{item.place}-{item.text[:40]}"


SLOW = {"README.md"}  # builds published sizes and trains


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.slow] if block.page in SLOW else []) for block in BLOCKS if block.language == "python"],
    ids=ids,
)
def test_python(block: Block, reader: Path) -> None:
    code = compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if any(block.text.startswith(words) for words in PYTHON.get(block.page, {})):
        return
    text = block.text
    for old, new in CHANGES.items():
        text = text.replace(old, new)
    if "BIASES" in BEFORE.get(block.page, ""):
        text = re.sub(r"(\w+)=\.\.\.", r"\1=BIASES['\1']", text)
    names: dict[str, Any] = {
        "torch": torch,
        "visionattn": visionattn,
        "va": visionattn,
        "TINY": TINY,
        "va_file": save_swin,
        "__name__": "page",
    }
    torch.manual_seed(0)
    exec(KERNELS if block.page.startswith("docs/kernels/") else "", names)
    exec(BEFORE.get(block.page, ""), names)
    exec(code if text == block.text else compile(text, block.place, "exec"), names)


def save_swin() -> None:
    """The file of the authors that README.md names, with weights of its own."""
    torch.save({"model": visionattn.create_model("swin_tiny").state_dict()}, "swin_tiny_patch4_window7_224.pth")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=ids)
def test_yaml(block: Block, reader: Path) -> None:
    values = yaml.safe_load(block.text)
    Path("page.yaml").write_text(block.text)
    problems = []
    for task in [] if "task" in values else TASKS:
        try:
            load_config("page.yaml", [f"task={task}"])
            return
        except UserError as error:
            problems.append(error.block())
    assert not problems, problems
    load_config("page.yaml")


def test_languages() -> None:
    """What is no code is marked as text."""
    assert {block.language for block in BLOCKS} <= {"", "sh", "python", "yaml", "text"}


def test_lists_are_short_and_true() -> None:
    texts = "\n".join(command.text for command in COMMANDS)
    assert all(words in texts for words in NOT_HERE)
    for page, entries in PYTHON.items():
        for words in entries:
            assert any(block.text.startswith(words) for block in BLOCKS if block.page == page), (page, words)
    assert all(any(old in block.text for block in BLOCKS) for old in CHANGES)


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_command(command: Command, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = list(command.words)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if "..." in words:
        words = ["quickstart" if word == "..." else word for word in words]
    program = Path(words[0]).name
    if program in ("torchrun", "accelerate") or words[1:3] == ["-m", "visionattn"]:
        check(words[words.index("visionattn") + 1 :], command.text, monkeypatch)
    elif program == "visionattn" and command.error:
        result = RUNNER.invoke(app, words[1:])
        assert result.exit_code and command.error.split() == result.stderr.split(), result.output
    elif program == "visionattn":
        check(words[1:], command.text, monkeypatch)
    elif program == "taskset" or re.fullmatch(r"python3?", program):
        words = words[3:] if program == "taskset" else words
        script(words[1:])
    elif program == "pip":
        section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[project")[0]
        extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
        assert words[1] == "install"
        for name in re.findall(r"\[([\w,]+)\]", command.text):
            assert set(name.split(",")) <= set(extras)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    else:
        assert program in PROGRAMS


def script(words: list[str]) -> None:
    """A script of this repository, whose options it knows; or a module."""
    if words[0] == "-m":
        assert words[1] in ("venv", "pytest", "http.server")
    elif words[0] != "-c":
        path = ROOT / words[0] if (ROOT / words[0]).is_file() else Path(words[0])
        assert path.is_file(), f"no {words[0]}"
        text = path.read_text()
        assert all(f'"{word.strip("[]")}"' in text for word in words if word.startswith(("--", "[--"))), words


def check(words: list[str], written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command, then run it as far as its job."""
    found, rest, path = CLI, list(words), []
    while hasattr(found, "commands"):
        assert rest and rest[0] in found.commands, f"no command {' '.join([*path, *rest[:1]])}"
        path.append(rest[0])
        found = found.commands[rest.pop(0)]
    name = " ".join(path)
    if "--help" not in rest:
        found.make_context(name, list(rest)).close()
    if name not in RUN | STOPPED or any(text in written for text in NOT_HERE):
        return
    stand_in(words)
    reached: list[dict[str, Any]] = []

    def stop(*args: Any, **given: Any) -> None:
        reached.append(given)
        raise typer.Exit(0)

    for job in JOBS:
        monkeypatch.setattr(job, stop)
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 0 and (name in RUN or reached), result.output
    if name in ("eval", "predict", "explain", "features", "neighbors"):
        settings = reached[0].get("settings", [])
        assert any(accepted(task, settings) for task in TASKS), settings


def accepted(task: str, settings: list[str]) -> bool:
    """Whether settings are some of a task."""
    try:
        load_config(None, [f"task={task}", *settings])
    except UserError:
        return False
    return True


def stand_in(words: list[str]) -> None:
    """Make the data, configs and runs that a command names, where the folder does not have them: empty ones."""
    for before, word in zip(["", *words], words, strict=False):
        if before == "--data" or re.match(r"data\.root=", word):
            data = Path(word.removeprefix("data.root="))
            if data.suffix:
                data.touch()
            else:
                data.mkdir(parents=True, exist_ok=True)
        if before == "--config" and word.endswith(".yaml") and not Path(word).exists():
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).write_text("data: {root: flowers}\n")
        if re.match(r"(runs/|RUN\d?$)", word) and not Path(word).suffix:
            Path(word).mkdir(parents=True, exist_ok=True)
            (Path(word) / "config.yaml").write_text("data: {root: flowers}\n")
    if words[:2] == ["data", "check"] or words[:2] == ["data", "preview"]:
        Path(words[2]).mkdir(parents=True, exist_ok=True)

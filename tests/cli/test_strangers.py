"""A run folder from somebody else: opening it runs no code that it names, and writes nowhere else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands import Trained, done, refused, settings, tree

CODE = "from pathlib import Path\nPath(__file__).with_name('PWNED').write_text('')\n"


def commands(trained: Trained, run: Path) -> list[tuple[object, ...]]:
    """Every command that opens a run."""
    return [
        ("eval", run),
        ("eval", run / "checkpoints" / "last"),
        ("predict", run, "--source", trained.data / "test"),
        ("train", "--resume", run, "train.epochs=3"),
    ]


def test_no_command_writes_through_a_link(trained: Trained, tmp_path: Path) -> None:
    run, photos = trained.copy(tmp_path), tmp_path / "photos"
    (photos / "val").mkdir(parents=True)
    (photos / "val" / "one.jpg").write_text("mine")
    (run / "eval").rename(tmp_path / "moved")
    (run / "eval").symlink_to(photos)
    start = ("train", "--data", trained.data, *settings(tmp_path), f"model.weights={run}")
    for command in (*commands(trained, run), start):
        refused(tmp_path, "VA-R008", 2, *command)
    assert tree(photos) == {"val": b"", "val/one.jpg": b"mine"}


@pytest.mark.parametrize("name", ["PATH/theirs.py", "theirs"])
def test_code_that_a_run_names_is_not_imported(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = trained.copy(tmp_path)
    name = name.replace("PATH", str(run))
    (run / "theirs.py").write_text(CODE)
    for path in (run / "config.yaml", *run.glob("checkpoints/*/meta.json")):
        content = yaml.safe_load(path.read_text())  # JSON is YAML
        (content if path.name == "config.yaml" else content["config"])["plugins"] = [name]
        path.write_text(json.dumps(content))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)  # as `python -m` and a notebook have it
    for command in commands(trained, run):
        text = refused(tmp_path, "VA-C006", 2, *command)
        assert f"not imported: {name}" in text and f"plugins=[{name}]" in text
    done("eval", run, f"plugins=[{name}]")
    assert (run / "PWNED").exists()


@pytest.mark.parametrize(
    "target",
    [None, [], {}, {"classes": 3}, {"classes": None}, "x", {"classes": [[1], [2], [3]]}, {"classes": "abc"}],
)
def test_w005_a_target_of_anything_else(trained: Trained, tmp_path: Path, target: object) -> None:
    checkpoint = trained.copy(tmp_path) / "checkpoints" / "best"
    meta = json.loads((checkpoint / "meta.json").read_text())
    (checkpoint / "meta.json").write_text(json.dumps({**meta, "target": target}))
    refused(tmp_path, "VA-W005", 4, "predict", checkpoint, "--source", trained.data / "test")

"""The commands as a person runs them: tiny real runs, bad input, what is printed and what is left on disk."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result
from visionattn.training.checkpoint import read_checkpoint
from visionattn.training.doctor import diagnose
from visionattn.training.inference import load_model

from visionattn import __version__
from visionattn.cli import app
from visionattn.config import load_config, shipped_names
from visionattn.files import sha256_of
from visionattn.kernels import dispatch
from visionattn.kernels.available import REASONS
from visionattn.kernels.routing import fast as routing
from visionattn.kernels.window import fast as window
from visionattn.models import records
from visionattn.models.weights.download import store
from visionattn.models.weights.records import find_record

RUNNER = CliRunner()
TINY = (
    "model.name=eca_resnet18",
    "model.args={width: 8}",
    "model.img_size=32",
    "train.epochs=1",
    "train.batch_size=8",
    "data.workers=0",
    "log.tensorboard=false",
)
CLASSES = ("daisy", "rose", "tulip")


def va(*args: object) -> Result:
    """Run a command in this process; whatever happens, it is no internal fault."""
    result = RUNNER.invoke(app, [str(arg) for arg in args])
    assert "VA-X001" not in result.stderr and "Traceback" not in result.output, result.output
    return result


def done(*args: object) -> Result:
    """Run a command that succeeds."""
    result = va(*args)
    assert result.exit_code == 0, result.output
    return result


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with contents."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(watched: Path, code: str, exit_code: int, *args: object) -> str:
    """Run a command that stops: one block on standard error, nothing below `watched` is changed; returns the block."""
    before = tree(watched)
    result = va(*args)
    assert result.exit_code == exit_code, result.output
    assert result.stderr.startswith(f"error {code}: "), result.output
    assert tree(watched) == before
    return result.stderr


def settings(tmp_path: Path, *more: str) -> list[str]:
    """Tiny settings, with runs in tmp_path/runs."""
    return [*TINY, f"output.dir={tmp_path / 'runs'}", *more]


def only_run(tmp_path: Path) -> Path:
    """The one run below tmp_path/runs."""
    (config,) = (tmp_path / "runs").glob("*/*/config.yaml")
    return config.parent


def picture(path: Path, channel: int, number: int, size: tuple[int, int] = (48, 40)) -> None:
    """Noise with one strong channel; different for each number."""
    pixels = np.random.default_rng(number).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., channel] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@dataclass(frozen=True)
class Trained:
    """A run of two epochs that many tests look at; those that change it take a copy."""

    run: Path
    data: Path
    result: Result

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.run, folder / "copy"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "flowers"
    for split, count, start in (("train", 8, 0), ("val", 4, 100), ("test", 2, 200)):
        for index, name in enumerate(CLASSES):
            for number in range(count):
                picture(data / split / name / f"{number}.png", index, start + 30 * index + number)
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(folder / "cache"))
        result = done("train", "--data", data, *settings(folder, "train.epochs=2"), "--json")
    return Trained(only_run(folder), data, result)


# ---------------------------------------------------------------- help, version, start


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


def test_help_and_config_errors_do_not_load_torch() -> None:
    code = (
        "import sys; from visionattn.cli import app\n"
        "for args, wanted in ((['--help'], 0), (['train', '--help'], 0), (['config', 'list'], 0), (['train', 'optim.lrr=1'], 2)):\n"
        "    try: app(args)\n"
        "    except SystemExit as error: assert error.code == wanted, (args, error.code)\n"
        "    assert 'torch' not in sys.modules, args\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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


# ---------------------------------------------------------------- a run


def test_train_json_is_one_object(trained: Trained) -> None:
    answer = json.loads(trained.result.stdout)
    assert set(answer) == {"run", "best", "metrics"} and Path(answer["run"]) == trained.run
    assert answer["best"]["metric"] == "top1" and answer["best"]["epoch"] in (1, 2)
    assert {"top1", "top5", "balanced_accuracy", "macro_f1", "auroc"} <= set(answer["metrics"])
    assert all(0 <= value <= 1 for name, value in answer["metrics"].items() if name != "loss")
    assert answer["metrics"]["top1"] == answer["best"]["value"]
    for text in ("train 24 images, val 12, test 6, 3 classes", "epoch   2/2", "weights", "seed 0", "report"):
        assert text in trained.result.stderr


def test_run_folder(trained: Trained) -> None:
    assert trained.run.parent.name == "flowers-eca_resnet18" and trained.run.name == "001"
    expected = {"run.json", "config.yaml", "config.changed.yaml", "env.txt", "log.txt", "metrics.jsonl", "metrics.csv", "report.html"}
    expected |= {f"data/{name}" for name in ("classes.txt", "manifest.csv", "check.json", "preview_train.png", "preview_val.png")}
    expected |= {f"checkpoints/{part}/{name}" for part in ("last", "best") for name in ("model.safetensors", "state.pt", "meta.json")}
    expected |= {f"eval/val/{name}" for name in ("metrics.json", "per_class.csv", "per_image.csv", "confusion.png")}
    files = set(tree(trained.run))
    assert expected <= files, expected - files
    assert any(name.startswith("eval/val/worst/") for name in files)
    assert not [name for name in files if ".tmp-" in name or ".lock" in name or name.startswith("tb")]


def test_run_json(trained: Trained) -> None:
    state = json.loads((trained.run / "run.json").read_text())
    assert state["state"] == "done" and state["reason"] is None
    assert state["best"] == json.loads(trained.result.stdout)["best"] and 0 <= state["metrics"]["top1"] <= 1
    assert state["command"] and state["started"] <= state["updated"] and "commit" in state
    assert {"python", "torch", "timm", "visionattn"} <= set(state["versions"])


def test_run_json_names_the_device(trained: Trained) -> None:
    assert "cpu" in str(json.loads((trained.run / "run.json").read_text()).get("device", "missing"))


def test_env_txt_is_the_report_of_doctor(trained: Trained) -> None:
    text = (trained.run / "env.txt").read_text()
    assert "torch" in text and "devices" in text


def test_configs_of_a_run(trained: Trained) -> None:
    config = load_config(trained.run / "config.yaml")
    assert load_config(trained.run / "config.changed.yaml") == config
    assert config.train.epochs == 2 and config.model.args == {"width": 8}
    changed = (trained.run / "config.changed.yaml").read_text()
    assert "epochs: 2" in changed and "hflip" not in changed and "eca_resnet18" not in changed


def test_metrics_and_log_of_a_run(trained: Trained) -> None:
    lines = [json.loads(text) for text in (trained.run / "metrics.jsonl").read_text().splitlines()]
    assert {line["schema"] for line in lines} == {1} and {line["kind"] for line in lines} == {"step", "epoch"}
    rows = list(csv.DictReader((trained.run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and {"step", "train_loss", "lr", "val_top1", "val_loss"} <= set(rows[0])
    log = (trained.run / "log.txt").read_text()
    assert log.startswith("task ") and "epoch   2/2" in log and "done in" in log
    page = (trained.run / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') >= 3 and not re.search(r'(src|href)="(?!data:)', page)


def test_data_of_a_run(trained: Trained) -> None:
    assert (trained.run / "data/classes.txt").read_text().split() == list(CLASSES)
    rows = list(csv.DictReader((trained.run / "data/manifest.csv").open()))
    assert list(rows[0]) == ["path", "label", "split", "bytes", "hash16"]
    assert Counter(row["split"] for row in rows) == {"train": 24, "val": 12, "test": 6}
    assert all((trained.data / row["path"]).stat().st_size == int(row["bytes"]) and len(row["hash16"]) == 16 for row in rows)
    assert json.loads((trained.run / "data/check.json").read_text())["counts"]["val"] == dict.fromkeys(CLASSES, 4)
    for name in ("preview_train.png", "preview_val.png"):
        assert np.asarray(Image.open(trained.run / "data" / name)).std() > 10


def test_the_config_of_a_run_repeats_it(trained: Trained, tmp_path: Path) -> None:
    done("train", "--config", trained.run / "config.yaml", f"output.dir={tmp_path / 'runs'}")
    first, again = (load_file(run / "checkpoints/last/model.safetensors") for run in (trained.run, only_run(tmp_path)))
    assert first.keys() == again.keys() and all(first[name].equal(again[name]) for name in first)


def test_dry_run_writes_nothing(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(trained.data)
    result = done("train", "--data", trained.data, *settings(tmp_path), "--dry-run")
    assert "one step: loss" in result.stdout and "3 steps would follow" in result.stdout
    assert tree(tmp_path) == {} and tree(trained.data) == before and tree(Path(os.environ["VISIONATTN_CACHE"])) == {}


def test_flags_are_shortcuts_of_keys(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(trained.data, tmp_path / "2024"))  # a name that YAML reads as a number
    more = (
        "--data",
        folder,
        "--model",
        "swin_tiny",
        "--epochs",
        "7",
        "model.args={embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]}",
    )
    monkeypatch.chdir(tmp_path)
    result = done("train", *settings(tmp_path)[2:], *more, "--dry-run")
    assert "21 steps would follow" in result.stdout
    assert done("data", "check", "2024").exit_code == 0


# ---------------------------------------------------------------- eval and predict


@pytest.mark.parametrize("source", ["", "checkpoints/best", "checkpoints/last/model.safetensors"])
def test_eval_json(trained: Trained, source: str) -> None:
    answer = json.loads(done("eval", trained.run / source, "--json").stdout)
    assert (answer["task"], answer["split"], answer["count"]) == ("classify", "val", 12)
    assert all(0 <= value <= 1 for name, value in answer["metrics"].items() if name != "loss")
    if source != "checkpoints/last/model.safetensors":
        assert answer["metrics"]["top1"] == json.loads(trained.result.stdout)["best"]["value"]


def test_eval_for_people_and_its_files(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    result = done("eval", run, "--split", "test", "--batch-size", 4)
    assert "6 images" in result.stdout and "95 % interval" in result.stdout and all(name in result.stdout for name in CLASSES)
    assert json.loads((run / "eval/test/metrics.json").read_text())["count"] == 6
    assert len(list(csv.DictReader((run / "eval/test/per_image.csv").open()))) == 6
    assert [row["class"] for row in csv.DictReader((run / "eval/test/per_class.csv").open())] == list(CLASSES)


def test_eval_on_other_data_leaves_the_run_alone(trained: Trained, flowers: Path) -> None:
    shutil.rmtree(flowers / "val" / "tulip")
    before = tree(trained.run)
    answer = json.loads(done("eval", trained.run, "--data", flowers, "--json").stdout)
    assert answer["count"] == 8 and tree(trained.run) == before
    rows = {row["class"]: row for row in answer["per_class"]}
    assert rows["tulip"]["recall"] is None and rows["tulip"]["support"] == 0 and rows["rose"]["support"] == 4
    assert "n/a" in done("eval", trained.run, "--data", flowers).stdout


def test_eval_refuses_a_class_the_run_does_not_know(trained: Trained, flowers: Path) -> None:
    picture(flowers / "val" / "lily" / "0.png", 0, 1)
    text = refused(trained.run, "VA-M003", 4, "eval", trained.run, "--data", flowers)
    assert "lily: 1 image" in text and "3 classes: daisy, rose, tulip" in text


def test_eval_of_a_split_that_is_not_there(trained: Trained) -> None:
    text = refused(trained.run, "VA-D002", 3, "eval", trained.run, "--split", "tset")
    assert "train, val, test" in text


def test_predict_json(trained: Trained, tmp_path: Path) -> None:
    folder = trained.data / "test"
    (tmp_path / "broken.png").write_bytes(b"no image")
    args = ("--source", folder, "--source", folder / "rose" / "*.png", "--source", tmp_path / "broken.png", "--topk", 2, "--json")
    result = done("predict", trained.run, *args)
    answer = json.loads(result.stdout)
    assert [item["path"] for item in answer["predictions"]] == [str(path) for path in sorted(folder.rglob("*.png"))], "each once, in order"
    for item in answer["predictions"]:
        assert len(set(item["classes"]) & set(CLASSES)) == 2
        assert 1 >= item["probabilities"][0] >= item["probabilities"][1] >= 0
    (unreadable,) = answer["unreadable"]
    assert unreadable["path"] == str(tmp_path / "broken.png") and unreadable["reason"]
    assert "unreadable" in result.stderr


def test_predict_writes_json_and_csv(trained: Trained, tmp_path: Path) -> None:
    before = tree(trained.data)
    result = done("predict", trained.run, "--source", trained.data / "test", "--out", tmp_path / "a" / "out")
    assert set(tree(tmp_path / "a" / "out")) == {"predictions.json", "predictions.csv"} and tree(trained.data) == before
    answer = json.loads((tmp_path / "a/out/predictions.json").read_text())
    rows = list(csv.DictReader((tmp_path / "a/out/predictions.csv").open()))
    assert len(rows) == len(answer["predictions"]) == 6
    for row, item in zip(rows, answer["predictions"], strict=True):
        assert row["path"] == item["path"] and row["class1"] == item["classes"][0]
        assert sum(float(row[f"probability{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert "predictions.csv" in result.stdout
    done("predict", trained.run, "--source", trained.data / "test", "--out", tmp_path / "b", "--save", "csv")
    assert set(tree(tmp_path / "b")) == {"predictions.csv"}


def test_predict_refuses(trained: Trained, tmp_path: Path) -> None:
    refused(tmp_path, "VA-C002", 2, "predict", trained.run, "--source", trained.data, "--out", tmp_path / "out", "--save", "csv,masks")
    text = refused(tmp_path, "VA-D001", 3, "predict", trained.run, "--source", trained.data / "tset", "--out", tmp_path / "out")
    assert "tset" in text and "Did you mean test" in text
    (tmp_path / "broken.png").write_bytes(b"")
    text = refused(tmp_path, "VA-D010", 3, "predict", trained.run, "--source", tmp_path / "broken.png", "--out", tmp_path / "out")
    assert "broken.png" in text and "0 bytes" in text


# ---------------------------------------------------------------- other kinds of data


def test_multi_label_csv(tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    for split, count, start in (("train", 16, 0), ("val", 8, 100)):
        rows = [("path", "label")]
        for number in range(count):
            picture(data / "images" / f"{split}{number}.png", number % 3, start + number)
            rows.append((f"images/{split}{number}.png", ("sun;sea", "sea", "", "sun")[number % 4]))
        csv.writer((data / f"{split}.csv").open("w", newline="")).writerows(rows)
    result = done("train", "--data", data, *settings(tmp_path, "data.multi_label=true"), "--json")
    answer = json.loads(result.stdout)
    assert answer["best"]["metric"] == "macro_f1" and "top1" not in answer["metrics"] and "several per image" in result.stderr
    evaluated = json.loads(done("eval", only_run(tmp_path), "--json").stdout)
    assert evaluated["count"] == 8 and {"macro_f1", "auroc", "exact_match", "mean_average_precision"} <= set(evaluated["metrics"])
    assert [(row["class"], row["support"]) for row in evaluated["per_class"]] == [("sea", 4), ("sun", 4)]


def save_npz(path: Path, labels: Callable[[int], np.ndarray] = lambda count: np.arange(count) % 3) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 18), ("val", 9)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels(count)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_npz(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "blood.npz")
    answer = json.loads(done("train", "--data", path, *settings(tmp_path, "model.in_chans=1"), "--json").stdout)
    run = Path(answer["run"])
    assert run.parent.name == "blood-eca_resnet18" and (run / "data/classes.txt").read_text().split() == ["0", "1", "2"]
    assert json.loads(done("eval", run, "--json").stdout)["metrics"] == pytest.approx(answer["metrics"])


def test_digits_need_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = done("train", "--config", "quickstart", *settings(tmp_path), "--dry-run")
    assert "10 classes" in result.stdout and tree(tmp_path) == {}


# ---------------------------------------------------------------- bad input: where the data are


def test_d001_folder_missing(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(tmp_path, "VA-D001", 3, "train", "--data", "flowrs", *settings(tmp_path))
    assert 'data.root "flowrs" not found' in text and 'Did you mean "flowers" (in this folder)?' in text
    refused(tmp_path, "VA-D001", 3, "data", "check", "flowrs")
    assert "data.root is empty" in refused(tmp_path, "VA-D001", 3, "train", *settings(tmp_path))


def test_d002_wrong_layout(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "one.png", 0, 1)
    (tmp_path / "photos" / "notes").mkdir()
    text = refused(tmp_path, "VA-D002", 3, "train", "--data", tmp_path / "photos", *settings(tmp_path))
    assert "photos/" in text and "one.png" in text and "notes/ (0 folders, 0 images)" in text
    for layout in ("ROOT/train/<class>", "ROOT/<class>/*.jpg, with data.val_fraction", "train.csv", ".npz"):
        assert layout in text


def test_d003_no_validation_split(flowers: Path, tmp_path: Path) -> None:
    shutil.rmtree(flowers / "val")
    text = refused(tmp_path, "VA-D003", 3, "train", "--data", flowers, *settings(tmp_path))
    assert "--val-fraction 0.2" in text
    refused(tmp_path, "VA-D003", 3, "data", "check", flowers)


def test_val_fraction_is_seeded_stratified_and_written_down(flowers: Path, tmp_path: Path) -> None:
    shutil.rmtree(flowers / "val")

    def held_out(name: str, *more: str) -> tuple[Path, set[str]]:
        done("train", "--data", flowers, "--val-fraction", 0.25, *settings(tmp_path / name, *more))
        run = only_run(tmp_path / name)
        rows = list(csv.DictReader((run / "data/manifest.csv").open()))
        assert Counter((row["split"], row["label"]) for row in rows if row["split"] != "test") == Counter(
            {("train", name): 6 for name in CLASSES} | {("val", name): 2 for name in CLASSES}
        )
        return run, {row["path"] for row in rows if row["split"] == "val"}

    run, first = held_out("one")
    assert first != held_out("two", "seed=1")[1]
    done("train", "--resume", run)  # the same images are held out again, else it would refuse
    assert json.loads(done("eval", run, "--json").stdout)["count"] == 6


# ---------------------------------------------------------------- bad input: what the data are


def test_d004_class_missing_in_a_split(flowers: Path, tmp_path: Path) -> None:
    shutil.rmtree(flowers / "val" / "tulip")
    result = done("data", "check", flowers)
    assert '! VA-D004 val has no images of class "tulip" (8 in train): its recall will be "n/a"' in result.stdout
    picture(flowers / "val" / "lily" / "0.png", 0, 1)
    text = refused(tmp_path, "VA-D004", 3, "train", "--data", flowers, *settings(tmp_path))
    assert "lily: 1 image" in text and "classes.txt" in text


def test_d005_empty_class_folder(flowers: Path, tmp_path: Path) -> None:
    for name in ("0", "1", "2", "3"):
        (flowers / "val" / "rose" / f"{name}.png").unlink()
    assert '! VA-D005 val has an empty folder for class "rose"' in done("data", "check", flowers).stdout
    (flowers / "train" / "lily").mkdir()
    assert "lily" in refused(tmp_path, "VA-D005", 3, "train", "--data", flowers, *settings(tmp_path))


def test_d006_the_same_picture_in_train_and_val(flowers: Path, tmp_path: Path) -> None:
    shutil.copy(flowers / "train/rose/0.png", flowers / "val/rose/other name.png")
    shown = done("data", "check", flowers).stdout
    assert "1 warnings" in shown and "! VA-D006 1 image appears in both train and val: train/rose/0.png = val/rose/other name.png" in shown
    refused(tmp_path, "VA-D006", 3, "data", "check", flowers, "--strict")
    refused(tmp_path, "VA-D006", 3, "train", "--data", flowers, *settings(tmp_path), "--strict")


def test_hidden_and_system_files_are_skipped(flowers: Path) -> None:
    for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (flowers / "train" / name).mkdir()
    (flowers / "train" / "rose" / "Thumbs.db").write_bytes(b"x")
    shutil.copy(flowers / "train/rose/0.png", flowers / "train/rose/._0.png")
    shown = done("data", "check", flowers).stdout
    (line,) = (line for line in shown.splitlines() if "hidden or system" in line)
    assert "5 hidden or system files and folders skipped" in line and "train 24 images" in shown and "0 warnings" in shown


def test_d010_d011_a_few_broken_images_are_left_out(flowers: Path, tmp_path: Path) -> None:
    truncate(flowers / "train/rose/0.png")
    (flowers / "train/tulip/0.png").write_bytes(b"")
    (flowers / "val/daisy/0.png").write_text("this is no image")
    before = tree(flowers)
    result = done("train", "--data", flowers, *settings(tmp_path))
    assert "! VA-D010 train/rose/0.png cannot be decoded: " in result.stdout and "truncated" in result.stdout
    assert "! VA-D011 train/tulip/0.png is no image: empty file (0 bytes)" in result.stdout
    assert "! VA-D011 val/daisy/0.png is no image: not an image" in result.stdout
    assert "train 22 images, val 11" in result.stdout
    run = only_run(tmp_path)
    assert set(json.loads((run / "data/check.json").read_text())["unreadable"]) == {
        "train/rose/0.png",
        "train/tulip/0.png",
        "val/daisy/0.png",
    }
    assert not {"train/rose/0.png", "val/daisy/0.png"} & {row["path"] for row in csv.DictReader((run / "data/manifest.csv").open())}
    assert tree(flowers) == before


def test_d010_more_broken_images_stop_unless_skipped(flowers: Path, tmp_path: Path) -> None:
    for number in range(4):
        truncate(flowers / "train/rose" / f"{number}.png")
    text = refused(tmp_path, "VA-D010", 3, "train", "--data", flowers, *settings(tmp_path))
    assert "4 of 42 images cannot be decoded" in text and "train/rose/0.png: " in text and "data.on_error=skip" in text
    result = done("train", "--data", flowers, *settings(tmp_path, "data.on_error=skip"), "--dry-run")
    assert "train 20 images" in result.stdout


def test_d012_labels_out_of_range(flowers: Path, tmp_path: Path) -> None:
    for split, label in (("train", "rose"), ("val", "tulpi")):
        rows = [("path", "label"), *((f"{split}/rose/{number}.png", "rose") for number in range(3)), (f"{split}/tulip/0.png", label)]
        csv.writer((flowers / f"{split}.csv").open("w", newline="")).writerows(rows)
    (flowers / "classes.txt").write_text("rose\ntulip\n")
    text = refused(tmp_path, "VA-D012", 3, "train", "--data", flowers, *settings(tmp_path, "data.format=csv"))
    assert "tulpi: 1 image" in text and "rose, tulip" in text
    path = save_npz(tmp_path / "blood.npz", lambda count: np.arange(count) % 3 * 2)
    assert "4: " in refused(tmp_path, "VA-D012", 3, "train", "--data", path, *settings(tmp_path))


def test_d020_an_image_above_the_limit(flowers: Path, tmp_path: Path) -> None:
    picture(flowers / "train/rose/big.png", 0, 1, (80, 60))
    text = refused(tmp_path, "VA-D020", 3, "train", "--data", flowers, *settings(tmp_path, "data.max_pixels=4000"))
    assert "4,000 pixels" in text and "train/rose/big.png" in text and "80 x 60" in text and "raise data.max_pixels" in text


def test_kinds_of_images_are_told_once(flowers: Path) -> None:
    noise = np.random.default_rng(1)
    folder = flowers / "train" / "rose"
    Image.fromarray(noise.integers(0, 5000, (32, 32), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise.integers(0, 256, (32, 32, 4), dtype=np.uint8), "RGBA").save(folder / "clear.png")
    Image.fromarray(noise.integers(0, 256, (32, 32, 4), dtype=np.uint8), "CMYK").save(folder / "print.jpg")
    pages = [Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    for number in range(2):
        Image.fromarray(noise.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"grey{number}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    pages[1].save(folder / "turned.jpg", exif=turned)
    shown = done("data", "check", flowers).stdout
    for text in (
        "1 of 49 images are 16-bit: scaled by the maximum of their type (data.range); measured values ",
        "1 of 49 images have transparency: laid on black (data.alpha_background)",
        "! VA-D018 1 of 49 images are CMYK",
        "! VA-D018 1 of 49 images are animated or have several pages: the first is used",
        "3 of 49 images are grey: copied to 3 channels (model.in_chans=1 trains on grey)",
        "1 of 49 images are turned upright by their EXIF orientation",
    ):
        assert shown.count(text) == 1, text
    answer = json.loads(done("data", "check", flowers, "--json", "data.alpha_background=white").stdout)
    texts = {(note["level"], note["code"]): note["text"] for note in answer["notes"]}
    assert "laid on white" in texts["info", "VA-D016"] and ("info", "VA-D015") in texts and ("warning", "VA-D018") in texts


# ---------------------------------------------------------------- bad input: config and model


def test_config_errors_leave_nothing(trained: Trained, tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text("seed: 1\noptim:\n  weigth_decay: 1\n")
    args = ("train", "--config", mine, "--data", trained.data, *settings(tmp_path))
    text = refused(tmp_path, "VA-C001", 2, *args, "train.epochs=ten")
    assert "my.yaml:3 optim.weigth_decay: unknown key. Did you mean optim.weight_decay?" in text
    assert 'command line train.epochs: expected integer >= 1, got "ten"' in text
    mine.write_text("seed: 1\n")
    refused(tmp_path, "VA-C002", 2, *args, "train.epochs=ten")
    refused(tmp_path, "VA-C001", 2, *args, "quickstart")
    mine.write_text("seed: 1\nmodel: {name: x\ntrain: 3\n")
    text = refused(tmp_path, "VA-C003", 2, *args)
    assert "my.yaml:3, column 6" in text and "  train: 3\n" in text and re.search(r"^ +\^$", text, re.MULTILINE)
    assert "Did you mean quickstart?" in refused(tmp_path, "VA-C004", 2, "train", "--config", "quickstrt")
    assert va("train", "--epochs", "ten").exit_code == 2 and va("train", "--nothing").exit_code == 2


def test_c011_batch_larger_than_the_data(trained: Trained, tmp_path: Path) -> None:
    text = refused(tmp_path, "VA-C011", 2, "train", "--data", trained.data, *settings(tmp_path, "train.batch_size=25"))
    assert "drop_last would leave 0 batches" in text and "train.batch_size=24" in text


def test_m001_m002_unknown_model_or_argument(trained: Trained, tmp_path: Path) -> None:
    text = refused(tmp_path, "VA-M001", 2, "train", "--data", trained.data, "--model", "swin_tinny", *settings(tmp_path)[1:])
    assert 'unknown model "swin_tinny"' in text and "swin_tiny" in text.partition("Did you mean")[2] and "visionattn models list" in text
    text = refused(tmp_path, "VA-M002", 2, "train", "--data", trained.data, *settings(tmp_path, "model.args={widht: 8}"))
    assert '"widht"' in text and "Did you mean width?" in text


def test_m003_another_head_goes_on_and_is_said(trained: Trained, flowers: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.rmtree(flowers / split / "tulip")
    weights = trained.run / "checkpoints/best/model.safetensors"
    result = done("train", "--data", flowers, *settings(tmp_path, f"model.weights={weights}"))
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("weights"))
    tensors = sum(not name.endswith("num_batches_tracked") for name in load_file(weights))
    assert "checkpoint head has 3 classes, the model 2" in line and f"{tensors - 2} of {tensors} tensors loaded" in line
    assert (only_run(tmp_path) / "data/classes.txt").read_text().split() == ["daisy", "rose"]
    result = done("train", "--data", trained.data, *settings(tmp_path, f"model.weights={trained.run}"), "--dry-run")


# ---------------------------------------------------------------- bad input: weights


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_w005_w006_weights_to_start_from(trained: Trained, tmp_path: Path, name: str) -> None:
    args = ("train", "--data", trained.data, *settings(tmp_path, f"model.weights={tmp_path / name}"))
    assert name in refused(tmp_path, "VA-W006", 4, *args)
    for content in (b"", b"<html>404 not found</html>" * 20):
        (tmp_path / name).write_bytes(content)
        assert name in refused(tmp_path, "VA-W005", 4, *args)


def test_w005_w006_weights_of_a_run(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    weights = run / "checkpoints/best/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # `last` may be the same file
    for command in (("eval", run), ("predict", run, "--source", trained.data)):
        assert "model.safetensors" in refused(tmp_path, "VA-W006", 4, *command)
    weights.write_bytes(content)
    assert "sha256" in refused(tmp_path, "VA-W005", 4, "eval", run)
    (run / "checkpoints/best/meta.json").write_text("{")
    assert "meta.json" in refused(tmp_path, "VA-W005", 4, "eval", run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    refused(tmp_path, "VA-W006", 4, "eval", run)


@pytest.mark.parametrize(
    ("weights", "code", "words"),
    [
        ("in1k", "VA-W001", "weights import FILE"),
        ("pretrained", "VA-W001", "drive.google.com"),
        ("in21k", "VA-W007", "in1k"),
        ("in21k/", "VA-W006", "in21k"),
    ],
)
def test_published_weights_that_cannot_be_had(trained: Trained, tmp_path: Path, weights: str, code: str, words: str) -> None:
    assert words in refused(tmp_path, code, 4, "train", "--data", trained.data, *settings(tmp_path, f"model.weights={weights}"))


@pytest.fixture
def stored(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> str:
    """Made-up published weights of the tiny model, in the cache as if downloaded; returns their name."""
    known = find_record("eca_resnet18.in1k")
    made = known.model_copy(update={"tag": "made", "crop_pct": 0.5, "mean": (0.1, 0.2, 0.3), "num_classes": 3})
    monkeypatch.setattr(records, "records", lambda: (known, made))
    store(trained.run / "checkpoints/best/model.safetensors", made.name)
    return made.name


def test_training_starts_from_published_weights(stored: str, trained: Trained, tmp_path: Path) -> None:
    digest = sha256_of(trained.run / "checkpoints/best/model.safetensors")
    result = done("train", "--data", trained.data, *settings(tmp_path, "model.weights=made", "eval.crop_pct=null"))
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("weights"))
    assert f"{stored}  sha256 {digest[:8]} (as on first use)" in line and "tensors loaded" in line and "head" not in line
    assert line in (only_run(tmp_path) / "log.txt").read_text()
    model = load_model(only_run(tmp_path)).model
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3) and model.pretrained_cfg["crop_pct"] == 0.5


def test_weights_list() -> None:
    facts = json.loads(done("weights", "list", "swin_t*", "--license", "mit", "--json").stdout)
    assert facts[0]["name"] == "swin_tiny.in1k" and all(fact["weights_license"] == "MIT" for fact in facts)
    assert facts[0]["path"] is None and facts[0]["sources"][0]["status"] == "unverified"
    shown = done("weights", "list", "*").stdout
    assert "swin_tiny.in22k" in shown and "github.com" in shown and "by hand" in shown and "not stated" in shown
    assert va("weights", "list", "nothing*").exit_code == 4


def test_weights_download_and_verify(stored: str, tmp_path: Path) -> None:
    (answer,) = json.loads(done("weights", "download", stored, "--json").stdout)["files"]
    path = Path(answer["path"])
    assert answer["name"] == stored and path.is_file() and answer["sha256"] == sha256_of(path) and answer["checked"] == "as on first use"
    assert str(path) in done("weights", "download", stored).stdout and "MiB" in done("weights", "list", "*.made").stdout
    assert json.loads(done("weights", "verify", "--json").stdout)["files"][0]["result"] == "as on first use"
    assert stored in done("weights", "verify", stored).stdout
    result = va("weights", "verify", "eca_resnet18", stored, "--json")
    assert result.exit_code == 4
    assert [item["result"] for item in json.loads(result.stdout)["files"]] == ["missing", "as on first use"]
    path.write_bytes(path.read_bytes()[:-1])
    result = va("weights", "verify")
    assert result.exit_code == 4 and "VA-W002" in result.stdout and "mismatch" in result.stdout and not path.exists()
    assert "0 files" in done("weights", "verify").stdout
    assert "weights import FILE" in refused(tmp_path, "VA-W001", 4, "weights", "download", "eca_resnet18")
    refused(tmp_path, "VA-M001", 2, "weights", "download", stored, "swin_tinny")
    refused(tmp_path, "VA-W007", 4, "weights", "verify", "eca_resnet18.in2k")


# ---------------------------------------------------------------- bad input: runs and resumption


def test_r003_no_run_folder(trained: Trained, tmp_path: Path) -> None:
    for command in (("eval", tmp_path), ("predict", tmp_path, "--source", trained.data), ("train", "--resume", tmp_path / "gone")):
        assert "no run folder" in refused(tmp_path, "VA-R003", 2, *command)
    assert f"Did you mean {trained.run}?" in refused(trained.run, "VA-R003", 2, "eval", trained.run.parent)


def test_c010_resume_with_other_settings(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    text = refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "optim.lr=0.5", "model.args.width=16", "train.epochs=3")
    assert "optim.lr: 0.001 -> 0.5" in text and "model.args.width: 8 -> 16" in text and "train.epochs: " not in text
    assert "train.epochs" in text.partition("these may change")[2]
    refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "--model", "swin_tiny")


def test_resume_for_more_epochs(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    result = done("train", "--resume", run, "train.epochs=3", "data.workers=0", "--json")
    assert json.loads(result.stdout)["run"] == str(run) and "resume      last: epoch 3 step 0/3" in result.stderr
    assert [row["epoch"] for row in csv.DictReader((run / "metrics.csv").open())] == ["1", "2", "3"]
    assert load_config(run / "config.yaml").train.epochs == 3 and not (run / ".lock").exists()


def test_c010_resume_with_other_data(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.data, tmp_path / "flowers")
    run = trained.copy(tmp_path)
    for name in ("config.yaml", "config.changed.yaml"):
        (run / name).write_text((run / name).read_text().replace(str(trained.data), str(tmp_path / "flowers")))
    (tmp_path / "flowers/train/rose/0.png").unlink()
    text = refused(tmp_path, "VA-C010", 2, "train", "--resume", run)
    assert "the data are not those" in text and "manifest" in text


def test_r005_a_run_in_use(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    here = socket.gethostname()
    for pid, host in ((os.getpid(), here), (finished.pid, "another-host")):
        (run / ".lock").write_text(json.dumps({"pid": pid, "host": host}))
        text = refused(tmp_path, "VA-R005", 7, "train", "--resume", run)
        assert f"in use by process {pid} on {host}" in text and ".lock" in text
    (run / ".lock").write_text(json.dumps({"pid": finished.pid, "host": here}))
    done("train", "--resume", run)
    assert not (run / ".lock").exists() and json.loads((run / "run.json").read_text())["state"] == "done"


def test_r007_a_file_where_a_folder_should_be(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for command in (
        ("train", "--data", trained.data, *settings(tmp_path, f"output.dir={tmp_path / 'file'}")),
        ("predict", trained.run, "--source", trained.data / "test", "--out", tmp_path / "file"),
        ("data", "preview", trained.data, *TINY, "--out", tmp_path / "file" / "x.png"),
    ):
        assert str(tmp_path / "file") in refused(tmp_path, "VA-R007", 7, *command)


def test_r002_diverged(trained: Trained, tmp_path: Path) -> None:
    more = ("optim.lr=1e30", "optim.clip_grad=null", "schedule.name=constant", "train.save_every=1")
    result = va("train", "--data", trained.data, *settings(tmp_path, *more), "--json")
    assert result.exit_code == 5 and result.stdout == "", result.output
    assert "error VA-R002: " in result.stderr and "lr 1.00e+30" in result.stderr and "diverged.json" in result.stderr
    run = only_run(tmp_path)
    record = json.loads((run / "diverged.json").read_text())
    assert record["step"] >= 1 and record["lr"] == 1e30 and record["module"]
    assert len(record["images"]) == 8 and all((trained.data / name).is_file() for name in record["images"])
    state = json.loads((run / "run.json").read_text())
    assert (state["state"], state["reason"]) == ("failed", "VA-R002")
    assert "VA-R002" in (run / "log.txt").read_text() and not (run / ".lock").exists()
    assert read_checkpoint(run / "checkpoints/last")[2]["step"] == record["step"]
    assert not [name for name in tree(run) if ".tmp-" in name or "/next" in name]


# ---------------------------------------------------------------- config, models, data, doctor


def test_config_list() -> None:
    heads = json.loads(done("config", "list", "--json").stdout)
    assert list(heads) == shipped_names() and "digits" in heads["quickstart"]
    assert all(name in done("config", "list").stdout for name in shipped_names())


def test_config_show(tmp_path: Path) -> None:
    for args in (["quickstart", "train.epochs=3"], ["train.epochs=3", "optim.lr=1e-4"], []):
        shown = tmp_path / "shown.yaml"
        shown.write_text(done("config", "show", *args).stdout)
        names = [arg for arg in args if "=" not in arg]
        assert load_config(shown) == load_config(names[0] if names else None, [arg for arg in args if "=" in arg])
    assert "# Passes over the training set." in shown.read_text()
    refused(tmp_path, "VA-C001", 2, "config", "show", "optim.lrr=1")


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_config_schema(flag: tuple[str, ...]) -> None:
    schema = json.loads(done("config", "schema", *flag).stdout)
    assert schema["additionalProperties"] is False and {"model", "data", "train", "output"} <= set(schema["properties"])


def test_config_schema_of_segmentation(tmp_path: Path) -> None:
    schema = json.loads(done("config", "schema", "--task", "segment").stdout)
    assert schema["properties"]["task"]["const"] == "segment" and "SegmentEvalConfig" in schema["$defs"]
    assert 'expected classify or segment, got "detect"' in refused(tmp_path, "VA-C002", 2, "config", "schema", "--task", "detect")
    assert "head:" in done("config", "show", "task=segment").stdout


def test_models_list() -> None:
    facts = json.loads(done("models", "list", "swin_t*", "--json").stdout)
    names = [fact["name"] for fact in facts]
    assert "swin_tiny" in names and all(name.startswith("swin_t") for name in names) and all(fact["params"] > 1e6 for fact in facts)
    shown = done("models", "list", "swin_t*").stdout
    assert "28.3M" in shown and f"{len(names)} models" in shown
    assert va("models", "list", "nothing*").exit_code == 2
    facts = json.loads(done("models", "list", "eca_m*", "--pretrained", "--json").stdout)
    assert [fact["name"] for fact in facts] == ["eca_mobilenetv2"] and facts[0]["weights"] == ["eca_mobilenetv2.in1k"]
    assert va("models", "list", "eca_m*", "--license", "mit").exit_code == 2


def test_models_info(tmp_path: Path) -> None:
    facts = json.loads(done("models", "info", "swin_tiny", "--json").stdout)
    assert facts["name"] == "swin_tiny" and 28e6 < facts["params"] < 29e6
    assert "swin_tiny" in done("models", "info", "swin_tiny").stdout
    assert "swin_tiny" in refused(tmp_path, "VA-M001", 2, "models", "info", "swin_tinny")


def test_data_check_and_preview(flowers: Path, tmp_path: Path) -> None:
    before = tree(flowers)
    answer = json.loads(done("data", "check", flowers, "--json").stdout)
    assert answer["notes"] == [] and answer["counts"]["train"] == dict.fromkeys(CLASSES, 8) and len(answer["hashes"]) == 42
    assert "train 24 images, val 12, test 6, 3 classes   check: 0 warnings" in done("data", "check", flowers).stdout
    out = tmp_path / "new" / "grid.png"
    done("data", "preview", flowers, *TINY, "--out", out, "--count", 4)
    assert Image.open(out).width < 2 * 32 + 40 and tree(flowers) == before


@pytest.mark.parametrize(("backend", "text"), [("tritn", "expected one of triton, torch"), ("triton", "it needs a CUDA device")])
def test_a_backend_of_the_environment_that_cannot_run(trained: Trained, monkeypatch: pytest.MonkeyPatch, backend: str, text: str) -> None:
    monkeypatch.setattr(dispatch, "_asked", backend)  # the environment is read when the module is loaded
    result = va("models", "compare", "nat_mini", "--size", 32, "--rounds", 1)
    assert result.exit_code == 2 and "VA-C002" in result.stderr and text in result.stderr and "VISIONATTN_BACKEND" in result.stderr


def test_doctor() -> None:
    report = json.loads(done("doctor", "--json").stdout)
    assert report["problems"] == [] and set(report["families"].values()) == {"ok"} and {"swin", "eca"} <= set(report["families"])
    assert report["devices"]["cpu"] and report["versions"]["visionattn"] == __version__
    assert report["kernels"]["window_attention"].startswith("torch (ok)")


def test_kernels_list() -> None:
    found = json.loads(done("kernels", "list", "--device", "cpu", "--json").stdout)
    assert found["backends"]["window_attention"]["torch"] == "" and "CUDA" in found["backends"]["neighborhood_attention"]["triton"]
    shown = done("kernels", "list", "--device", "cpu").stdout
    assert all(op in shown for op in found["backends"]) and "it needs a CUDA device" in shown
    assert 'no device "tpu"' in va("kernels", "list", "--device", "tpu").stderr


def test_kernels_selftest(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.loads(done("kernels", "selftest", "--device", "cpu", "--json").stdout)
    assert answer["failed"] == 0 and all(item["ok"] and item["forward"] <= item["limits"][0] for item in answer["results"])
    assert {item["dtype"] for item in answer["results"]} == {"float32", "bfloat16"}
    assert {item["op"] for item in answer["results"]} == set(REASONS)
    refusal = va("kernels", "selftest", "--dtype", "int8")
    assert refusal.exit_code == 2 and "float64, float32, float16, bfloat16, got 'int8'" in refusal.stderr

    wrong, raises = window.window_attention, routing.routed_attention
    monkeypatch.setattr(window, "window_attention", lambda *given, scale, **named: wrong(*given, scale=1.001 * scale, **named))
    monkeypatch.setattr(routing, "routed_attention", lambda *given, **named: raises(*given))
    failing = va("kernels", "selftest", "--device", "cpu", "--dtype", "float32")
    assert failing.exit_code == 7 and failing.stdout.count("FAILED") == 4 and "4 of 12 failed" in failing.stdout
    assert "routed_attention, 10x21, region 2x3, 2 of 35, torch, float32: TypeError: " in " ".join(failing.stdout.split())
    assert {"window_attention", "routed_attention"} <= {problem.split(",")[0] for problem in diagnose()["problems"]}

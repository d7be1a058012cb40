"""`visionattn train`: what a run prints and leaves, and what stops it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.commands import CLASSES, TINY, Trained, done, lockable, only_run, picture, refused, save_npz, settings, tree, va
from tests.pages import Page
from visionattn.runs.checkpoint import read_checkpoint
from visionattn.tasks import load_config


def test_train_json_is_one_object(trained: Trained) -> None:
    answer = json.loads(trained.result.stdout)
    assert set(answer) == {"run", "best", "metrics"} and Path(answer["run"]) == trained.run
    assert answer["best"]["metric"] == "top1" and answer["best"]["epoch"] in (1, 2)
    assert {"top1", "top5", "balanced_accuracy", "macro_f1", "auroc"} <= set(answer["metrics"])
    assert all(0 <= value <= 1 for name, value in answer["metrics"].items() if name != "loss")
    assert answer["metrics"]["top1"] == answer["best"]["value"]
    lines = ("classify (3 classes)", "train 24 images, val 12, test 6 ", "epoch   2/2", "images/s", "class  support  precision")
    for text in (*lines, "weights", "seed 0", "report"):
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
    assert not [name for name in files if ".tmp-" in name or name.startswith("tb")] and lockable(trained.run)


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
    assert "epochs: 2" in changed and "hflip" not in changed and "accum" not in changed


def test_metrics_and_log_of_a_run(trained: Trained) -> None:
    lines = [json.loads(text) for text in (trained.run / "metrics.jsonl").read_text().splitlines()]
    assert {line["schema"] for line in lines} == {1} and {line["kind"] for line in lines} == {"step", "epoch"}
    rows = list(csv.DictReader((trained.run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and {"step", "train_loss", "lr", "val_top1", "val_loss"} <= set(rows[0])
    log = (trained.run / "log.txt").read_text()
    assert log.startswith("task ") and "epoch   2/2" in log and "done in" in log
    page = Page(trained.run / "report.html")
    assert len(page.alternatives) >= 3 and all(link.startswith("#") for link in page.links)
    assert "What the model looks at" in page.texts and "Validation, 12 images" in page.texts


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


def test_config_errors_leave_nothing(trained: Trained, tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text("seed: 1\noptim:\n  weigth_decay: 1\n")
    args = ("train", "--config", mine, "--data", trained.data, *settings(tmp_path))
    text = refused(tmp_path, "VA-C001", 2, *args, "train.epochs=ten")
    assert "my.yaml:3 optim.weigth_decay: unknown key. Did you mean optim.weight_decay?" in text
    assert 'command line train.epochs: expected integer >= 1 or auto, got "ten"' in text
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


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optim.name=adamm", 'timm has no optimizer "adamm"\n  fix   Did you mean'),
        ("train.device=cuda:97", "train.device: cuda:97 is not there\n  why   found: cpu"),
        ("train.freeze=[stages.7]", 'nothing in the model is called "stages.7"'),
        ("train.max_time=soon", "expected a duration such as 90s, 30m, 2h or 1h30m, got soon"),
    ],
)
def test_c002_options_that_cannot_be(trained: Trained, tmp_path: Path, setting: str, words: str) -> None:
    assert words in refused(tmp_path, "VA-C002", 2, "train", "--data", trained.data, *settings(tmp_path, setting))


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


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_w005_w006_weights_to_start_from(trained: Trained, tmp_path: Path, name: str) -> None:
    args = ("train", "--data", trained.data, *settings(tmp_path, f"model.weights={tmp_path / name}"))
    assert name in refused(tmp_path, "VA-W006", 4, *args)
    for content in (b"", b"<html>404 not found</html>" * 20):
        (tmp_path / name).write_bytes(content)
        assert name in refused(tmp_path, "VA-W005", 4, *args)


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
    assert len(record["samples"]) == 8 and all((trained.data / name).is_file() for name in record["samples"])
    state = json.loads((run / "run.json").read_text())
    assert (state["state"], state["reason"]) == ("failed", "VA-R002")
    assert "VA-R002" in (run / "log.txt").read_text() and lockable(run)
    assert read_checkpoint(run / "checkpoints/last")[2]["progress"]["step"] == record["step"]
    assert not [name for name in tree(run) if ".tmp-" in name or "/next" in name]

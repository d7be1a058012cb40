"""`visionattn eval` and `predict`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.commands import CLASSES, Trained, done, picture, refused, tree


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

"""`visionattn eval` and `predict`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import visionattn as va
from tests.commands import CLASSES, Trained, done, picture, refused, tree
from visionattn.data.sources import KeptImages
from visionattn.tasks.classification import Classification


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
    for name in ("tset", "../../x"):
        assert "train, val, test" in refused(trained.run, "VA-D002", 3, "eval", trained.run, "--split", name)


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


def test_eval_of_a_run_that_cannot_be_written(trained: Trained, tmp_path: Path) -> None:
    """A file is where the folder would be; nobody's permissions matter to root."""
    run = trained.copy(tmp_path)
    shutil.rmtree(run / "eval")
    (run / "eval").touch()
    result = done("eval", run, "--json")
    assert json.loads(result.stdout)["metrics"]["top1"] is not None
    assert "top1" in result.stderr and f"not saved to {run / 'eval' / 'val'}" in result.stderr


def test_unreadable_images_are_counted_and_named(trained: Trained, flowers: Path) -> None:
    (flowers / "val" / "rose" / "0.png").write_bytes(b"cut off")
    result = done("eval", trained.run, "--data", flowers, "--json")
    answer = json.loads(result.stdout)
    assert (answer["count"], answer["unreadable"]) == (11, 1)
    assert "1 image could not be read, not counted: val/rose/0.png (not an image" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, fp16 is used")
def test_a_run_trained_in_fp16(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    for path in run.glob("checkpoints/*/meta.json"):
        meta = json.loads(path.read_text())
        meta["config"]["train"]["precision"] = "fp16"
        path.write_text(json.dumps(meta))
    for command in (("eval", run, "train.device=auto"), ("predict", run, "--source", trained.data / "test" / "rose")):
        assert done(*command).stdout.count("trained in fp16") == 1
    refused(run, "VA-C002", 2, "eval", run, "train.precision=fp16")  # a wish, not a record


def test_out_of_memory(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Classification, "predictor", lambda *given: fail)
    for command in (("eval", trained.run, "--batch-size", 6), ("predict", trained.run, "--source", trained.data, "--batch-size", 6)):
        text = refused(trained.run, "VA-R001", 6, *command)
        assert "--batch-size 3" in text and "you tried to allocate 9 bytes" in text
    monkeypatch.setattr(Classification, "build_model", fail)  # where no job expects it
    refused(trained.run, "VA-R001", 6, "eval", trained.run)


def test_the_sources_of_a_prediction(trained: Trained) -> None:
    folder = trained.data / "test" / "rose"
    for given in (str(folder / "0.png"), folder / "0.png", iter([folder / "0.png"])):
        found, unreadable = va.predict(trained.run, given)
        assert [item.path for item in found] == [str(folder / "0.png")] and not unreadable
    for wrong, text in (
        (b"0.png", "got bytes"),
        ([b"0.png"], "one of type bytes"),
        (3, "got int"),
        ([folder, None], "one of type NoneType"),
    ):
        with pytest.raises(TypeError, match=text):
            va.predict(trained.run, wrong)  # type: ignore[arg-type]


def test_no_image_is_kept(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """data.cache=ram is for images that are read again."""
    monkeypatch.setattr(KeptImages, "keep", lambda *given: pytest.fail("an image is kept"))
    assert va.evaluate(trained.run, settings=["data.cache=ram"]).count == 12
    assert len(va.predict(trained.run, trained.data / "test", settings=["data.cache=ram"])[0]) == 6

"""The task from the command line: train from a folder, evaluate, predict, resume, and folders of patches."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import TINY as IMAGES
from tests.commands import done, only_run, refused, va
from tests.data.bags.bags import bag, packed, save_h5, save_npz, slides
from visionattn.runs.checkpoint import read_weights
from visionattn.tasks import guess_task

# Nothing but the run folder is written to, as in the tests on images.
QUIET = [word for word in IMAGES if word.startswith("log.")]
TINY = ("model.args={width: 8, hidden: 8}", "train.epochs=1", "train.device=cpu", "train.precision=fp32", *QUIET)


def settings(tmp_path: Path, *more: str) -> list[str]:
    return [*TINY, f"output.dir={tmp_path / 'runs'}", *more]


def failed(*args: object) -> str:
    """Run a command that stops at the data; returns what it prints about it."""
    result = va(*args)
    assert result.exit_code == 3, result.output
    return result.stderr


def test_train_evaluate_and_predict(tmp_path: Path) -> None:
    root = slides(tmp_path / "slides", 16)
    started = done("train", "--data", root, "--val-fraction", "0.3", *settings(tmp_path, "eval.key_instances=1", "train.batch_size=2"))
    assert "task        bags (2 classes, 6 features)" in started.stdout and "px" not in started.stdout.split("model  ")[1].split("\n")[0]
    run = only_run(tmp_path)
    for name in ("report.html", "data/classes.txt", "data/manifest.csv", "eval/val/attention.png", "eval/val/per_bag.csv"):
        assert (run / name).is_file(), name
    result = json.loads(done("eval", run, "--split", "test", "--json").stdout)
    assert (result["task"], result["count"]) == ("bags", 2) and {"auroc", "macro_f1", "top1", "key_auroc"} <= result["metrics"].keys()
    again = json.loads(done("eval", run, "--data", root, "--split", "test", "--json").stdout)
    assert again["metrics"] == result["metrics"]

    thumbnails, out = tmp_path / "thumbnails", tmp_path / "out"
    thumbnails.mkdir()
    Image.new("RGB", (40, 30), "white").save(thumbnails / "slide_3.png")
    done("predict", run, "--source", root, "--out", out, f"eval.thumbnails={thumbnails}")
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and all(float(row["p(normal)"]) + float(row["p(tumour)"]) == pytest.approx(1, abs=1e-5) for row in rows)
    with (out / "attention" / "slide_3.csv").open() as file:
        instances = list(csv.DictReader(file))
    want = bag(3, 1)
    assert [[float(row["x"]), float(row["y"])] for row in instances] == want["coords"].tolist()
    assert sum(float(row["attention"]) for row in instances) == pytest.approx(1, abs=1e-5)
    with Image.open(out / "heatmaps" / "slide_3.png") as over, Image.open(out / "heatmaps" / "slide_4.png") as blank:
        assert over.size == (40, 30) and max(blank.size) == 768
    found = json.loads((out / "predictions.json").read_text())["predictions"][3]
    assert found["instances"] == len(bag(int(Path(found["path"]).stem.rpartition("_")[2]), 0)["features"])
    refused(out, "VA-R007", 7, "predict", run, "--source", root, "--out", out)
    wrong = save_npz(tmp_path / "wide.npz", **bag(0, 0, width=9))
    assert "9 features per instance, expected 6" in refused(out, "VA-D010", 3, "predict", run, "--source", wrong)


def test_folds_by_patient_with_their_summary(tmp_path: Path) -> None:
    root = slides(tmp_path / "slides", 14)
    done("train", "--data", root, "--folds", 5, *settings(tmp_path, "eval.specificity=0.8", "eval.kappa=quadratic"))
    (run,) = (tmp_path / "runs").glob("*/*/folds.json")
    answer = json.loads(run.read_text())
    assert [row["count"] for row in answer["folds"]].count(0) == 0 and sum(row["count"] for row in answer["folds"]) == 12
    assert {"auroc", "sensitivity", "kappa"} <= answer["metrics"].keys() and answer["metrics"]["top1"]["std"] is not None
    header, *rows = csv.reader((run.parent / "folds.csv").open())
    assert header[:4] == ["fold", "run", "epoch", "bags"] and [row[0] for row in rows] == ["1", "2", "3", "4", "5", "mean", "std"]
    assert "Each bag was validated once" in (run.parent / "report.html").read_text()
    held = [
        row
        for fold in range(1, 6)
        for row in csv.DictReader((run.parent / f"fold{fold}/data/manifest.csv").open())
        if row["split"] == "val"
    ]
    assert sorted(row["path"] for row in held) == sorted(f"slide_{number}" for number in range(12))
    page = (run.parent / "fold1/report.html").read_text()
    assert "sens@spec: sensitivity at a specificity of at least 80 %" in page and "that of tumour" in page
    text = failed_features(run.parent / "fold1", root, tmp_path)
    assert "features are of images, and the model is one of bags (task bags)" in text


def failed_features(run: Path, data: Path, tmp_path: Path) -> str:
    result = va("features", run, data, "--out", tmp_path / "features")
    assert result.exit_code == 2 and result.stderr.startswith("error VA-C002"), result.output
    return result.stderr


def test_a_bad_bag_stops_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = slides(tmp_path / "slides")
    (root / "slide_5.h5").unlink()
    arrays = bag(5, 1)
    arrays["features"][0, 0] = np.inf
    save_h5(root / "slide_5.h5", arrays)
    monkeypatch.chdir(tmp_path)  # the list of findings is written there
    text = failed("train", "--data", root, "--val-fraction", "0.3", *settings(tmp_path))
    assert "VA-D012  slide_5: NaN or infinite features in 1 of 4 instances" in text and not (tmp_path / "runs").exists()


def test_resuming_is_exact_also_where_masking_is_random(tmp_path: Path) -> None:
    path = packed(tmp_path / "many.npz")
    common = ["data.root=" + str(path), "task=bags", "model.name=acmil", "data.fold=[1,5]", "model.args={width: 8, top: 3}"]
    common += ["loss.entropy=0.1", "schedule.name=constant", "log.every_steps=1"]
    done("train", *settings(tmp_path / "a", *common, "train.steps=24"))
    done("train", *settings(tmp_path / "b", *common, "train.steps=20"))
    torch.rand(5)
    runs = [only_run(tmp_path / name) for name in "ab"]
    done("train", "--resume", runs[1], "train.steps=24")
    one, two = (read_weights(run / "checkpoints" / "last") for run in runs)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_folders_of_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "patches"
    for number in range(6):
        folder = root / "ab"[number % 2] / f"slide{number}"
        folder.mkdir(parents=True)
        for place in range(3):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., number % 2] += 100
            Image.fromarray(pixels).save(folder / f"{place * 256}_{number}.png")
    assert guess_task(root) == "bags"
    patches = "data.patches={backbone: eca_resnet18, weights: none, args: {width: 8}, img_size: 32, batch_size: 2}"
    done("train", "--data", root, "--val-fraction", "0.34", *settings(tmp_path, patches))
    kept = list((Path(os.environ["VISIONATTN_CACHE"]) / "features").glob("eca_resnet18-*/*.npy"))
    assert len(kept) == 6 and np.load(kept[0]).shape == (3, 64)
    changed = [path.stat().st_mtime_ns for path in kept]
    out = tmp_path / "out"
    done("predict", only_run(tmp_path), "--source", root / "a", "--out", out)
    assert [path.stat().st_mtime_ns for path in kept] == changed, "computed once"
    with (out / "attention" / "slide2.csv").open() as file:
        assert sorted((row["x"], row["y"]) for row in csv.DictReader(file)) == [("0", "2"), ("256", "2"), ("512", "2")]

"""`visionattn train --folds`, and the folds as one model."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

import visionattn as va
from tests.commands import Trained, done, refused, settings, tree
from tests.commands import va as command
from visionattn.console import Console
from visionattn.data.sources import FileImages
from visionattn.tasks import load_config


@pytest.fixture(scope="module")
def parent(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of the flowers."""
    folder = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(folder / "cache"))
        answer = json.loads(done("train", "--data", trained.data, "--folds", 2, *settings(folder, "output.name=two"), "--json").stdout)
    assert answer["run"] == str(folder / "runs/two/001")
    return Path(answer["run"])


def copy(parent: Path, folder: Path) -> Path:
    return Path(shutil.copytree(parent, folder / "copy"))


def test_a_run_per_fold_with_mean_and_spread(parent: Path) -> None:
    answer = json.loads((parent / "folds.json").read_text())
    states = [json.loads((parent / f"fold{number}/run.json").read_text()) for number in (1, 2)]
    assert [row["count"] for row in answer["folds"]] == [18, 18] and [row["run"] for row in answer["folds"]] == ["fold1", "fold2"]
    for name in ("top1", "loss"):
        values = [state["metrics"][name] for state in states]
        assert answer["metrics"][name] == {"mean": mean(values), "std": stdev(values)}
    rows = list(csv.DictReader((parent / "folds.csv").open()))
    assert [row["fold"] for row in rows] == ["1", "2", "mean", "std"] and float(rows[2]["top1"]) == answer["metrics"]["top1"]["mean"]
    text = (parent / "report.html").read_text()
    assert 'href="fold2/report.html"' in text and "over 2 folds" in text and answer["notes"] == []
    assert "2 of 2; mean and spread over all: ../report.html" in (parent / "fold2/report.html").read_text()


def test_each_image_is_validated_once_and_a_config_repeats_its_fold(parent: Path, trained: Trained, tmp_path: Path) -> None:
    manifests = [(parent / f"fold{number}/data/manifest.csv").read_text() for number in (1, 2)]
    held = [row["path"] for text in manifests for row in csv.DictReader(text.splitlines()) if row["split"] == "val"]
    images = [path.relative_to(trained.data).as_posix() for split in ("train", "val") for path in (trained.data / split).rglob("*.png")]
    assert sorted(held) == sorted(images)
    again = va.train(parent / "fold2/config.yaml", console=Console(quiet=True), **{"output.dir": str(tmp_path)})
    assert again is not None and (again.run / "data/manifest.csv").read_text() == manifests[1]
    assert again.metrics == json.loads((parent / "fold2/run.json").read_text())["metrics"]


def test_folds_resume_as_a_whole(parent: Path, tmp_path: Path) -> None:
    run = copy(parent, tmp_path)
    before, table = tree(run / "fold1"), (run / "folds.csv").read_text()
    shutil.rmtree(run / "fold2")  # as after a kill at the wrong moment
    (run / "folds.csv").unlink()
    result = done("train", "--resume", run)
    assert "1 of 2: done" in result.stdout and "2 of 2: " in result.stdout
    assert tree(run / "fold1") == before and (run / "folds.csv").read_text() == table
    config = run / "fold2/config.yaml"
    config.write_text(config.read_text().replace("every_steps: 20", "every_steps: 21"))
    assert "the folds were trained with different settings: log" in done("train", "--resume", run).output


def test_processes_train_each_fold(parent: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds that are there already stand in for what the processes train."""
    started: list[list[str]] = []
    codes = [0, 6, 0]

    def run_processes(command: Sequence[str], launch: Any, **more: Any) -> int:
        assert launch.count == 2 and more == {"save_signal": None, "to_stderr": False}
        started.append(list(command[3:]))
        assert (Path(command[-1]) / "config.yaml").exists() and not (Path(command[-1]) / "run.json").exists()
        if not codes[0]:
            shutil.copytree(parent / Path(command[-1]).name, command[-1], dirs_exist_ok=True)
        return codes.pop(0)

    monkeypatch.setattr("visionattn.cli.launch.run_processes", run_processes)
    words = ("--processes", "2", "--device", "cpu")
    result = command("train", "--data", trained.data, "--folds", 2, *words, *settings(tmp_path, "output.name=x"))
    run = tmp_path / "runs/x/001"
    assert result.exit_code == 6 and f"all folds resume with:  visionattn train --resume {run} --processes 2" in result.output
    result = done("train", "--resume", run, *words[:2])
    assert started == [["train", "--resume", str(run / f"fold{number}")] for number in (1, 2, 2)]
    assert (run / "folds.csv").read_text() == (parent / "folds.csv").read_text()


def test_a_dry_run_of_folds(trained: Trained, tmp_path: Path) -> None:
    """Of a folder without a validation split, of which only folds can be trained."""
    before = tree(tmp_path)
    data = ("--data", trained.data, "data.val=none", *settings(tmp_path))
    assert "val: fold 1 of 3, 8 images" in done("train", *data, "--folds", 3, "data.val_fraction=0.2", "--dry-run").stdout
    assert tree(tmp_path) == before
    refused(tmp_path, "VA-D003", 3, "train", *data, "--dry-run")


def test_folds_are_refused(parent: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--data", trained.data, f"output.dir={tmp_path / 'runs'}")
    assert "cannot be made of 36 images" in refused(tmp_path, "VA-D003", 3, "train", *data, "--folds", 37)
    refused(tmp_path, "VA-C002", 2, "train", *data, "--folds", 2, "--val-fraction", 0.2)
    refused(parent, "VA-C002", 2, "train", "--resume", parent, "--folds", 2)
    refused(parent, "VA-C002", 2, "train", "--resume", parent, "--config", "quickstart")
    refused(parent, "VA-C010", 2, "train", "--resume", parent / "fold1", "data.fold=[2,2]")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--folds 5 --processes 2" in refused(tmp_path, "VA-C002", 2, "train", *data, "--folds", 2)


def test_a_task_that_draws_no_folds_is_refused(tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionattn.tasks.classification import Classification

    whole = Classification().read_data(load_config(None, [f"data.root={trained.data}"]))
    monkeypatch.setattr(Classification, "read_data", lambda task, config: whole)
    text = refused(tmp_path, "VA-C002", 2, "train", "--data", trained.data, "--folds", 2, f"output.dir={tmp_path / 'runs'}")
    assert "draws no folds" in text


# ---------------------------------------------------------------- ensembles


def probabilities(source: object, files: Path) -> list[dict[str, float]]:
    found, _ = va.predict(source, files, topk=3)  # type: ignore[arg-type]
    return [dict(zip(item.classes, item.probabilities, strict=True)) for item in found]


def test_folds_predict_the_mean_of_their_probabilities(parent: Path, trained: Trained) -> None:
    files = trained.data / "test"
    first, second, both, listed = (
        probabilities(source, files) for source in (parent / "fold1", parent / "fold2", parent, [parent / "fold1", str(parent / "fold2")])
    )
    assert both == listed and len(both) == 6
    for one, other, found in zip(first, second, both, strict=True):
        assert found == pytest.approx({name: (one[name] + other[name]) / 2 for name in one}, abs=1e-5)


def test_models_of_other_sizes_are_averaged(parent: Path, trained: Trained, tmp_path: Path) -> None:
    """Each takes the images in its own way."""
    base = va.load_config(parent / "fold1/config.yaml", ["model.img_size=48", "data.fold=null", f"output.dir={tmp_path}"])
    other = va.train(base, console=Console(quiet=True))
    assert other is not None
    files = trained.data / "test"
    one, two, both = (probabilities(source, files) for source in (trained.run, other.run, [trained.run, other.run]))
    for first, second, found in zip(one, two, both, strict=True):
        assert found == pytest.approx({name: (first[name] + second[name]) / 2 for name in first}, abs=1e-5)
    loss, *losses = (
        json.loads(done("eval", *runs, "--json").stdout)["metrics"]["loss"]
        for runs in ((trained.run, other.run), (trained.run,), (other.run,))  # they share the validation images
    )
    assert loss < max(losses)
    (trained.data / "test" / "broken.png").write_bytes(b"")
    try:
        found, unreadable = va.predict([trained.run, other.run], files)
    finally:
        (trained.data / "test" / "broken.png").unlink()
    assert len(found) == 6 and [path for path, _ in unreadable] == [str(files / "broken.png")]


def test_folds_load_each_image_once(parent: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    read, true_read = [], FileImages.read
    monkeypatch.setattr(FileImages, "read", lambda images, index: (read.append(index), true_read(images, index))[1])
    assert len(va.predict(parent, trained.data / "test")[0]) == len(read) == 6
    read.clear()
    assert va.evaluate([parent / "fold1", parent / "fold2"], split="test", console=Console(quiet=True)).count == len(read) == 6


def test_eval_of_folds(parent: Path, trained: Trained, tmp_path: Path) -> None:
    run = copy(parent, tmp_path)
    assert "6 images" in done("eval", run, "--split", "test", "--device", "cpu").stdout
    assert json.loads((run / "eval/test/metrics.json").read_text())["count"] == 6
    for split in ("val", "train"):  # what one fold validates on, the others were trained on
        text = refused(run, "VA-C002", 2, "eval", run, "--split", split)
        assert "each fold was trained on what the others validate on" in text and "--split test" in text
    refused(run, "VA-C002", 2, "eval", run / "fold1", trained.run)
    assert "12 images" in done("eval", run / "fold1", trained.run, "--data", trained.data).stdout


def test_models_that_cannot_be_averaged(trained: Trained, tmp_path: Path) -> None:
    for name, classes, text in (
        ("order", ["rose", "daisy", "tulip"], "the same classes in another order"),
        ("names", ["daisy", "rose", "lily"], "different classes: tulip, lily"),
    ):
        run = trained.copy(tmp_path / name)
        for path in run.glob("checkpoints/*/meta.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "target": {"classes": classes}}))
        assert text in refused(tmp_path, "VA-M004", 2, "eval", trained.run, run)
        refused(tmp_path, "VA-M004", 2, "predict", trained.run, run, trained.data / "test")
    run = trained.copy(tmp_path / "several")
    for path in run.glob("checkpoints/*/meta.json"):
        meta = json.loads(path.read_text())
        meta["config"]["data"]["multi_label"] = True
        path.write_text(json.dumps(meta))
    refused(tmp_path, "VA-M004", 2, "predict", trained.run, run, trained.data / "test")


def test_what_predict_takes_without_source(trained: Trained, tmp_path: Path) -> None:
    files = trained.data / "test"
    globbed, two = (trained.run, "eval.crop_pct=1.0", f"{files}/*/*.png"), (trained.run, files / "rose", files / "daisy")
    for words in ((trained.run, files), globbed, two):
        assert "rose" in done("predict", *words).stdout
    text = refused(tmp_path, "VA-D001", 3, "predict", trained.run, f"{files}x")
    assert "Did you mean test?" in text
    text = refused(tmp_path, "VA-C005", 2, "predict", trained.run)
    assert f"fix   visionattn predict {shlex.quote(str(trained.run))} --source FILE_OR_FOLDER" in text
    text = refused(tmp_path, "VA-C005", 2, "eval", trained.run, trained.data)
    assert f"--data {trained.data}" in text
    assert "needs a run" in refused(tmp_path, "VA-C005", 2, "eval", "eval.crop_pct=1.0")

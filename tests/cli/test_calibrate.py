"""`eval --calibrate`, thresholds and probabilities of classification from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax

import visionattn as va
from tests.commands import CLASSES, Trained, done, only_run, picture, refused, settings
from visionattn.cli.options import parse_thresholds
from visionattn.errors import UserError
from visionattn.tasks.classification.calibration import fit_temperature


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A run whose validation images are hard: it answers some of them wrong."""
    run = trained.copy(tmp_path)
    data = tmp_path / "hard"
    for split, count in (("train", 2), ("val", 8), ("test", 2)):
        for index, name in enumerate(CLASSES):
            for number in range(count):
                picture(data / split / name / f"{number}.png", (index + (number % 4 == 0)) % 3, 5000 + 100 * index + number)
    for path in [*run.glob("checkpoints/*/meta.json")]:
        meta = json.loads(path.read_text())
        meta["config"]["data"]["root"] = str(data)
        path.write_text(json.dumps(meta))
    return run


def table(run: Path, *words: object) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of `eval`, from its file."""
    done("eval", run, *words)
    rows = list(csv.DictReader((run / "eval/val/per_image.csv").open()))
    found = np.array([[float(row[f"p({name})"]) for name in CLASSES] for row in rows])
    return found, np.array([CLASSES.index(row["label"]) for row in rows])


def test_a_temperature_is_fitted_and_used(run: Path, trained: Trained, tmp_path: Path) -> None:
    before, labels = table(run)
    loss = json.loads((run / "eval/val/metrics.json").read_text())["metrics"]["loss"]
    result = done("eval", run, "--calibrate")
    content = json.loads((run / "calibration.json").read_text())
    temperature = content["eval"]["temperature"]
    assert content["count"] == 24 and temperature == pytest.approx(fit_temperature(before.astype(np.float32), labels), rel=0.02)
    metrics = json.loads((run / "eval/val/metrics.json").read_text())["metrics"]
    assert metrics["loss"] < loss == pytest.approx(content["before"]["loss"]) and (run / "eval/val/reliability.png").is_file()
    assert f"loss {loss:.3f} -> {metrics['loss']:.3f}" in result.stdout and "top1 ->" not in result.stdout

    assert "eval.temperature" in (run / "report.html").read_text(), "the report is that of the last evaluation"

    after, _ = table(run)
    np.testing.assert_allclose(after, softmax(np.log(before.clip(1e-9)) / temperature, 1), atol=2e-4)
    said = f"calibration.json: eval.temperature={temperature:.4g}, fitted on 24 validation samples"
    files = trained.data / "test" / "rose"
    assert said in done("eval", run).stdout and said in done("predict", run, files).stdout
    plain, calibrated = (va.predict(source, files)[0][0].probabilities for source in (trained.run, run))
    np.testing.assert_allclose(log_softmax(np.log(plain) / temperature), np.log(calibrated), atol=1e-3)
    unscaled = va.predict(run, files, settings=["eval.temperature=1"])[0][0].probabilities
    np.testing.assert_allclose(unscaled, plain, atol=1e-6)
    together = va.predict([trained.run, run], files, topk=3)[0][0]
    parts = [dict(zip(item.classes, item.probabilities, strict=True)) for item in (va.predict(s, files)[0][0] for s in (trained.run, run))]
    for name, value in zip(together.classes, together.probabilities, strict=True):
        assert value == pytest.approx((parts[0][name] + parts[1][name]) / 2, abs=1e-5)

    again = done("eval", run, "--calibrate")  # from the logits, not on top of it
    assert json.loads((run / "calibration.json").read_text())["eval"]["temperature"] == temperature and "loss" in again.stdout


def test_a_calibration_belongs_to_weights(run: Path) -> None:
    done("eval", run, "--calibrate")
    path = run / "calibration.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "weights": "0" * 64}))
    result = done("eval", run, "--json")
    assert "is of other weights, and not used" in result.stderr
    assert json.loads(result.stdout)["metrics"]["loss"] == content["before"]["loss"]
    others = [json.dumps({**content, "eval": values}) for values in ({"temperature": -1}, {"x": 1})]
    for text in ("{", "[]", '{"weights": 1}', *others):
        path.write_text(text)
        assert f"visionattn eval {run} --calibrate" in refused(run, "VA-W005", 4, "predict", run, "--source", run / "data")
    done("eval", run, "--calibrate")
    assert json.loads(path.read_text()) == content


def test_what_cannot_be_calibrated(run: Path, trained: Trained, tmp_path: Path) -> None:
    wrong = (
        ("--split", "test"),
        ("--split", "train"),
        ("--data", trained.data),
        ("eval.flips=both",),
        ("--threshold", "0.5"),
    )
    for words in wrong:
        assert f"fix   visionattn eval {run} --calibrate" in refused(run, "VA-C002", 2, "eval", run, *words, "--calibrate")
    assert "of one run" in refused(run, "VA-C002", 2, "eval", run, trained.run, "--calibrate")
    done("eval", run, "--calibrate", "--device", "cpu")


def test_thresholds_and_probabilities(trained: Trained, tmp_path: Path) -> None:
    files, out = trained.data / "test", tmp_path / "out"
    plain = va.predict(trained.run, files, topk=3)[0]
    limit = sorted(item.probabilities[0] for item in plain)[3]
    name = plain[0].classes[0]
    result = done("predict", trained.run, files, "--threshold", f"{limit}", "--out", out, "--save", "json,csv,probs")
    answers = json.loads((out / "predictions.json").read_text())["predictions"]
    want = [item.classes[0] if item.probabilities[0] >= np.float32(limit) else "unsure" for item in plain]
    assert [item["answer"] for item in answers] == want == [row["answer"] for row in csv.DictReader((out / "predictions.csv").open())]
    assert 0 < want.count("unsure") < 6 and "unsure" in result.stdout
    rows = list(csv.DictReader((out / "probabilities.csv").open()))
    assert list(rows[0]) == ["path", *(f"p({name})" for name in CLASSES)] and len(rows) == 6
    for row, item in zip(rows, plain, strict=True):
        found = dict(zip(item.classes, item.probabilities, strict=True))
        assert row["path"] == item.path and all(float(row[f"p({name})"]) == pytest.approx(found[name], abs=1e-6) for name in CLASSES)
    assert "answer" not in plain[0].as_dict()
    one = va.predict(trained.run, files, settings=[f"eval.threshold={{{name}: 1}}"])[0]
    assert {item.answer for item in one if item.classes[0] == name} == {"unsure"}
    assert all(item.answer == item.classes[0] for item in one if item.classes[0] != name)
    metrics = json.loads(done("eval", trained.run, "--threshold", f"{limit}", "--json").stdout)["metrics"]
    assert 0 < metrics["answered"] <= 1
    for command in (("eval", trained.run), ("predict", trained.run, files)):
        assert "Did you mean rose?" in refused(tmp_path, "VA-C002", 2, *command, "--threshold", "rise=0.5")
    assert "CLASS=NUMBER" in refused(tmp_path, "VA-C002", 2, "eval", trained.run, "--threshold", "rose")
    assert "VA-C002" in refused(tmp_path, "VA-C002", 2, "predict", trained.run, files, "--out", tmp_path / "x", "--save", "confidence")


def test_thresholds_of_several_labels(tmp_path: Path) -> None:
    """The names hold what the command line is made of."""
    data, names = tmp_path / "scenes", ("a,b=1", "sea")
    for split, count, start in (("train", 12, 0), ("val", 12, 100)):
        rows = [("path", "label")]
        for number in range(count):
            picture(data / "images" / f"{split}{number}.png", number % 3, start + number)
            rows.append((f"images/{split}{number}.png", (";".join(names), names[1], names[0])[number % 3]))
        csv.writer((data / f"{split}.csv").open("w", newline="")).writerows(rows)
    done("train", "--data", data, *settings(tmp_path, "data.multi_label=true"))
    run = only_run(tmp_path)
    photo = data / "images/val0.png"
    every = va.predict(run, photo, settings=['eval.threshold={"a,b=1": 0, sea: 0}'])[0][0]
    assert every.answer == "a,b=1;sea"
    assert "a,b=1" in done("predict", run, photo, "--threshold", "a,b=1=0,sea=1").stdout
    before = json.loads(done("eval", run, "--json").stdout)["metrics"]
    done("eval", run, "--calibrate")
    assert set(json.loads((run / "calibration.json").read_text())["eval"]["threshold"]) == set(names)
    after = json.loads(done("eval", run, "--json").stdout)["metrics"]
    assert after["macro_f1"] >= before["macro_f1"] and after["auroc"] == before["auroc"]
    assert va.predict(run, photo)[0][0].answer is not None


def test_the_reliability_diagram(trained: Trained) -> None:
    pixels = np.asarray(Image.open(trained.run / "eval/val/reliability.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == [31, 119, 180]).all(1).any() and (pixels == [176, 196, 222]).all(1).any()  # bars of accuracy, and of how many
    assert "Reliability" in (trained.run / "report.html").read_text()


def test_thresholds_as_they_are_typed() -> None:
    assert parse_thresholds(["0.7"]) == 0.7 and parse_thresholds(["cat=.5, dog=1"]) == {"cat": 0.5, "dog": 1.0}
    assert parse_thresholds(["a,b=1=0.25,c=1e-3", "0.7=0.5"]) == {"a,b=1": 0.25, "c": 0.001, "0.7": 0.5}
    for wrong in ("cat", "cat=", "cat=1.2.3", "cat=0.5,dog", "cat=x"):
        with pytest.raises(UserError, match="VA-C002"):
            parse_thresholds([wrong])

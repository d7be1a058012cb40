"""Reports and comparisons of runs of every kind: done, stopped, failed, short, with many classes, from strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import visionattn as va
from tests.commands import done, refused
from tests.pages import Page
from visionattn.console import Console
from visionattn.report.page import write_report
from visionattn.report.summary import RunSummary
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config
from visionattn.tasks.base import Confusion, Evaluation, Example, Panel, Pictures, Scores, Target
from visionattn.tasks.classification import Classification

CLASSES = ["<b>a</b>", 'it\'s "b"', "c" * 200]


class Drawn(Pictures):
    worst_caption = "truth -> prediction"

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        counts = np.eye(len(self.classes), dtype=int) * 4 + np.eye(len(self.classes), k=1, dtype=int)
        hidden = Panel("b", "Not there", Figure((1, 1)), in_report=False)
        return [Panel("a", "Confusion", Figure((1, 1)), "how to read it", Confusion(counts, self.classes, "images")), hidden]

    def worst(self, evaluation: Evaluation, dataset: Any, count: int) -> list[Example]:
        return [Example("1", f"{self.classes[0]} ->\n{self.classes[-1]}", np.zeros((9, 9, 3), np.uint8))]


class Drawing(Classification):
    def pictures(self, target: Target) -> Pictures:
        return Drawn(target["classes"])


def make_run(path: Path, *settings: str, state: str = "done", epochs: int = 6, top1: float = 0.7, **facts: Any) -> RunFolder:
    """A run folder without weights: state, metrics that rise and an evaluation."""
    (path / "data").mkdir(parents=True)
    run = RunFolder(path)
    run.write_config(load_config(None, ["model.name=eca_resnet18", "model.weights=none", f"train.epochs={max(epochs, 1)}", *settings]))
    run.write_state(state, **{"parameters": 11_180_000, "seconds": 75.0, "samples": {"train": 40, "val": 20}, "data": "abc", **facts})
    for epoch in range(1, epochs + 1):
        run.append_metrics({"kind": "step", "step": 10 * epoch, "epoch": epoch, "loss": 2 / epoch, "lr": 1e-3})
        line = {"kind": "epoch", "step": 10 * epoch, "epoch": epoch, "train_loss": 2 / epoch, "lr": 1e-3, "seconds": 9.5}
        run.append_metrics({**line, "val_loss": 1 / epoch, "val_top1": top1 * epoch / epochs, "val_auroc": 0.9, "val_count": 20})
    if state == "done":
        found = {
            "count": 20,
            "metrics": {"top1": top1, "auroc": 0.9, "loss": 0.5},
            "interval": {"top1": [round(top1 - 0.1, 6), round(top1 + 0.1, 6)]},
        }
        (path / "eval" / "val").mkdir(parents=True)
        (path / "eval" / "val" / "metrics.json").write_text(json.dumps(found))
    return run


def report(run: RunFolder, classes: list[str] = CLASSES, cases: int = 20, **metrics: float | None) -> Page:
    rows = [{"class": name, "support": 5, "recall": 0.8, "f1": number / len(classes)} for number, name in enumerate(classes)]
    values: dict[str, float | None] = {"top1": 0.7, "auroc": 0.9, **metrics}
    scores = Scores(values, rows, [{"id": str(number)} for number in range(cases)], {"top1": (0.6, 0.8)} if values["top1"] else {})
    evaluation = Evaluation("classify", "val", cases, {**values, "loss": 0.5}, scores, [])
    config = load_config(run.path / "config.yaml")
    summary = RunSummary.of(run, config, Drawing())
    return Page(write_report(summary, evaluation, {"classes": classes}, None))  # type: ignore[arg-type]


def test_a_report(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "roses/001", "data.root=roses"))
    assert "eca_resnet18 on roses" in page.texts and "gives an image one of 3 classes" in page.text
    assert "trained on 40 images, and measured on 20 images" in page.text and "95 % interval: 60.0 to 80.0 %" in page.text
    assert "11.18 M parameters" in page.text and "6 of 6 epochs, 1:15" in page.text and "70.0 %" in page.text
    assert "top1 was still rising when training ended" in page.text and "train.epochs=12" in page.text
    assert page.source.count("<svg") == 4 and "Not there" not in page.text and "how to read it" in page.text
    assert all(name in page.texts for name in CLASSES) and set(page.links) == {f"#{name}" for name in page.ids}
    assert f"visionattn train --config {tmp_path}/roses/001/config.yaml" in page.texts


@pytest.mark.parametrize(
    ("state", "facts", "text"),
    [
        ("interrupted", {}, "training was interrupted, after 3 of 3 epochs"),
        ("failed", {"failure": {"rank": 0, "what": "loss is <nan>"}}, "training failed: loss is <nan>, after 3 of 3 epochs"),
        ("running", {}, "training has not ended yet"),
    ],
)
def test_a_run_that_did_not_end(tmp_path: Path, state: str, facts: dict[str, Any], text: str) -> None:
    page = report(make_run(tmp_path / "run/001", state=state, epochs=3, seconds=None, **facts))
    command = f"visionattn train --resume {tmp_path}/run/001"
    assert text in page.text and page.texts.count(command) == 1 + (state != "running")
    assert "0:28" in page.text, "the time of its epochs"


def test_one_epoch_or_none_and_few_images(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "one/001", epochs=1), ["a"], cases=1, top1=None)
    assert "1 image is too few to tell" in page.text
    assert "n/a" in page.text and "still rising" not in page.text
    assert "Nothing was logged" in report(make_run(tmp_path / "none/001", epochs=0)).text


def test_overfitting(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run/001")
    lines = [{**line, "val_loss": 0.5 + abs(line["epoch"] - 2)} for line in run.read_metrics()]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "the validation loss rose from 0.5 to 4.5" in report(run).text


def test_warnings_of_the_data_check(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run/001")
    assert "the check had nothing to warn of" not in report(run).text, "nothing is known of it"
    (run.path / "data/check.json").write_text(json.dumps({"notes": []}))
    assert "the check had nothing to warn of" in report(run).text
    notes = [{"level": "warning", "code": "VA-D006", "text": f"<i>{number}</i> is in both"} for number in range(5)]
    (run.path / "data/check.json").write_text(json.dumps({"notes": notes}))
    text = report(run).text
    assert "the data check warned: <i>2</i> is in both" in text and "<i>3</i>" not in text and "2 more warnings" in text


def test_a_thousand_classes(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run/001"), [f"class {number}" for number in range(1000)])
    assert len(page.source) < 200_000 and page.source.count("<tr>") < 120
    assert "965 more are in eval/val/per_class.csv" in page.text and {"class 0", "class 24", "class 990", "class 999"} <= set(page.texts)
    assert "class 25" not in page.texts


def test_a_comparison(tmp_path: Path) -> None:
    one = make_run(tmp_path / "roses/001", "optim.lr=0.1", "output.name=x")
    two = make_run(tmp_path / "roses/002", "optim.lr=0.2", "train.batch_size=8", top1=0.75)
    result = done("compare", one.path, two.path, "--html", tmp_path / "new/page.html")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "1 roses/001 70.00 (60.0 - 80.0) 90.00 0.500 6 6 of 6 epochs 1:15 11.18 M" in lines
    assert "optim.lr 0.1 0.2" in lines and "output.name" not in result.stdout
    assert "Best by top1: roses/002, 75.00 (65.0 - 85.0). Its 95 % interval overlaps that of the other" in result.stdout
    page = Page(tmp_path / "new/page.html")
    assert page.source.count("<svg") == 3 and "1 roses/001" in page.texts and "train.batch_size" in page.texts
    text = refused(tmp_path, "VA-R007", 7, "compare", one.path, two.path, "--html", tmp_path / "new/page.html")
    assert "exists already" in text
    found = json.loads(done("compare", one.path, two.path, "--json").stdout)
    assert [run["metrics"]["top1"] for run in found["runs"]] == [0.7, 0.75] and found["runs"][0]["interval"] == {"top1": [0.6, 0.8]}
    assert found["settings"]["optim.lr"] == ["0.1", "0.2"] and found["notes"] == []


def test_settings_that_differ_late(tmp_path: Path) -> None:
    folder = f"data.root=/data/{'very-' * 20}long"
    runs = [make_run(tmp_path / name, f"{folder}/{name}", f"optim.lr={0.1 + step}") for name, step in (("one", 0), ("two", 1e-8))]
    settings = va.compare([run.path for run in runs], console=Console(quiet=True)).settings
    assert [text[-3:] for text in settings["data.root"]] == ["one", "two"] and settings["optim.lr"] == ["0.1", "0.10000001"]


def test_runs_that_cannot_be_compared_say_so(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a/001"), make_run(tmp_path / "b/001", state="interrupted", epochs=2, data="other", seconds=None)
    notes = va.compare([one.path, two.path], console=Console(quiet=True)).notes()
    assert "differ in their data" in notes[0] and "b/001 did not end (interrupted, after 2 of 2 epochs)" in notes[1]
    assert "without intervals" in notes[2] and len(notes) == 3
    assert "a comparison needs two runs or more, got 1 run" in refused(tmp_path, "VA-C005", 2, "compare", one.path)
    assert refused(tmp_path, "VA-R003", 2, "compare", one.path, tmp_path / "a")


def test_folders_of_strangers(tmp_path: Path) -> None:
    """Values of other types than expected are left out, and text is text."""
    nasty: dict[str, Any] = {"versions": ["<x>"], "command": {"<x>": 1}, "failure": "<x>", "samples": {"<x>": "<y>"}, "trained": 3}
    run = make_run(tmp_path / "<x>/001", state="<x>", **nasty, parameters="<x>", data_name=["<x>"])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(
            '{"kind": "epoch", "step": 1, "epoch": "<x>", "train_loss": "<x>"}\n{"kind": "epoch", "step": 2, "epoch": 9, "val_top1": NaN}\n'
        )
        file.write('{"kind": "step", "step": 1, "loss": null, "lr": [1]}\n{"kind": "step", "step": "<x>", "loss": 1}\n{"step": 3}\n[1]\n')
    for name in ("eval/val/metrics.json", "data/check.json"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(
            '{"metrics": {"top1": "<x>", "<x>": 1}, "interval": [1], "count": "<x>", "notes": [3, {"level": "warning"}]}'
        )
    assert "<x>" in report(run).text
    page = tmp_path / "page.html"
    done("compare", run.path, run.path, "--html", page)
    assert "<x>" in Page(page).text

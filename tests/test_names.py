"""Names from files, nasty ones, on their way to everything that shows or writes them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import TINY, done, only_run, picture
from tests.pages import Page
from visionattn.config.schema import RunConfig
from visionattn.console import Console
from visionattn.data.check import contact_sheet
from visionattn.data.masks.palettes import default_palette
from visionattn.data.splits import ManifestRow, manifest_hash
from visionattn.engine.devices import open_accelerator
from visionattn.errors import UserError
from visionattn.figures import confusion_figure, drawn, fonts, picture_grid, shortened
from visionattn.files import atomic_write, csv_text, json_text
from visionattn.names import file_name, fitted, from_path, shown, shown_lines, to_path
from visionattn.report.page import Look, write_report
from visionattn.report.summary import RunSummary
from visionattn.report.tables import save_evaluation
from visionattn.report.trackers import Trackers, tracking
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config
from visionattn.tasks.base import Display, Evaluation, Example, Panel, Pictures, Scores, Target
from visionattn.tasks.batch import Batch
from visionattn.tasks.classification import Classification
from visionattn.tasks.segmentation.output import output_names
from visionattn.tasks.segmentation.pictures import SegmentationPictures, with_legend

NASTY = {
    "escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "lines": "a\r\nerror VA-X001: b\u2028\x85",
    "markup": "ok [husky] [/crack] [bold]:car:",
    "mathtext": r"$\frac{a}$ \$ 3$",
    "direction": "a\u202egpj.exe\u2066",
    "no width": "a\u200bb\ufeff\u00ad",
    "not UTF-8": "cat\udce9",
    "half a pair": "\ud800",
    "html": "<script>alert('a')</script>\"&amp;{{ 7 * 7 }}",
    "formula": "=cmd|' /C calc'!A0",
    "sum": "-1+1",
    "apostrophe": "'@SUM(A1)",
    "tab": "\t=1",
    "full width": "\uff1d1",
    "path": "../../etc/passwd",
    "parent": "..",
    "empty": "",
    "reserved": "CON.txt",
    "underscore": "_hidden",
    "long": "l" * 3000,
    "chinese": "\u9ec4\u8272\u8461\u8404\u7403\u83cc\u611f\u67d3\u6027\u80ba\u708e" * 12,
    "accents": "ka\u0308tzchen \U0001f600",
}


@pytest.fixture(params=NASTY.values(), ids=NASTY.keys())
def nasty(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def harmless(text: str, keep: str = "") -> bool:
    """Whether a text has no control character, surrogate or invisible mark."""
    return all(letter in keep or (unicodedata.category(letter)[0] != "C" and letter not in "\u2028\u2029") for letter in text)


# ---------------------------------------------------------------- text


def test_a_name_is_shown_in_one_harmless_line(nasty: str) -> None:
    text = shown(nasty)
    assert harmless(text) and shown(text) == text
    assert text == "".join(map(shown, nasty)), "letter by letter: nothing is left out"
    assert shown_lines(f"{nasty}\n{nasty}") == "\n".join(map(shown, f"{nasty}\n{nasty}".split("\n")))


def test_ordinary_names_stay() -> None:
    for name in ("k\u00e4tzchen", "\u9ec4 \u3000 \u2764\ufe0f", "IMG [1]: a-b_c.d", "9.41\u202fAM", r"C:\data"):
        assert shown(name) == name
    assert shown("\x1b\n\u202e\udce4") == r"\x1b\n\u202e\udce4"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_terminal_and_log(nasty: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding)  # strict: a letter that does not fit would raise
    monkeypatch.setattr("sys.stdout", out)
    console = Console()
    console.log(f"early {nasty}")
    console.log_to(tmp_path / "log.txt")
    console.line(f"{nasty}|")
    console.table([nasty, "value"], [[f"{nasty}|", 1]], title=nasty)
    out.flush()
    printed = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    wanted = shown_lines(nasty).encode(encoding, "backslashreplace").decode(encoding)
    assert printed.startswith(f"{wanted}|\n") and harmless(printed, "\n")
    table = printed[len(wanted) + 2 :]
    folded = shown(nasty).encode(encoding, "backslashreplace").decode(encoding)
    assert "".join(table.split()).replace("1", "").endswith("".join(f"{folded}|".split()).replace("1", "")), "whole, if over several lines"
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert harmless(log, "\n") and log.startswith(f"early {shown_lines(nasty)}\n{shown_lines(nasty)}|\n") and f"{shown(nasty)}|  1" in log


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    with Console().progress("[husky] :car:", 2) as bar:
        bar.update(1, "[/crack]")
    assert "[husky] :car:" in out.getvalue() and "[/crack]" in out.getvalue()


def test_the_block_of_an_error(nasty: str) -> None:
    block = UserError("VA-D010", f"{shown(nasty)} is damaged", where=nasty, why="two\nlines").block()
    assert harmless(block, "\n") and block.endswith("\n  why   two\n        lines") and "VA-D010: " in block.splitlines()[0]


def test_csv(nasty: str) -> None:
    text = csv_text([nasty, "value"], [[nasty, -1.5], [Path(f"p{nasty}"), "-0.250000"]])
    assert harmless(text, "\n") and text.encode()
    header, first, second = csv.reader(io.StringIO(text))
    assert header[0] == first[0] and first[1] == "-1.5" and second == [f"p{shown(nasty)}", "-0.250000"], "numbers stay numbers"
    assert first[0][:1] not in tuple("=+-@\uff1d"), "no formula"
    again = first[0][1:] if first[0].lstrip("'")[:1] in tuple("=+-@\uff1d") and first[0].startswith("'") else first[0]
    assert again == shown(nasty), "one apostrophe less gives the text"


def test_json(nasty: str) -> None:
    text = json_text({nasty: [nasty, 1.5, None]})
    assert text.isascii()
    wanted = "".join(shown(letter) if "\ud800" <= letter <= "\udfff" else letter for letter in nasty)
    assert json.loads(text) == {wanted: [wanted, 1.5, None]}
    wanted.encode()  # which readers that are strict about surrogates take


def test_no_text_fails_to_be_written(nasty: str, tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", nasty)
    assert (tmp_path / "a").read_bytes() == nasty.encode(errors="backslashreplace")


def test_manifest_hash(nasty: str) -> None:
    digest = manifest_hash([ManifestRow(f"{nasty}.png", nasty, "train", 1, "a")])
    assert len(digest) == 16 and digest != manifest_hash([ManifestRow(f"{nasty}b.png", nasty, "train", 1, "a")])
    assert manifest_hash([ManifestRow("k\u00e4tzchen/0.png", "k\u00e4tzchen", "train", 7, "0f")]) == "0271631b708391d3", "as before"


# ---------------------------------------------------------------- names of files


def test_file_names(nasty: str, tmp_path: Path) -> None:
    name = file_name(nasty, ".png")
    assert len(name.encode()) <= 255 and name.endswith(".png") and harmless(name) and not set(name) & set('/\\:*?"<>|\n')
    assert name[0] != "." and len(name) > 4 and name != "CON.txt.png"
    atomic_write(tmp_path / name, "")
    assert os.listdir(tmp_path) == [name]


def test_long_file_names_stay_apart() -> None:
    assert len({file_name(f"{NASTY['chinese']}{number}") for number in range(9)}) == 9
    assert fitted("a" * 255) == "a" * 255 and fitted("\u00e4" * 128).encode()[:246] == ("\u00e4" * 123).encode()


def test_paths_are_decoded_as_utf8() -> None:
    assert from_path("k\udcc3\udca4tzchen\udce9") == "k\u00e4tzchen\udce9", "as LC_ALL=C gives it"
    assert to_path("k\u00e4tzchen") == "k\u00e4tzchen" and to_path("cat\udce9") == "cat\udce9"


def test_names_of_masks(nasty: str) -> None:
    place = Path("a b", f"p{nasty}".replace("/", "").replace("\ud800", ""), "b [1].png")
    (name,) = output_names({Path("p"): place})
    folder, middle, last = name.parts
    assert (folder, last) == ("a b", "b [1]") and harmless(middle) and len(middle.encode()) <= 251
    assert output_names({Path("p"): Path("..", "..", f"{'l' * 250}.png")})[0].parts[:2] == ("-", "-")


# ---------------------------------------------------------------- pictures and pages, of all names at once


NAMES = list(NASTY.values())
TILE = np.zeros((8, 8, 3), np.uint8)


def test_a_name_in_a_picture(nasty: str) -> None:
    name = drawn(nasty, 30)
    assert len(name.replace(r"\$", "$")) <= 30 and harmless(name)


def test_names_in_pictures_are_shortened_and_have_letters_of_the_font() -> None:
    assert drawn("a" * 31, 30) == "a" * 29 + "\u2026" and drawn("a" * 30, 30) == "a" * 30
    assert drawn("$a$", 30) == r"\$a\$" and shortened("$a$", 30, fonts()) == "$a$"
    assert shortened("\u9ec4k\u00e4", 30, fonts()[:1]) == "\\u9ec4k\u00e4", "DejaVu Sans has no Chinese"


def test_figures() -> None:
    eye = np.eye(len(NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of letters that the font lacks, of labels that are left out
        confusion_figure(eye, NAMES, "val", eye.astype(str)).savefig(io.BytesIO())
        confusion_figure(eye[:2, :2], [NASTY["long"], NASTY["chinese"]], "val", eye[:2, :2].astype(str)).savefig(io.BytesIO())
        picture_grid([TILE] * len(NAMES), [f"{shown(name)} ->\n{shown(name)}" for name in NAMES]).savefig(io.BytesIO())
        with_legend(TILE, [(name, (255, 0, 0)) for name in NAMES])
        contact_sheet([(TILE, name) for name in NAMES])


def test_the_legend_of_a_batch() -> None:
    model = type("", (), {"pretrained_cfg": {"mean": (0, 0, 0), "std": (1, 1, 1)}})
    label = torch.arange(len(NAMES)).view(1, 1, -1).expand(4, -1, -1)
    batch = Batch({"image": torch.zeros(4, 3, 1, len(NAMES)), "label": label}, [0] * 4, ["a"] * 4, ["a"] * 4, [])
    figure = SegmentationPictures(NAMES, default_palette(len(NAMES))).batch_figure(model, batch, 4)
    assert figure is not None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f" {drawn(name, 28)}" for name in NAMES], "none is left out"
    figure.draw_without_rendering()
    assert legend.get_window_extent().width <= figure.bbox.width, "nor cut off"


class Drawn(Pictures):
    """A figure and a worst case per name."""

    worst_caption = NASTY["html"]

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        return [Panel(name, name, Figure((1, 1))) for name in NAMES]

    def worst(self, evaluation: Evaluation, dataset: Any, count: int) -> list[Example]:
        return [Example(f"{rank:02d}_{name}", shown(name), TILE) for rank, name in enumerate(NAMES)]


@pytest.fixture
def evaluation() -> Evaluation:
    rows = [{"index": 0, "id": name, "case": name, "label": name} for name in NAMES]
    scores = Scores({}, [{"class": name, "f1": 0.5} for name in NAMES], rows, remarks=NAMES)
    return Evaluation("classify", "val", 1, {"loss": 1.0}, scores, [])


class Named(Classification):
    """A task whose pictures have these names."""

    def pictures(self, target: Target) -> Pictures:
        return Drawn()


def test_report(evaluation: Evaluation, tmp_path: Path) -> None:
    task = Named()
    summary = RunSummary.of(RunFolder(tmp_path), load_config(None, ["model.weights=none"]), task)
    looks = [Look(name, [(shown(name), TILE)]) for name in NAMES]
    page = Page(write_report(summary, evaluation, {"classes": NAMES}, None, looks))  # type: ignore[arg-type]
    for name in filter(None, NAMES):
        where = "remark, class, heading, worst case, heading and caption of what is looked at, caption of worst cases"
        assert page.texts.count(shown(name)) == 6 + (name == Drawn.worst_caption), where
        assert page.alternatives.count(shown(name)) == 3
    assert harmless("".join(page.texts), "\n")


def test_evaluation_folder(evaluation: Evaluation, tmp_path: Path) -> None:
    save_evaluation(tmp_path / "val", evaluation, Drawn(), None, "image")  # type: ignore[arg-type]
    files = {path.relative_to(tmp_path / "val").as_posix() for path in (tmp_path / "val").rglob("*.*")}
    worst = {f"worst/{file_name(f'{rank:02d}_{name}', '.png')}" for rank, name in enumerate(NAMES)}
    panels = {file_name(name, ".png") for name in NAMES}
    assert files == {"metrics.json", "per_class.csv", "per_image.csv"} | panels | worst and len(worst) == len(NAMES)


def open_trackers(folder: Path, config: RunConfig) -> AbstractContextManager[Trackers]:
    return tracking(RunFolder(folder), config, Display(class_curves=("f1",)), Drawn(), Console(quiet=True), 0)


def test_trackers(evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = load_config(None, ["log.to=[tensorboard,mlflow]", "log.images=0"])
    line = {"kind": "epoch", "step": 1, "epoch": 1, "train_loss": 0.5, "lr": 0.1, **{f"val_{name}": 0.5 for name in NAMES}}
    with open_accelerator(config.train), open_trackers(tmp_path, config) as trackers:
        trackers.log(line)
        trackers.show_classes(evaluation, 1)
        trackers.show_evaluation(evaluation, None, [line])  # type: ignore[arg-type]
        assert list(trackers.opened) == ["tensorboard", "mlflow"], "none has failed"
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    metrics = {name for name in events.Tags()["scalars"] if name.startswith("val/")}
    assert len(metrics) == len(NAMES) and all(re.fullmatch(r"val/[\w.-]{1,120}", name, re.ASCII) for name in metrics)
    classes = {f"val_f1/{fitted(shown(name))}" for name in NAMES}
    assert set(events.Tags()["scalars"]) == metrics | classes | {"epoch/number", "epoch/train_loss", "epoch/lr"}
    logged = {path.relative_to(tmp_path).parts[4:] for path in (tmp_path / "mlruns").glob("*/*/metrics/val/*")}
    assert {f"val/{name[-1]}" for name in logged} == metrics


# ---------------------------------------------------------------- from training to prediction


COMMANDS = """
import json, os, sys
from visionattn.cli import app
for command in json.loads(sys.argv[1]):
    app([os.fsdecode(part.encode()) for part in command], standalone_mode=False)
"""


def test_tensorboard_refuses_a_folder_it_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="VA-R007"), open_trackers(tmp_path / "cat\udce9", load_config(None)):
        pass


@pytest.mark.skipif(os.name != "posix", reason="names that are not UTF-8")
def test_train_evaluate_and_predict_in_ascii(tmp_path: Path) -> None:
    classes = ["k\u00e4tzchen", "[crack] $x$\n\x1b[31m", "=1+1"]
    root = tmp_path / "b\u00fccher"
    for number, name in enumerate(classes):
        for split, count in (("train", 4), ("val", 2)):
            for index in range(count):
                picture(root / split / name / f"{split}:car:{index}.png", number, 10 * number + index)
    (root / "val" / classes[0] / "val:car:0.png").rename(root / "val" / classes[0] / os.fsdecode(b"cat\xe9.png"))
    commands = [
        ["train", "--data", root.name, *TINY, "train.batch_size=4"],
        ["eval", "runs/b-cher-eca_resnet18/001"],
        ["predict", "runs/b-cher-eca_resnet18/001", "--source", f"{root.name}/val", "--out", "out"],
    ]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=tmp_path, env=ascii_only, capture_output=True)
    assert result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
    printed = result.stdout.decode("ascii")
    assert harmless(printed, "\n") and r"k\xe4tzchen" in printed and r"[crack] $x$\n\x1b[31m" in printed and ":car:" in printed

    run = only_run(tmp_path)
    rows = list(csv.DictReader((run / "data/manifest.csv").open(encoding="utf-8")))
    assert {row["label"] for row in rows} == {"k\u00e4tzchen", r"[crack] $x$\n\x1b[31m", "'=1+1"}
    assert "val/k\u00e4tzchen/cat\\udce9.png" in {row["path"] for row in rows}
    assert len(list(csv.DictReader((tmp_path / "out/predictions.csv").open(encoding="utf-8")))) == 6
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["predictions"]) == 6
    scores = json.loads((run / "eval/val/metrics.json").read_text())["metrics"]
    assert json.loads(done("eval", run, "--data", root, "--json").stdout)["metrics"] == scores, "the same names in UTF-8"

"""The plug-in test of the house: each example is one file outside the package, and every command works with it."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from tests.faults.harness import Server
from tests.tiny import TINY as SMALL_BACKBONES
from visionattn.attention import ATTENTION
from visionattn.backbones.registry import _VARIANTS
from visionattn.cli import app
from visionattn.heads import HEADS
from visionattn.tasks import TASKS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ECA = "model={name: eca_resnet18, args: {width: 8}}"
TINY = (
    "model.img_size=32",
    "train.epochs=2",
    "train.batch_size=4",
    "schedule.name=constant",  # so that a run cut short has the rates of the whole one
    "data.workers=0",
    "log.every_steps=1",
    "log.to=[]",
    "output.dir=runs",
)
SMALL_STEM = "stem_channels: [8, 8], max_channels: 16"


def visionattn(*args: str) -> str:
    """Run a command in this process; returns what it printed."""
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plugin(name: str) -> str:
    """The setting that names an example."""
    return f"plugins=[{EXAMPLES / name}]"


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Remove what an example registers after its test: other tests expect the registries as shipped."""
    tables: list[dict[str, Any]] = [_VARIANTS, HEADS, ATTENTION, TASKS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def houses(workplace: Path) -> Path:
    """Images whose brightness is the value to predict."""
    rng, root, number = np.random.default_rng(0), workplace / "houses", 0
    (root / "images").mkdir(parents=True)
    for split, count in (("train", 16), ("val", 6), ("test", 4)):
        rows = []
        for value in rng.uniform(0, 1, count):
            pixels = np.clip(rng.normal(255 * value, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{number}.png")
            rows.append((f"images/{number}.png", f"{100 * value:.2f}"))
            number += 1
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "value"), *rows])
    return root


@pytest.fixture
def roads(workplace: Path) -> Path:
    """Images with masks of two classes."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "masks"):
            (workplace / "roads" / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((48, 40), np.uint8)
            mask[rng.integers(5, 20) :, : rng.integers(15, 35)] = 1
            pixels = rng.integers(0, 80, (48, 40, 3), dtype=np.uint8) + 120 * mask[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(workplace / "roads" / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(workplace / "roads" / "masks" / split / f"{number}.png")
    (workplace / "roads" / "classes.txt").write_text("background\nroad\n")
    return workplace / "roads"


def resumed_equals_whole(run: Path, settings: list[str]) -> None:
    """Stop after two steps, resume, and compare with the run that was not stopped."""
    step = json.loads((run / "checkpoints/last/meta.json").read_text())["step"]
    visionattn("train", *settings, "train.steps=2", "output.name=cut")
    visionattn("train", "--resume", "runs/cut/001", f"train.steps={step}", next(text for text in settings if text.startswith("plugins=")))
    whole, again = (load_file(folder / "checkpoints/last/model.safetensors") for folder in (run, Path("runs/cut/001")))
    assert whole.keys() == again.keys() and all(np.array_equal(whole[key], again[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_a_task_of_ones_own(workplace: Path, houses: Path, loss: str) -> None:
    chosen = [plugin("own_task.py"), "task=regress"]
    assert "check: 0 warnings" in visionattn("data", "check", "houses", *chosen)
    settings = [*chosen, *TINY, "data.root=houses", ECA, f"loss={loss}"]
    visionattn("train", *settings, "output.name=numbers")
    run = Path("runs/numbers/001")
    epochs = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2] and all({"val_mae", "val_r2", "val_loss"} <= line.keys() for line in epochs)
    assert json.loads((run / "run.json").read_text())["best"]["metric"] == "r2"
    report = (run / "report.html").read_text()
    assert "Prediction against value" in report and "MAE" in report and (run / "eval/val/scatter.png").is_file()

    result = json.loads(visionattn("eval", str(run), "--split", "test", "--json", plugin("own_task.py")))
    rows = table(run / "eval/test/per_image.csv")
    errors = [abs(float(row["value"]) - float(row["prediction"])) for row in rows]
    assert result["count"] == len(rows) == 4 and result["metrics"]["mae"] == pytest.approx(np.mean(errors), rel=1e-4)

    visionattn("predict", str(run), "--source", "houses/images/2?.png", "--out", "predictions", plugin("own_task.py"))
    predicted = {row["path"]: float(row["value"]) for row in table(Path("predictions/predictions.csv"))}
    assert predicted["houses/images/25.png"] == pytest.approx(float(rows[-1]["prediction"]), rel=1e-2)
    if loss == "l1":
        resumed_equals_whole(run, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("own_backbone.py", ("model.name=own_pyramid_tiny",)),
        ("own_attention.py", ("model.name=eca_resnet18", "model.args={width: 8, attn: own_se}")),
    ],
)
def test_a_backbone_and_an_attention_module_of_ones_own(workplace: Path, flowers: Path, name: str, settings: tuple[str, ...]) -> None:
    given = [plugin(name), *TINY, *settings, f"data.root={flowers}"]
    visionattn("data", "check", str(flowers), plugin(name))
    visionattn("train", *given, "output.name=own")
    run = Path("runs/own/001")
    assert json.loads(visionattn("eval", str(run), "--json", plugin(name)))["count"] == 12
    visionattn("predict", str(run), "--source", str(flowers / "test"), "--out", "predictions", plugin(name))
    assert len(json.loads(Path("predictions/predictions.json").read_text())["predictions"]) == 6
    assert (run / "report.html").is_file()
    resumed_equals_whole(run, given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("own_head.py", (ECA, "model.head.name=own_sum", "model.head.args={width: 16}")),
        ("own_backbone.py", ("model.name=own_pyramid_tiny", "model.head.name=unet", f"model.head.args={{{SMALL_STEM}}}")),
        (
            "own_attention.py",
            (ECA, "model.head.name=unet", f"model.head.args={{skip: own_se, bottleneck: own_se, {SMALL_STEM}}}"),
        ),
    ],
)
def test_a_head_a_backbone_and_skips_of_ones_own_segment(workplace: Path, roads: Path, name: str, settings: tuple[str, ...]) -> None:
    given = [plugin(name), "task=segment", *TINY, *settings, "data.root=roads"]
    visionattn("data", "check", "roads", plugin(name))
    visionattn("train", *given, "output.name=own")
    run = Path("runs/own/001")
    assert json.loads(visionattn("eval", str(run), "--json", plugin(name)))["metrics"]["miou"] > 0
    visionattn("predict", str(run), "--source", "roads/images/val", "--out", "predictions", plugin(name))
    assert len(list(Path("predictions/masks").iterdir())) == 4
    if name == "own_head.py":  # the others resume above
        resumed_equals_whole(run, given)


@pytest.mark.slow
def test_a_plug_in_is_imported_where_the_user_names_it_and_never_because_a_run_does(workplace: Path, houses: Path, server: Server) -> None:
    (workplace / "elsewhere").mkdir()
    shutil.copy(EXAMPLES / "own_task.py", workplace / "mine.py")
    (workplace / "mine.py").write_text((workplace / "mine.py").read_text().replace('"regress"', '"mine"'))
    visionattn("train", "plugins=[mine.py]", "task=mine", *TINY, "data.root=houses", ECA, "train.steps=1")
    run = "../runs/houses-eca_resnet18/001"
    predict = ["predict", run, "--source", "../houses/images", "--out", "out"]
    without, named = (server.run([*predict, *more], workplace / "elsewhere/out.txt") for more in ([], ["plugins=[../mine.py]"]))
    assert without.code == 2 and f"name them yourself: plugins=[{workplace / 'mine.py'}]" in without.text
    assert named.code == 0, named.text
    assert (workplace / "elsewhere/out/predictions.csv").is_file()
    sys.modules.pop("mine")


def test_each_example_is_one_short_file() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lengths.keys() == {"detection.py", "own_attention.py", "own_backbone.py", "own_head.py", "own_task.py"}
    assert max(lengths.values()) <= 150, lengths


@pytest.mark.parametrize(("detector", "family", "count"), [("retinanet", "NAT", 2), ("mask_rcnn", "Swin", 5)])
def test_detectors_train_a_step(detector: str, family: str, count: int) -> None:
    """Of torchvision: every parameter gets a gradient."""
    spec = importlib.util.spec_from_file_location("detection_example", EXAMPLES / "detection.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    name, args = SMALL_BACKBONES[family]
    torch.manual_seed(0)
    images, targets = zip(example.random_sample(100, 140), example.random_sample(96, 70), strict=True)
    model = getattr(example, detector)(name, num_classes=3, size=96, width=8, **args)
    losses = example.train_step(model, list(images), list(targets))
    assert len(losses) == count and all(np.isfinite(value) for value in losses.values())
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())

"""Segmentation through the commands: training, resumption, evaluation, presets, and what is refused before the first step."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import visionattn as va
from tests.commands import va as command
from tests.tasks.segmentation.tiny import CLASSES, TINY
from visionattn.console import Console
from visionattn.engine.trainer import Trainer
from visionattn.models.segmenter_factory import IMAGENET
from visionattn.models.weights import records
from visionattn.models.weights.download import store
from visionattn.runs.load import load_model
from visionattn.tasks import CHANGEABLE, change_config, load_config
from visionattn.tasks.batch import Batch
from visionattn.tasks.segmentation import Segmentation
from visionattn.tasks.segmentation.settings import SegmentConfig

UNET = ("model.head.name=unet", "model.head.args={stem_channels: [4, 6], max_channels: 8, dropout: 0.2}")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of 48 x 40 with a bright disc, and its mask."""
    root = tmp_path_factory.mktemp("data") / "polyps"
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :48]
    for split, count in (("train", 6), ("val", 4), ("test", 2)):
        for number in range(count):
            row, column, radius = rng.integers(12, 28), rng.integers(12, 36), rng.integers(6, 12)
            mask = ((rows - row) ** 2 + (columns - column) ** 2 < radius**2).astype(np.uint8)
            image = rng.integers(0, 90, (40, 48, 3), dtype=np.uint8) + 120 * mask[..., None]
            for folder, array in (("images", image), ("masks", mask)):
                path = root / folder / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


@pytest.fixture(scope="module")
def trained(polyps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with cases scored."""
    given = config(polyps, f"output.dir={tmp_path_factory.mktemp('runs')}", "eval.per_case=true", "log.to=[tensorboard]")
    return Path(va.train(given, console=Console(quiet=True)).run)  # type: ignore[union-attr]


def config(root: Path, *overrides: str) -> SegmentConfig:
    given = load_config(None, [*TINY, *UNET, f"data.root={root}", *overrides])
    assert isinstance(given, SegmentConfig)
    return given


def left(folder: Path) -> set[str]:
    """Files and folders below."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_goes_on_after_an_interruption_to_the_same_bits(trained: Path, polyps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(polyps, "output.dir=runs", "eval.per_case=true", "log.to=[tensorboard]", "train.save_every=1")
    take = Trainer.train_step

    def stop_before_the_third(self: Trainer, batch: Batch) -> tuple[float, float, bool]:
        if self.step == 2:
            raise KeyboardInterrupt
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_before_the_third)
        with pytest.raises(KeyboardInterrupt):
            va.train(given, console=Console(quiet=True))
    run = Path("runs/polyps-eca_resnet18/001")
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    torch.manual_seed(77)  # what resumption must undo
    assert command("train", "--resume", run).exit_code == 0
    for name in ("last", "best"):
        one, two = (load_file(folder / "checkpoints" / name / "model.safetensors") for folder in (trained, run))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    epochs = []
    for folder in (trained, run):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        scored = [line for line in lines if line["kind"] == "epoch"]
        epochs.append([{key: value for key, value in line.items() if key.startswith(("val_", "lr", "step"))} for line in scored])
    assert epochs[0] == epochs[1] and len(epochs[0]) == 2 and epochs[0][0]["val_miou"] > 0


def test_what_a_run_leaves(trained: Path) -> None:
    assert {"config.yaml", "metrics.csv", "report.html", "data/classes.txt", "data/preview_train.png", "data/check.json"} <= left(trained)
    assert (trained / "data/classes.txt").read_text().split() == CLASSES
    rows = list(csv.DictReader((trained / "data/manifest.csv").open()))
    assert len(rows) == 12 and rows[0]["label"] == "masks/train/0.png"
    log = (trained / "log.txt").read_text()
    assert "class  IoU  Acc  Dice  pixels  boundary IoU  case Dice" in log and "eca_resnet18, unet" in log
    assert "HD95 in px (max_directed): 4 of 4 cases defined, 0 empty in both" in log
    scores = json.loads((trained / "eval/val/metrics.json").read_text())
    assert scores["task"] == "segment" and [row["class"] for row in scores["per_class"]] == CLASSES
    assert len(list(csv.DictReader((trained / "eval/val/per_image.csv").open()))) == 4


def test_values_are_those_of_the_predictions(trained: Path, polyps: Path) -> None:
    result = command("eval", trained, "--split", "test", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["task"], found["split"], found["count"]) == ("segment", "test", 2)
    loaded = load_model(trained)
    mean, std = (torch.tensor(loaded.model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    counts, losses, dices = np.zeros((2, 2)), [], []
    for number in range(2):
        pixels = torch.from_numpy(np.asarray(Image.open(polyps / f"images/test/{number}.png")).copy()).permute(2, 0, 1)
        truth = np.asarray(Image.open(polyps / f"masks/test/{number}.png"))
        with torch.no_grad():
            logits = loaded.model((pixels / 255 - mean)[None] / std)
        losses.append(float(F.cross_entropy(logits, torch.from_numpy(truth.astype(np.int64))[None])))
        guess = logits[0].argmax(0).numpy()
        for i in range(2):
            for j in range(2):
                counts[i, j] += ((truth == i) & (guess == j)).sum()
        dices.append(2 * ((truth == 1) & (guess == 1)).sum() / ((truth == 1).sum() + (guess == 1).sum()))
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    wanted = {
        "miou": (hits / union).mean(),
        "macc": (hits / counts.sum(1)).mean(),
        "aacc": hits.sum() / counts.sum(),
        "mdice": (2 * hits / (counts.sum(0) + counts.sum(1))).mean(),
        "dice": np.mean(dices),
        "loss": np.mean(losses),
    }
    for name, value in wanted.items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert found["metrics"]["hd95"] >= 0 and found["per_class"][1]["hd95_unit"] == "px"
    assert json.loads((trained / "eval/test/metrics.json").read_text()).items() >= found.items()


def test_windows_flips_and_other_data(trained: Path, polyps: Path) -> None:
    plain = command("eval", trained)
    assert plain.exit_code == 0 and "mIoU" in plain.stdout and "polyp" in plain.stdout
    other = command("eval", trained, "--data", polyps, "--split", "train", "--json")
    assert json.loads(other.stdout)["count"] == 6
    result = command(
        "train",
        *TINY,
        f"data.root={polyps}",
        "output.dir=runs",
        "eval.mode=slide",
        "eval.tile=32",
        "eval.flips=both",
        "eval.scales=[1.0]",
        "loss=[{name: cross_entropy, args: {class_weights: balanced}}, {name: dice}]",
        "model.head.name=upernet",
        "model.head.args={width: 8}",
        "train.steps=1",
    )
    assert result.exit_code == 0, result.output
    assert command("eval", "runs/polyps-eca_resnet18/001").exit_code == 0  # balanced weights are counted from masks


def test_settings_that_differ_from_the_run(trained: Path, polyps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and flips of a trained model; its own figures stay in the run folder."""
    before = (trained / "eval/val/metrics.json").read_text()
    plain = json.loads(command("eval", trained, "--json").stdout)["metrics"]
    changed = ("eval.mode=slide", "eval.tile=32", "eval.stride=8", "eval.flips=both", "eval.per_case=false", "augment.resize=none")
    found = json.loads(command("eval", trained, *changed, "--json").stdout)["metrics"]
    assert "dice" in plain and "dice" not in found and found["loss"] != plain["loss"]
    assert (trained / "eval/val/metrics.json").read_text() == before
    loaded = load_model(trained)
    config = change_config(loaded.config, changed, CHANGEABLE)
    assert isinstance(config, SegmentConfig) and config.eval.tile == 32 and config.model == loaded.config.model
    image = polyps / "images/test/0.png"
    used: list[Any] = []
    build = Segmentation.file_predictor
    monkeypatch.setattr(Segmentation, "file_predictor", lambda self, config, *rest: (used.append(config), build(self, config, *rest))[1])
    va.predict(trained, [image], settings=["eval.flips=both"])
    assert command("predict", trained, "eval.flips=horizontal", "--source", image).exit_code == 0
    assert [config.eval.flips for config in used] == ["both", "horizontal"]
    for name in ("eval", "predict --source x"):
        for setting, text in (("model.img_size=64", "model.img_size: fixed by the trained model"), ("eval.flip=both", "eval.flips")):
            refused = command(*name.split()[:1], trained, *name.split()[1:], setting)
            assert refused.exit_code == 2 and text in refused.stderr


def test_starts_from_a_published_segmentation_model(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its tag: backbone and head, the last layer anew, and the preprocessing of the published recipes."""
    torch.manual_seed(0)
    network = va.create_segmenter("van_b0", "semantic_fpn", 150, width=8, neck_width=8, backbone_args={"depths": (1, 1, 1, 1)})
    torch.save({"state_dict": network.state_dict()}, tmp_path / "made.pth")
    record = records.find_segmenter("van_b0.semantic_fpn_ade20k")
    assert record is not None
    made = record.model_copy(update={"tag": "made", "args": {"depths": (1, 1, 1, 1)}})
    monkeypatch.setattr(records, "segmenter_records", lambda: (made,))
    store(tmp_path / "made.pth", "van_b0", "made")
    settings = [setting for setting in TINY if not setting.startswith(("model.name", "model.args"))]
    head = ("model.name=van_b0", "model.weights=made", "model.head.name=semantic_fpn", "model.head.args={width: 8, neck_width: 8}")
    result = command("train", *settings, *head, f"data.root={polyps}", "output.dir=runs", "output.name=made")
    assert result.exit_code == 0, result.output
    assert "van_b0.made" in result.stdout and "checkpoint head has 150 classes, the model 2" in result.stdout + result.stderr
    assert load_model("runs/made/001").model.pretrained_cfg["mean"] == IMAGENET["mean"]


def test_the_layout_tells_the_task_and_a_dry_run_writes_nothing(polyps: Path, tmp_path: Path) -> None:
    rest = [setting for setting in TINY if not setting.startswith(("task=", "model.name="))]
    result = command("train", "--data", polyps, "--model", "eca_resnet18", "--dry-run", *rest, *UNET)
    assert result.exit_code == 0, result.output
    assert "segment (2 classes)" in result.stdout and "Nothing was written" in result.stdout
    assert left(tmp_path) == set()


def test_preview_and_check(polyps: Path, tmp_path: Path) -> None:
    result = command("data", "preview", polyps, "--classes", "background,polyp", "--out", "p.png", "--count", 4, "model.img_size=48")
    assert result.exit_code == 0, result.output
    with Image.open("p.png") as picture:
        assert picture.width > 96
    result = command("data", "check", polyps, "--task", "segment", "--classes", 2)
    assert result.exit_code == 0 and "pairs ok 12" in result.stdout, result.output
    assert left(tmp_path) == {"p.png"}


def test_grey_images_of_16_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            label = np.zeros((40, 48), np.uint8)
            label[10:30, 10:30] = 1
            scan = rng.integers(0, 30_000, (40, 48), dtype=np.uint16) + np.uint16(30_000) * label
            for folder, array in (("images", scan), ("masks", label)):
                path = tmp_path / "scans" / folder / split / f"{number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    result = command("train", *TINY, *UNET, "data.root=scans", "model.in_chans=1", "train.steps=1", "output.dir=runs")
    assert result.exit_code == 0, result.output
    assert "4 of 4 images are 16-bit: scaled by the maximum of their type (data.range)" in result.stdout
    assert load_model("runs/scans-eca_resnet18/001").model.in_chans == 1


def _without_mask(root: Path) -> None:
    (root / "masks/train/1.png").unlink()


def _stray(root: Path) -> None:
    path = root / "masks/train/1.png"
    array = np.asarray(Image.open(path)).copy()
    array[:3], array[3:5] = 128, 255
    Image.fromarray(array).save(path)


def _smaller(root: Path) -> None:
    path = root / "masks/val/0.png"
    Image.open(path).resize((24, 20), Image.Resampling.NEAREST).save(path)


def _coloured(root: Path) -> None:
    path = root / "masks/train/0.png"
    Image.fromarray(np.asarray(Image.open(path)) * 255).convert("RGB").save(path)


def _lossy(root: Path) -> None:
    path = root / "masks/train/0.png"
    Image.fromarray(np.asarray(Image.open(path)) * 255).save(path.with_suffix(".jpg"), quality=50)
    path.unlink()


def _large(root: Path) -> None:
    for folder in ("images", "masks"):
        Image.new("L", (100, 100)).save(root / folder / "train/0.png")


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "missing": (_without_mask, "VA-D021", "1 image has no mask: images/train/1.png"),
    "stray": (_stray, "VA-D012", "mask values outside 0..1: {"),
    "size": (_smaller, "VA-D013", "masks/val/0.png: image 48x40, mask 24x20 (ratio 2)"),
    "colours": (_coloured, "VA-D014", "1 mask in RGB, 2 colours, and no palette assigns them to classes"),
    "jpeg": (_lossy, "VA-D017", "lossy masks are not labels -> re-export as PNG"),
    "large": (_large, "VA-D020", "data.max_bytes=60000"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_masks_stop_before_the_first_step(polyps: Path, tmp_path: Path, fault: str) -> None:
    spoil, code, text = FAULTS[fault]
    shutil.copytree(polyps, tmp_path / "d")
    spoil(tmp_path / "d")
    before = left(tmp_path)
    settings = [*TINY, *UNET, "data.root=d", "data.max_bytes=30000"]
    for args in (("train", "--dry-run"), ("train",), ("data", "check", "d", "--task", "segment", "--classes", "2", "data.max_bytes=30000")):
        result = command(*args, *(settings if args[0] == "train" else ()))
        assert result.exit_code == 3, result.output
        assert result.stderr.startswith(f"error {code}: ") and text in " ".join(result.stderr.split()), result.output
        written = left(tmp_path) - before
        assert written == (set() if "--dry-run" in args else {"d-check.json"})
        if written:
            assert "full list: d-check.json" in result.stdout
            notes = json.loads(Path("d-check.json").read_text())["notes"]
            assert code in [note["code"] for note in notes if note["level"] == "error"]


def test_the_session_of_several_faults(polyps: Path, tmp_path: Path) -> None:
    shutil.copytree(polyps, tmp_path / "d")
    _stray(tmp_path / "d")
    (tmp_path / "d/masks/train/0.png").unlink()
    result = command("data", "check", "d", "--task", "segment", "--classes", "2")
    assert result.exit_code == 3 and "the data check found 2 errors" in result.stderr
    text = " ".join(result.stderr.split())
    assert "128 in 1 file has no class (255 ignores it)" in text
    assert '255 in 1 file looks like an ignore label -> "data.map={128: 255}" data.ignore_index=255' in text
    fixed = command("data", "check", "d", "--task", "segment", "--classes", "2", "data.ignore_index=255", "data.map={128: 255}")
    assert "VA-D012" not in fixed.output and "error VA-D021" in fixed.stderr


@pytest.mark.parametrize(
    ("settings", "code", "exit_code", "text"),
    [
        (["data.root=nowhere"], "VA-D001", 3, "not found"),
        (["data.val=holdout"], "VA-D003", 3, "no validation split"),
        (["data.classes=[polyp]", "data.map={1: 0}"], "VA-C002", 2, "1 class is left, expected 2 or more"),
        (["model.head.name=unett"], "VA-M001", 2, "Did you mean unet"),
        (["model.head.args={width: 3}"], "VA-M002", 2, "unet has no argument"),
        (["model.head.args={skip: gates}"], "VA-M002", 2, 'unknown skip "gates"'),
        (["model.name=att_swin"], "VA-M001", 2, 'unknown model "att_swin"'),
        (["loss=[{name: dices}]"], "VA-C002", 2, 'no loss "dices"'),
        (["loss=[{name: dice, args: {smoothing: 1}}]"], "VA-C002", 2, 'loss "dice" has no setting "smoothing"'),
        (["loss=[{name: focal, args: {gamma: strong}}]"], "VA-C002", 2, "loss: not computable"),
        (["data.multi_label=true", "data.dataset=x", "model.drop_rate=0.1"], "VA-C001", 2, "data.multi_label: unknown key"),
        (["eval.tile=64"], "VA-C002", 2, "eval.tile: windows need eval.mode=slide"),
        (["eval.spacing=[1, 1]"], "VA-C002", 2, "eval.spacing: distances are scores of cases"),
        (["eval.best=dice"], "VA-C002", 2, "eval.best: dice is a score of cases"),
    ],
)
def test_settings_that_cannot_be_meant(polyps: Path, tmp_path: Path, settings: list[str], code: str, exit_code: int, text: str) -> None:
    result = command("train", *TINY, *UNET, f"data.root={polyps}", *settings)
    assert result.exit_code == exit_code, result.output
    assert result.stderr.startswith(f"error {code}: ") and text in result.stderr, result.stderr
    assert left(tmp_path) == set()


def test_one_image_per_batch_where_a_head_pools_to_one_pixel(polyps: Path) -> None:
    head = "model.head.args={bottleneck: aspp, max_channels: 8}"
    result = command("train", *TINY, *UNET, f"data.root={polyps}", head, "train.batch_size=1", "--dry-run")
    assert result.exit_code == 2 and "VA-C011" in result.stderr, result.output


def test_a_damaged_mask_is_left_out_and_said(polyps: Path, tmp_path: Path) -> None:
    shutil.copytree(polyps, tmp_path / "d")
    (tmp_path / "d/masks/train/0.png").write_bytes(b"")
    os.truncate(tmp_path / "d/masks/train/1.png", 60)
    result = command("train", *TINY, *UNET, "data.root=d", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "train 4 images" in result.stdout and "VA-D011" in result.stdout and "VA-D010" in result.stdout


def test_a_preset_trains(polyps: Path) -> None:
    settings = ["model.name=resunet_eca_aspp", "model.head.args={max_channels: 8}", f"data.root={polyps}"]
    result = command("train", *TINY, *settings, "--dry-run")
    assert result.exit_code == 0 and "segment (2 classes)" in result.stdout, result.output

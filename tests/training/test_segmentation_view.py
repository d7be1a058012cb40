"""What people see of segmentation: pictures of a run, its tables, and the masks and overlays of new images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from visionattn.data.palettes import overlay
from visionattn.training import masks
from visionattn.training.console import Console
from visionattn.training.datasets import build_mask_eval_transform
from visionattn.training.inference import load_model
from visionattn.training.masks import MaskPrediction, output_names
from visionattn.training.report import print_evaluation
from visionattn.training.segmentation import legend_entries, with_legend

import visionattn as va
from visionattn.cli import app
from visionattn.config import IGNORE, SegmentConfig, load_config
from visionattn.data.images import read_image
from visionattn.errors import UserError
from visionattn.models import Segmenter
from visionattn.tasks.segmentation import SmallMap
from visionattn.tasks.windows import resized_classes

CLASSES = ["ground", "leaf", "stone"]
PALETTE = [(0, 0, 0), (40, 160, 60), (200, 80, 30)]
SIZE = (48, 64)


def picture(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A green disc and a red box on dark ground."""
    generator = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    centre = (int(generator.integers(12, size[1] - 12)), int(generator.integers(12, size[0] - 12)))
    cv2.circle(label, centre, 10, 1, -1)
    label[: size[0] // 4, : size[1] // 3] = 2
    image = np.array([(30, 30, 40), (40, 200, 60), (220, 60, 40)], np.uint8)[label]
    return image + generator.integers(0, 20, (*size, 3), dtype=np.uint8), label


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of few steps."""
    root = tmp_path_factory.mktemp("view") / "garden"
    for split, count in (("train", 8), ("val", 5)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            image, label = picture(number + 100 * (split == "val"))
            if number == 0:
                label[-4:] = IGNORE
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
            Image.fromarray(label).save(root / "masks" / split / f"{number}.png")
    lines = [f"{number} {name} {' '.join(map(str, PALETTE[number]))}" for number, name in enumerate(CLASSES)]
    (root / "classes.txt").write_text("\n".join(lines))
    config = load_config(
        None,
        [
            "task=segment",
            "model.name=eca_resnet18",
            "model.args={width: 8, depths: [1, 1, 1, 1]}",
            "model.img_size=32",
            "model.head.name=unet",
            "model.head.args={max_channels: 16}",
            f"data.root={root}",
            "data.workers=0",
            "data.ignore_index=255",
            "train.steps=4",
            "eval.every=2",
            "log.images=4",
            "train.batch_size=4",
            "train.precision=fp32",
            "optim.lr=0.01",
            "eval.per_case=true",
            f"output.dir={root.parent / 'runs'}",
        ],
    )
    assert isinstance(config, SegmentConfig)
    result = va.train(config, console=Console(quiet=True))
    assert result is not None
    return result.run


def argmax(run: Path, path: Path) -> np.ndarray:
    """The class map by the plain definition: logits, resized to the image, the largest of each pixel."""
    loaded = load_model(run)
    transform = build_mask_eval_transform(loaded.model, loaded.config)
    image = read_image(path, settings=loaded.config.data, in_chans=3)
    with torch.inference_mode():
        return resized_classes(loaded.model(transform(image)[None]), image.shape[:2]).numpy()


# ---------------------------------------------------------------- the run


def test_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tb"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    pictures = {"train/augmented_batch", "val/predictions", "val/iou_per_class", "val/confusion_matrix", "learning_curves"}
    assert pictures <= set(tags["images"])
    assert {"val/miou", "val/dice", *(f"val_iou/{name}" for name in CLASSES)} <= set(tags["scalars"])


def test_evaluation_folder(run: Path) -> None:
    folder = run / "eval" / "val"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "segment" and metrics["count"] == 5 and 0 <= metrics["metrics"]["miou"] <= 1
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [row["class"] for row in rows] == CLASSES and {"iou", "dice", "pixel_share", "case_dice"} <= set(rows[0])
    images = list(csv.DictReader((folder / "per_image.csv").open()))
    assert len(images) == 5 and {"id", "miou", "dice"} <= set(images[0])
    assert (folder / "confusion.png").is_file() and (folder / "per_class.png").is_file()
    worst = sorted((folder / "worst").glob("*.png"))
    order = [name for name, _ in sorted(((Path(row["id"]).stem, float(row["dice"])) for row in images), key=lambda item: item[1])]
    assert [path.stem[-1] for path in worst] == order[: len(worst)] and worst, "worst first"
    with Image.open(worst[0]) as shown:
        assert shown.width == 3 * 256 + 12 and shown.height > 20 + 192, "three pictures, their names and a legend"


def test_report_and_console(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (run / "report.html").read_text()
    assert "<th>IoU</th>" in page and "Worst images" in page and all(f"<td>{name}</td>" in page for name in CLASSES)
    print_evaluation(va.evaluate(run, console=Console(quiet=True)), Console())
    text = capsys.readouterr().out
    assert "leaf" in text and "pixels" in text and "mIoU" in text


def test_checkpoints_carry_the_palette(run: Path) -> None:
    loaded = load_model(run / "checkpoints" / "best")
    assert [tuple(colour) for colour in loaded.palette or ()] == PALETTE and loaded.classes == CLASSES


# ---------------------------------------------------------------- prediction


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An odd size, a grey image, one of 16 bits, and one that its tag turns upright."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    image, _ = picture(7, (50, 71))
    Image.fromarray(image).save(folder / "odd.png")
    Image.fromarray(image).convert("L").save(folder / "deep" / "grey.png")
    cv2.imwrite(str(folder / "deep" / "sixteen.tiff"), image[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif, quality=95)
    return folder


def test_masks_are_the_argmax_at_the_size_of_the_image(run: Path, photos: Path, tmp_path: Path) -> None:
    found, unreadable = va.predict(run, [photos], out=tmp_path / "out", save=["mask", "overlay", "json", "csv"])
    assert not unreadable
    sizes = {"odd": (50, 71), "deep/grey": (50, 71), "deep/sixteen": (50, 71), "turned": (71, 50)}
    by_name = {Path(item.path).relative_to(photos).with_suffix("").as_posix(): item for item in found}
    assert set(by_name) == set(sizes)
    for name, size in sizes.items():
        item = by_name[name]
        assert isinstance(item, MaskPrediction) and item.mask == tmp_path / "out" / "masks" / f"{name}.png"
        with Image.open(item.mask) as mask:
            assert mask.mode == "P" and [tuple((mask.getpalette() or [])[3 * n : 3 * n + 3]) for n in range(3)] == PALETTE
            pixels = np.asarray(mask)
        wanted = argmax(run, Path(item.path))
        assert pixels.shape == size and (pixels == wanted).all() and (item.class_map() == wanted).all()
        assert (item.height, item.width) == size
        assert item.shares == {CLASSES[n]: pytest.approx((wanted == n).mean()) for n in np.unique(wanted).tolist()}
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as shown:
            assert shown.width == 240 and shown.height > size[0]
    answer = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [item["path"] for item in answer["predictions"]] == [item.path for item in found]
    assert len(list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))) == 4
    with pytest.raises(UserError, match="VA-R007"):
        va.predict(run, [photos], out=tmp_path / "out")


def test_prediction_without_a_folder(run: Path, photos: Path) -> None:
    found, _ = va.predict(run, [photos / "*.png"])
    assert len(found) == 1 and isinstance(found[0], MaskPrediction) and isinstance(found[0].mask, bytes)
    assert (found[0].class_map() == argmax(run, photos / "odd.png")).all()
    assert set(found[0].as_dict()) == {"path", "height", "width", "shares"}


def test_command_line(run: Path, photos: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(run), "--source", str(photos), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {Path(item["mask"]).name for item in answer["predictions"]} == {"odd.png", "grey.png", "sixteen.png", "turned.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"masks", "overlays"} and "71 x 50" in done.stderr


def test_names_of_results() -> None:
    found = {Path("p/a.jpg"): Path("a.jpg"), Path("p/a.png"): Path("a.png"), Path("p/b/c.d.png"): Path("b/c.d.png")}
    assert output_names(found) == [Path("a.jpg"), Path("a.png"), Path("b/c.d")]
    with pytest.raises(UserError, match="two images"):
        output_names({Path("p/a.jpg"): Path("a.jpg"), Path("q/a.jpg"): Path("a.jpg")})


class Levels(torch.nn.Module):
    """Classes by the brightness of the pixel alone, so that windows change nothing."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        grey = image.mean(1)
        return torch.stack([-grey, torch.full_like(grey, 0.5), grey], 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_images_go_in_windows(run: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(run)
    assert isinstance(loaded.config, SegmentConfig) and isinstance(loaded.model, Segmenter)
    task = masks.build_task(loaded.config, CLASSES, np.ones(3, np.int64), PALETTE)
    said: list[str] = []
    transform = build_mask_eval_transform(loaded.model, loaded.config)
    mapper = masks.Mapper(loaded.config, Levels(), task, transform, torch.device("cpu"), say=said.append)  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = image if dtype == np.uint8 else image.astype(np.float32) / 255
    whole = mapper(image)
    assert len(np.unique(whole)) == 3 and not said
    monkeypatch.setattr(task, "predict", lambda *given: pytest.fail("the logits of the whole image"))
    monkeypatch.setattr(masks, "LARGE_PIXELS", 70 * 90 - 1)
    assert (mapper(image) == whole).all() and (mapper(image) == whole).all()
    assert len(said) == 1 and "32 x 32" in said[0]


def test_published_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = va.create_segmenter("van_b0", "segformer", 150, width=16)
    meta = {"PALETTE": [[n, 1, 2] for n in range(150)]}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, tmp_path / "segformer_van_b0.pth")
    loaded = load_model(tmp_path / "segformer_van_b0.pth")
    assert loaded.config.task == "segment" and loaded.classes[:2] == ["wall", "building"] and len(loaded.classes) == 150
    assert loaded.palette is not None and loaded.palette[3] == (3, 1, 2) and loaded.run is None
    Image.fromarray(picture(1)[0]).save(tmp_path / "a.png")
    found, _ = va.predict(tmp_path / "segformer_van_b0.pth", [tmp_path / "a.png"])
    assert isinstance(found[0], MaskPrediction) and found[0].class_map().shape == SIZE
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="VA-W003"):
        load_model(tmp_path / "other.pth")


# ---------------------------------------------------------------- drawing


def test_small_maps() -> None:
    large = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 300, 0), 300, 1)
    small = SmallMap.of(large).array()
    assert small.shape == (170, 256) and (cv2.resize(small, (3, 2), interpolation=cv2.INTER_NEAREST_EXACT) == [[0, 1, 2], [3, 4, 5]]).all()
    assert (SmallMap.of(large[:7, :9]).array() == large[:7, :9]).all()


def test_overlay_of_many_rows_equals_that_of_one() -> None:
    image, label = picture(3, (150, 30))
    label[100] = IGNORE
    shown = overlay(image, label, PALETTE, 0.25)
    wanted = np.where(
        ((label != IGNORE) & (label != 0))[:, :, None], 0.75 * image + 0.25 * np.array([*PALETTE, *[(0, 0, 0)] * 253])[label], image
    )
    assert shown.dtype == np.uint8 and np.abs(shown - wanted).max() <= 0.5


def test_legend() -> None:
    counts = np.array([5, 0, 9, 7])
    names, palette = ["a", "b", "c", "d"], [(number, 0, 0) for number in range(4)]
    assert legend_entries(counts, names, palette) == [("a", (0, 0, 0)), ("c", (2, 0, 0)), ("d", (3, 0, 0))]
    assert legend_entries(counts, names, palette, 2) == [("c", (2, 0, 0)), ("d", (3, 0, 0)), ("and 1 more", None)]
    plain = np.full((30, 400, 3), 7, np.uint8)
    shown = with_legend(plain, [("first", (250, 0, 0)), ("second", (0, 250, 0))])
    assert (shown[:30] == plain).all() and {(250, 0, 0), (0, 250, 0)} <= {tuple(pixel) for pixel in shown[30:].reshape(-1, 3).tolist()}

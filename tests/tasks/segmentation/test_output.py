"""Masks and overlays of files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as library
from typer.testing import CliRunner

import visionattn as va
from tests.tasks.segmentation.garden import CLASSES, PALETTE, SIZE, picture
from visionattn.cli import app
from visionattn.data.masks.annotations.draw import draw_masks
from visionattn.data.readers import read_image
from visionattn.errors import UserError
from visionattn.runs.load import load_model
from visionattn.tasks import TASKS
from visionattn.tasks.segmentation import predictor
from visionattn.tasks.segmentation.data import preprocessing
from visionattn.tasks.segmentation.output import MaskPrediction, coco_json, coco_records, output_names
from visionattn.tasks.segmentation.settings import SegmentConfig
from visionattn.tasks.windows import resized_classes


def argmax(garden_run: Path, path: Path) -> np.ndarray:
    """The class map by the plain definition: logits, resized to the image, the largest of each pixel."""
    loaded = load_model(garden_run)
    transform = preprocessing(loaded.config, loaded.model)
    image = read_image(path, settings=loaded.config.data, in_chans=3)
    with torch.inference_mode():
        return resized_classes(loaded.model(transform(image)[None]), image.shape[:2]).numpy()


def test_masks_are_the_argmax_at_the_size_of_the_image(garden_run: Path, photos: Path, tmp_path: Path) -> None:
    found, unreadable = va.predict(garden_run, [photos], out=tmp_path / "out", save=["mask", "overlay", "json", "csv"])
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
        wanted = argmax(garden_run, Path(item.path))
        assert pixels.shape == size and (pixels == wanted).all() and (item.class_map() == wanted).all()
        assert (item.height, item.width) == size
        assert item.shares == {CLASSES[n]: pytest.approx((wanted == n).mean()) for n in np.unique(wanted).tolist()}
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as shown:
            assert shown.width == 240 and shown.height > size[0]
    answer = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [item["path"] for item in answer["predictions"]] == [item.path for item in found]
    assert len(list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))) == 4
    with pytest.raises(UserError, match="VA-R007"):
        va.predict(garden_run, [photos], out=tmp_path / "out")


def test_annotations_in_the_format_of_coco(garden_run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["predict", str(garden_run), "--source", str(photos), "--out", str(out), "--save", "coco,mask"])
    assert answer.exit_code == 0 and f"{out / 'coco.json'}\n" in answer.stdout and f"{out / 'masks'}: 4 files" in answer.stdout
    content = json.loads((out / "coco.json").read_text())
    assert [item["name"] for item in content["categories"]] == CLASSES  # none of them is called background
    sizes = {"odd.png": (71, 50), "deep/grey.png": (71, 50), "deep/sixteen.tiff": (71, 50), "turned.jpg": (50, 71)}
    assert {item["file_name"]: (item["width"], item["height"]) for item in content["images"]} == sizes
    assert [item["id"] for item in content["annotations"]] == [*range(1, len(content["annotations"]) + 1)]
    for image in content["images"]:
        mask = np.asarray(Image.open(out / "masks" / Path(image["file_name"]).with_suffix(".png")))
        back = np.zeros_like(mask)
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                area = library.frPyObjects(item["segmentation"], *mask.shape)
                area = library.merge(area) if isinstance(area, list) else area
                assert int(library.area(area)) == pytest.approx(item["area"], rel=0.01)
                back += library.decode(area) * item["category_id"]
        assert (back == mask + 1).mean() > 0.99
    with pytest.raises(UserError, match=r"VA-R007.*coco\.json"):
        va.predict(garden_run, [photos], out=out, save=["coco"])


def test_from_coco_to_masks_and_back(tmp_path: Path) -> None:
    """Areas of objects stay within 1 %, measured by COCO's own code on both sides."""
    generator = np.random.default_rng(0)
    annotations = []
    for number in range(12):
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radius = (16 + 2 * number) * (1 + 0.1 * np.sin(3 * angles + number)) + generator.uniform(-0.5, 0.5, 40)
        centre = (50 + 100 * (number % 4), 50 + 100 * (number // 4))
        ring = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], 1).round(2)
        annotations.append({"id": number, "image_id": 1, "category_id": 1 + number % 2, "segmentation": [ring.ravel().tolist()]})
    names = [{"id": 1, "name": "leaf"}, {"id": 2, "name": "stone"}]
    (tmp_path / "d").mkdir()
    Image.new("RGB", (400, 300)).save(tmp_path / "d/a.png")
    images = [{"id": 1, "file_name": "a.png", "width": 400, "height": 300}]
    (tmp_path / "d/a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    draw_masks(tmp_path / "d", out=tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out/masks/a.png"))

    categories = {"leaf": 1, "stone": 2}
    records = coco_records("a.png", mask, 1, ["background", "leaf", "stone"], categories)
    content = json.loads("".join(coco_json([records], categories)))
    assert content["images"] == images and [item["name"] for item in content["categories"]] == ["leaf", "stone"]
    assert len(content["annotations"]) == 12

    def measured(items: list[dict[str, Any]]) -> list[tuple[int, int]]:
        return sorted((int(library.area(library.frPyObjects(item["segmentation"], 300, 400))[0]), item["category_id"]) for item in items)

    for (before, label), (after, same) in zip(measured(annotations), measured(content["annotations"]), strict=True):
        assert after == pytest.approx(before, rel=0.01) and label == same
    assert sum(area for area, _ in measured(content["annotations"])) == pytest.approx((mask > 0).sum(), rel=0.01)


def test_prediction_without_a_folder(garden_run: Path, photos: Path) -> None:
    found, _ = va.predict(garden_run, [photos / "*.png"])
    assert len(found) == 1 and isinstance(found[0], MaskPrediction) and isinstance(found[0].mask, bytes)
    assert (found[0].class_map() == argmax(garden_run, photos / "odd.png")).all()
    assert set(found[0].as_dict()) == {"path", "height", "width", "shares"}


def test_command_line(garden_run: Path, photos: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(garden_run), "--source", str(photos), "--out", str(tmp_path / "out"), "--json"])
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

    pretrained_cfg: dict[str, Any]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        grey = image.mean(1)
        return torch.stack([-grey, torch.full_like(grey, 0.5), grey], 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_images_go_in_windows(garden_run: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(garden_run)
    assert isinstance(loaded.config, SegmentConfig)
    warned: list[str] = []
    levels = Levels()
    levels.pretrained_cfg = loaded.model.pretrained_cfg
    place = torch.device("cpu")
    mapper: Any = TASKS["segment"].file_predictor(loaded.config, loaded.target, levels, place, (), warned.append)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = image if dtype == np.uint8 else image.astype(np.float32) / 255
    whole = mapper.maps(image).classes
    assert len(np.unique(whole)) == 3 and not warned
    monkeypatch.setattr(mapper.whole, "logits", lambda *given: pytest.fail("the logits of the whole image"))
    monkeypatch.setattr(predictor, "LARGE_PIXELS", 70 * 90 - 1)
    assert (mapper.maps(image).classes == whole).all() and (mapper.maps(image).classes == whole).all()
    assert len(warned) == 1 and "32 x 32" in warned[0]


def test_published_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = va.create_segmenter("van_b0", "segformer", 150, width=16)
    meta = {"PALETTE": [[n, 1, 2] for n in range(150)]}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, tmp_path / "segformer_van_b0.pth")
    loaded = load_model(tmp_path / "segformer_van_b0.pth")
    assert loaded.config.task == "segment" and loaded.target["classes"][:2] == ["wall", "building"] and len(loaded.target["classes"]) == 150
    assert loaded.target["palette"][3] == [3, 1, 2] and loaded.run is None
    Image.fromarray(picture(1)[0]).save(tmp_path / "a.png")
    found, _ = va.predict(tmp_path / "segformer_van_b0.pth", [tmp_path / "a.png"])
    assert isinstance(found[0], MaskPrediction) and found[0].class_map().shape == SIZE
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="VA-W003"):
        load_model(tmp_path / "other.pth")

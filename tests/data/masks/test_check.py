"""The check of images with masks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.masks.pairs import NAMES, load, mask, pairs, picture, settings
from visionattn.data.check import CheckReport, exclude_unreadable
from visionattn.data.masks.check import check_masks
from visionattn.data.masks.convert import convert_masks
from visionattn.data.masks.sets import MaskData, mask_manifest
from visionattn.errors import UserError


def look(root: Path, **values: object) -> tuple[MaskData, CheckReport]:
    data = load(root, **values)
    return data, check_masks(data, settings(root, **values), cache_dir=root.parent / "cache")


def notes(report: CheckReport, code: str) -> list[str]:
    return [f"{note.level}: {note.text}" for note in report.notes if note.code == code]


def refused(report: CheckReport, code: str) -> str:
    """The errors that a run stops at; the first has this code."""
    errors = [note for note in report.notes if note.level == "error"]
    assert errors[0].code == code
    return "\n".join(f"{note.code}  {note.text}" for note in errors)


def accepted(report: CheckReport) -> bool:
    return not [note for note in report.notes if note.level == "error"]


def test_clean_data(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", splits=("train", "val", "test"))
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    data, report = look(root)
    assert [note.text for note in report.notes] == ["images 7   masks 7   pairs ok 7"]
    stored = np.concatenate([np.asarray(Image.open(path)).ravel() for path in data.train.mask_paths])
    assert report.counts["train"] == dict(zip(NAMES, np.bincount(stored).tolist(), strict=True))
    assert set(report.hashes) == {name for part in data.sets for name in (*part.ids, *part.mask_ids)}
    assert exclude_unreadable(data, report, settings(root)) is data
    rows = mask_manifest(data, report.hashes)
    assert rows == mask_manifest(data, {}) and rows[0].label == "masks/train/train0.png"
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before and json.dumps(report.as_dict())


def test_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pairs(tmp_path / "d")
    _, first = look(root)
    monkeypatch.setattr("visionattn.data.masks.check.read_mask", None)
    _, second = look(root)
    assert second == first
    _, other = look(root, classes=["a", "b"])  # settings apply to what was kept
    assert "values outside 0..1: {2: 6 files}" in notes(other, "VA-D012")[0]


def test_all_faults_at_once(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "masks/train/train0.png").unlink()
    mask(root / "masks/train/train1.png", 1, values=(0, 1, 128, 255))
    mask(root / "masks/train/train2.png", 1, size=(10, 8))
    Image.open(root / "images/train/train3.png").save(root / "masks/val/val1.png")
    mask(root / "masks/train/lonely.png")
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    _, report = look(root)
    assert "images 6   masks 5   pairs ok 4" in report.notes[0].text
    where = refused(report, "VA-D021")
    assert where.index("VA-D021") < where.index("VA-D013") < where.index("VA-D014") < where.index("VA-D012")
    assert "1 image has no mask: images/train/train0.png" in where
    assert "image 20x16, mask 10x8 (ratio 2)" in where and "data.mask_resize=nearest" in where
    assert "values outside 0..2: {128: 1 file, 255: 1 file}" in where
    assert '255 in 1 file looks like an ignore label  -> "data.map={128: 255}" data.ignore_index=255' in where
    assert "128 in 1 file has no class (255 ignores it)" in where
    assert notes(report, "VA-D021")[1].startswith("warning: 1 masks have no image")
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


def test_d012_of_binary_masks_and_of_classes_from_one(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    for path in (root / "masks").rglob("*.png"):
        mask(path, values=(0, 255))
    _, report = look(root, classes=["background", "crack"])
    asked = notes(report, "VA-D012")[0]
    assert '255 in 6 files: the class "crack", or pixels without a label?' in asked
    assert 'if it is "crack"  -> "data.map={255: 1}"' in asked and "no label  -> data.ignore_index=255" in asked
    refused(report, "VA-D012")
    _, report = look(root, classes=["background", "crack"], map={255: 1})
    assert notes(report, "VA-D012") == [] and notes(report, "VA-D004") == []
    _, report = look(root, classes=["background", "crack"], ignore_index=255)
    missing = notes(report, "VA-D004")
    assert re.fullmatch(
        r"warning: train has no pixels of 1 class \(crack\): it cannot be learned; \d\d.\d % of the pixels are ignored", missing[0]
    )
    _, report = look(root, classes=["crack", "spall"], reduce_zero_label=True)
    assert "VA-D004  all pixels of train are ignored: no class is left" in refused(report, "VA-D004")
    for path in (root / "masks").rglob("*.png"):
        mask(path, values=(0, 128, 200))
    _, report = look(root)
    assert '128 in 6 files has no class (perhaps "crack")' in notes(report, "VA-D012")[0]
    assert notes(report, "VA-D012")[0].endswith('-> "data.map={128: 1, 200: 2}"')
    for path in (root / "masks").rglob("*.png"):
        mask(path, values=(1, 2, 3))
    _, report = look(root)
    assert '-> "data.map={1: 0, 2: 1, 3: 2}"' in notes(report, "VA-D012")[0]
    _, report = look(root, classes=["crack", "spall", "hole"])
    assert "data.reduce_zero_label=true" in notes(report, "VA-D012")[0]


def test_d013_nearest_and_exif(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    small = mask(root / "masks/train/train0.png", size=(10, 8))
    data, report = look(root, mask_resize="nearest")
    assert accepted(report)
    assert notes(report, "VA-D013")[0].startswith("info: 1 mask with a size different from the image")
    np.testing.assert_array_equal(data.train.label(0, (16, 20)), small.repeat(2, 0).repeat(2, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/train/train1.png").save(root / "images/train/train1.png", exif=exif)
    _, report = look(root, mask_resize="error")
    assert "match before the rotation that EXIF asks" in notes(report, "VA-D013")[0]
    Image.open(root / "masks/train/train1.png").save(root / "masks/train/train1.png", exif=exif)
    _, report = look(root, mask_resize="nearest")
    assert notes(report, "VA-D013")[0].startswith("info: 1 mask") and any("turned upright" in text for text in notes(report, ""))


def test_d014_rgb_with_and_without_palette(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(np.array(palette, np.uint8)[np.asarray(Image.open(path))]).save(path)
    _, report = look(root)
    text = refused(report, "VA-D014")
    assert "6 masks in RGB, 3 colours" in text and "data.palette=[" in text and "[255,0,0]" in text
    data, report = look(root, palette=palette)
    assert accepted(report)
    expected = np.asarray(Image.open(data.train.mask_paths[0]))
    np.testing.assert_array_equal(np.array(palette, np.uint8)[data.train.label(0, (16, 20))], expected)
    assert data.palette == palette
    _, report = look(root, palette=palette[:2])
    assert "(0, 0, 255) in 6 files is not in the palette" in notes(report, "VA-D012")[0]
    done = convert_masks(root, palette=palette)
    assert (
        load(root, images="images/{split}", masks=f"{done.out}/masks/{{split}}").train.label(0, (16, 20)).tolist()
        == data.train.label(0, (16, 20)).tolist()
    )


def test_d017_jpeg_masks(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    array = np.asarray(Image.open(root / "masks/train/train0.png")) * 127
    (root / "masks/train/train0.png").unlink()
    Image.fromarray(array).save(root / "masks/train/train0.jpg")
    _, report = look(root)
    text = refused(report, "VA-D017")
    assert "1 mask JPEG" in text and "distinct values in one" in text and notes(report, "VA-D012") == []
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(root / "masks/train/train0.jpg")
    _, report = look(root)
    assert notes(report, "VA-D017")[0].startswith("warning: ")
    assert accepted(report)


def test_d004_d006_d019_and_images(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    for path in (root / "masks/train").iterdir():
        array = np.zeros((16, 20), np.uint8)
        array[0, 0] = 1
        Image.fromarray(array).save(path)
    mask(root / "masks/val/val0.png", values=(0, 2))
    mask(root / "masks/val/val1.png", values=(0, 2))
    (root / "images/val/val0.png").write_bytes((root / "images/train/train0.png").read_bytes())
    Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20)).save(root / "images/train/train1.png")
    _, report = look(root)
    assert notes(report, "VA-D004") == [
        "warning: train has no pixels of 1 class (spall): it cannot be learned",
        'warning: val has no pixels of 1 class (crack): its IoU will be "n/a"',
    ]
    assert notes(report, "VA-D019")[0].startswith("warning: 1 class below 0.5 % of the pixels in train: crack 0.31 %")
    assert "1 image appears in both train and val" in notes(report, "VA-D006")[0]
    assert notes(report, "VA-D015") and any("1 of 6 images are grey" in text for text in notes(report, ""))
    assert accepted(report)


def test_damaged_files_are_left_out(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "masks/train/train0.png").write_bytes((root / "masks/train/train0.png").read_bytes()[:60])
    (root / "images/train/train1.png").write_bytes(b"")
    data, report = look(root)
    assert set(report.unreadable) == {"images/train/train0.png", "images/train/train1.png"}
    assert notes(report, "VA-D010")[0].startswith("warning: masks/train/train0.png cannot be decoded")
    assert exclude_unreadable(data, report, settings(root)).train.ids == ["images/train/train2.png", "images/train/train3.png"]
    _, report = look(root, max_bytes=1500)
    text = refused(report, "VA-D020")  # images and masks, all of them
    files = {name for part in data.sets for name in (*part.ids, *part.mask_ids)}
    assert set(report.too_large) == files - {"images/train/train1.png", "masks/train/train0.png"}
    assert all(name in text for name in report.too_large) and "data.max_bytes" in text


def indexed(path: Path, array: np.ndarray, palette: list[tuple[int, int, int]]) -> None:
    """A file with a palette, whatever its order of colours."""
    image = Image.fromarray(array.astype(np.uint8))
    image.putpalette([part for colour in palette for part in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_d014_palettes_that_differ(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    black, red, blue = (0, 0, 0), (255, 0, 0), (0, 0, 255)
    classes = np.random.default_rng(0).integers(0, 3, (16, 20))
    for path in (root / "masks").rglob("*.png"):
        indexed(path, classes, [black, red, blue])
    _, report = look(root)
    assert accepted(report)
    swapped = np.array([0, 2, 1])[classes]
    indexed(root / "masks/val/val1.png", swapped, [black, blue, red])
    data, report = look(root)
    text = refused(report, "VA-D014")
    assert "in 1 file from those before: 1 is (255, 0, 0) in masks/train/train0.png, (0, 0, 255) in masks/val/val1.png" in text
    assert f"visionattn data masks convert {root} --in-place --palette FILE" in text and look(root)[1] == report, "also from the cache"
    done = convert_masks(root, palette=[black, red, blue])
    again = load(root, images="images/{split}", masks=f"{done.out}/masks/{{split}}")
    np.testing.assert_array_equal(again.val.label(1, (16, 20)), classes)
    assert (data.val.label(1, (16, 20)) != classes).any()


def test_gif_masks_are_read_by_colour(tmp_path: Path) -> None:
    """An encoder of GIF keeps the colours that a picture has, and numbers them anew."""
    root = pairs(tmp_path / "d")
    for path in (root / "masks").rglob("*.png"):
        array = np.zeros((16, 20), np.uint8)
        array[4:8] = 2
        array[9:12] = 1 if path.stem.endswith("0") else 0
        Image.fromarray(array).save(path.with_suffix(".gif"))
        path.unlink()
    data, report = look(root)
    assert accepted(report) and report.counts["val"] == {"background": 16 * 40 - 60 - 160, "crack": 60, "spall": 160}
    colours = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    for path in (root / "masks").rglob("*.gif"):
        indexed(path, np.full((16, 20), 1), [(9, 9, 9), colours[2]])
    data, report = look(root, palette=colours)
    assert accepted(report) and set(data.train.label(0, (16, 20)).ravel()) == {2}


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    with pytest.raises(UserError, match=r"data\.classes names crack more than once") as caught:
        load(root, classes=["background", "crack", "crack"])
    assert caught.value.code == "VA-C002"
    (root / "classes.txt").write_text("0 crack\n1 ground\n2 crack\n")
    with pytest.raises(UserError, match="more than once"):
        load(root, classes="auto")


@pytest.mark.parametrize("classes", [10**12, ["x" * 3000, "y"]])
def test_classes_without_measure(tmp_path: Path, classes: object) -> None:
    with pytest.raises(UserError) as caught:
        load(pairs(tmp_path / "d"), classes=classes)
    assert caught.value.code == "VA-C002" and len(caught.value.block()) < 300


def test_a_list_of_classes_without_measure(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "classes.txt").write_text("1 " * 100_000)
    with pytest.raises(UserError, match="a line of more than 300 characters"):
        load(root, classes="auto")


def test_headers_of_masks_tell_size_and_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pairs(tmp_path / "d")
    mask(root / "masks/train/train0.png", size=(10, 8))
    mask(root / "masks/train/train1.png", values=(0, 77))
    picture(root / "masks/train/train2.png", 1)
    (root / "masks/val/val0.png").write_bytes(b"")
    monkeypatch.setattr("visionattn.data.masks.check.read_mask", None)
    data, report = look(root, check="headers")
    assert "image 20x16, mask 10x8 (ratio 2)" in notes(report, "VA-D013")[0] and "1 mask in RGB, and no" in notes(report, "VA-D014")[0]
    assert (
        notes(report, "VA-D012") == [] and report.counts == {"train": {}, "val": {}} and set(report.unreadable) == {"images/val/val0.png"}
    )
    assert {row.hash16 for row in mask_manifest(data, report.hashes)} == {""}
    (root / "masks/train/train3.png").unlink()
    monkeypatch.setattr("visionattn.data.masks.check.mask_header", None)
    _, report = look(root, check="none")
    assert report.notes[0].text == "images 6   masks 5" and "1 image has no mask" in refused(report, "VA-D021")

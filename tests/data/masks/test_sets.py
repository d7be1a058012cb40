"""Layouts of images with masks, and how values of masks become labels."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.masks.pairs import NAMES, load, mask, pairs, picture, settings
from visionattn.data.masks.check import check_masks
from visionattn.data.masks.palettes import default_palette, mask_png, read_classes
from visionattn.data.masks.sets import load_mask_split
from visionattn.data.masks.settings import IGNORE
from visionattn.data.readers import read_mask
from visionattn.errors import UserError

CAMVID = Path(__file__).parents[4] / "shared/data/camvid/camvid.zip"

# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images/{}", "masks/{}"), ("{}/images", "{}/masks"), ("images/{}", "annotations/{}"), ("in/images/{}", "in/masks/{}")],
)
def test_pairs_in_folders(tmp_path: Path, images: str, masks: str) -> None:
    data = load(pairs(tmp_path / "d", images, masks, ("train", "val", "test")))
    assert [len(part) for part in data.sets] == [4, 2, 1] and data.classes == NAMES and data.without_mask == []
    for part in data.sets:
        for index, path in enumerate(part.mask_paths):
            np.testing.assert_array_equal(part.label(index, (16, 20)), np.asarray(Image.open(path)))
            assert Path(path).stem == Path(part.ids[index]).stem


def test_other_folders_and_suffix(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "d/photos" / split / "a/x.jpg", 1)
        mask(tmp_path / "d/truth" / split / "a/x_mask.png")
    data = load(tmp_path / "d", images="photos/{split}", masks="truth/{split}", mask_suffix="_mask.png")
    assert data.train.mask_ids == ["truth/train/a/x_mask.png"]
    with pytest.raises(UserError, match=r"data.mask_suffix=_mask.png") as caught:
        load(tmp_path / "d", images="photos/{split}", masks="truth/{split}")
    assert caught.value.code == "VA-D021"


def test_flat_folders(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "images", "masks")
    with pytest.raises(UserError) as caught:
        load(root)
    assert caught.value.code == "VA-D003"
    data = load(root, val_fraction=0.34)
    assert sorted(data.train.ids + data.val.ids) == sorted(f"images/{p.name}" for p in (root / "images").iterdir()) and len(data.val) == 2
    assert load(root, val_fraction=0.34).val.ids == data.val.ids
    assert load_mask_split(settings(root, val_fraction=0.34), "val", NAMES, 3).ids == data.val.ids
    (root / "split.csv").write_text("image,split\n" + "".join(f"{p.name},{p.name[:-5]}\n" for p in (root / "images").iterdir()))
    assert [len(part) for part in load(root).sets] == [4, 2]


@pytest.mark.parametrize("files", [1, 2])
def test_csv(tmp_path: Path, files: int) -> None:
    root = pairs(tmp_path / "d", "x/{}", "y/{}")
    rows = [[f"x/{s}/{s}{i}.png", f"y/{s}/{s}{i}.png", s] for s, n in (("train", 4), ("val", 2)) for i in range(n)]
    if files == 1:
        csv.writer((root / "all.csv").open("w", newline="")).writerows([["image", "mask", "split"], *rows])
        data = load(root / "all.csv")
    else:
        for split in ("train", "val"):
            listed = [["image", "mask"], *(row[:2] for row in rows if row[2] == split)]
            csv.writer((root / f"{split}.csv").open("w", newline="")).writerows(listed)
        data = load(root)
    assert [len(part) for part in data.sets] == [4, 2] and data.train.mask_ids[1] == "y/train/train1.png"


def test_ade20k(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        picture(tmp_path / "ade/images" / split / "1.jpg", 0)
        mask(tmp_path / "ade/annotations" / split / "1.png", values=(0, 1, 150))
    data = load(tmp_path / "ade", classes="auto")
    assert len(data.classes) == 150 and data.classes[0] == "wall" and data.palette[0] == (120, 120, 120)
    assert set(np.unique(data.train.label(0, (16, 20)))) == {0, 149, IGNORE}


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, ending: str) -> None:
    stored = (7, 33, 0, 8) if ending == "labelIds" else (0, 18, 255, 1)
    for split in ("train", "val"):
        picture(tmp_path / "city/leftImg8bit" / split / "ulm/u_1_leftImg8bit.png", 0)
        mask(tmp_path / "city/gtFine" / split / f"ulm/u_1_gtFine_{ending}.png", values=stored)
        mask(tmp_path / "city/gtFine" / split / "ulm/u_1_gtFine_instanceIds.png", values=(9,))
    data = load(tmp_path / "city", classes="auto")
    assert len(data.classes) == 19 and (data.classes[0], data.classes[18]) == ("road", "bicycle")
    label = data.train.label(0, (16, 20))
    raw = read_mask(Path(data.train.mask_paths[0]), max_bytes=10**8).values
    for value, expected in zip(stored, (0, 18, IGNORE, 1), strict=True):
        assert (label[raw == value] == expected).all()


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    for number in range(3):
        picture(root / f"JPEGImages/{number}.jpg", number)
    for number in range(2):
        array = mask(root / f"SegmentationClass/{number}.png", values=(0, 20, 255))
        (root / f"SegmentationClass/{number}.png").write_bytes(mask_png(array, default_palette(21)))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("1\n")
    data = load(tmp_path / "VOCdevkit", classes="auto")
    assert [len(part) for part in data.sets] == [1, 1] and data.classes[20] == "tvmonitor" and data.palette == default_palette(21)
    assert set(np.unique(data.train.label(0, (16, 20)))) == {0, 20, IGNORE}


def test_camvid_of_segnet(tmp_path: Path) -> None:
    data = load(pairs(tmp_path / "CamVid", "{}", "{}annot"), classes="auto")
    assert len(data.classes) == 11 and [len(part) for part in data.sets] == [4, 2]


@pytest.mark.skipif(not CAMVID.is_file(), reason="the CamVid archive is not there")
def test_the_camvid_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(CAMVID) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        chosen = [name for split in ("train", "val", "test") for name in sorted(n for n in names if f"masks/{split}/" in n)[:3]]
        stems = {Path(name).stem for name in chosen}
        archive.extractall(tmp_path, [name for name in names if Path(name).stem in stems or name.endswith(".txt")])
    data = load(tmp_path, classes="auto")
    report = check_masks(data, settings(tmp_path, classes="auto"), cache_dir=tmp_path.parent / "cache")
    assert len(data.classes) == 11 and data.classes[3] == "Road" and data.palette[3] == (128, 64, 128)
    assert [len(part) for part in data.sets] == [3, 3, 3] and not [note for note in report.notes if note.level == "error"]
    label = data.train.label(0, (360, 480))
    stored = np.asarray(Image.open(data.train.mask_paths[0]))
    np.testing.assert_array_equal(label, np.where(stored == 11, IGNORE, stored))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path / "nothing")
    assert caught.value.code == "VA-D001"
    picture(tmp_path / "d/cats/1.png", 0)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "d")
    assert caught.value.code == "VA-D002" and "ROOT/images/train" in caught.value.why


# ---------------------------------------------------------------- classes and labels


def test_classes(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    assert load(root, classes=3).classes == ["0", "1", "2"]
    with pytest.raises(UserError, match="values 0, 1, 2"):
        load(root, classes="auto")
    (root / "classes.txt").write_text("0 the ground 1 2 3\n1 void 0 0 0\n2 deep crack 9 8 7\n")
    data = load(root, classes="auto")
    assert data.classes == ["the ground", "deep crack"] and data.palette == [(1, 2, 3), (9, 8, 7)]
    assert dict(data.train.rule.numbers) == {0: 0, 1: IGNORE, 2: 1}
    assert load(root, classes="auto", ignore_index="none").classes == ["the ground", "void", "deep crack"]
    (root / "classes.txt").write_text("ground\ndeep crack\nspall\n")
    assert load(root, classes="auto").classes == ["ground", "deep crack", "spall"]
    assert [entry.name for entry in read_classes("voc")][:2] == ["background", "aeroplane"]
    with pytest.raises(UserError, match="not a class"):
        load(root, map={7: 9})


def test_values_become_labels(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    path = root / "masks/train/train0.png"
    mask(path, values=(0, 1, 2, 128, 255))
    raw = np.asarray(Image.open(path))
    label = load(root, ignore_index=255, map={128: 1}).train.label(0, (16, 20))
    np.testing.assert_array_equal(label, np.where(raw == 128, 1, raw))
    mask(path, values=(0, 1, 2, 3))
    raw = np.asarray(Image.open(path))
    label = load(root, classes=["a", "b", "c"], reduce_zero_label=True).train.label(0, (16, 20))
    np.testing.assert_array_equal(label, np.where(raw == 0, IGNORE, raw - 1))
    with pytest.raises(UserError, match="background"):
        load(root, reduce_zero_label=True)

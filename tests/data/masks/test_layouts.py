"""Layouts of images with masks, recognised by the names of folders and files; what is not certain is asked about."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import done
from tests.data.images import folders
from tests.data.masks.annotated import FORMATS, yolo
from tests.data.masks.pairs import NAMES, load, mask, pairs, picture, settings
from visionattn.data.masks.convert import convert_command, convert_masks
from visionattn.data.masks.layouts import find_mask_layout, read_pairs, suggest_folders
from visionattn.data.masks.settings import IGNORE, MaskDataConfig
from visionattn.errors import UserError
from visionattn.tasks import TASKS, guess_task, load_config


def beside(root: Path, suffix: str = "_mask.png", folder: str = "{}") -> Path:
    """Images with their masks in one folder."""
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            place = root / folder.format(split)
            picture(place / f"{split} ({number}).png", number + 10 * count)
            mask(place / f"{split} ({number}){suffix}", number)
    return root


FOLDERS = {
    "{}/image": "{}/mask",
    "img/{}": "gt/{}",
    "imgs/{}": "labels/{}",
    "Images/{}": "GroundTruth/{}",
    "{}/images": "{}/annotation",
}


@pytest.mark.parametrize(("images", "masks"), FOLDERS.items())
def test_names_of_folders(tmp_path: Path, images: str, masks: str) -> None:
    root = pairs(tmp_path / "d", images, masks)
    assert guess_task(root) == "segment" and [len(part) for part in load(root).sets] == [4, 2]
    assert load(root).train.mask_ids[0] == f"{masks.format('train')}/train0.png"


def test_flat_folders_in_the_singular(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "image", "label")
    assert guess_task(root) == "segment" and len(load(root, val_fraction=0.34).val) == 2


def test_of_two_folders_of_masks_the_one_with_images_is_meant(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/train0.txt").write_text("0 0.5 0.5 1 1")
    assert load(root).train.mask_ids[0].startswith("masks/")
    mask(root / "labels/train/train0.png")
    with pytest.raises(UserError, match="VA-D002") as caught:
        load(root)
    assert "data.images=" in caught.value.why


@pytest.mark.parametrize("suffix", ["_mask.png", "_segmentation.png", "_GT.png"])
def test_masks_beside_their_images(tmp_path: Path, suffix: str) -> None:
    root = beside(tmp_path / "d", suffix)
    assert guess_task(root) == "segment"
    data = load(root)
    assert [len(part) for part in data.sets] == [4, 2] and data.without_mask == []
    assert data.train.mask_ids[0] == f"train/train (0){suffix}"
    given = load(root, images="{split}", masks="{split}", mask_suffix=suffix)
    assert given.train.ids == data.train.ids


def test_masks_beside_their_images_in_folders_of_classes(tmp_path: Path) -> None:
    root = beside(tmp_path / "d", folder="benign")
    beside(tmp_path / "d", folder="malignant")
    assert guess_task(root) == "segment" and len(load(root, val_fraction=0.5).train) == 6


@pytest.mark.parametrize(
    ("images", "masks"),
    [("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"), ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth")],
)
def test_isic(tmp_path: Path, images: str, masks: str) -> None:
    for split, count in (("Training", 3), ("Validation", 2)):
        for number in range(count):
            picture(tmp_path / f"d/{images.format(split)}/ISIC_{number}.jpg", number)
            mask(tmp_path / f"d/{masks.format(split)}/ISIC_{number}_segmentation.png", number)
        picture(tmp_path / f"d/{images.format(split)}/ISIC_0_superpixels.png", 0)
    assert guess_task(tmp_path / "d") == "segment"
    data = load(tmp_path / "d")
    assert [len(part) for part in data.sets] == [3, 2] and data.val.mask_ids[1].endswith("GroundTruth/ISIC_1_segmentation.png")


def test_one_folder_for_both_needs_a_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the same folder"):
        load(pairs(tmp_path / "d", "{}", "{}"), images="{split}", masks="{split}")


@pytest.mark.parametrize("folder", ["{brace}/images", "{split}{/images", "a{0}/images"])
def test_other_braces_in_a_folder(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match="VA-D002"):
        load(pairs(tmp_path / "d"), images=folder, masks="masks/{split}")


# ---------------------------------------------------------------- taken for classes


def test_two_folders_of_one_kind_of_names_are_asked_about(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "{}/left", "{}/right")
    with pytest.raises(UserError, match='The folders "left" and "right" have files of the same names') as caught:
        folders.load(root)
    assert caught.value.code == "VA-D002" and "data.images={split}/left data.masks={split}/right" in caught.value.fix
    assert folders.load(root, format="folders").classes == ["left", "right"]


def test_photographs_of_two_classes_may_have_the_same_names(tmp_path: Path) -> None:
    assert folders.load(folders.folders(tmp_path, {"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1}})).classes == ["a", "b"]


def test_masks_beside_images_are_no_class(tmp_path: Path) -> None:
    root = beside(tmp_path / "d", folder="{}/benign")
    beside(root, folder="{}/malignant")
    with pytest.raises(UserError, match="masks beside images") as caught:
        folders.load(root)
    assert "data.mask_suffix=_mask.png" in caught.value.fix
    exclude = load_config(None, [caught.value.fix.splitlines()[1].split('"')[1]]).data.exclude
    data = folders.load(root, exclude=exclude)
    assert len(data.train) == 8 and data.classes == ["benign", "malignant"]


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "expected"),
    [
        ("img_dir/{}", "ann_dir/{}", "", "data.images=img_dir/{split} data.masks=ann_dir/{split}"),
        ("{}/rgb", "{}/a_truth", "", "data.images={split}/rgb data.masks={split}/a_truth"),
        ("z_{}", "a_{}", "", "data.images=z_{split} data.masks=a_{split}"),
        ("{}_photos", "{}_labels", "", "data.images={split}_photos data.masks={split}_labels"),
        ("my photos", "a", "_gt.png", "'data.images=my photos' data.masks=a data.mask_suffix=_gt.png"),
    ],
)
def test_folders_of_other_names_are_suggested_the_right_way_round(
    tmp_path: Path, images: str, masks: str, suffix: str, expected: str
) -> None:
    root = pairs(tmp_path / "d", images, masks)
    if suffix:
        for path in (root / masks).iterdir():
            path.rename(path.with_name(path.stem + suffix))
    found = suggest_folders(settings(root), root)
    assert found == expected
    given = dict(word.removeprefix("data.").split("=") for word in shlex.split(found))
    assert load(root, val_fraction=None if "split" in found else 0.5, **given).without_mask == []


def test_folders_without_masks_are_not_suggested(tmp_path: Path) -> None:
    """As Roboflow exports boxes, and as some export two cameras."""
    for split in ("train", "valid"):
        picture(tmp_path / f"boxes/{split}/a.jpg", 0)
        (tmp_path / f"boxes/{split}/_annotations.coco.json").write_text("{}")
        for number, camera in enumerate(("left", "right")):
            picture(tmp_path / f"cameras/{camera}/{split}/a.jpg", number)
    for name in ("boxes", "cameras"):
        assert suggest_folders(settings(tmp_path / name), tmp_path / name) == ""
        with pytest.raises(UserError, match="VA-D002") as caught:
            load(tmp_path / name)
        assert caught.value.fix == "arrange the files in one of these layouts"


# ---------------------------------------------------------------- lists


def split_csv(root: Path, rows: str) -> None:
    (root / "split.csv").write_text(f"image,split\n{rows}")


def test_split_csv_names_whole_paths(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for site, count in (("a", 3), ("b", 2)):
        for number in range(count):
            picture(root / f"images/{site}/{number}.png", number)
            mask(root / f"masks/{site}/{number}.png", number)
    split_csv(root, "".join(f"a/{n}.png,train\n" for n in range(3)) + "b/0.png,val\nimages/b/1.png,val\n")
    data = load(root)
    assert data.train.ids == [f"images/a/{n}.png" for n in range(3)] and data.val.ids == ["images/b/0.png", "images/b/1.png"]
    split_csv(root, "0.png,train\n2.png,val\n")
    with pytest.raises(UserError, match="fit more than one image"):
        load(root)
    split_csv(root, "a/0.png,train\na/9.png,val\n")
    with pytest.raises(UserError, match=r"1 of 2 images listed in split\.csv do not exist"):
        load(root)
    split_csv(root, "a/0.png,train\na/0.png,val\n")
    with pytest.raises(UserError, match="VA-D012"):
        load(root)


def test_names_with_spaces_in_the_lists_of_voc(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for number, name in enumerate(("a", "weed (3)", "b")):
        picture(root / f"JPEGImages/{name}.jpg", number)
        mask(root / f"SegmentationClass/{name}.png", number)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nweed (3)\n")
    (lists / "val.txt").write_text("b\n")
    assert load(root).train.ids == ["JPEGImages/a.jpg", "JPEGImages/weed (3).jpg"]
    (lists / "val.txt").write_text("b\nweed (4)\n")
    with pytest.raises(UserError, match=r"1 of 2 images listed in val\.txt do not exist") as caught:
        load(root)
    assert "weed (4)" in caught.value.where


def test_pairs_that_contradict_each_other(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "x/{}", "y/{}")
    (root / "all.csv").write_text("image;mask\nx/train/train0.png;y/train/train0.png\nx/train/../train/train0.png;y/train/train1.png\n")
    with pytest.raises(UserError, match="another mask for an image that is listed already"):
        load(root / "all.csv")


# ---------------------------------------------------------------- mmsegmentation and nnU-Net


def test_mmsegmentation(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "img_dir/{}", "ann_dir/{}")
    assert guess_task(root) == "segment" and [len(part) for part in load(root).sets] == [4, 2]
    assert load(root).train.mask_ids[0] == "ann_dir/train/train0.png"


def nnunet(root: Path, ending: str = ".png", **contents: object) -> Path:
    for number in range(5):
        picture(root / f"imagesTr/case_{number:03d}_0000{ending}", number)
        mask(root / f"labelsTr/case_{number:03d}{ending}", number)
    for number in range(2):
        picture(root / f"imagesTs/case_{number + 5:03d}_0000{ending}", number + 5)
    labels = {"background": 0, "crack": 1, "ignore": 2}
    known = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": labels, "numTraining": 5, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(known | contents))
    return root


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_nnunet(tmp_path: Path, ending: str) -> None:
    root = nnunet(tmp_path / "Dataset120_Cracks", ending)
    assert guess_task(root) == "segment"
    with pytest.raises(UserError, match="VA-D003"):
        load(root, classes="auto")
    data = load(root, classes="auto", val_fraction=0.4)
    assert data.classes == ["background", "crack"] and [len(part) for part in data.sets] == [3, 2] and data.without_mask == []
    stored = np.asarray(Image.open(data.train.mask_paths[0]))
    assert (data.train.label(0, (16, 20)) == np.where(stored == 2, IGNORE, stored)).all()
    assert any("test has no masks" in note.text for note in data.notes)
    for number in range(2):
        mask(root / f"labelsTs/case_{number + 5:03d}{ending}", number)
    assert [part.name for part in load(root, classes="auto", val_fraction=0.4).sets] == ["train", "val", "test"]
    assert load(root, classes=NAMES, val_fraction=0.4).classes == NAMES


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"file_ending": ".nii.gz"}, "NIfTI"),
        ({"file_ending": None}, "files end in None"),
        ({"labels": {"background": 0, "tumour": [1, 2]}}, "regions"),
        ({"labels": {"0": "background", "1": "crack"}}, "nnU-Net 1"),
        ({"labels": {"background": 0, "crack": 0}}, "same value"),
    ],
)
def test_nnunet_that_is_not_read(tmp_path: Path, contents: dict[str, object], message: str) -> None:
    root = nnunet(tmp_path / "d", **contents)
    with pytest.raises(UserError, match=message) as caught:
        load(root, classes="auto", val_fraction=0.4)
    assert caught.value.code == "VA-D002" and caught.value.fix


def test_nnunet_with_other_files(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "d")
    picture(root / "imagesTr/case_001_0001.png", 1)
    with pytest.raises(UserError, match="cases have different channels: imagesTr/case_000 has 0000"):
        load(root, classes="auto", val_fraction=0.4)
    (root / "imagesTr/case_001_0001.png").rename(root / "imagesTr/case_001.png")
    with pytest.raises(UserError, match="1 file not named as nnU-Net names images"):
        load(root, classes="auto", val_fraction=0.4)
    for text, message in (("{", "cannot be read"), ("[" * 100_000, "cannot be read"), ("[]", "files end in None")):
        (root / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load(root, classes="auto", val_fraction=0.4)
    (root / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"without dataset\.json"):
        load(root, classes="auto", val_fraction=0.4)


# ---------------------------------------------------------------- advice and conversion


@pytest.mark.parametrize("name", FORMATS)
def test_annotations_are_named_in_errors(tmp_path: Path, name: str) -> None:
    make, kind = FORMATS[name]
    root = make(tmp_path / "my pets")
    task = TASKS[guess_task(root)]
    with pytest.raises(UserError) as caught:
        task.read_data(task.config(data={"root": str(root)}))
    assert f"data.root contains annotations of {kind}" in caught.value.why
    command = shlex.split(caught.value.fix.splitlines()[0])
    done(*command[1:])
    assert [len(part) for part in load(tmp_path / "my pets-masks", classes="auto", val_fraction=0.34).sets] == [2, 1]


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "x/{}", "y/{}")
    task = TASKS["segment"]
    with pytest.raises(UserError) as caught:
        task.read_data(task.config(data={"root": str(root)}))
    assert "annotations of" not in caught.value.why and "masks from" not in caught.value.fix
    yolo(tmp_path / "pets")
    with pytest.raises(UserError) as caught:
        task.read_data(task.config(data={"root": str(tmp_path / "nothing")}))
    assert caught.value.code == "VA-D001" and "masks from" not in caught.value.fix


def test_advice_carries_the_settings(tmp_path: Path) -> None:
    given = MaskDataConfig(root="my scans", images="img/{split}", masks="gt/{split}", exclude=["x*"])
    words = shlex.split(convert_command(given))
    assert words[:5] == ["visionattn", "data", "masks", "convert", "my scans"]
    assert set(words[5:]) == {"data.images=img/{split}", "data.masks=gt/{split}", 'data.exclude=["x*"]'}
    assert convert_command(MaskDataConfig(root="d")) == "visionattn data masks convert d"


def test_conversion_never_touches_an_image(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "photos/{}", "truth/{}")
    grey = np.random.default_rng(0).integers(0, 256, (16, 20), dtype=np.uint8)
    for path in (root / "photos").rglob("*.png"):
        Image.fromarray(grey).save(path)
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    with pytest.raises(UserError, match="does not look like a mask") as caught:
        convert_masks(root, map={1: 2}, in_place=True)
    assert "data.images=photos/{split} data.masks=truth/{split}" in caught.value.fix
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before
    given = settings(root, images="photos/{split}", masks="truth/{split}")
    assert convert_masks(root, map={1: 2}, in_place=True, settings=given).files == 6
    assert {path for path in before if path.read_bytes() != before[path]} == set((root / "truth").rglob("*.png"))


def test_a_loop_of_links_in_the_folder_of_images(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "images/train/self").symlink_to(".")
    (root / "images/train/up").symlink_to("..")
    layout = find_mask_layout(settings(root))
    found = read_pairs(layout, settings(root))
    assert len(found.parts["train"]) == 4 and any("already left out" in note.text for note in found.notes)
    assert load(root).classes == NAMES

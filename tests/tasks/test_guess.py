"""The task that the names in a folder tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from visionattn.cli.options import with_task
from visionattn.errors import UserError
from visionattn.tasks import guess_task, load_config


@pytest.mark.parametrize(
    ("folders", "task"),
    [
        (["train/rose", "val/rose"], "classify"),
        (["rose", "daisy"], "classify"),
        (["images/train", "masks/train"], "segment"),
        (["images", "masks"], "segment"),
        (["images/training", "annotations/training"], "segment"),
        (["img_dir/train", "ann_dir/train"], "segment"),
        (["imagesTr", "labelsTr", "imagesTs"], "segment"),
        (["leftImg8bit/train", "gtFine/train"], "segment"),
        (["JPEGImages", "SegmentationClass", "Annotations"], "segment"),
        (["train", "trainannot", "val", "valannot"], "segment"),
        (["train/images", "train/masks", "val/images", "val/masks"], "segment"),
        (["unpacked/images", "unpacked/masks", "__MACOSX"], "segment"),
        (["train/masks", "train/no_masks", "val/masks"], "classify"),
        (["train/images", "train/masks", "train/faces"], "classify"),
        ([], "classify"),
    ],
)
def test_folders(tmp_path: Path, folders: list[str], task: str) -> None:
    for folder in folders:
        (tmp_path / "data" / folder).mkdir(parents=True)
    assert guess_task(tmp_path / "data") == task


@pytest.mark.parametrize(
    ("files", "task"),
    [
        (["s1.h5", "labels.csv"], "bags"),
        (["train/s1.pt", "val/s2.pt"], "bags"),
        (["tumour/slide1/0_256.png", "normal/slide2/0_0.png"], "bags"),
        (["train/tumour/slide1/5_261.png", "train/tumour/slide1/261_5.png"], "bags"),
        (["train/rose/1.png", "val/rose/1_2.png"], "classify"),
        (["train/rose/blood_00001_02.png", "val/rose/blood_00006_01.png"], "classify"),
        (["rose/red/IMG_20260101_123456.png", "rose/red/IMG_20260102_101502.png"], "classify"),
        (["rose/red/1.png", "rose/1.png"], "classify"),
    ],
)
def test_files(tmp_path: Path, files: list[str], task: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert guess_task(tmp_path) == task


@pytest.mark.parametrize(("header", "task"), [("path,label", "classify"), ("image, mask ,split", "segment"), ("image,label", "classify")])
def test_lists(tmp_path: Path, header: str, task: str) -> None:
    (tmp_path / "train.csv").write_text(f"{header}\na,b\n")
    assert guess_task(tmp_path) == guess_task(tmp_path / "train.csv") == task


def test_a_named_task_is_kept_and_torch_is_not_loaded(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    assert with_task(str(tmp_path), ["seed=1"]) == ["task=segment", "seed=1"]
    assert with_task(str(tmp_path), ["task=classify"]) == ["task=classify"]
    code = "import sys; from visionattn.tasks import guess_task; guess_task('.'); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_task_of_a_config_follows_from_its_keys(tmp_path: Path) -> None:
    assert load_config(None, ["data.images={split}/a", "data.masks={split}/b"]).task == "segment"
    assert load_config(None, ["data.multi_label=true"]).task == "classify" == load_config(None, ["train.epochs=2"]).task
    assert with_task(str(tmp_path), ["data.images=a"]) == ["data.images=a"], "no layout is recognised"
    (tmp_path / "my.yaml").write_text("model: {head: {name: fcn}}\n")
    assert load_config(tmp_path / "my.yaml").task == "segment"
    with pytest.raises(UserError, match=r"unknown key\. Did you mean data\.images"):
        load_config(None, ["data.imges=a", "data.masks=b"])
    with pytest.raises(UserError, match="belongs to task segment, and this is task classify"):
        load_config(None, ["task=classify", "data.masks=b"])

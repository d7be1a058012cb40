"""Layouts of labelled images: what is read of them, and what is said of those that cannot be."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from tests.data.images.folders import flowers, folders, load, save, save_npz
from visionattn.data.images.labels import load_data, load_split
from visionattn.data.images.layouts import find_layout
from visionattn.data.images.sets import LabelledData
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.splits import image_manifest
from visionattn.errors import UserError


def refused(code: str, exit_code: int, root: Path | str, **settings: object) -> UserError:
    """The error of loading; checks that nothing was written."""
    watched = Path(root) if root else Path("nothing")
    before = sorted(watched.rglob("*"))
    with pytest.raises(UserError) as caught:
        load(root, **settings)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert sorted(watched.rglob("*")) == before
    return caught.value


def texts(data: LabelledData, code: str) -> list[str]:
    return [f"{note.level}: {note.text}" for note in data.notes if note.code == code]


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


# ---------------------------------------------------------------- folders


def test_folders_with_splits(tmp_path: Path) -> None:
    data = load(flowers(tmp_path / "flowers"))
    assert data.name == "flowers" and data.classes == ["rose", "tulip"] and data.notes == []
    assert [len(part) for part in data.sets] == [10, 5, 2]
    assert data.train.labels.tolist() == [0] * 6 + [1] * 4 and data.train.labels.dtype == np.int64
    assert data.val.ids == ["val/rose/0.png", "val/rose/1.png", "val/tulip/0.png", "val/tulip/1.png", "val/tulip/2.png"]
    expected = np.asarray(Image.open(tmp_path / "flowers/val/tulip/1.png"))
    np.testing.assert_array_equal(data.val.images.read(3), expected)
    assert load(tmp_path / "flowers", in_chans=1).train.images.read(0).shape == (8, 10, 1)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_validation_split(name: str, tmp_path: Path) -> None:
    data = load(folders(tmp_path, {"train": {"a": 2, "b": 2}, name: {"a": 1, "b": 1}}))
    assert len(data.val) == 2 and data.val.name == "val" and data.test is None


def test_own_names_of_splits(tmp_path: Path) -> None:
    root = folders(tmp_path, {"fit": {"a": 2, "b": 2}, "tune": {"a": 1, "b": 1}, "final": {"a": 1, "b": 1}})
    error = refused("VA-D002", 3, root)
    assert "data.train=NAME" in error.fix and "tune" in error.fix
    data = load(root, train="fit", val="tune", test="final")
    assert [part.name for part in data.sets] == ["train", "val", "test"]


def test_class_folders_with_val_fraction(tmp_path: Path) -> None:
    root = folders(tmp_path, {"": {"a": 20, "b": 10, "c": 1}})
    data = load(root, val_fraction=0.2)
    assert data.val.class_counts(3) == [4, 2, 0] and data.train.class_counts(3) == [16, 8, 1]
    assert sorted(data.train.ids + data.val.ids) == sorted(load(root, val_fraction=0.5).train.ids + load(root, val_fraction=0.5).val.ids)
    assert not set(data.train.ids) & set(data.val.ids)
    assert load(root, val_fraction=0.2).val.ids == data.val.ids
    assert load(root, val_fraction=0.2, seed=1).val.ids != data.val.ids
    assert any("6 images held out" in note.text for note in data.notes)
    assert texts(data, "VA-D004") == ['warning: val has no images of class "c" (1 in train): its recall will be "n/a"']


def test_nested_class_folders_and_capital_suffixes(tmp_path: Path) -> None:
    save(tmp_path / "train/a/plant1/x.PNG")
    save(tmp_path / "train/a/y.JPEG")
    save(tmp_path / "train/b/z.png")
    save(tmp_path / "val/a/z.png")
    save(tmp_path / "val/b/z.png")
    assert load(tmp_path).train.ids == ["train/a/plant1/x.PNG", "train/a/y.JPEG", "train/b/z.png"]


def test_d001_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flowers(tmp_path / "flowers")
    monkeypatch.chdir(tmp_path)
    error = refused("VA-D001", 3, "flowrs")
    assert error.what == 'data.root "flowrs" not found' and error.fix == 'Did you mean "flowers" (in this folder)?'
    monkeypatch.chdir("/")
    error = refused("VA-D001", 3, tmp_path / "flowrs")
    assert error.fix == f'Did you mean "flowers" (in {tmp_path})?'
    assert "does not exist either" in refused("VA-D001", 3, tmp_path / "x" / "y").where
    assert "data.format=digits" in refused("VA-D001", 3, "").fix


def test_d002_wrong_layout(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"pictures/{index}.png")
    for index in range(12):
        (tmp_path / f"pictures/more{index:02}").mkdir()
    error = refused("VA-D002", 3, tmp_path / "pictures")
    assert "pictures/" in error.where and "more00/ (0 folders, 0 images)" in error.where and "... 7 more" in error.where
    for accepted in ("train/<class>", "ROOT/<class>", "train.csv", ".npz"):
        assert accepted in error.why
    (tmp_path / "empty").mkdir()
    assert "(empty)" in refused("VA-D002", 3, tmp_path / "empty").where
    (tmp_path / "notes.txt").write_text("x")
    refused("VA-D002", 3, tmp_path / "notes.txt")
    (tmp_path / "empty/set.npz").write_bytes(b"x")
    assert refused("VA-D002", 3, tmp_path / "empty").fix == f"data.root={tmp_path / 'empty/set.npz'}"
    save(tmp_path / "flat/train/1.png")
    refused("VA-D002", 3, tmp_path / "flat")
    refused("VA-D002", 3, flowers(tmp_path / "flowers"), format="csv")


def test_an_archive_that_unpacked_into_a_folder_of_its_own(tmp_path: Path) -> None:
    flowers(tmp_path / "unpacked/flowers")
    assert load(tmp_path / "unpacked").train.ids == load(tmp_path / "unpacked/flowers").train.ids
    flowers(tmp_path / "unpacked/more")
    refused("VA-D002", 3, tmp_path / "unpacked")  # which one is not ours to choose


def test_d003_no_validation_split(tmp_path: Path) -> None:
    for root in (folders(tmp_path / "x", {"": {"a": 4, "b": 4}}), folders(tmp_path / "y", {"train": {"a": 4, "b": 4}, "test": {"a": 1}})):
        error = refused("VA-D003", 3, root)
        assert error.fix == "visionattn train --val-fraction 0.2 ... (or data.val_fraction=0.2)"
    assert len(load(tmp_path / "y", val_fraction=0.25).val) == 2
    single = folders(tmp_path / "z", {"": {"a": 1, "b": 1}})
    assert "leaves no validation images" in refused("VA-D003", 3, single, val_fraction=0.2).what
    data = load(flowers(tmp_path / "f"), val_fraction=0.5)
    assert len(data.train) == 10 and "not used" in texts(data, "VA-D003")[0]


def test_d004_class_missing_in_a_split(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", {"train": {"daisy": 1, "rose": 1, "tulip": 42}, "val": {"rose": 2}})
    data = load(root)
    assert data.classes == ["daisy", "rose", "tulip"] and data.val.labels.tolist() == [1, 1]  # numbers from train, not from val
    assert 'warning: val has no images of class "tulip" (42 in train): its recall will be "n/a"' in texts(data, "VA-D004")
    folders(root, {"val": {"violet": 3}})
    error = refused("VA-D004", 3, root)
    assert "violet: 3 images" in error.what and "val" in error.what
    (root / "classes.txt").write_text("tulip\nrose\n\nviolet\ndaisy\n")
    data = load(root)
    assert data.classes == ["tulip", "rose", "violet", "daisy"] and sorted(set(data.val.labels.tolist())) == [1, 2]
    assert 'warning: train has no images of class "violet": it cannot be learned' in texts(data, "VA-D004")


def test_d005_empty_class_folder(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 0}})
    data = load(root)
    assert texts(data, "VA-D005") == ['warning: val has an empty folder for class "b"'] and texts(data, "VA-D004") == []
    folders(root, {"train": {"c": 0}})
    assert "c" in refused("VA-D005", 3, root).what


def test_hidden_and_system_names_are_skipped(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    for name in ("train/.ipynb_checkpoints/x.png", "train/rose/._0.png", "__MACOSX/train/x.png", "val/rose/.hidden/x.png"):
        save(root / name)
    (root / "train/rose/Thumbs.db").write_bytes(b"x")
    (root / "train/rose/list.txt").write_text("x")
    save(root / "train/loose.png")
    data = load(root)
    assert data.classes == ["rose", "tulip"] and [len(part) for part in data.sets] == [10, 5, 2]
    skipped, others, loose = (note.text for note in data.notes)
    assert skipped.startswith("5 hidden or system") and "Thumbs.db" in skipped
    assert others.startswith("1 file of other types left out") and loose == "1 image outside the class folders left out"
    assert "draft" not in load(folders(root, {"train": {"draft": 1}}), exclude=["draft", ".*", "__MACOSX", "Thumbs.db"]).classes


def test_data_classes(tmp_path: Path) -> None:
    root = flowers(tmp_path / "f")
    assert load(root, classes=["tulip", "rose"]).train.labels.tolist() == [1] * 6 + [0] * 4
    (tmp_path / "names.txt").write_text("tulip\nrose\n")
    assert load(root, classes=str(tmp_path / "names.txt")).classes == ["tulip", "rose"]
    assert "rose: 6 images" in refused("VA-D012", 3, root, classes=["tulip"]).what
    refused("VA-D001", 3, root, classes=str(tmp_path / "none.txt"))
    refused("VA-C002", 2, root, classes=["rose", "rose", "tulip"])


def test_wrong_settings(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    refused("VA-C002", 2, root, multi_label=True)
    refused("VA-C002", 2, root, range=(5.0, 5.0))
    refused("VA-C002", 2, root, group_by="(")
    refused("VA-C002", 2, root, group_by="patient[0-9]")
    refused("VA-C002", 2, root, format="digits", group_by="x")


# ---------------------------------------------------------------- csv


def test_csv_per_split_and_one_csv(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / f"images/{index}.png", index)
    rows = [[f"images/{index}.png", "10" if index % 2 else "9"] for index in range(6)]
    write_csv(tmp_path / "train.csv", ["path", "label"], rows[:4])
    write_csv(tmp_path / "val.csv", ["path", "label"], rows[4:])
    data = load(tmp_path)
    assert data.classes == ["9", "10"] and data.train.labels.tolist() == [0, 1, 0, 1] and data.val.ids == ["images/4.png", "images/5.png"]
    (tmp_path / "lists").mkdir()
    both = [[label, "val" if index > 3 else "train", "../" + name] for index, (name, label) in enumerate(rows)]
    write_csv(tmp_path / "lists/all.csv", ["label", "split", "path"], both)
    again = load(tmp_path / "lists/all.csv")
    np.testing.assert_array_equal(again.val.images.read(1), data.val.images.read(1))
    assert again.name == "all" and again.val.labels.tolist() == [0, 1]
    write_csv(tmp_path / "all.csv", ["path", "label"], rows)
    assert len(load(tmp_path / "all.csv", val_fraction=0.3).val) == 2
    refused("VA-D003", 3, tmp_path / "all.csv")


def test_csv_mistakes(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    write_csv(tmp_path / "x.csv", ["file", "label"], [["a.png", "1"]])
    assert "file, label" in refused("VA-D002", 3, tmp_path / "x.csv").why
    write_csv(tmp_path / "x.csv", ["path", "label"], [])
    refused("VA-D002", 3, tmp_path / "x.csv")
    write_csv(tmp_path / "x.csv", ["path", "label"], [["a.png", "1"], ["b.png", "1"]])
    error = refused("VA-D001", 3, tmp_path / "x.csv", val_fraction=0.5)
    assert "1 of 2 listed images" in error.what and error.where == "b.png"
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], [["a.png", "1", "train"], ["a.png", "1", "dev"]])
    assert "dev: 1 image" in refused("VA-D002", 3, tmp_path / "x.csv").what
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], [["a.png", "1", "train"], ["a.png", "", "val"]])
    error = refused("VA-D012", 3, tmp_path / "x.csv")
    assert error.what == "1 row of 2 in x.csv without a label" and error.where == f"{tmp_path / 'x.csv'}: line 3"
    save(tmp_path / "b.png"), save(tmp_path / "c.png")
    rows = [["a.png", "cat", "train"], ["b.png", "dgo", "train"], ["c.png", "dog", "val"]]
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], rows)
    error = refused("VA-D012", 3, tmp_path / "x.csv", classes=["cat", "dog"])
    assert "{dgo: 1 image}" in error.what and "cat, dog" in error.why


def test_csv_labels_are_text(tmp_path: Path) -> None:
    for index in range(8):
        save(tmp_path / f"{index}.png", index)
    labels = ["007", "7", "0", "10"]
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], [[f"{i}.png", labels[i % 4], ("train", "val")[i // 4]] for i in range(8)])
    assert load(tmp_path / "x.csv").classes == ["0", "007", "7", "10"], "by number; equal ones in a fixed order"
    write_csv(tmp_path / "y.csv", ["path", "label", "split"], [["0.png", "yes", "train"], ["1.png", "no", "train"], ["2.png", "no", "val"]])
    assert load(tmp_path / "y.csv").classes == ["no", "yes"]


def test_csv_rows_that_repeat_or_contradict_each_other(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    rows = [["a.png", "cat", "train"], ["b.png", "dog", "train"], ["c.png", "cat", "val"], ["./a.png", "cat", "train"]]
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], rows)
    data = load(tmp_path / "x.csv")
    assert data.train.ids == ["a.png", "b.png"] and texts(data, "")[0] == "warning: 1 repeated row left out"
    for split in ("train", "val"):
        write_csv(tmp_path / "x.csv", ["path", "label", "split"], [*rows, ["./a.png", "dog", split]])
        error = refused("VA-D012", 3, tmp_path / "x.csv")
        assert error.where == "./a.png: cat (x.csv, line 2), dog (x.csv, line 6)"


def test_csv_paths_may_be_absolute_and_name_plain_files_only(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/a.png")
    save(tmp_path / "lists/b.png", 1)
    rows = [[tmp_path / "elsewhere/a.png", "x", "train"], ["b.png", "y", "train"], ["../elsewhere/a.png", "x", "val"]]
    write_csv(tmp_path / "lists/x.csv", ["path", "label", "split"], rows)
    assert len(load(tmp_path / "lists/x.csv").train) == 2
    os.mkfifo(tmp_path / "lists/pipe.png")
    write_csv(tmp_path / "lists/x.csv", ["path", "label", "split"], [*rows, ["pipe.png", "x", "val"]])
    assert "1 of 2 listed images do not exist or are not regular files" in refused("VA-D001", 3, tmp_path / "lists/x.csv").what


def test_csv_of_excel_in_another_encoding(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_bytes("path,label\r\na.png,th\u00e9\r\n".encode("cp1252"))
    (tmp_path / "val.csv").write_text("path,label\na.png,x\n")
    error = refused("VA-D002", 3, tmp_path)
    assert error.where.endswith("train.csv: line 2") and "CSV UTF-8" in error.fix


def test_more_classes_and_longer_names_than_are_meant(tmp_path: Path) -> None:
    rows = [[f"{index}.png", f"id{index}", "train" if index < 4 else "val"] for index in range(5)]
    for name, _, _ in rows:
        save(tmp_path / name)
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], [*rows[:4], ["4.png", "id0", "val"]])
    error = refused("VA-D012", 3, tmp_path / "x.csv", max_classes=3)
    assert error.what == "4 classes, data.max_classes is 3" and "ids or paths" in error.fix
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], [["0.png", "x" * 3000, "train"], ["1.png", "x" * 3000, "val"]])
    error = refused("VA-C002", 2, tmp_path / "x.csv")
    assert "a class name of 3,000 characters" in error.what and len(error.block()) < 300


def test_links_between_class_folders(tmp_path: Path) -> None:
    root = flowers(tmp_path / "f")
    (root / "train/rose/self").symlink_to(".")
    (root / "train/rose/all").symlink_to("../tulip")
    data = load(root)
    assert [len(part) for part in data.sets] == [10, 5, 2] and "2 links to folders that are read already" in data.notes[0].text
    (root / "train/f").symlink_to(root)
    assert refused("VA-D002", 3, root).what == "class folders that are links to a folder beside or above them: f"


def test_csv_multi_label(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / f"{name}.png")
    rows = [["a.png", "sun; sea", "train"], ["b.png", "", "train"], ["c.png", "sea", "train"], ["d.png", "sun", "val"]]
    write_csv(tmp_path / "x.csv", ["path", "label", "split"], rows)
    data = load(tmp_path / "x.csv", multi_label=True)
    assert data.classes == ["sea", "sun"] and data.train.labels.dtype == np.float32
    assert data.train.labels.tolist() == [[1, 1], [0, 0], [1, 0]] and data.val.labels.tolist() == [[0, 1]]
    assert [row.label for row in image_manifest(data, {})] == ["sea;sun", "", "sea", "sun"]


def test_groups_stay_whole(tmp_path: Path) -> None:
    rows = []
    for index in range(60):
        save(tmp_path / f"p{index // 4:02}_{index}.png", index)
        rows.append([f"p{index // 4:02}_{index}.png", "ab"[index // 4 % 2], f"patient {index // 4}"])
    write_csv(tmp_path / "x.csv", ["path", "label", "patient"], rows)
    for group_by in ("patient", r"^(p\d+)_"):
        data = load(tmp_path / "x.csv", val_fraction=0.25, group_by=group_by)
        assert data.train.groups is not None and data.val.groups is not None
        assert not set(data.train.groups) & set(data.val.groups)
        assert data.val.class_counts(2) == [8, 8]
    assert "patient" in refused("VA-C002", 2, tmp_path / "x.csv", val_fraction=0.25, group_by="patiend").fix


# ---------------------------------------------------------------- arrays


def test_npz(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "set.npz")
    data = load(path)
    assert data.name == "set" and data.classes == ["0", "1", "2"] and [len(part) for part in data.sets] == [12, 6, 3]
    assert data.train.images.read(0).shape == (9, 7, 3) and data.train.ids[5] == "train[5]"
    np.testing.assert_array_equal(data.val.images.read(1)[:, :, 2], np.load(path)["val_images"][1])
    assert load(path, classes=["x", "y", "z"]).classes == ["x", "y", "z"]
    deep = save_npz(tmp_path / "deep.npz", train_images=np.full((12, 4, 4, 3), 65535, np.uint16))
    assert load(deep).train.images.read(0).max() == 1.0
    unsplit = save_npz(tmp_path / "unsplit.npz", val_images=None, val_labels=None)
    assert load(unsplit, val_fraction=0.5).val.class_counts(3) == [2, 2, 2]
    refused("VA-D003", 3, unsplit)


def test_npz_multi_label(tmp_path: Path) -> None:
    hot = np.eye(4, dtype=np.int64)[np.arange(12) % 4]
    path = save_npz(tmp_path / "x.npz", train_labels=hot, val_labels=hot[:6], test_labels=hot[:3])
    assert load(path, multi_label=True).train.labels.tolist() == hot.tolist()
    assert "data.multi_label=true" in refused("VA-D002", 3, path).fix
    wrong = save_npz(tmp_path / "y.npz", train_labels=hot * 2, val_labels=hot[:6], test_labels=hot[:3])
    assert "2: 12 images" in refused("VA-D012", 3, wrong, multi_label=True).what
    refused("VA-D002", 3, save_npz(tmp_path / "z.npz", train_labels=np.arange(12) % 3), multi_label=True)


def test_d012_npz_labels(tmp_path: Path) -> None:
    labels = np.arange(12) % 3
    labels[[2, 5]] = 255
    error = refused("VA-D012", 3, save_npz(tmp_path / "a.npz", train_labels=labels))
    assert "{255: 2 images}" in error.what and "train" in error.what
    error = refused("VA-D012", 3, save_npz(tmp_path / "b.npz", val_labels=np.array([0, 1, 2, 3, -1, 0])))
    assert "-1: 1 image" in error.what and "3: 1 image" in error.what and "val" in error.what
    refused("VA-D012", 3, save_npz(tmp_path / "c.npz", train_labels=np.arange(12) % 3 + 1))
    refused("VA-D012", 3, save_npz(tmp_path / "d.npz", train_labels=np.full(12, 0.5)))
    assert load(save_npz(tmp_path / "e.npz", train_labels=(np.arange(12) % 3).astype(float))).train.labels.dtype == np.int64
    refused("VA-D012", 3, save_npz(tmp_path / "f.npz"), classes=["x", "y"])
    gap = save_npz(tmp_path / "g.npz", train_labels=np.arange(12) % 2 * 2)
    assert 'no images of class "y"' in texts(load(gap, classes=["x", "y", "z"]), "VA-D004")[0]


def test_npz_mistakes(tmp_path: Path) -> None:
    refused("VA-D002", 3, save_npz(tmp_path / "a.npz", train_images=np.zeros((12, 3, 9, 7), np.uint8)))
    refused("VA-D002", 3, save_npz(tmp_path / "b.npz", train_images=np.zeros((12, 9, 7), np.int64)))
    refused("VA-D002", 3, save_npz(tmp_path / "c.npz", train_images=np.zeros((11, 9, 7), np.uint8)))
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    assert "arrays: x" in refused("VA-D002", 3, tmp_path / "d.npz").where
    (tmp_path / "e.npz").write_bytes(b"no zip")
    refused("VA-D002", 3, tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", train_images=np.array([object()]), train_labels=np.zeros(1))
    refused("VA-D002", 3, tmp_path / "f.npz")


def test_digits() -> None:
    data, other = load("", format="digits"), load("", format="digits", seed=7)
    sizes = [len(part) for part in data.sets]
    assert sum(sizes) == 1797 and [round(size / 1797, 2) for size in sizes] == [0.6, 0.2, 0.2]
    assert data.train.ids == other.train.ids and len({name for part in data.sets for name in part.ids}) == 1797
    assert data.name == "digits" and data.classes == [str(number) for number in range(10)]
    image = data.train.images.read(0)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.max() > 200
    assert min(data.val.class_counts(10)) >= 34


# ---------------------------------------------------------------- torchvision


class Toy:
    classes = ["zebra", "ant"]

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        assert download
        self.targets = [index % 2 for index in range(10 if train else 4)]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (6, 5), index), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


class ToySplits(Toy):
    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        if split not in ("train", "valid"):
            raise ValueError(f"unknown split {split}")
        super().__init__(root, split == "train", download)


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    monkeypatch.setattr(torchvision.datasets, "ToySplits", ToySplits, raising=False)
    with pytest.raises(UserError, match="VA-D003"):
        load(tmp_path, format="torchvision", dataset="Toy")
    data = load(tmp_path, format="torchvision", dataset="Toy", val_fraction=0.4)
    assert data.name == "toy" and data.classes == ["zebra", "ant"] and [len(part) for part in data.sets] == [6, 4, 4]
    assert data.val.images.read(0)[0, 0, 0] == int(data.val.ids[0].strip("train[]")) and data.val.images.read(0).shape == (5, 6, 3)
    data = load(tmp_path, format="torchvision", dataset="ToySplits")
    assert [len(part) for part in data.sets] == [10, 4] and data.train.labels.tolist() == [0, 1] * 5
    assert load_split(LabelDataConfig(root=str(tmp_path), format="torchvision", dataset="Toy"), "test", ["ant", "zebra"], 3).labels[0] == 1


def test_torchvision_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MNIST" in refused("VA-D001", 3, tmp_path, format="torchvision", dataset="MNISTT").fix

    class Offline:
        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "Toy", Offline, raising=False)
    error = refused("VA-D001", 3, tmp_path, format="torchvision", dataset="Toy")
    assert "Name or service not known" in error.what and "internet" in error.why


# ---------------------------------------------------------------- a split for evaluation


def test_load_split(tmp_path: Path) -> None:
    root = flowers(tmp_path / "f")
    settings = LabelDataConfig(root=str(root))
    part = load_split(settings, "test", ["tulip", "oak", "rose"], 3)
    assert part.name == "test" and part.labels.tolist() == [2, 0]
    with pytest.raises(UserError) as caught:
        load_split(settings, "val", ["rose"], 3)
    assert (caught.value.code, caught.value.exit_code) == ("VA-M003", 4) and "tulip: 3 images" in caught.value.what
    with pytest.raises(UserError, match="VA-D002"):
        load_split(settings, "extra", ["rose", "tulip"], 3)
    other = folders(tmp_path / "other", {"": {"rose": 3}})
    assert len(load_split(LabelDataConfig(root=str(other)), "test", ["rose", "tulip"], 3)) == 3
    only_test = folders(tmp_path / "only", {"test": {"rose": 2}})
    assert len(load_split(LabelDataConfig(root=str(only_test)), "test", ["rose", "tulip"], 3)) == 2


def test_load_split_finds_the_held_out_images_again(tmp_path: Path) -> None:
    root = folders(tmp_path, {"": {"a": 12, "b": 8}})
    settings = LabelDataConfig(root=str(root), val_fraction=0.25)
    data = load_data(settings, seed=5, in_chans=3)
    assert load_split(settings, "val", data.classes, 3, seed=5).ids == data.val.ids
    assert load_split(settings, "train", data.classes, 3, seed=5).ids == data.train.ids


def test_find_layout(tmp_path: Path) -> None:
    layout = find_layout(LabelDataConfig(root=str(flowers(tmp_path))))
    assert (layout.format, layout.unsplit, sorted(layout.parts)) == ("folders", False, ["test", "train", "val"])

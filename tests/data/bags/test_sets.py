"""Bags of every layout: their labels, splits and folds, and what each mistake gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.data.bags.bags import bag, load, packed, save_h5, save_npz, save_pt, slides
from visionattn.data.bags.check import bag_manifest, check_bags, moments, usable_bags
from visionattn.data.bags.readers import list_bags, read_bag
from visionattn.data.bags.settings import BagDataConfig
from visionattn.data.check import CheckReport
from visionattn.data.readers import UnreadableFile
from visionattn.errors import UserError


def fails(code: str, run: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        run()
    assert caught.value.code == code, caught.value
    return caught.value


def test_a_folder_with_a_table_keeps_patients_together(tmp_path: Path) -> None:
    data = load(slides(tmp_path / "slides"), val_fraction=0.4)
    assert data.classes == ["normal", "tumour"] and data.test is not None and data.test.ids == ["slide_10", "slide_11"]
    assert data.val.groups and data.train.groups and not set(data.val.groups) & set(data.train.groups)
    assert sorted(data.train.ids + data.val.ids) == sorted(f"slide_{number}" for number in range(10))
    found = data.train.read(0)
    want = bag(int(data.train.ids[0].rpartition("_")[2]), int(data.train.labels[0]))
    assert np.array_equal(found.features, want["features"]) and found.coords is not None
    assert np.array_equal(found.coords, want["coords"]) and np.array_equal(found.instances, want["inst"])


def test_patients_stay_in_one_of_five_folds(tmp_path: Path) -> None:
    root = slides(tmp_path / "slides", 12)
    folds = [load(root, fold=(number, 5)) for number in range(1, 6)]
    held = [name for data in folds for name in data.val.ids]
    assert sorted(held) == sorted(f"slide_{number}" for number in range(10))
    assert all(not set(data.train.groups or ()) & set(data.val.groups or ()) for data in folds)
    with pytest.raises(UserError, match=r"6 folds cannot be made of 5 groups of bags"):
        load(root, fold=(1, 6))


def test_labels_in_files_in_folders_and_by_split(tmp_path: Path) -> None:
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for number in numbers:
            save_h5(tmp_path / "attribute" / split / f"s{number}.h5", bag(number, number % 2), label=np.int64(number % 2))
            save_pt(tmp_path / "folders" / split / "ab"[number % 2] / f"s{number}.pt", bag_tensor(number))
            save_npz(tmp_path / "npz" / split / f"s{number}.npz", **bag(number, number % 2), label="xy"[number % 2])
            save_h5(tmp_path / "groups" / f"{split}.h5", bag(number, number % 2), label="uv"[number % 2], group=f"s{number}")
    wanted = {"attribute": ["0", "1"], "folders": ["a", "b"], "npz": ["x", "y"], "groups": ["u", "v"]}
    for name, classes in wanted.items():
        data = load(tmp_path / name)
        assert data.classes == classes and sorted(data.train.labels) == [0, 0, 1, 1] and len(data.val) == 2, name
        assert data.train.read(1).features.shape[1] == 6


def bag_tensor(number: int) -> torch.Tensor:
    return torch.from_numpy(bag(number, number % 2)["features"])


def test_one_archive_of_many_bags_and_its_own_folds(tmp_path: Path) -> None:
    path = packed(tmp_path / "musk.npz")
    data = load(path, fold=(2, 5))
    assert data.name == "musk" and data.val.ids == [f"musk[{number}]" for number in (2, 3, 12, 13)]
    assert "data's own" in data.notes[0].text and len(data.train) == 16
    third = load(path, fold=(1, 4))
    assert "drawn with seed 0" in third.notes[0].text and len(third.val) == 5
    assert np.array_equal(data.val.read(0).features, bag(2, 0)["features"])
    error = fails("VA-D003", lambda: load(path))
    assert "--folds 5" in error.fix and "--val-fraction" in error.fix
    split = load(packed(tmp_path / "split.npz", split=np.arange(20) // 8))
    assert [len(part) for part in split.sets] == [8, 8, 4]
    offsets = dict(np.load(path))
    sizes = np.bincount(offsets.pop("bag"))
    for extra in ({"sizes": sizes}, {"offsets": np.cumsum(np.insert(sizes, 0, 0))}, {"offsets": np.cumsum(sizes) - sizes}):
        again = load(save_npz(tmp_path / "again.npz", **offsets, **extra), fold=(2, 5))
        assert np.array_equal(again.val.read(3).features, data.val.read(3).features)
    reverse = {"bag": np.load(path)["bag"][::-1]}
    for wrong in ({"sizes": sizes + 1}, {"sizes": sizes - 1}, {"offsets": [0, 9, 3]}, {"bag": np.zeros(3, int)}, reverse):
        code = "VA-D010" if wrong is reverse else "VA-D013"
        fails(code, lambda wrong=wrong: load(save_npz(tmp_path / "wrong.npz", **offsets, **wrong)))
    del offsets["y"]
    assert len(list_bags(save_npz(tmp_path / "unlabelled.npz", **{**offsets, "fold": sizes}, sizes=sizes))) == 20


def test_mistakes_in_labels(tmp_path: Path) -> None:
    root = slides(tmp_path / "slides")
    save_h5(root / "new.h5", bag(0, 0))
    error = fails("VA-D012", lambda: load(root, val_fraction=0.2))
    assert "no label for 1 of 13 bags: new" in error.what
    (root / "new.h5").unlink()
    (root / "slide_3.h5").unlink()
    assert "slide_3" in next(note.text for note in load(root, val_fraction=0.2).notes if note.code == "VA-D001")
    (root / "more.csv").write_text("slide_id,label\n")
    assert "data.labels=" in fails("VA-D002", lambda: load(root, val_fraction=0.2)).fix
    assert fails("VA-D001", lambda: load(root, val_fraction=0.2, labels="none.csv"))
    table = (root / "labels.csv").read_text()
    (tmp_path / "own.csv").write_text(table.replace(",test", ",holiday"))
    assert "holiday" in fails("VA-D002", lambda: load(root, labels=str(tmp_path / "own.csv"), val_fraction=0.2)).what
    (tmp_path / "own.csv").write_text(table.replace("tumour,p5", "rare,p5"))
    assert "rare" in fails("VA-D004", lambda: load(root, labels=str(tmp_path / "own.csv"), val_fraction=0.2)).what
    (tmp_path / "own.csv").write_text(f"{table}slide_4,tumour,p2,\n")
    assert "two labels of slide_4" in fails("VA-D012", lambda: load(root, labels=str(tmp_path / "own.csv"), val_fraction=0.2)).what
    (tmp_path / "own.csv").write_text(table.replace("slide_id", "slide").replace(",tumour", ".svs,1").replace(",normal", ".svs,0"))
    named = load(root, labels=str(tmp_path / "own.csv"), val_fraction=0.2, classes=["normal", "tumour"])
    assert named.test is not None and named.label_text(named.test, 1) == "tumour"
    (tmp_path / "own.csv").write_text("path,slide_id,label\n" + "".join(f"x/{n},slide_{n},{n % 2}\n" for n in range(12) if n != 3))
    assert load(root, labels=str(tmp_path / "own.csv"), val_fraction=0.2).classes == ["0", "1"], "the column slide_id goes first"
    (tmp_path / "empty").mkdir()
    assert "accepted layouts" in fails("VA-D002", lambda: load(tmp_path / "empty")).why


def nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["features"][1, 2] = np.nan


def short(arrays: dict[str, np.ndarray]) -> None:
    arrays["coords"] = arrays["coords"][:-1]


def empty(arrays: dict[str, np.ndarray]) -> None:
    arrays.update({name: values[:0] for name, values in arrays.items()})


def narrow(arrays: dict[str, np.ndarray]) -> None:
    arrays["features"] = arrays["features"][:, :4]


def flat(arrays: dict[str, np.ndarray]) -> None:
    arrays["features"] = arrays["features"][:, 0]


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (nan, "VA-D012", "NaN or infinite features in 1 of 8 instances"),
        (short, "VA-D013", "coordinates of shape [7, 2] for 8 instances"),
        (empty, "VA-D011", "an empty bag"),
        (narrow, "VA-D013", "4 features per instance, the other bags have 6"),
        (flat, "VA-D013", "features of shape [8]"),
    ],
)
def test_the_check_reports_each_bad_bag_in_a_line(
    tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], None], code: str, text: str
) -> None:
    root = slides(tmp_path / "slides")
    arrays = bag(9, 1)
    spoil(arrays)
    (root / "slide_9.h5").unlink()
    save_h5(root / "slide_9.h5", arrays)
    settings = BagDataConfig(root=str(root), val_fraction=0.2)
    (note,) = [note for note in check(root, settings).notes if note.level == "error"]
    assert note.code == code and note.text.startswith("slide_9: ") and text in note.text
    lenient = BagDataConfig(root=str(root), val_fraction=0.2, on_error="skip")
    data, report = load(root, val_fraction=0.2), check(root, lenient)
    assert [note.code for note in report.notes if note.level == "warning"] == [code]
    usable = usable_bags(data, report)
    assert sum(map(len, usable.sets)) == 11 and all("slide_9" not in part.ids for part in usable.sets)


def check(root: Path, settings: BagDataConfig) -> CheckReport:
    return check_bags(load(root, val_fraction=0.2), settings, lambda done: None)


def test_objects_pickles_links_and_damage_are_refused(tmp_path: Path) -> None:
    for name, write, text in (
        ("objects.npz", lambda path: save_npz(path, features=np.array([[1, "a"]], object)), "array of objects"),
        ("code.pt", lambda path: torch.save({"features": Path("x")}, path), "more than tensors"),
        ("list.pt", lambda path: torch.save([1, 2], path), "expected a tensor"),
        ("torn.pt", lambda path: path.write_bytes(b"PK\x03\x04 torn"), ""),
        ("torn.npz", lambda path: path.write_bytes(b"PK\x03\x04 torn"), "zip"),
        ("torn.h5", lambda path: path.write_bytes(b"\x89HDF\r\n torn"), ""),
        ("none.h5", lambda path: path.write_bytes(b""), "empty file"),
        ("other.npz", lambda path: save_npz(path, a=np.ones(3)), "no features"),
    ):
        write(tmp_path / name)
        with pytest.raises(UnreadableFile) as caught:
            read_bag(list_bags(tmp_path / name)[0].place, max_bytes=2**20)
        assert text in caught.value.reason and caught.value.reason, (name, caught.value)
    with pytest.raises(UnreadableFile, match=r"data\.max_bytes=192"):
        read_bag(list_bags(save_npz(tmp_path / "large.npz", **bag(4, 0)))[0].place, max_bytes=100)
    other = save_h5(tmp_path / "other.h5", bag(0, 0))
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(other), "features")
    with pytest.raises(UnreadableFile, match="links to another file"):
        read_bag(list_bags(tmp_path / "linked.h5")[0].place, max_bytes=2**20)


def test_moments_and_manifest(tmp_path: Path) -> None:
    data = load(slides(tmp_path / "slides"), val_fraction=0.2)
    whole = np.concatenate([data.train.read(index).features for index in range(len(data.train))]).astype(np.float64)
    mean, std = moments(data.train)
    assert np.allclose(mean, whole.mean(0)) and np.allclose(std, whole.std(0))
    report = check_bags(data, BagDataConfig(), lambda done: None)
    rows = bag_manifest(data, report)
    assert len(rows) == 12 and rows[0].label in ("normal", "tumour") and all(len(row.hash16) == 16 and row.bytes for row in rows)
    constant = load(packed(tmp_path / "c.npz", X=np.full((len(np.load(packed(tmp_path / "d.npz"))["X"]), 3), 7, np.uint8)), fold=(1, 5))
    assert moments(constant.train)[1].tolist() == [1.0] * 3

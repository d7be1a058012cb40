"""Folds: every sample is validated once, classes are shared out evenly, groups stay together, and the test split stays out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import picture, save_npz
from visionattn.data.images.labels import load_data, load_split
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.masks.sets import load_mask_data, load_mask_split
from visionattn.data.masks.settings import MaskDataConfig
from visionattn.data.splits import fold_out
from visionattn.errors import UserError
from visionattn.tasks import load_config


@pytest.mark.parametrize("kind", ["one label", "several labels"])
def test_each_sample_is_in_one_fold_with_its_class_and_group(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.sort(rng.choice(3, 300, p=[0.6, 0.3, 0.1]))
    if kind == "several labels":
        labels = (rng.random((300, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.float32)
    groups = [f"patient {number}" for number in rng.integers(0, 60, 300)]
    for given in (None, groups):
        held = []
        for number in range(1, 6):
            kept, part = fold_out(labels, given, (number, 5), seed=1)
            assert sorted(kept + part) == list(range(300)) and fold_out(labels, given, (number, 5), seed=1) == (kept, part)
            held.append(part)
            if given:
                assert not {given[index] for index in kept} & {given[index] for index in part}
            elif labels.ndim == 1:
                assert np.abs(np.bincount(labels[part], minlength=3) - np.bincount(labels) / 5).max() <= 1
        assert sorted(index for part in held for index in part) == list(range(300))
        assert fold_out(labels, given, (1, 5), seed=2)[1] != held[0]


def test_classes_smaller_than_the_folds() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    held = [fold_out(labels, None, (number, 6), 0)[1] for number in range(1, 7)]
    assert sorted(held) == [[index] for index in range(6)]
    with pytest.raises(UserError) as caught:
        fold_out(labels, None, (1, 7), 0)
    assert caught.value.code == "VA-D003" and caught.value.fix == "--folds 6"
    with pytest.raises(UserError, match="3 folds cannot be made of 2 groups"):
        fold_out(labels, list("aaaabb"), (1, 3), 0)


def test_folds_are_made_of_training_and_validation_images(flowers: Path) -> None:
    seen: list[str] = []
    for number in (1, 2, 3):
        settings = LabelDataConfig(root=str(flowers), fold=(number, 3))
        data = load_data(settings, seed=0, in_chans=3)
        assert data.classes == ["daisy", "rose", "tulip"] and data.val.class_counts(3) == [4, 4, 4] and len(data.train) == 24
        assert data.test is not None and len(data.test) == 6
        assert not set(data.train.ids) & set(data.val.ids)
        assert [Path(data.val.images.path(index) or "") for index in range(12)] == [flowers / name for name in data.val.ids]
        for name, part in (("train", data.train), ("val", data.val), ("test", data.test)):
            again = load_split(settings, name, data.classes, 3, seed=0)
            assert (again.ids, again.labels.tolist()) == (part.ids, part.labels.tolist())
        seen += data.val.ids
    assert len(seen) == len(set(seen)) == 36


def test_folds_of_arrays_and_of_lists(tmp_path: Path) -> None:
    arrays = [load_data(LabelDataConfig(root=str(save_npz(tmp_path / "x.npz")), fold=(n, 3)), seed=0, in_chans=1) for n in (1, 2, 3)]
    assert sorted(name for data in arrays for name in data.val.ids) == sorted(arrays[0].train.ids + arrays[0].val.ids)
    whole = np.load(tmp_path / "x.npz")
    for index, name in enumerate(arrays[1].val.ids):
        split, number = name.rstrip("]").split("[")
        assert (arrays[1].val.images.read(index)[..., 0] == whole[f"{split}_images"][int(number)]).all()
        assert arrays[1].val.labels[index] == whole[f"{split}_labels"][int(number)]
    rows = [f"{name}/{number}.png,{name},{number % 4}" for name in ("a", "b") for number in range(8)]
    for row in rows:
        picture(tmp_path / "list" / row.partition(",")[0], 0, 1)
    for split, chosen in (("train", rows[:12]), ("val", rows[10:])):  # two in both
        (tmp_path / "list" / f"{split}.csv").write_text("\n".join(["path,label,plant", *chosen]))
    lists = [load_data(LabelDataConfig(root=str(tmp_path / "list"), fold=(n, 2), group_by="plant"), seed=0, in_chans=3) for n in (1, 2)]
    assert sorted(name for data in lists for name in data.val.ids) == sorted(row.partition(",")[0] for row in rows)
    assert not set(lists[0].val.groups or ()) & set(lists[1].val.groups or ())
    assert any("2 images are listed in train and val" in note.text for note in lists[0].notes)


def test_folds_of_masks_share_out_the_classes(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("val", 3), ("test", 2)):
        for number in range(count):
            mask = np.full((8, 8), number % 3 == 0, np.uint8)  # a third of them have the second class
            for kind in ("images", "masks"):
                path = tmp_path / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
    (tmp_path / "classes.txt").write_text("background\nroad\n")
    seen: list[str] = []
    for number in (1, 2):
        settings = MaskDataConfig(root=str(tmp_path), fold=(number, 2))
        data = load_mask_data(settings, seed=0, in_chans=3)
        assert len(data.val) == 6 and data.test is not None and len(data.test) == 2
        assert sum(int(data.val.label(index, (8, 8)).max()) for index in range(6)) == 2
        assert load_mask_split(settings, "val", data.classes, 3, seed=0).ids == data.val.ids
        seen += data.val.ids
    assert len(set(seen)) == 12 and not any("test" in name for name in seen)


@pytest.mark.parametrize("value", ["[0,5]", "[6,5]", "[1,1]"])
def test_a_fold_that_cannot_be(value: str) -> None:
    with pytest.raises(UserError, match=r"data\.fold: expected"):
        load_config(None, [f"data.fold={value}"])
    with pytest.raises(UserError, match=r"data\.val_fraction=null"):
        load_config(None, ["data.fold=[1,5]", "data.val_fraction=0.2"])

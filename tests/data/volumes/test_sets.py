"""Layouts, splits, the check before training, and the plan that follows from a training set."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import MPEG2MPML
from torch.nn import functional as F

from tests.data.volumes.made import balls, folders, oblique, save, series
from visionattn.data.masks.settings import IGNORE
from visionattn.data.volumes.check import VolumeReport, check_volumes
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.prepare import Plan, foreground_scaling, native_slabs, planned_spacing
from visionattn.data.volumes.sets import PreparedVolumes, VolumeData, load_volume_data, make_plan
from visionattn.data.volumes.settings import VolumeDataConfig
from visionattn.errors import UserError

NAMES = {"labels": {"0": "background", "1": "front", "2": "back"}}


def load(root: Path, **settings: Any) -> VolumeData:
    return load_volume_data(VolumeDataConfig(root=str(root), workers=0, **settings), seed=0)


def checked(root: Path, tmp_path: Path, **settings: Any) -> VolumeReport:
    config = VolumeDataConfig(root=str(root), workers=0, **settings)
    return check_volumes(load_volume_data(config, seed=0), config, cache_dir=tmp_path / "cache", progress=lambda count: None)


# ---------------------------------------------------------------- layouts


def test_folders_of_splits(tmp_path: Path) -> None:
    data = load(folders(tmp_path, {"train": 3, "val": 2}, NAMES))
    assert (len(data.train), len(data.val), data.test) == (3, 2, None)
    assert data.labels.names == ["background", "front", "back"] and data.train.ids[0] == "images/train/p0_0.nii.gz"
    (tmp_path / "dataset.json").unlink()
    assert load(tmp_path).labels.names == ["background", "class1", "class2"]


def test_patients_stay_together(tmp_path: Path) -> None:
    root = folders(tmp_path, {"": 8})
    with pytest.raises(UserError, match="no validation split"):
        load(root)
    data = load(root, val_fraction=0.25, group_by=r"(p\d+)_")
    assert len(data.val) == 2 and len({name.partition("_")[0] for name in data.val.ids}) == 1
    folds = [load(root, fold=(number, 4), group_by=r"(p\d+)_").val.ids for number in (1, 2, 3, 4)]
    assert sorted(name for fold in folds for name in fold) == sorted(data.train.ids + data.val.ids)
    assert all(len({name.partition("_")[0] for name in fold}) == 1 for fold in folds)
    with pytest.raises(UserError, match=r"5 folds cannot be made of 4 groups of volumes \(data\.group_by\)") as caught:
        load(root, fold=(1, 5), group_by=r"(p\d+)_")
    assert caught.value.fix == "--folds 4"
    with pytest.raises(UserError, match="leaves no validation volumes of 8"):
        load(root, val_fraction=0.25, group_by="nii")


def test_nnunet_with_channels_and_regions(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    content = {"channel_names": {"0": "T1", "1": "CT"}, "labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for number in range(3):
        image, label = balls(number)
        for channel in (0, 1):
            save(tmp_path / f"imagesTr/c{number}_000{channel}.nii.gz", image)
        label[0, 0, 0] = 3
        save(tmp_path / f"labelsTr/c{number}.nii.gz", label)
    data = load(tmp_path, val_fraction=0.3)
    assert data.channels == ["T1", "CT"] and data.labels.names == ["whole", "core"] and data.labels.outputs == (1, 2)
    assert data.train.rule.regions == ((1, 2), (2,)) and data.train.rule.values == (0, 1, 2)
    voxels, grid = data.train.image(0)
    assert voxels.shape == (2, 24, 20, 12) and data.train.label(0, grid)[0, 0, 0] == IGNORE
    plan = make_plan(VolumeDataConfig(root=str(tmp_path)), data)
    assert plan.scalings[0] is None and plan.scalings[1] is not None, "z-score of MR, the foreground's statistics of CT"
    (tmp_path / "imagesTr/c1_0001.nii.gz").unlink()
    broken = load(tmp_path, val_fraction=0.3)
    assert len(broken.train) + len(broken.val) == 3, "reading the case tells that a channel is missing"


def test_the_decathlons_list(tmp_path: Path) -> None:
    listed = [{"image": f"./imagesTr/c{number}.nii.gz", "label": f"./labelsTr/c{number}.nii.gz"} for number in range(2)]
    content = {"modality": {"0": "MRI", "1": "T2"}, "labels": NAMES["labels"], "training": listed}
    for number in range(3):
        image, label = balls(number)
        save(tmp_path / f"imagesTr/c{number}.nii.gz", np.stack([image, image], -1))
        save(tmp_path / f"labelsTr/c{number}.nii.gz", label)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    data = load(tmp_path, val_fraction=0.5)
    assert len(data.train) + len(data.val) == 2 and data.train.image(0)[0].shape == (2, 24, 20, 12)
    content["training"] = [*listed, {"image": "./imagesTr/gone.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"1 volume of dataset\.json not found: gone"):
        load(tmp_path, val_fraction=0.5)


def test_series_as_images(tmp_path: Path) -> None:
    _, label = balls()
    for split in ("train", "val"):
        affine = series(tmp_path / "images" / split / "a", 1000 + 100 * label.astype(int))
        save(tmp_path / "labels" / split / "a.nii.gz", label, affine)
    data = load(tmp_path, regions={"whole": [1, 2], "back": [2]})
    assert data.train.ids == ["images/train/a"] and data.labels.outputs == (1, 2)
    report = checked(tmp_path, tmp_path, classes=["background", "front", "back"])
    assert [note for note in report.notes if note.level != "info"] == [note for note in report.notes if note.code == "VA-D006"]
    plan = make_plan(VolumeDataConfig(root=str(tmp_path)), load(tmp_path))
    scaling = plan.scalings[0]
    assert scaling is not None and (scaling.low, scaling.high) == (1200.0, 1400.0), "CT by its modality, in its rescaled units"


def test_regions_get_the_value_that_no_later_one_has(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train": 1, "val": 1})
    data = load(root, regions={"whole": [1, 2, 3], "core": [2, 3], "active": [3]})
    assert data.labels.outputs == (1, 2, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "dataset.json cannot be read"),
        ('{"labels": {"background": 0, "a": 1, "b": 1}}', "with the same value"),
        ('{"labels": {"background": 0, "a": "1.5"}}', 'label "a" in dataset.json has no whole numbers'),
        ('{"labels": {"background": 0, "a": [1, 2], "b": [2]}, "regions_class_order": [1]}', "regions_class_order"),
        ('{"labels": {"background": 0}}', "1 classes"),
    ],
)
def test_a_dataset_json_that_does_not_fit(tmp_path: Path, content: str, reason: str) -> None:
    root = folders(tmp_path, {"train": 1, "val": 1})
    (root / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        load(root)


def test_label_values_without_names_are_consecutive(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train": 1, "val": 1})
    save(root / "labels/train/p0_0.nii.gz", 100 * balls()[1])
    with pytest.raises(UserError, match="label values 0, 1, 2, 100, 200 are not consecutive") as caught:
        load(root)
    assert '"class100": 100' in caught.value.fix


def test_label_maps_that_tell_no_classes(tmp_path: Path) -> None:
    """Files that cannot be read, and maps without a label, are reported as what they are."""
    root = folders(tmp_path, {"train": 1, "val": 1})
    maps = sorted((root / "labels").rglob("*.nii.gz"))
    for path in maps:
        save(path, 0 * balls()[1])
    with pytest.raises(UserError, match="label maps that are 0 everywhere"):
        load(root)
    for path in maps:
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match="no label map could be read") as caught:
        load(root)
    assert caught.value.code == "VA-D010" and caught.value.where.endswith("p0_0.nii.gz") and caught.value.why


# ---------------------------------------------------------------- check


def test_every_fault_has_one_line(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", {"train": 6, "val": 2}, NAMES)
    image, label = balls()
    save(root / "images/train/p0_0.nii.gz", np.stack([image] * 2, -1))
    save(root / "labels/train/p0_1.nii.gz", label[:-1])
    save(root / "labels/train/p1_2.nii.gz", label, oblique((1, 1, 1)))
    save(root / "labels/train/p1_3.nii.gz", label + 5)
    save(root / "labels/train/p2_4.nii.gz", label + np.float32(0.25))
    (root / "images/train/p2_5.nii.gz").write_bytes(b"\x1f\x8b damaged")
    (root / "labels/val/p0_1.nii.gz").unlink()
    report = checked(root, tmp_path)
    lines = [(note.level, note.code, note.text) for note in report.notes if note.level != "info"]
    assert all("\n" not in text for _, _, text in lines)
    wanted = [
        ("error", "VA-D021", "1 volume without a label map: images/val/p0_1.nii.gz"),
        ("error", "VA-D030", "4D (24 x 20 x 12 x 2)"),
        ("error", "VA-D013", "23 x 20 x 12 voxels, the image has 24 x 20 x 12"),
        ("error", "VA-D013", "its affine differs"),
        ("error", "VA-D012", "label values that are not among 0, 1, 2: 5, 6, 7"),
        ("error", "VA-D012", "labels that are not whole numbers, for example 0.25"),
        ("warning", "VA-D010", "p2_5.nii.gz"),
    ]
    for level, code, part in wanted:
        assert any((kind, found) == (level, code) and part in text for kind, found, text in lines), (part, lines)
    assert set(report.unreadable) == {"images/train/p2_5.nii.gz"}
    assert any(note.code == "VA-D030" for note in checked(root, tmp_path, check="headers").notes)


def test_headers_and_series_have_one_line_each(tmp_path: Path) -> None:
    """Faults in headers and series are found before training, and so is a rescaling that a viewer may ignore."""
    root, nan = tmp_path / "data", float("nan")
    stored = 1000 + 100 * balls()[1].astype(int)
    changes: dict[str, dict[str, Any]] = {"good": {}, "gap": {"skip": [3]}, "mixed": {}, "packed": {}, "color": {"SamplesPerPixel": 3}}
    for name, change in changes.items():
        affine = series(root / "images/train" / name, stored, **change)
        save(root / "labels/train" / f"{name}.nii.gz", balls()[1], affine)
    series(root / "images/train/mixed", stored, uid="1.2.3.4000009")
    for path in (root / "images/train/packed").iterdir():
        file = pydicom.dcmread(path)
        file.file_meta.TransferSyntaxUID = MPEG2MPML
        file.PixelData = pydicom.encaps.encapsulate([b"\0" * 8])
        file.save_as(path)
    headers: dict[str, tuple[int, tuple[float, ...]]] = {
        "nan": (280, (nan,)),
        "singular": (280, (1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1)),
        "flat": (80, (1, 0, 1)),
    }
    for number, (name, (offset, values)) in enumerate(headers.items()):
        image, label = balls(number)
        path = save(root / "images/train" / f"{name}.nii", image)
        content = bytearray(path.read_bytes())
        content[offset : offset + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
        path.write_bytes(content)
        save(root / "labels/train" / f"{name}.nii.gz", label)
    image, label = balls(7)
    save(root / "images/val/v.nii.gz", image)
    save(root / "labels/val/v.nii.gz", label)
    report = checked(root, tmp_path, classes=["background", "front", "back"])
    lines: dict[str, list[str]] = {note.code: [] for note in report.notes}
    for note in report.notes:
        lines[note.code].append(note.text)
        assert "\n" not in note.text and (note.level == "error") == note.code.startswith("VA-D03"), note
    grids, series_, packed = (lines[f"VA-D03{number}"] for number in range(3))
    assert [len(found) for found in (grids, series_, packed)] == [3, 3, 1]
    for found, name, part in (
        (grids, "nan.nii", "NaN or infinite"),
        (grids, "singular.nii", "singular"),
        (grids, "flat.nii", "1 x 0 x 1 mm"),
        (series_, "images/train/gap", "1 slice missing"),
        (series_, "images/train/mixed", "2 series in one folder (12 slices, 12 slices)"),
        (series_, "images/train/color", "in colour"),
        (packed, "images/train/packed", "no package decodes it"),
    ):
        assert sum(name in text and part in text for text in found) == 1, (name, found)
    (rescaled,) = (text for text in lines[""] if "rescaled" in text)
    assert rescaled.startswith("1 volume rescaled as DICOM says (the first: slope 2, intercept -1000)")


def test_facts_are_kept_and_found_again(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", {"train": 2, "val": 1}, NAMES)
    first, again = checked(root, tmp_path), checked(root, tmp_path)
    assert first == again and json.loads(json.dumps(first.as_dict()))["facts"]
    assert first.counts["train"]["front"] > 0 and first.facts["images/val/p0_0.nii.gz"].shape == (20, 24, 12)


# ---------------------------------------------------------------- prepare


def test_canonical_axes_and_back() -> None:
    array = np.arange(24 * 20 * 12).reshape(24, 20, 12)
    grid = Grid((24, 20, 12), oblique())
    turned = grid.to_canonical(array)
    assert turned.shape == grid.canonical_shape == (20, 24, 12) and grid.canonical_spacing == pytest.approx((1.1, 0.9, 2.5))
    np.testing.assert_array_equal(turned, array[::-1, ::-1].transpose(1, 0, 2))
    np.testing.assert_array_equal(grid.from_canonical(turned), array)
    np.testing.assert_array_equal(grid.to_canonical(array[None])[0], turned)


@pytest.mark.parametrize("spacing", [None, (1.5, 1.0, 1.25)])
def test_labels_survive_the_way_there_and_back(spacing: tuple[float, float, float] | None) -> None:
    _, label = balls()
    grid, plan = Grid((24, 20, 12), oblique()), Plan(spacing, (None,))
    prepared = plan.label(label, grid)
    assert tuple(prepared.shape) == ((20, 24, 12) if spacing is None else (15, 22, 24))
    probabilities = F.one_hot(prepared.long(), 3).movedim(-1, 0).float()
    whole = torch.cat([slab for _, slab in native_slabs(probabilities, grid.canonical_shape, held_bytes=10_000)], 1)
    want = F.interpolate(probabilities[None], grid.canonical_shape, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, want, atol=1e-6, rtol=0)
    back = grid.from_canonical(whole.argmax(0).numpy())
    if spacing is None:
        np.testing.assert_array_equal(back, label)
    for value in (1, 2):
        assert 2 * ((back == value) & (label == value)).sum() / ((back == value).sum() + (label == value).sum()) > 0.93


def test_intensity() -> None:
    grid = Grid((20, 20, 20), np.eye(4))
    voxels = np.random.default_rng(0).normal(500, 50, (1, 20, 20, 20)).astype(np.float32)
    scaled = Plan(None, (None,)).image(voxels, grid)
    assert abs(float(scaled.mean())) < 1e-5 and float(scaled.std()) == pytest.approx(1, abs=1e-3)
    voxels[:, :10] = 0  # cut out of its surroundings: they stay 0 and do not count
    scaled = Plan(None, (None,)).image(voxels, grid)
    assert not scaled[:, :10].any() and float(scaled[:, 10:].std()) == pytest.approx(1, abs=1e-3)
    scaling = foreground_scaling([[float(value) for value in range(1001)]])
    assert (scaling.low, scaling.high, scaling.mean) == (5.0, 995.0, 500.0)
    clipped = Plan(None, (scaling,)).image(np.full((1, 2, 2, 2), 5000, np.float32), Grid((2, 2, 2), np.eye(4)))
    assert float(clipped.max()) == pytest.approx((995 - 500) / scaling.std)
    assert Plan.of(json.loads(json.dumps(Plan((1, 2, 3), (scaling, None)).as_dict()))) == Plan((1, 2, 3), (scaling, None))


def test_spacing_is_the_median_and_finer_along_a_coarse_axis() -> None:
    alike = [((40, 40, 40), (1.0, 1.0, size)) for size in (1.0, 2.0, 1.5)]
    assert planned_spacing(alike) == (1.0, 1.0, 1.5)
    coarse = [((200, 200, 20), (0.5, 0.5, size)) for size in (2.0, 4.0, 5.0, 5.0, 6.0)]
    assert planned_spacing(coarse) == (0.5, 0.5, pytest.approx(np.percentile((2, 4, 5, 5, 6), 10)))


@pytest.mark.parametrize(
    ("settings", "fix"),
    [({"spacing": (1.0, 0.0, 1.0)}, "data.spacing=auto"), ({"intensity": (200.0, -100.0)}, "data.intensity=[-100,200]")],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], fix: str) -> None:
    root = folders(tmp_path, {"train": 1, "val": 1}, NAMES)
    with pytest.raises(UserError) as caught:
        make_plan(VolumeDataConfig(root=str(root), **settings), load(root))
    assert caught.value.fix == fix


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_kept_volumes_are_the_same(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    root = folders(tmp_path / "data", {"train": 2, "val": 1}, NAMES)
    part, plan = load(root).train, Plan((1.0, 1.0, 1.0), (None,))
    plain = PreparedVolumes(part, plan, "none", 0).read(1)
    kept = PreparedVolumes(part, plan, cache, 2**20)
    for _ in range(2):
        for one, other in zip(kept.read(1), plain, strict=True):
            np.testing.assert_array_equal(one, other)
    assert set(np.unique(plain.points[:, 0])) == {1, 2}
    assert all(plain.label[tuple(place)] == value for value, *place in plain.points.tolist())
    stored = list((tmp_path / "cache").rglob("image.npy"))
    assert len(stored) == (cache == "disk")
    if cache == "disk":  # no room for a second one
        PreparedVolumes(part, plan, cache, stored[0].stat().st_size + 10).read(0)
        assert len(list((tmp_path / "cache").rglob("image.npy"))) == 1

"""Runs on volumes from end to end: 3D, slices with their neighbours, regions; files and series come back on their own grid."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.numpy import load_file

import visionattn as va
from tests.commands import done
from tests.commands import va as va_command
from tests.data.volumes.made import SPACING, balls, folders, oblique, save, series
from tests.tasks.volumes.conftest import NAMES, TINY, train
from visionattn.console import Console
from visionattn.data.volumes.grid import Grid
from visionattn.errors import UserError
from visionattn.tasks import guess_task


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints/last/model.safetensors")


def test_a_run_resumes_bit_for_bit(root: Path, volume_run: Path, tmp_path: Path) -> None:
    half = train(root, tmp_path, "train.epochs=1", "data.cache=disk").run
    va.train(resume=half, console=Console(quiet=True), **{"train.epochs": 2, "data.cache": "none"})
    first, second = weights(volume_run), weights(half)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_what_a_run_leaves(volume_run: Path) -> None:
    with (volume_run / "eval/val/per_volume.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["images/val/p0_0.nii.gz", "images/val/p0_1.nii.gz"]
    assert {"dice", "iou", "hd95", "nsd", "assd", "n_missed", "dice front", "hd95 back", "assd back"} <= set(rows[0])
    metrics = json.loads((volume_run / "eval/val/metrics.json").read_text())["metrics"]
    assert metrics["dice"] == pytest.approx(np.mean([float(row[f"dice {name}"]) for row in rows for name in ("front", "back")]), abs=1e-5)
    assert (volume_run / "eval/val/per_class.png").is_file() and len(list((volume_run / "eval/val/worst").iterdir())) == 2
    assert (volume_run / "data/preview_train.png").is_file() and (volume_run / "data/preview_val.png").is_file()
    page = (volume_run / "report.html").read_text()
    assert "distances in mm (HD95 max_directed)" in page and "Scores of volumes" in page
    (line,) = (line for line in (volume_run / "log.txt").read_text().splitlines() if line.startswith("model "))
    assert "patches of 32 x 32 x 16" in line and " px" not in line
    assert (volume_run / "data/classes.txt").read_text().split() == ["background", "front", "back"]


def test_a_label_map_lies_on_the_grid_of_its_volume(volume_run: Path, tmp_path: Path) -> None:
    image, _ = balls(7, (17, 22, 9))
    path = save(tmp_path / "in" / "deep" / "case.nii.gz", image)
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"?")
    out = tmp_path / "out"
    printed = done("predict", volume_run, "--source", tmp_path / "in", "--out", out, "--save", "mask,overlay,json,csv")
    assert "broken.nii.gz" in printed.output
    written, source = nibabel.load(out / "masks/deep/case.nii.gz"), nibabel.load(path)
    assert written.shape == image.shape and written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, oblique(), atol=1e-6)
    assert nibabel.aff2axcodes(written.affine) == nibabel.aff2axcodes(source.affine) == ("P", "L", "S")
    for key in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "qoffset_x", "pixdim"):
        np.testing.assert_array_equal(written.header[key], source.header[key], err_msg=key)
    assert (out / "overlays/deep/case.png").is_file()
    found = json.loads((out / "predictions.json").read_text())
    (facts,), values = found["predictions"], np.asarray(written.dataobj)
    millilitre = np.prod(SPACING) / 1000
    assert facts["millilitres"] == pytest.approx({n: (values == v).sum() * millilitre for v, n in ((1, "front"), (2, "back"))}, rel=1e-4)
    assert [Path(item["path"]).name for item in found["unreadable"]] == ["broken.nii.gz"]
    (kept,), _ = va.predict(volume_run, path)
    np.testing.assert_array_equal(kept.class_map(), values)
    averaged, _ = va.predict([volume_run, volume_run], path)
    np.testing.assert_array_equal(averaged[0].class_map(), values)


def test_a_series_gets_a_label_map_on_its_grid(volume_run: Path, tmp_path: Path) -> None:
    values = np.clip(balls(3, (20, 18, 10))[0] * 10, 0, 4000).astype(int)
    affine = series(tmp_path / "scan", values)
    done("predict", volume_run, "--source", tmp_path / "scan", "--out", tmp_path / "out")
    written = nibabel.load(tmp_path / "out/masks/scan.nii.gz")
    assert written.shape == values.shape and Grid(values.shape, affine).difference(Grid(written.shape, written.affine)) == ""
    assert written.header.get_xyzt_units()[0] == "mm" and (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 1)
    # The same voxels in a NIfTI file get the same label map.
    save(tmp_path / "same.nii.gz", (2.0 * values - 1000).astype(np.float32), affine)
    (same,), _ = va.predict(volume_run, tmp_path / "same.nii.gz")
    grids = Grid(values.shape, affine), Grid(written.shape, np.asarray(written.affine))
    np.testing.assert_array_equal(grids[0].to_canonical(same.class_map()), grids[1].to_canonical(np.asarray(written.dataobj)))


def test_scores_of_a_split_without_training_on_it(volume_run: Path, root: Path, tmp_path: Path) -> None:
    alone = va.evaluate(volume_run, split="test", console=Console(quiet=True))
    several = va.evaluate([volume_run, volume_run], split="test", console=Console(quiet=True))
    assert alone.count == 1 and alone.metrics == pytest.approx(several.metrics)
    flipped = va.evaluate(volume_run, split="test", settings=["eval.flips=true"], console=Console(quiet=True))
    assert flipped.metrics["loss"] != alone.metrics["loss"]
    for content, what in (
        ({"labels": {"background": 0, "a": 1, "b": 2}}, "other classes"),
        ({"modality": {"0": "A", "1": "B"}}, "2 channels"),
    ):
        other = folders(tmp_path / what, {"val": 1}, content)
        with pytest.raises(UserError, match=what):
            va.evaluate(volume_run, data=other, console=Console(quiet=True))
    elsewhere = va.evaluate(volume_run, data=root, split="val", console=Console(quiet=True))
    assert elsewhere.metrics["dice"] == pytest.approx(json.loads((volume_run / "eval/val/metrics.json").read_text())["metrics"]["dice"])


def test_a_run_starts_from_another(root: Path, volume_run: Path) -> None:
    text = done("train", "--data", root, f"model.weights={volume_run}", "data.workers=0", "data.check=headers", "--dry-run").output
    assert (
        "patches of 32 x 32 x 16" in text and "model.drop_path_rate" in text and "patches are seen" in text and "one step: loss" in text
    ), "with the network of that run"


@pytest.mark.parametrize(("name", "args"), [("eca_resnet18", "{width: 8, depths: [1, 1, 1, 1]}"), ("timm:test_byobnet", "{}")])
def test_slices_with_their_neighbours(root: Path, tmp_path: Path, name: str, args: str) -> None:
    more = [f"model.name={name}", f"model.args={args}", "model.head.args={max_channels: 16}"]
    result = train(root, tmp_path, *more, "model.img_size=32", "model.weights=none", "train.epochs=1", "augment.patches=3")
    inputs = [value.shape[1] for value in weights(result.run).values() if value.ndim == 4]
    assert 3 in inputs and 1 not in inputs, "a slice and one on each side"
    image, _ = balls(9)
    (found,), _ = va.predict(result.run, save(tmp_path / "a.nii.gz", image))
    assert found.class_map().shape == image.shape


def test_overlapping_regions_of_two_channels(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [10, 20], "core": [20]}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "regions_class_order": [10, 20]}
    for number in range(3):
        image, label = balls(number)
        for channel in (0, 1):
            save(tmp_path / f"data/imagesTr/c{number}_000{channel}.nii.gz", image * (1 - 2 * channel))
        save(tmp_path / f"data/labelsTr/c{number}.nii.gz", 10 * label)
    (tmp_path / "data/dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.in_chans: expected 2") as caught:
        train(tmp_path / "data", tmp_path, "data.val_fraction=0.3")
    assert caught.value.fix == "model.in_chans=2"
    result = train(tmp_path / "data", tmp_path, "data.val_fraction=0.3", "model.in_chans=2")
    files = [str(tmp_path / f"data/imagesTr/c0_000{channel}.nii.gz") for channel in (1, 0)]
    (found,), unreadable = va.predict(result.run, files)
    assert not unreadable and set(np.unique(found.class_map())) <= {0, 10, 20} and set(found.millilitres) == {"whole", "core"}
    assert [row["class"] for row in va.evaluate(result.run, console=Console(quiet=True)).scores.per_class] == ["whole", "core"]
    with pytest.raises(UserError, match="1 channel: expected 2"):
        va.predict(result.run, files[:1])


def test_folds_by_patient_with_their_summary(tmp_path: Path) -> None:
    root = folders(tmp_path / "balls", {"": 4}, NAMES)
    more = ["data.group_by=(p\\d+)_", "train.epochs=1", "model.img_size=[32, 32, 8]", "model.args={width: 2, depth: 2}", "log.to=[]"]
    given = {text.partition("=")[0] for text in more}
    done(
        "train",
        "--data",
        root,
        "--folds",
        2,
        *(text for text in TINY if text.partition("=")[0] not in given),
        *more,
        f"output.dir={tmp_path}",
    )
    (path,) = tmp_path.glob("*/*/folds.json")
    answer = json.loads(path.read_text())
    assert [row["count"] for row in answer["folds"]] == [2, 2] and {"mean", "std"} == answer["metrics"]["dice"].keys()
    held = [
        [row["path"] for row in csv.DictReader((path.parent / f"fold{fold}/data/manifest.csv").open()) if row["split"] == "val"]
        for fold in (1, 2)
    ]
    assert sorted(map(sorted, held)) == [[f"images/p{patient}_{2 * patient + number}.nii.gz" for number in (0, 1)] for patient in (0, 1)]
    assert "Each volume was validated once" in (path.parent / "report.html").read_text()
    result = va_command("features", path.parent / "fold1", root, "--out", tmp_path / "features")
    assert result.exit_code == 2 and "features are of images, and the model is one of volumes" in result.stderr


def test_the_layout_is_recognised(root: Path) -> None:
    assert guess_task(root) == "volumes"


@pytest.mark.parametrize(
    ("settings", "code", "part"),
    [
        (["model.name=unet3", "model.img_size=32"], "VA-M001", "3D networks: unet3d"),
        (["model.args={widths: 8}"], "VA-M002", "Did you mean width?"),
        (["model.img_size=[32, 32]"], "VA-C002", "expected one number or 3"),
        (["model.head.name=fcn"], "VA-C002", "only a 2D backbone takes one"),
        (["model.context=2"], "VA-C002", "only a 2D backbone sees slices"),
        (["model.drop_path_rate=0.1"], "VA-C002", "model.drop_path_rate=0"),
        (["data.sampler=balanced"], "VA-C002", "augment.foreground"),
        (["train.channels_last=true"], "VA-C002", "train.channels_last=auto"),
        (["loss=[{name: dice}, {name: dice}]"], "VA-C002", "a loss is given twice"),
        (["loss=[{name: dice, args: {smooth: many}}]"], "VA-C002", "not computable"),
        (["data.classes=[background, ball]"], "VA-D012", "label values that are not among 0, 1"),
    ],
)
def test_mistakes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], code: str, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        train(root, tmp_path / "runs", *settings)
    assert caught.value.code == code and part in caught.value.block()

"""Five bands from end to end: the check, training, exact resumption, evaluation and prediction, of both tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

import visionattn as va
from tests.commands import CLASSES, TINY, done, only_run, refused, settings, tree
from visionattn.data.images.settings import AugmentConfig
from visionattn.data.images.transforms import eval_transform, train_transform
from visionattn.data.masks.settings import MaskAugmentConfig
from visionattn.data.masks.transforms import mask_train_transform
from visionattn.data.statistics import with_statistics
from visionattn.errors import UserError
from visionattn.jobs.check import read_data
from visionattn.tasks import load_config, task_of

SIZE = (40, 48)
UNET = ("model.head.name=unet", "model.head.args={max_channels: 16}")


def bands(number: int, kind: int = 0) -> np.ndarray:
    """Reflectances of five bands, uint16 H x W x C, of which one is bright."""
    image = np.random.default_rng(number).integers(200, 900, (*SIZE, 5)).astype(np.uint16)
    image[:, :, kind] += 1500
    return image


def save_tiff(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of TIFF with five bands."""
    root = tmp_path_factory.mktemp("data") / "fields"
    for split, count in (("train", 6), ("val", 2)):
        for kind, name in enumerate(CLASSES):
            for number in range(count):
                save_tiff(root / split / name / f"{number}.tif", bands(100 * kind + number + 1000 * (split == "val"), kind))
    return root


@pytest.fixture(scope="module")
def trained(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    more = ("train.epochs=2", "schedule.name=constant", "log.to=tensorboard", "augment.rotate=10", "augment.random_erasing=0.5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONATTN_CACHE", str(folder / "cache"))
        result = done("train", "--data", fields, *settings(folder, *more))
    return only_run(folder), result.output


def test_the_run_holds_what_was_measured(trained: tuple[Path, str], fields: Path) -> None:
    run, printed = trained
    config = load_config(run / "config.yaml")
    stack = np.stack([tifffile.imread(path) for path in sorted(fields.glob("train/*/*.tif"))]) / 65535
    assert config.model.in_chans == 5 and config.data.preview == [1, 2, 3]  # type: ignore[attr-defined]
    np.testing.assert_allclose(config.data.mean, stack.mean((0, 1, 2)), rtol=1e-5)  # type: ignore[attr-defined]
    np.testing.assert_allclose(config.data.std, stack.std((0, 1, 2)), rtol=1e-5)  # type: ignore[attr-defined]
    assert "24 images of 5 channels (model.in_chans)" in printed and "(measured on 18 training images)" in printed
    assert "24 of 24 images are 16-bit: scaled by the maximum of their type" in printed
    assert np.asarray(Image.open(run / "data/preview_train.png")).std() > 20, "not black"


def test_resumes_to_the_same_bits(trained: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = trained
    config = load_config(run / "config.yaml", ["train.epochs=1", f"output.dir={tmp_path}", "log.to=[]"])
    first = va.train(config)
    assert first is not None
    done("train", "--resume", first.run, "train.epochs=2")
    whole, resumed = (load_file(path / "checkpoints/last/model.safetensors") for path in (run, first.run))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_evaluates_and_predicts_without_the_training_set(trained: tuple[Path, str], fields: Path, tmp_path: Path) -> None:
    run, _ = trained
    shutil.copytree(fields / "val", tmp_path / "moved/val")
    before = json.loads((run / "eval/val/metrics.json").read_text())["metrics"]
    after = json.loads(done("eval", run, "--data", tmp_path / "moved", "--json").stdout)["metrics"]
    assert before["loss"] == pytest.approx(after["loss"], rel=1e-4)
    image = bands(1, 1)
    np.save(tmp_path / "a.npy", image.transpose(2, 0, 1))
    np.savez(tmp_path / "b.npz", image)
    save_tiff(tmp_path / "c.tif", image)
    found, unreadable = va.predict(run, [tmp_path / name for name in ("a.npy", "b.npz", "c.tif", "moved/val/rose/0.tif")])
    assert [item.probabilities for item in found[:2]] == [found[2].probabilities] * 2 and not unreadable
    np.save(tmp_path / "d.npy", image[:, :, :4])
    found, unreadable = va.predict(run, [tmp_path / "c.tif", tmp_path / "d.npy"])
    assert len(found) == 1 and unreadable == [(str(tmp_path / "d.npy"), "4 channels, model.in_chans is 5")]
    text = refused(tmp_path, "VA-C002", 2, "train", "--data", fields, *settings(tmp_path, "data.preview=[9,2,1]"), "--dry-run")
    assert "data.preview: channel 9 of 5, counted from 1" in text
    assert "data.mean: fixed by the trained model" in refused(tmp_path, "VA-C002", 2, "eval", run, "data.mean=null", "data.std=null")


def test_starts_from_weights_of_colour_images() -> None:
    colour = va.create_model("eca_resnet18", num_classes=3, width=8)
    model = va.create_model("eca_resnet18", num_classes=3, width=8, in_chans=5)
    report = va.load_checkpoint(model, colour.state_dict())
    assert report.reshaped == ["first convolution 3 -> 5 input channels (repeated and scaled)"]
    key = f"backbone.{colour.backbone.first_conv}.weight"
    old, new = colour.state_dict()[key], model.state_dict()[key]
    torch.testing.assert_close(new, old[:, [0, 1, 2, 0, 1]] * 3 / 5)


def test_files_have_to_agree(fields: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fields, tmp_path / "fields")
    save_tiff(root / "train/rose/1.tif", bands(1)[:, :, :4])
    text = refused(tmp_path, "VA-D022", 3, "train", "--data", root, *settings(tmp_path))
    assert "1 of 24 images do not have 5 channels (model.in_chans): first train/rose/1.tif with 4" in text
    text = refused(tmp_path, "VA-D022", 3, "train", "--data", fields, *settings(tmp_path, "model.in_chans=3"))
    assert "24 of 24 images do not have 3 channels" in text and "-> model.in_chans=5" in text


def test_the_check_is_kept(fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = done("data", "check", fields)
    monkeypatch.setattr("visionattn.data.sources.image_facts", None)
    assert done("data", "check", fields).output == first.output


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_masks(trained: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    root = tmp_path / "plots"
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            image, label = bands(number + 50 * (split == "val")), np.zeros(SIZE, np.uint8)
            label[8:24, 10 + number : 30] = 1
            image[label == 1] += 800
            for folder in ("images", "masks"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            if kind == "npy":
                np.save(root / f"images/{split}/{number}.npy", image.astype(np.float32) / 100 - 20)
                np.save(root / f"masks/{split}/{number}.npy", label.astype(np.int64))
            else:
                tifffile.imwrite(root / f"images/{split}/{number}.tif", image.transpose(2, 0, 1), photometric="minisblack")
                Image.fromarray(label).save(root / f"masks/{split}/{number}.png")
    more = ("train.batch_size=2", "train.steps=2", "augment.rotate=20", "augment.elastic=1", "augment.rotate90=0.5", "data.preview=[5,2,1]")
    weights = [f"model.weights={trained[0]}", *(item for item in TINY if not item.startswith("model.img_size"))]
    command = ("train", "--data", root, *weights, "model.img_size=32", *UNET, f"output.dir={tmp_path / 'runs'}", *more)
    result = done(*command, *(["--dry-run"] if kind == "tif" else []))
    assert "6 images of 5 channels" in result.output and "augment.photometric=false" in result.output
    if kind == "tif":
        return
    run = only_run(tmp_path)
    assert load_config(run / "config.yaml").data.preview == [5, 2, 1]  # type: ignore[attr-defined]
    done("eval", run, "eval.mode=slide", "eval.flips=horizontal")
    done("predict", run, root / "images/val", "--out", tmp_path / "out")
    for number in range(2):
        assert np.asarray(Image.open(tmp_path / f"out/masks/{number}.png")).shape == SIZE
        overlay = np.asarray(Image.open(tmp_path / f"out/overlays/{number}.jpg"))[:40]
        assert overlay.std() > 20, "stretched, not black"


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    """As nnU-Net has them."""
    root = tmp_path / "cells"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    known = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "cell": 1}, "numTraining": 6, "file_ending": ".tif"}
    (root / "dataset.json").write_text(json.dumps(known))
    for number in range(6):
        image, label = bands(number), np.zeros(SIZE, np.uint8)
        label[8:24, 10:30] = 1
        Image.fromarray(label).save(root / f"labelsTr/c{number}.tif")
        for channel in range(2):
            tifffile.imwrite(root / f"imagesTr/c{number}_{channel:04d}.tif", image[:, :, channel])
    (root / "imagesTr/c3_0001.tif").rename(tmp_path / "kept.tif")
    text = refused(tmp_path, "VA-D002", 3, "data", "check", root, "data.val_fraction=0.34")
    assert "cases have different channels: imagesTr/c3 has 0000" in text
    (tmp_path / "kept.tif").rename(root / "imagesTr/c3_0001.tif")
    options = [
        *TINY,
        *UNET,
        "model.weights=none",
        "data.val_fraction=0.34",
        "train.steps=1",
        "train.batch_size=4",
        f"output.dir={tmp_path / 'runs'}",
    ]
    assert "6 images of 2 channels" in done("train", "--data", root, *options).output
    run = only_run(tmp_path)
    done("predict", run, root / "imagesTr", "--out", tmp_path / "out")
    assert sorted(tree(tmp_path / "out/masks")) == [f"c{number}_0000.png" for number in range(6)]
    np.save(tmp_path / "whole.npy", bands(0)[:, :, :2])
    assert "data.channel_files=false" in refused(tmp_path, "VA-D001", 3, "predict", run, tmp_path / "whole.npy")
    done("predict", run, tmp_path / "whole.npy", "data.channel_files=false", "--out", tmp_path / "other")
    assert (tmp_path / "other/masks/whole.png").read_bytes() == (tmp_path / "out/masks/c0_0000.png").read_bytes()


def test_sixteen_bit_grey(tmp_path: Path) -> None:
    """Twelve bits in sixteen have a mean of their own; pictures of 8 bits keep that of the weights."""
    for split in ("train", "val"):
        for kind, name in enumerate(CLASSES):
            for number in range(3):
                path = tmp_path / "scans" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(bands(10 * kind + number + 100 * (split == "val"))[:, :, 1]).save(path)
    shutil.copytree(tmp_path / "scans", tmp_path / "plain")
    for path in (tmp_path / "plain").rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) // 16).astype(np.uint8)).save(path)
    configs = [load_config(None, [f"data.root={tmp_path / name}"]) for name in ("scans", "plain")]
    found = [read_data(task_of(config), config) for config in configs]
    scans, plain = (with_statistics(config, data.train)[0] for config, data in found)
    assert scans.model.in_chans == plain.model.in_chans == 3 and plain.data.mean is plain.data.preview is None  # type: ignore[attr-defined]
    assert 0.005 < scans.data.mean[0] < 0.01 and len(scans.data.mean) == 3  # type: ignore[attr-defined]


def test_arrays_beside_pictures_are_something_else(tmp_path: Path, flowers: Path) -> None:
    before = done("data", "check", flowers).output
    np.save(flowers / "train/rose/features.npy", np.zeros(12))
    after = done("data", "check", flowers).output
    assert "1 file of other types left out (.npy)" in after
    assert [line for line in before.splitlines() if "data " in line] == [line for line in after.splitlines() if "data " in line]


# ---------------------------------------------------------------- transforms

MEAN, STD = [0.1] * 5, [0.02] * 5


def test_values_are_moved_and_not_clipped() -> None:
    values = np.random.default_rng(0).normal(0, 50, (40, 48, 5)).astype(np.float32)
    augment = AugmentConfig(hflip=0.5, vflip=0.5, rotate=20, shift=0.1, zoom=0.1, random_erasing=0.2)
    transform = train_transform(augment, (32, 32), [0.0] * 5, [1.0] * 5, shown=[0])
    done = [transform(values, seed) for seed in range(6)]
    assert done[0].shape == (5, 32, 32) and done[0].dtype == torch.float32 and torch.equal(done[0], transform(values, 0))
    assert min(float(tensor.min()) for tensor in done) < -60 and max(float(tensor.max()) for tensor in done) > 60
    still = eval_transform((40, 48), MEAN, STD, interpolation="bilinear", crop_pct=1.0, shown=[4, 1, 0])
    torch.testing.assert_close(still(values), torch.from_numpy((values.transpose(2, 0, 1) - 0.1) / 0.02), rtol=1e-3, atol=1e-2)
    assert still.normalize.undo(still(values)).shape == (40, 48, 3)


def test_masks_move_with_their_bands() -> None:
    label = np.zeros((40, 48), np.uint8)
    label[10:25, 12:30] = 1
    image = np.repeat(label[:, :, None].astype(np.float32) * 100 - 50, 5, axis=2)
    augment = MaskAugmentConfig(rotate=20, elastic=0.5, vflip=0.5, rotate90=0.5, scale=(1.0, 1.5))
    transform = mask_train_transform(augment, (48, 48), [0.0] * 5, [1.0] * 5, shown=[0])
    for seed in range(5):
        tensor, moved = transform(image, label, seed)
        inside = moved != 255
        assert ((tensor[0].numpy()[inside] > 0) == (moved[inside] == 1)).mean() > 0.98 and float(tensor.min()) >= -50
        assert (tensor[:, ~torch.from_numpy(inside)].abs() <= 50).all()


@pytest.mark.parametrize("name", ["color_jitter", "rand_augment"])
def test_colours_that_there_are_not(name: str) -> None:
    augment = AugmentConfig(**{name: {"color_jitter": 0.4, "rand_augment": "rand-m9-mstd0.5-inc1"}[name]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"augment.{name} changes colours of 8 bits, which 5 channels"):
        train_transform(augment, (32, 32), MEAN, STD, shown=[0])


def test_photometric_distortion_that_was_asked_for() -> None:
    with pytest.raises(UserError, match=r"augment\.photometric changes colours of 8 bits"):
        mask_train_transform(MaskAugmentConfig(photometric=True), (32, 32), MEAN, STD, shown=[0])

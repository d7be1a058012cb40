"""`train` with what a new user gives: data, perhaps a model, perhaps weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import Trained, done, flower_pictures, only_run, picture, refused, va
from visionattn.models.weights.download import default_weights

QUICK = ("train.epochs=1", "train.batch_size=8", "data.workers=0", "log.to=[]")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    return flower_pictures(tmp_path)


def saved(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((only_run(tmp_path) / "config.yaml").read_text(encoding="utf-8"))
    return content


def test_from_a_run_with_nothing_but_its_name(trained: Trained, flowers: Path, tmp_path: Path) -> None:
    """The network, its arguments and its size are those of the run; what was chosen is printed with a reason and saved."""
    output = f"output.dir={tmp_path / 'runs'}"
    result = done("train", "--data", flowers, "--model", "eca_resnet18", f"model.weights={trained.run}", output, *QUICK)
    config = saved(tmp_path)
    assert config["model"]["args"] == {"width": 8} and config["model"]["img_size"] in (32, [32, 32])
    assert config["optim"]["lr"] == 1e-3 and config["loss"]["label_smoothing"] == 0.1
    assert "optim.lr=0.001  (CNN of 0 million parameters, 8 samples per step)" in result.stdout
    assert "schedule.warmup_epochs=0.1" in result.stdout
    assert "optim.layer_decay=null" in result.stdout and "augment.random_resized_crop.scale=[0.35,1]" in result.stdout
    assert "augment.rand_augment=rand-m6-mstd0.5-inc1  (CNN)" in result.stdout
    assert "train.epochs=" not in result.stdout  # it was given
    again = done("train", "--config", only_run(tmp_path) / "config.yaml", f"output.dir={tmp_path / 'again'}")
    assert "optim.lr=" not in again.stdout
    (other,) = (tmp_path / "again").glob("*/*/config.yaml")
    repeated = yaml.safe_load(other.read_text(encoding="utf-8"))
    assert {**repeated, "output": None} == {**config, "output": None}


def test_what_is_given_counts(trained: Trained, flowers: Path, tmp_path: Path) -> None:
    args = (
        f"model.weights={trained.run}",
        f"output.dir={tmp_path / 'runs'}",
        "optim.lr=0.002",
        "loss.label_smoothing=0",
        "model.img_size=40",
    )
    result = done("train", "--data", flowers, "--model", "eca_resnet18", *args, *QUICK, "--dry-run")
    assert "optim.lr=" not in result.stdout and "loss.label_smoothing=" not in result.stdout and "optim.weight_decay=0.05" in result.stdout


def test_a_checkpoint_of_a_run_serves_too_and_its_network_need_not_be_named(trained: Trained, flowers: Path, tmp_path: Path) -> None:
    weights = f"model.weights={trained.run / 'checkpoints' / 'last'}"
    result = done("train", "--data", flowers, weights, f"output.dir={tmp_path / 'runs'}", *QUICK, "--dry-run")
    assert "augment.rand_augment=rand-m6-mstd0.5-inc1  (CNN)" in result.stdout


def test_alone_it_fine_tunes_and_without_a_network_it_stops_soon(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is decoded before it is known whether there are weights; both ways on are named, and the second one works."""
    monkeypatch.setenv("VISIONATTN_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    text = refused(tmp_path, "VA-W001", 4, "train", "--data", flowers)
    assert time.monotonic() - started < 10
    assert "davit_tiny" in text and "visionattn weights import FILE" in text and "model.weights=none" in text
    args = ("model.weights=none", "model.args={depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 2, 4, 8]}", "model.img_size=32")
    done("train", "--data", flowers, *args, *QUICK, "--dry-run")


def test_which_weights_auto_means(flowers: Path, tmp_path: Path) -> None:
    assert default_weights("swin_tiny") == "in1k" and default_weights("ela_resnet18") == "none"
    assert default_weights("eca_resnet18") == "none"  # its file is behind a page for browsers
    small = "model.args={width: 8}"
    result = done("train", "--data", flowers, "--model", "eca_resnet18", small, "model.img_size=32", *QUICK, "--dry-run")
    assert "optim.lr=" not in result.stdout


def test_masks_of_zero_and_one_need_no_names(trained: Trained, tmp_path: Path) -> None:
    """A segmenter from a classifier's run: its backbone, the cheapest head, crops as large as the images."""
    import numpy as np
    from PIL import Image

    for split in ("train", "val"):
        for number in range(4):
            picture(tmp_path / "polyps" / "images" / split / f"{number}.png", number % 3, number, size=(72, 66))
            mask = (np.arange(72) > 30).astype(np.uint8)[None].repeat(66, 0)
            path = tmp_path / "polyps" / "masks" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    args = ("--model", "eca_resnet18", f"model.weights={trained.run}", f"output.dir={tmp_path / 'runs'}")
    result = done("train", "--data", tmp_path / "polyps", *args, "train.epochs=1", "train.batch_size=2", "data.workers=0")
    assert "classes background and object" in result.stdout and "model.head.name=segformer" in result.stdout
    config = saved(tmp_path)
    assert config["model"]["img_size"] == 64 and config["model"]["args"] == {"width": 8}
    assert va("eval", only_run(tmp_path)).exit_code == 0

"""`timm:NAME` in the commands: export and predict from the file, explain, bags of patches, slices of volumes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionattn as va
from tests.commands import Trained, done, only_run, refused
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.jobs.explain import _methods, explain
from visionattn.runs.load import load_model

EXACT = "train.precision=fp32"
QUIET = ("log.to=[]", "data.workers=0", "train.device=cpu")


def train(folder: Path, data: Path, name: str) -> Trained:
    given = ("model.weights=none", "model.img_size=64", "train.steps=2", "train.batch_size=4", EXACT, f"output.dir={folder / 'runs'}")
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(folder / "cache"))
        result = done("train", "--data", data, "--model", f"timm:{name}", *QUIET, *given)
    return Trained(only_run(folder), data, result)


def noise(folder: Path, counts: dict[str, int]) -> Path:
    """Three classes of coloured noise."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for index, name in enumerate(("daisy", "rose", "tulip")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (70, 80, 3), dtype=np.uint8)
                pixels[..., index] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=["test_efficientnet", "test_vit"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A pyramid, and a network that only classifies."""
    folder = tmp_path_factory.mktemp(request.param)
    return train(folder, noise(folder / "data", {"train": 4, "val": 2}), request.param)


@pytest.mark.slow
def test_an_exported_file_predicts_as_the_run(run: Trained, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    answer = json.loads(done("export", run.run, "--out", path, "--verify", "1,3", "--json").stdout)
    assert all(0 <= check["difference"] < 1e-4 for check in answer["checks"])
    for name, model in (("run", run.run), ("file", path)):
        done("predict", model, "--source", run.data / "val", "--out", tmp_path / name, "--save", "csv,probs", EXACT)
    mine, theirs = (list(csv.DictReader((tmp_path / name / "predictions.csv").open())) for name in ("run", "file"))
    assert len(mine) == len(theirs) == 6
    for one, other in zip(mine, theirs, strict=True):
        assert all(other[key] == value or float(other[key]) == pytest.approx(float(value), abs=1e-4) for key, value in one.items())


def test_grad_cam_of_a_run(run: Trained, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam")
    image = run.data / "val" / "rose" / "0.png"
    done("explain", run.run, "--image", image, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "maps.png").is_file() and "gradcam" in (tmp_path / "out" / "explain.html").read_text()
    found = explain(run.run, image, methods=["gradcam"], steps=0, out=tmp_path / "again", console=Console(quiet=True))
    assert found.maps["gradcam"].shape == (64, 64) and found.maps["gradcam"].max() > 0
    text = refused(run.run, "VA-C002", 2, "explain", run.run, "--image", image, "--method", "attention", "--out", tmp_path / "other")
    assert "--method gradcam," in text
    backbone = load_model(run.run).model.backbone
    image = torch.randn(1, 3, 64, 64)
    outputs: list[torch.Tensor] = []
    backbone.cam_layer().register_forward_hook(lambda module, given, output: outputs.append(output))
    with torch.no_grad():
        backbone(image)
        level = -2 if backbone.tokens_of else backbone.levels[-1]
        wanted = backbone.network.forward_intermediates(image, indices=[level], intermediates_only=True)[0]
    assert torch.allclose(backbone.cam_map(outputs[0], (64, 64)), wanted, atol=1e-5)


def test_a_network_that_explain_has_no_method_for() -> None:
    with torch.device("meta"):
        backbone = va.create_model("timm:mixer_s32_224").backbone
    for asked in ((), ("gradcam",)):
        with pytest.raises(UserError, match="no method of explain applies") as caught:
            _methods(backbone, [], asked, Console(quiet=True))
        assert "a plain vision transformer" in caught.value.fix


def test_bags_of_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "patches" / "ab"[number % 2] / f"slide{number}"
        folder.mkdir(parents=True)
        for place in range(2):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{place}_{number}.png")
    patches = "data.patches={backbone: 'timm:test_vit', weights: none, img_size: 64}"
    given = ("model.args={width: 8, hidden: 8}", "train.epochs=1", f"output.dir={tmp_path / 'runs'}", patches)
    done("train", "--data", tmp_path / "patches", "--val-fraction", "0.34", *QUIET, EXACT, *given)
    kept = list((Path(os.environ["VISIONATTN_CACHE"]) / "features").glob("timm-test_vit-*/*.npy"))
    assert len(kept) == 6 and np.load(kept[0]).shape == (2, 64)
    done("predict", only_run(tmp_path), "--source", tmp_path / "patches" / "a", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "attention" / "slide2.csv").is_file()

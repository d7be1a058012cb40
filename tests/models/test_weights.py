"""Reading checkpoint files: layouts, adaptations, refusals."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import visionattn as va
from tests.parity import Record
from visionattn.errors import UserError
from visionattn.models.weights.load import read_file, tensors_of

RECORD = "eca_resnet18_k3577__64x64"


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """ECA-ResNet-18 in the authors' keys."""
    return Record("eca", RECORD).state()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(Record("eca", RECORD).image())


@pytest.mark.parametrize("container", ["bare", "model", "state_dict", "module"])
def test_containers_of_official_files(container: str, official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    content: Any = official
    if container == "module":
        content = {
            "epoch": 99,
            "arch": "eca",
            "best_prec1": 70.9,
            "state_dict": {f"module.{key}": value for key, value in official.items()},
        }
    elif container != "bare":
        content = {container: OrderedDict(official), "args": argparse.Namespace(lr=0.1, path=Path("x"))}
    torch.save(content, tmp_path / "file.pth.tar")
    model = va.create_model("eca_resnet18", checkpoint_path=tmp_path / "file.pth.tar")
    reference = va.create_model("eca_resnet18")
    va.load_checkpoint(reference, official, allow=())
    assert torch.equal(logits(model), logits(reference))


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


# What training code makes of a state dict, and what is reported beside the number of tensors.
SAVED: dict[str, tuple[Any, str]] = {
    "compiled": (lambda good, bad: prefixed(good, "_orig_mod."), ""),
    "compiled, then parallel": (lambda good, bad: {"state_dict": prefixed(good, "module._orig_mod.")}, ""),
    "parallel, then compiled": (lambda good, bad: {"model_state_dict": prefixed(good, "_orig_mod.module.")}, ""),
    "a model of models": (lambda good, bad: {"net": prefixed(good, "model.net.backbone.encoder.")}, ""),
    "containers in containers": (lambda good, bad: {"model": {"state_dict": good}, "optimizer": {"state": {}}}, ""),
    "Lightning": (
        lambda good, bad: {
            "state_dict": {**prefixed(good, "model."), "loss.weight": torch.ones(5)},
            "optimizer_states": [{"state": {}}],
            "callbacks": {"checkpoint": {"best": 0.5}},
        },
        "model taken, without 1 other tensor (loss.weight, ...)",
    ),
    "Lightning, compiled": (lambda good, bad: {"state_dict": prefixed(good, "net._orig_mod.")}, ""),
    "Lightning, with an average": (
        lambda good, bad: {"state_dict": {**prefixed(bad, "model."), **prefixed(good, "ema_model.module.")}},
        "ema_model taken, without 130 other tensors (model.conv1.weight, ...)",
    ),
    "timm": (
        lambda good, bad: {"state_dict": bad, "state_dict_ema": good},
        "moving average (state_dict_ema) taken; state_dict is there too",
    ),
    "ConvNeXt": (lambda good, bad: {"model": bad, "model_ema": good}, "moving average (model_ema) taken; model is there too"),
    "average with its decay": (
        lambda good, bad: {"ema": {"module": good, "decay": 0.9}, "model": bad},
        "moving average (ema) taken; model is there too",
    ),
    "average alone": (lambda good, bad: {"ema_state_dict": prefixed(good, "module.")}, "moving average (ema_state_dict) taken"),
    "average without names": (lambda good, bad: {"ema": {"shadow": list(bad.values())}, "model": good}, ""),
    "stochastic weight averaging": (
        lambda good, bad: {"n_averaged": torch.tensor(5), **prefixed(good, "module.")},
        "average of weights (torch's AveragedModel) taken",
    ),
    "two sets": (lambda good, bad: {"model": bad, "state_dict": good}, "state_dict taken; model is there too"),
}


@pytest.mark.parametrize("name", SAVED)
def test_files_of_training_code(name: str, official: dict[str, torch.Tensor]) -> None:
    save, note = SAVED[name]
    taken, found = tensors_of(save(official, {key: torch.zeros_like(value) for key, value in official.items()}))
    assert taken.keys() == official.keys() and all(taken[key] is value for key, value in official.items())
    assert found == note


def test_the_report_names_the_weights_that_were_taken(official: dict[str, torch.Tensor]) -> None:
    report = va.load_checkpoint(va.create_model("eca_resnet18"), {"model": official, "model_ema": official})
    assert report.reason == "110 of 110 tensors loaded; moving average (model_ema) taken; model is there too"


def test_names_of_the_model_itself_are_no_wrappers() -> None:
    model = torch.nn.Module()
    model.backbone = va.create_model("eca_resnet18", features_only=True)  # type: ignore[assignment]
    assert va.load_checkpoint(model, model.state_dict()).matched == 108
    wrapped: Any = torch.nn.Module()
    wrapped.net = torch.nn.Linear(2, 2)
    assert tensors_of(wrapped.state_dict(), wrapped.state_dict()).state.keys() == {"net.weight", "net.bias"}
    assert tensors_of(wrapped.state_dict()).state.keys() == {"weight", "bias"}


def test_a_file_without_classifier_is_a_start(official: dict[str, torch.Tensor]) -> None:
    trunk = {key: value for key, value in official.items() if not key.startswith("fc.")}
    model = va.create_model("eca_resnet18", num_classes=5)
    before = model.head.fc.weight.clone()
    report = va.load_checkpoint(model, trunk)
    assert report.skipped == ["the file has no classifier: head re-initialised"] and report.matched == 108
    assert torch.equal(model.head.fc.weight, before)
    with pytest.raises(UserError, match=r"missing head\.fc\.weight"):
        va.load_checkpoint(model, trunk, allow=())


def test_values_that_are_not_finite(official: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    damaged = {key: value.clone() for key, value in official.items()}
    damaged["bn1.bias"][3], damaged["fc.weight"][7, 7] = float("nan"), float("inf")
    report = va.load_checkpoint(va.create_model("eca_resnet18"), damaged)
    assert report.not_finite == "NaN or infinite values in 2 tensors of the file, first backbone.stem.1.bias"
    assert report.reason == f"110 of 110 tensors loaded; {report.not_finite}"
    torch.save(damaged, tmp_path / "file.pth")
    va.create_model("eca_resnet18", checkpoint_path=tmp_path / "file.pth")
    assert [item.levelname for item in caplog.records] == ["WARNING"] and "NaN" in caplog.text


def test_numbers_of_another_kind_are_refused(official: dict[str, torch.Tensor]) -> None:
    whole = {**official, "conv1.weight": official["conv1.weight"].long()}
    with pytest.raises(UserError, match=r"VA-W003(.|\n)*file \[64, 3, 7, 7\] int64, model \[64, 3, 7, 7\]"):
        va.load_checkpoint(va.create_model("eca_resnet18"), whole)
    half = {key: value.half() if value.is_floating_point() else value for key, value in official.items()}
    assert va.load_checkpoint(va.create_model("eca_resnet18"), half).matched == 110


def test_more_names_than_a_model_has() -> None:
    for state in ({str(number): torch.zeros(0) for number in range(20_001)}, {"a" * 501: torch.zeros(0)}):
        with pytest.raises(UserError, match="VA-W005: no model has"):
            tensors_of(state)


def test_yacs_node_is_read_as_data_without_yacs(official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Swin's files hold the training config as a dict subclass of another package."""
    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    config.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    sys.modules |= {"yacs": yacs, "yacs.config": config}
    try:
        node = config.CfgNode({"LR": 0.1})
        torch.save({"model": official, "config": node}, tmp_path / "swin.pth")
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    assert va.load_checkpoint(va.create_model("eca_resnet18"), tmp_path / "swin.pth").matched == 110


def test_safetensors_of_ours_and_of_the_authors(official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(official, tmp_path / "theirs.safetensors")
    model = va.create_model("eca_resnet18", checkpoint_path=tmp_path / "theirs.safetensors")
    save_file(model.state_dict(), tmp_path / "ours.safetensors")
    assert torch.equal(logits(va.create_model("eca_resnet18", checkpoint_path=tmp_path / "ours.safetensors")), logits(model))


def test_another_classifier_and_first_convolution(official: dict[str, torch.Tensor]) -> None:
    model = va.create_model("eca_resnet18", num_classes=5, in_chans=1)
    before = model.head.fc.weight.clone()
    report = va.load_checkpoint(model, official)
    assert report.reshaped == ["first convolution 3 -> 1 input channels (summed)"]
    assert report.skipped == ["checkpoint head has 1000 classes, the model 5: head re-initialised"]
    assert report.matched == 108 and report.reason.startswith("108 of 110 tensors loaded; ")
    assert torch.equal(model.head.fc.weight, before)
    grey = torch.randn(2, 1, 64, 64)
    colour = va.create_model("eca_resnet18", num_classes=0)
    va.load_checkpoint(colour, official)
    model.reset_classifier(0)
    with torch.no_grad():
        assert torch.allclose(model.eval()(grey), colour.eval()(grey.expand(-1, 3, -1, -1)), atol=1e-4)
    wide = va.create_model("eca_resnet18", num_classes=0, in_chans=6)
    va.load_checkpoint(wide, official)
    with torch.no_grad():
        image = torch.randn(2, 3, 64, 64)
        assert torch.allclose(wide.eval()(image.repeat(1, 2, 1, 1)), colour(image), atol=1e-4)


def test_differences_that_were_not_asked_for_are_refused(official: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("eca_resnet18", num_classes=5), official, allow=())
    assert caught.value.code == "VA-W003" and "head.fc.weight: file [1000, 512], model [5, 512]" in caught.value.why
    incomplete = {key: value for key, value in official.items() if key != "layer1.0.conv1.weight"}
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("eca_resnet18"), incomplete)
    assert "missing backbone.stages.0.0.conv1.weight" in caught.value.why
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("eca_resnet18"), {**official, "extra.weight": torch.zeros(1)})
    assert "unknown extra.weight" in caught.value.why


def test_the_wrong_file_is_recognised() -> None:
    with torch.device("meta"):
        small = va.create_model("swin_small").state_dict()
    given = {key: torch.zeros(value.shape) for key, value in small.items()}
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("swin_tiny"), given)
    assert caught.value.what == "looks like swin_small (24 blocks) - you asked for swin_tiny (12 blocks)"
    assert caught.value.exit_code == 4


def test_a_backbone_takes_its_part_of_a_classifier(official: dict[str, torch.Tensor]) -> None:
    backbone = va.create_model("eca_resnet18", features_only=True)
    assert va.load_checkpoint(backbone, official).matched == 108
    model = va.create_model("eca_resnet18")
    va.load_checkpoint(model, official)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(backbone.eval()(image), model.eval().backbone(image), strict=True))


class Trap:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(legacy: bool, official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    torch.save({"state_dict": official, "extra": Trap(proof)}, tmp_path / "bad.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("eca_resnet18"), tmp_path / "bad.pth")
    assert caught.value.code == "VA-W004" and caught.value.exit_code == 4 and "system" in caught.value.why
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(UserError):
        va.load_checkpoint(va.create_model("eca_resnet18"), tmp_path / "plain.pkl")
    assert not proof.exists()


def test_the_log_in_a_checkpoint_of_mmengine_is_left_alone(official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Its checkpoints hold curves: numpy arrays and scalars, and bound methods, for which pickle asks for `getattr`."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__, "mean": lambda self: 0.0})
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    log = buffer()
    log.history, log.methods = np.arange(3.0), {"mean": log.mean}
    content = {"state_dict": official, "message_hub": {"log_scalars": {"loss": log}}, "meta": {"iter": np.int64(5), "time": "now"}}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save(content, tmp_path / "iter_5.pth")
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "iter_5.pth")
    assert {"mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "numpy.ndarray"} <= set(unsafe)
    found = read_file(tmp_path / "iter_5.pth")
    assert tensors_of(found).state.keys() == official.keys() and found["meta"]["time"] == "now"
    assert vars(found["message_hub"]["log_scalars"]["loss"]) == {}
    assert va.load_checkpoint(va.create_model("eca_resnet18"), tmp_path / "iter_5.pth").reason == "110 of 110 tensors loaded"


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "page.pth", "empty.safetensors", "list.pth"])
def test_files_that_are_no_checkpoint(name: str, official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "cut.pth":
        torch.save(official, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "cut.safetensors":
        save_file(official, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "page.pth":
        path.write_text("<!DOCTYPE html><html>Sign in</html>")
    elif name == "list.pth":
        torch.save([torch.zeros(1)], path)
    else:
        path.touch()
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("eca_resnet18"), path)
    assert caught.value.code == "VA-W005" and caught.value.exit_code == 4


def test_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "swin_tiny.pth").touch()
    with pytest.raises(UserError) as caught:
        va.load_checkpoint(va.create_model("eca_resnet18"), tmp_path / "swin_tny.pth")
    assert caught.value.code == "VA-W006" and "swin_tiny.pth" in caught.value.fix


class Regressor(torch.nn.Module):
    """A model of a user's own: a backbone and a head whose keys no file of ours has."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.backbone = va.create_model("eca_resnet18", features_only=True)
        self.regressor = torch.nn.Linear(512, outputs)


def test_a_model_of_ones_own(official: dict[str, torch.Tensor]) -> None:
    model = Regressor()
    before = model.regressor.weight.clone()
    report = va.load_checkpoint(model, official)
    assert report.matched == 108 and report.skipped == ["the file's head does not fit: the model's starts anew"]
    assert torch.equal(next(model.parameters()), official["conv1.weight"])
    assert torch.equal(model.regressor.weight, before)
    other = Regressor()
    report = va.load_checkpoint(other, model.state_dict(), allow=())
    assert report.matched == 110 and torch.equal(other.regressor.weight, before)
    assert va.load_checkpoint(Regressor(2), model.state_dict()).matched == 108
    for state, key in ((official, "missing regressor.weight"), ({**model.state_dict(), "extra.weight": before}, "unknown extra.weight")):
        with pytest.raises(UserError) as caught:
            va.load_checkpoint(Regressor(), state, allow=())
        assert caught.value.code == "VA-W003" and key in caught.value.why


def test_a_model_of_ones_own_fits_its_head(official: dict[str, torch.Tensor]) -> None:
    class Fitting(Regressor):
        def fit_head(self, state: dict[str, torch.Tensor], allow: Any) -> tuple[set[str], list[str]]:
            state["regressor.weight"], state["regressor.bias"] = (state.pop(f"head.fc.{name}")[:1] for name in ("weight", "bias"))
            return set(), ["the first class is regressed"]

    model = Fitting()
    report = va.load_checkpoint(model, official)
    assert report.matched == 110 and report.skipped == ["the first class is regressed"]
    assert torch.equal(model.regressor.weight, official["fc.weight"][:1])

"""Files of the authors are taken as they are: recognised, kept, and used by name in all commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import visionattn as va
from tests.parity import Record
from tests.tiny import TINY
from visionattn.backbones import registry
from visionattn.backbones.registry import Variant, get_variant
from visionattn.cli import app
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.jobs.weights import load_initial_weights
from visionattn.models.weights import importing
from visionattn.models.weights.importing import import_file
from visionattn.models.weights.records import Record as ModelRecord
from visionattn.models.weights.records import find_record
from visionattn.tasks import load_config, task_of
from visionattn.tasks.classification.model import open_published

pytestmark = pytest.mark.usefixtures("undrawn")

# Family, record, name of the file, and under which key the authors keep the tensors.
FILES = [
    ("swin", "swin_tiny_patch4_window7_224__224x224", "checkpoint.pth", "model"),
    ("swin", "swinv2_tiny_patch4_window8_256__256x256", "swinv2_tiny_patch4_window8_256.pth", "model"),
    ("nat", "nat_mini__224x224", "nat_mini.pth", ""),
    ("dinat_s", "dinat_s_tiny__224x224", "checkpoint.pth", ""),
    ("dinat_isotropic", "dinat_isotropic_small__224x224", "dinat_isotropic_small_in1k_224.pth", ""),
    ("biformer", "biformer_tiny__112x112", "checkpoint.pth", "model"),
    ("davit", "DaViT_tiny__96x96", "checkpoint.pth.tar", "state_dict"),
    ("van", "van_b0__64x64", "checkpoint.pth.tar", "state_dict"),
    ("transnext", "transnext_micro__64x64", "checkpoint.pth", "model"),
    ("eca", "eca_resnet18_k3577__64x64", "checkpoint.pth.tar", "state_dict"),
]


def command(*args: object) -> Any:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in args else result.stdout


def write(path: Path, family: str, name: str, container: str) -> None:
    """The file as the authors' training code saves it, with its other objects."""
    state: dict[str, Any] = OrderedDict(Record(family, name).state())
    if family == "eca":
        state = {f"module.{key}": value for key, value in state.items()}
    content: Any = state
    if container == "model":
        yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
        config.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
        sys.modules |= {"yacs": yacs, "yacs.config": config}
        extra = {"config": config.CfgNode({"TRAIN": config.CfgNode({"LR": 0.1})}), "optimizer": {"state": {0: {"step": 3}}}, "epoch": 299}
        content = {container: state, **extra, "max_accuracy": 81.2, "scaler": {"scale": 65536.0}}
    elif container:
        content = {container: state, "epoch": 300, "arch": name, "metric": 82.8, "args": argparse.Namespace(lr=0.1, output=Path("x"))}
    try:
        torch.save(content, path)
    finally:
        for module in ("yacs", "yacs.config"):
            sys.modules.pop(module, None)


@pytest.fixture
def goldfish(tmp_path: Path) -> Path:
    """Two classes of ImageNet, in folders with their numbers, two images each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for synset in ("n01443537", "n01440764"):
            folder = tmp_path / "images" / split / synset
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def import_authors_file(folder: Path, family: str, name: str, file: str, container: str) -> dict[str, Any]:
    """Import it, and compare the model with the record."""
    record, path = Record(family, name), folder / file
    write(path, family, name, container)
    facts: dict[str, Any] = command("weights", "import", path, "--json")
    assert facts["model"] == record.facts["model"] and facts["num_classes"] == 1000 and facts["args"] == {}
    path.unlink()  # it is ours now

    model = va.create_model(facts["name"], pretrained=True).eval()
    reference = va.create_model(facts["model"]).eval()
    va.load_checkpoint(reference, record.state(), allow=("position",))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), reference(image))
    return facts


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name", "file", "container"), FILES[1:], ids=[name for _, name, _, _ in FILES[1:]])
def test_import(family: str, name: str, file: str, container: str, tmp_path: Path) -> None:
    import_authors_file(tmp_path, family, name, file, container)


@pytest.mark.slow
def test_import_then_predict_evaluate_and_train_by_name(tmp_path: Path, goldfish: Path) -> None:
    facts = import_authors_file(tmp_path, *FILES[0])
    (prediction,) = command("predict", facts["name"], "--source", goldfish / "val" / "n01443537" / "0.png", "--json")["predictions"]
    assert len(prediction["classes"]) == 5 and all("(n" in shown for shown in prediction["classes"])
    assert command("eval", facts["name"], "--data", goldfish, "--json")["count"] == 4
    small = ("model.img_size=64", "train.batch_size=2", "data.workers=0", f"output.dir={tmp_path}", "--dry-run")
    shown = command("train", "--data", goldfish, "--model", facts["model"], f"model.weights={facts['tag']}", *small)
    assert "VA-M003 checkpoint head has 1000 classes, the model 2: head re-initialised" in shown


def test_the_name_of_a_published_file_gives_its_record(tmp_path: Path) -> None:
    write(tmp_path / "nat_mini.pth", "nat", "nat_mini__224x224", "")
    done = import_file(tmp_path / "nat_mini.pth", report=lambda text: None)
    assert done.record == find_record("nat_mini.in1k") and done.record.top1 == 81.8


def test_models_with_the_same_tensors_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "best.pth", "nat", "nat_mini__224x224", "")
    with pytest.raises(UserError) as caught:
        import_file(tmp_path / "best.pth")
    assert caught.value.what == "best.pth fits dinat_mini and nat_mini equally well" and "--model dinat_mini" in caught.value.fix
    done = import_file(tmp_path / "best.pth", model="dinat_mini", tag="mine", report=lambda text: None)
    assert done.record.name == "dinat_mini.mine" and va.list_models("dinat_mini*", pretrained=True)[-1] == "dinat_mini.mine"
    with pytest.raises(UserError) as caught:
        import_file(tmp_path / "best.pth", model="van_b0")
    assert caught.value.what == "best.pth looks like dinat_mini and nat_mini - you asked for van_b0"


def test_a_model_of_ones_own_with_classes_channels_and_window(tmp_path: Path) -> None:
    model = va.create_model("swin_tiny", num_classes=3, in_chans=1, window_size=6, depths=(2, 2, 6, 2)).eval()
    torch.save(model.state_dict(), tmp_path / "Cells v2.pth")
    (tmp_path / "classes.txt").write_text("round\nlong\nnone\n")
    facts = command("weights", "import", tmp_path / "Cells v2.pth", "--classes", tmp_path / "classes.txt", "--json")
    assert facts["name"] == "swin_tiny.cells_v2" and facts["args"] == {"window_size": 6} and facts["in_chans"] == 1
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "cell.png")
    (prediction,) = command("predict", facts["name"], "--source", tmp_path / "cell.png", "--json")["predictions"]
    assert sorted(prediction["classes"]) == ["long", "none", "round"]
    assert [item["result"] for item in command("weights", "verify", "--json")["files"]] == ["as on first use"]
    (tmp_path / "classes.txt").write_text("round\n")
    with pytest.raises(UserError) as caught:
        import_file(tmp_path / "Cells v2.pth", class_names=["round"])
    assert caught.value.code == "VA-M003"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small Swin as the only registered model, without published weights."""
    name, cut = TINY["Swin"]
    whole = get_variant(name)
    monkeypatch.setattr(registry, "_VARIANTS", {"small": Variant("small", whole.cls, {**whole.args, **cut}, whole.cfg)})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("part", [{"num_classes": 0}, {"features_only": True}], ids=["features", "backbone"])
def test_a_file_without_classifier(part: dict[str, Any], tmp_path: Path) -> None:
    """The command that the import suggests works; prediction needs a classifier, and suggests the same command."""
    state = va.create_model("small", **part).state_dict()
    torch.save(state, tmp_path / "trunk.pth")
    shown = command("weights", "import", tmp_path / "trunk.pth")
    advice = "visionattn train --model small model.weights=trunk --data FOLDER"
    assert advice in shown and "predict" not in shown
    with pytest.raises(UserError) as caught:
        open_published("small.trunk", None)
    assert caught.value.code == "VA-M003" and advice in caught.value.fix
    config = load_config(None, ["model.name=small", "model.weights=trunk", "model.img_size=32"])
    model = task_of(config).build_model(config, {"classes": ["a", "b"]})
    console = Console(quiet=True)
    assert "the file has no classifier: head re-initialised" in load_initial_weights(task_of(config), model, config, console)
    given = {key.removeprefix("backbone."): value for key, value in state.items()}
    assert all(torch.equal(value, given[key]) for key, value in model.backbone.state_dict().items())


@pytest.mark.usefixtures("small")
def test_a_run_holds_the_arguments_of_imported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(va.create_model("small", num_classes=3, window_size=5).state_dict(), tmp_path / "mine.pth")
    import_file(tmp_path / "mine.pth", report=lambda text: None)
    config = load_config(None, ["model.name=small", "model.weights=mine", "model.img_size=32"])
    task = task_of(config)
    whole = task.with_weights(config)
    assert whole.model.args == {"window_size": 5} and task.with_weights(whole) == whole
    here = task.build_model(whole, {"classes": ["a", "b", "c"]})
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "another machine"))
    there = task.build_model(load_config(None, [f"model={whole.model.model_dump_json()}"]), {"classes": ["a", "b", "c"]})
    there.load_state_dict(here.state_dict())
    facts = ("input_size", "mean", "std", "interpolation", "crop_pct")
    assert [here.pretrained_cfg[key] for key in facts] == [there.pretrained_cfg[key] for key in facts]


@pytest.mark.usefixtures("small")
def test_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are reported; a published file cannot have them."""
    state = va.create_model("small", num_classes=3).state_dict()
    state["head.fc.bias"][1] = float("nan")
    torch.save(state, tmp_path / "mine.pth")
    assert "! VA-W005 NaN or infinite values in 1 tensor of the file, first head.fc.bias" in command(
        "weights", "import", tmp_path / "mine.pth"
    )
    source = {"url": "https://weights.example/mine.pth", "publisher": "author", "status": "ok"}
    made = find_record("small.mine").model_dump() | {"tag": "made", "sources": [source]}
    monkeypatch.setattr(importing, "records", lambda: (ModelRecord.model_validate(made),))
    with pytest.raises(UserError) as caught:
        import_file(tmp_path / "mine.pth")
    assert caught.value.code == "VA-W005" and "not small.made as published" in caught.value.what


@pytest.mark.usefixtures("small")
def test_names_that_no_tag_can_have(tmp_path: Path) -> None:
    torch.save(va.create_model("small", num_classes=3).state_dict(), tmp_path / f"{'a' * 200}.pth")
    assert import_file(tmp_path / f"{'a' * 200}.pth", report=lambda text: None).record.tag == "a" * 60
    with pytest.raises(UserError, match="VA-W007: --tag"):
        import_file(tmp_path / f"{'a' * 200}.pth", tag="../A")


class Trap:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_run_and_nothing_of_it_kept(tmp_path: Path) -> None:
    torch.save({"model": Record("eca", "eca_resnet18_k3577__64x64").state(), "extra": Trap(tmp_path / "ran")}, tmp_path / "bad.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    for name, code in (("bad.pth", "VA-W004"), ("foreign.pth", "VA-W003"), ("absent.pth", "VA-W006")):
        with pytest.raises(UserError) as caught:
            import_file(tmp_path / name)
        assert caught.value.code == code and caught.value.exit_code == 4
    assert not (tmp_path / "ran").exists()
    assert not list(Path(os.environ["VISIONATTN_CACHE"]).rglob("*.pth"))

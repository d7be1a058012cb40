"""Models of the Hugging Face hub: downloads from a hub of our own, and the layouts that are read. Nothing here needs a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from timm.models import save_for_hf
from typer.testing import Result

import visionattn as va
from tests.backbones.test_nat import to_transformers, to_upstream
from tests.commands import picture
from tests.commands import va as command
from tests.hub import Files, Hub, hub_server
from tests.parity import fill, image_batch, relative_error
from visionattn.errors import UserError
from visionattn.files import cache_folder
from visionattn.integrations.timm import register
from visionattn.models.weights import folders
from visionattn.models.weights import hub as hub_module
from visionattn.models.weights.folders import open_folder
from visionattn.models.weights.hub import model_folder, weights_file
from visionattn.models.weights.recognise import Recognised

TRANSFORMERS = json.loads((Path(__file__).parents[1] / "fixtures/hub/transformers.json").read_text())
TINY = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)}
QUIET: dict[str, Any] = {"report": None}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def ours(seed: int = 0, **config: Any) -> Files:
    """A tiny Swin as timm's hub layout has it."""
    torch.manual_seed(seed)
    model = va.create_model("swin_tiny", num_classes=3, **TINY)
    about = {"architecture": "va_swin_tiny", "num_classes": 3, "model_args": TINY, "label_names": ["a", "b", "c"], **config}
    return {"config.json": json.dumps(about).encode(), "model.safetensors": save(model.state_dict()), "README.md": b"# card\n"}


def failure(source: str, code: str) -> UserError:
    with pytest.raises(UserError) as caught:
        model_folder(source, **QUIET)
    assert caught.value.code == code, caught.value
    return caught.value


def test_a_model_is_downloaded_once_and_checked(hub: Hub) -> None:
    commit = hub.commit("me/swin", files := ours())
    folder = model_folder("hf-hub:me/swin", **QUIET)
    assert folder is not None and folder == cache_folder() / "hub/me--swin" / commit
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "files.json"}
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert model_folder("hf-hub:me/swin", **QUIET) == folder and hub.asked("/cdn/") == 1
    # A revision that is a commit is not asked for again.
    before = len(hub.seen)
    assert model_folder(f"hf-hub:me/swin@{commit}", **QUIET) == folder and len(hub.seen) == before
    # What was changed in the cache is downloaded again.
    (folder / "model.safetensors").write_bytes(b"changed")
    assert weights_file("hf-hub:me/swin", None).read_bytes() == files["model.safetensors"] and hub.asked("/cdn/") == 2
    # A new commit is another folder; the old one stays.
    second = model_folder("hf-hub:me/swin", **QUIET) if hub.commit("me/swin", ours(1)) else None
    assert second != folder and (folder / "model.safetensors").is_file()


def test_without_a_network_the_last_download_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hub.commit("me/swin", ours())
    folder = model_folder("hf-hub:me/swin", **QUIET)
    hub.down = True
    assert model_folder("hf-hub:me/swin") == folder
    assert "503" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert model_folder("hf-hub:me/swin", **QUIET) == folder
    monkeypatch.setenv("VISIONATTN_OFFLINE", "1")
    before = len(hub.seen)
    assert model_folder("hf-hub:me/swin", **QUIET) == folder and len(hub.seen) == before
    assert "VISIONATTN_OFFLINE=1" in failure("hf-hub:me/other", "VA-W001").why


def test_tokens_go_to_the_hub_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("me/private", ours())
    hub.token = "hf_secret"
    error = failure("hf-hub:me/private", "VA-W001")
    assert "401" in error.why and "HF_TOKEN" in error.fix
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert model_folder("hf-hub:me/private", **QUIET)
    assert [sent for _, path, sent in hub.seen if path.startswith("/cdn/")] == [None]


def test_what_is_not_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("me/swin", ours())
    hub.tampered = ours(1)["model.safetensors"]
    assert "sha256" in failure("hf-hub:me/swin", "VA-W002").why
    assert not list((cache_folder() / "hub").rglob("*.safetensors*"))
    hub.commit("me/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert "pytorch_model.bin" in failure("hf-hub:me/pickle", "VA-W004").what
    assert hub.asked("/resolve/") == 2  # of the first model: no pickle was asked for
    hub.commit("me/empty", {"README.md": b""})
    assert "config.json and no model.safetensors" in failure("hf-hub:me/empty", "VA-W006").what
    for wrong in ("hf-hub:swin", "hf-hub:../x/y", "hf-hub:me/..", "hf-hub:me/swin@../../x", "hf-hub:", "hf-hub:me/a--b"):
        failure(wrong, "VA-W007")
    assert "404" in failure("hf-hub:me/nothing", "VA-W001").why
    failure("local-dir:nowhere", "VA-W006")


def test_a_damaged_config_is_reported(tmp_path: Path) -> None:
    files = ours()
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    for text in (
        "[",
        "[]",
        json.dumps({"architecture": "va_swin_tiny", "pretrained_cfg": {"mean": "x"}}),
        json.dumps({"architecture": "va_swin_tiny", "pretrained_cfg": {"mean": []}}),
        json.dumps({"architecture": "va_swin_tiny", "pretrained_cfg": {"std": [0, 0, 0]}}),
        json.dumps({"architecture": "va_swin_tiny", "pretrained_cfg": {"crop_pct": 1e-5}}),
        json.dumps({"model_type": "swin"}),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="VA-W005"):
            open_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "va_swin_tiny", "model_args": {"checkpoint_path": "/etc/passwd"}}))
    with pytest.raises(UserError, match="VA-M002"):
        open_folder(tmp_path)


@pytest.mark.parametrize("config", [{"num_classes": 2}, {"model_args": {**TINY, "depths": "abc"}}, {"num_classes": -1}])
def test_a_config_of_another_model_predicts_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    for name, content in ours(**config).items():
        (tmp_path / name).write_bytes(content)
    picture(tmp_path / "photo.png", 0, 1)
    result = command("predict", tmp_path, tmp_path / "photo.png")
    assert result.exit_code == 4 and "VA-W00" in result.stderr and not result.stdout


@pytest.mark.parametrize("entry", [{"lfs": [1]}, {"size": 1e999}, {"blobId": None}])
def test_answers_of_something_else_than_a_hub(entry: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    file = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40, **entry}
    monkeypatch.setattr(hub_module, "_text", lambda *given: json.dumps({"sha": "0" * 40, "siblings": [file]}).encode())
    assert "not that of a hub" in failure("hf-hub:me/swin", "VA-W001").why


def test_everything_takes_a_model_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    cfg = {"input_size": [3, 64, 96], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear", "crop_pct": 1.0}
    hub.commit("me/swin", files := ours(pretrained_cfg=cfg))
    model = va.create_model("hf-hub:me/swin", pretrained=True)
    expected = va.create_model("swin_tiny", num_classes=3, **TINY)
    (tmp_path / "weights.safetensors").write_bytes(files["model.safetensors"])
    va.load_checkpoint(expected, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    about = model.pretrained_cfg
    assert (about["mean"], about["input_size"], about["crop_pct"], about["num_classes"]) == ((0.1, 0.2, 0.3), (3, 64, 96), 1.0, 3)
    assert about["label_names"] == ("a", "b", "c") and about["license"] is None
    other = va.create_model("hf-hub:me/swin", pretrained=True, num_classes=5, in_chans=1)
    assert other(torch.zeros(1, 1, 64, 64)).shape == (1, 5) and len(other.pretrained_cfg["mean"]) == 1
    maps = va.create_model("hf-hub:me/swin", pretrained=True, features_only=True, out_indices=(1, 2))
    assert maps.channels == (16, 32)
    fresh = va.create_model("swin_tiny", num_classes=3, **TINY)
    assert va.load_checkpoint(fresh, "hf-hub:me/swin").matched == len(expected.state_dict())
    picture(tmp_path / "photo.png", 0, 1)
    result: Result = command("predict", "hf-hub:me/swin", tmp_path / "photo.png", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["predictions"], result.output


def folder(path: Path, state: dict[str, torch.Tensor], config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> Path:
    path.mkdir()
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return path


@pytest.mark.parametrize("kind", list(TRANSFORMERS))
def test_transformers_outputs_are_reproduced(kind: str, tmp_path: Path) -> None:
    """Recorded from SwinForImageClassification and Swinv2ForImageClassification of transformers 4.57.6."""
    record = TRANSFORMERS[kind]
    state = {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in record["keys"].items()}
    made = folder(tmp_path / "model", state, record["config"], {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2})
    model = va.create_model(f"local-dir:{made}", pretrained=True).eval()
    side = record["config"]["image_size"]
    with torch.no_grad():
        logits = model(torch.from_numpy(image_batch((2, 3, side, side), 1)))
    assert relative_error(logits, np.array(record["logits"])) < 1e-5
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5) and model.pretrained_cfg["interpolation"] == "bilinear"
    assert model.pretrained_cfg["label_names"][4] == "LABEL_4"


def test_dinat_of_transformers_has_its_dilations(tmp_path: Path) -> None:
    args: dict[str, Any] = {"embed_dim": 16, "depths": (2, 3, 1, 1), "num_heads": (1, 2, 4, 8), "kernel_size": 3}
    args |= {"dilations": ((1, 8), (1, 4, 2), (1,), (1,)), "layer_scale": 1e-5}
    torch.manual_seed(0)
    expected = va.create_model("dinat_mini", num_classes=2, **args).eval()
    ours = expected.state_dict().items()
    bare = {key.removeprefix("backbone.").replace("head.norm", "norm").replace("head.fc", "head"): value for key, value in ours}
    config: dict[str, Any] = {"model_type": "dinat", "architectures": ["DinatForImageClassification"], "id2label": {"0": "cat", "1": "dog"}}
    config |= {"embed_dim": 16, "depths": [2, 3, 1, 1], "num_heads": [1, 2, 4, 8], "kernel_size": 3, "mlp_ratio": 3.0}
    config |= {"dilations": [[1, 8], [1, 4, 2], [1], [1]], "layer_scale_init_value": 1e-5}
    made = folder(tmp_path / "model", to_transformers(to_upstream(bare, "dinat_mini"), "dinat"), config)
    model = va.create_model(f"local-dir:{made}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(image), expected(image))
    assert open_folder(made).classes == ("cat", "dog") and open_folder(made).name.startswith("dinat_")
    config["dilations"] = [[1, 8], [1, 4, 1], [1], [1]]
    (made / "config.json").write_text(json.dumps(config))
    assert open_folder(made).args["dilations"] == (8, 4, 1, 1)


def test_timms_own_models_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a family of ours, by the tensors: tests/models/test_recognition.py recognises whole ones."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=2, embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8)
    ).eval()
    cfg = {"mean": [0.5] * 3, "interpolation": "lanczos", "label_names": ["cat", "dog"]}
    made = folder(tmp_path / "model", theirs.state_dict(), {"architecture": "swin_tiny_patch4_window7_224", "pretrained_cfg": cfg})
    monkeypatch.setattr(folders, "recognise", lambda state: Recognised(("swin_tiny",), TINY, 2, 3, 1.0))
    model = va.create_model(f"local-dir:{made}", pretrained=True).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(model(image), theirs(image), atol=1e-5)
    assert model.pretrained_cfg["mean"] == (0.5,) * 3 and model.pretrained_cfg["label_names"] == ("cat", "dog")
    monkeypatch.setattr(folders, "recognise", lambda state: None)
    with pytest.raises(UserError, match="VA-W003"):
        open_folder(made)


def test_timm_reads_and_writes_our_names(tmp_path: Path) -> None:
    register()
    torch.manual_seed(0)
    model = timm.create_model("va_swin_tiny", num_classes=4, in_chans=1, **TINY).eval()
    save_for_hf(model, tmp_path / "saved", model_config={"label_names": list("wxyz")}, model_args=TINY, safe_serialization=True)
    read = va.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(read(image), model(image))
    assert read.in_chans == 1 and read.pretrained_cfg["label_names"] == tuple("wxyz")

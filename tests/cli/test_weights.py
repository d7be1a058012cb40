"""`visionattn weights`, and training that starts from published weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands import Trained, done, only_run, refused, settings, va
from visionattn.files import sha256_of
from visionattn.models.weights import records
from visionattn.models.weights.download import store
from visionattn.models.weights.records import find_record
from visionattn.runs.load import load_model


@pytest.fixture
def stored(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> str:
    """Made-up published weights of the tiny model, in the cache as if downloaded; returns their name."""
    known = find_record("eca_resnet18.in1k")
    made = known.model_copy(update={"tag": "made", "crop_pct": 0.5, "mean": (0.1, 0.2, 0.3), "num_classes": 3})
    monkeypatch.setattr(records, "records", lambda: (known, made))
    store(trained.run / "checkpoints/best/model.safetensors", made.name)
    return made.name


def test_training_starts_from_published_weights(stored: str, trained: Trained, tmp_path: Path) -> None:
    digest = sha256_of(trained.run / "checkpoints/best/model.safetensors")
    result = done("train", "--data", trained.data, *settings(tmp_path, "model.weights=made", "eval.crop_pct=null"))
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("weights"))
    assert f"{stored}  sha256 {digest[:8]} (as on first use)" in line and "tensors loaded" in line and "head" not in line
    assert line in (only_run(tmp_path) / "log.txt").read_text()
    model = load_model(only_run(tmp_path)).model
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3) and model.pretrained_cfg["crop_pct"] == 0.5


def test_weights_list() -> None:
    facts = json.loads(done("weights", "list", "swin_t*", "--license", "mit", "--json").stdout)
    assert facts[0]["name"] == "swin_tiny.in1k" and all(fact["weights_license"] == "MIT" for fact in facts)
    assert facts[0]["path"] is None and facts[0]["sources"][0]["status"] == "unverified"
    shown = done("weights", "list", "*").stdout
    assert re.search(r"swin_tiny\.tv_in1k +224 +81\.474 +not stated, BSD-3-Clause +download\.pytorch\.org +first 8 digits +-", shown)
    assert "MIT, MIT" in shown and "first use" in shown and "hash: the published sha256, its first digits, or none" in shown
    assert facts[0]["hash_check"] == "first use" and facts[0]["code_license"] == "MIT"
    assert "swin_tiny.in22k" in shown and "github.com" in shown and "by hand" in shown and "not stated" in shown
    assert va("weights", "list", "nothing*").exit_code == 4


def test_weights_download_and_verify(stored: str, tmp_path: Path) -> None:
    (answer,) = json.loads(done("weights", "download", stored, "--json").stdout)["files"]
    path = Path(answer["path"])
    assert answer["name"] == stored and path.is_file() and answer["sha256"] == sha256_of(path) and answer["checked"] == "as on first use"
    assert str(path) in done("weights", "download", stored).stdout and "MiB" in done("weights", "list", "*.made").stdout
    assert json.loads(done("weights", "verify", "--json").stdout)["files"][0]["result"] == "as on first use"
    assert stored in done("weights", "verify", stored).stdout
    result = va("weights", "verify", "eca_resnet18", stored, "--json")
    assert result.exit_code == 4
    assert [item["result"] for item in json.loads(result.stdout)["files"]] == ["missing", "as on first use"]
    path.write_bytes(path.read_bytes()[:-1])
    result = va("weights", "verify")
    assert result.exit_code == 4 and "VA-W002" in result.stdout and "mismatch" in result.stdout and not path.exists()
    assert "0 files" in done("weights", "verify").stdout
    assert "weights import FILE" in refused(tmp_path, "VA-W001", 4, "weights", "download", "eca_resnet18")
    refused(tmp_path, "VA-M001", 2, "weights", "download", stored, "swin_tinny")
    refused(tmp_path, "VA-W007", 4, "weights", "verify", "eca_resnet18.in2k")

"""`visionattn models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import Trained, done, refused, va
from visionattn.kernels import dispatch


def test_models_list() -> None:
    facts = json.loads(done("models", "list", "swin_t*", "--json").stdout)
    names = [fact["name"] for fact in facts]
    assert "swin_tiny" in names and all(name.startswith("swin_t") for name in names) and all(fact["params"] > 1e6 for fact in facts)
    shown = done("models", "list", "swin_t*").stdout
    assert "28.3M" in shown and f"{len(names)} models" in shown
    assert va("models", "list", "nothing*").exit_code == 2
    facts = json.loads(done("models", "list", "eca_m*", "--pretrained", "--json").stdout)
    assert [fact["name"] for fact in facts] == ["eca_mobilenetv2"] and facts[0]["weights"] == ["eca_mobilenetv2.in1k"]
    assert va("models", "list", "eca_m*", "--license", "mit").exit_code == 2


def test_models_info(tmp_path: Path) -> None:
    facts = json.loads(done("models", "info", "swin_tiny", "--json").stdout)
    assert facts["name"] == "swin_tiny" and 28e6 < facts["params"] < 29e6
    assert "swin_tiny" in done("models", "info", "swin_tiny").stdout
    assert "swin_tiny" in refused(tmp_path, "VA-M001", 2, "models", "info", "swin_tinny")


def test_models_compare_attention_modules(tmp_path: Path) -> None:
    compare = ("models", "compare", "resnet18", "--attn", "eca,triplet", "--size", 32, "--batch", 1, "--rounds", 1)
    rows = json.loads(done(*compare, "--json").stdout)
    assert [(row["name"], row.get("attn")) for row in rows] == [("resnet18", None), ("resnet18", "eca"), ("resnet18", "triplet")]
    assert [row["params"] - rows[0]["params"] for row in rows] == [0, 2 * (3 + 5 + 5 + 5), 8 * 300]
    assert all(row["ms"] > 0 for row in rows) and [row["top1_published"] for row in rows] == [69.76, None, None]
    assert "Did you mean eca" in refused(tmp_path, "VA-M002", 2, "models", "compare", "resnet18", "--attn", "ecaa")
    assert 'no argument "attn"' in refused(tmp_path, "VA-M002", 2, "models", "compare", "swin_tiny", "--attn", "eca")


@pytest.mark.parametrize(("backend", "text"), [("tritn", "expected one of triton, torch"), ("triton", "it needs a CUDA device")])
def test_a_backend_of_the_environment_that_cannot_run(trained: Trained, monkeypatch: pytest.MonkeyPatch, backend: str, text: str) -> None:
    monkeypatch.setattr(dispatch, "_asked", backend)  # the environment is read when the module is loaded
    result = va("models", "compare", "nat_mini", "--size", 32, "--rounds", 1)
    assert result.exit_code == 2 and "VA-C002" in result.stderr and text in result.stderr and "VISIONATTN_BACKEND" in result.stderr

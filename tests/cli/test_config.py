"""`visionattn config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import done, refused
from visionattn.config.read import shipped_names
from visionattn.tasks import load_config


def test_config_list() -> None:
    heads = json.loads(done("config", "list", "--json").stdout)
    assert list(heads) == shipped_names() and "digits" in heads["quickstart"]
    assert all(name in done("config", "list").stdout for name in shipped_names())


def test_config_show(tmp_path: Path) -> None:
    for args in (["quickstart", "train.epochs=3"], ["train.epochs=3", "optim.lr=1e-4"], []):
        shown = tmp_path / "shown.yaml"
        shown.write_text(done("config", "show", *args).stdout)
        names = [arg for arg in args if "=" not in arg]
        assert load_config(shown) == load_config(names[0] if names else None, [arg for arg in args if "=" in arg])
    assert "# Passes over the training set; auto: 20, from weights" in shown.read_text()
    refused(tmp_path, "VA-C001", 2, "config", "show", "optim.lrr=1")


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_config_schema(flag: tuple[str, ...]) -> None:
    schema = json.loads(done("config", "schema", *flag).stdout)
    assert schema["additionalProperties"] is False and {"model", "data", "train", "output"} <= set(schema["properties"])


def test_config_schema_of_segmentation(tmp_path: Path) -> None:
    schema = json.loads(done("config", "schema", "--task", "segment").stdout)
    assert schema["properties"]["task"]["const"] == "segment" and "SegmentEvalConfig" in schema["$defs"]
    assert 'expected one of classify, segment, volumes, bags, got "detect"' in refused(
        tmp_path, "VA-C002", 2, "config", "schema", "--task", "detect"
    )
    assert "head:" in done("config", "show", "task=segment").stdout

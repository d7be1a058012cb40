"""Masks written anew with other values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.masks.pairs import mask, pairs, picture
from visionattn.cli import app
from visionattn.data.masks.convert import convert_masks, parse_map
from visionattn.data.readers import read_mask
from visionattn.errors import UserError


def test_convert(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    array = mask(root / "masks/train/train0.png", values=(0, 1, 128))
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    result = CliRunner().invoke(app, ["data", "masks", "convert", str(root), "--map", "128:2", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["files"] == 6 and answer["changed"] == {"128 -> 2": int((array == 128).sum())}
    written = read_mask(tmp_path / "d-masks/masks/train/train0.png", max_bytes=10**8).values
    np.testing.assert_array_equal(written, np.where(array == 128, 2, array))
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before
    with pytest.raises(UserError, match="exists already"):
        convert_masks(root, map={1: 0})
    convert_masks(root / "masks", map={128: 2}, in_place=True)
    np.testing.assert_array_equal(read_mask(root / "masks/train/train0.png", max_bytes=10**8).values, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d-masks"] and len(list((root / "masks").rglob("*"))) == 8


def test_convert_stops_before_it_writes(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "masks/val/val1.png").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        convert_masks(root, map={1: 0})
    assert caught.value.code == "VA-D010" and [path.name for path in tmp_path.iterdir()] == ["d"]
    picture(root / "masks/val/val1.png", 0)
    with pytest.raises(UserError) as caught:
        convert_masks(root, palette=[(0, 0, 0)])
    assert caught.value.code == "VA-D014" and [path.name for path in tmp_path.iterdir()] == ["d"]
    assert parse_map(["128:1,3:0", "5-7:2"]) == {128: 1, 3: 0, 5: 2, 6: 2, 7: 2}
    with pytest.raises(UserError):
        parse_map(["128=1"])


def test_the_command_takes_the_settings_of_the_data(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "photos/{}", "truth/{}")
    result = CliRunner().invoke(
        app, ["data", "masks", "convert", str(root), "data.images=photos/{split}", "data.masks=truth/{split}", "--map", "2:1", "--json"]
    )
    assert result.exit_code == 0 and json.loads(result.stdout)["files"] == 6
    assert sorted(path.name for path in (tmp_path / "d-masks").iterdir()) == ["truth"]
    for given in (["data.mask=x"], ["optim.lr=1"], ["data.images=photos/{split}"]):
        result = CliRunner().invoke(app, ["data", "masks", "convert", str(root), *given, "--map", "2:1", "--out", str(tmp_path / "e")])
        assert result.exit_code == 2 and not (tmp_path / "e").exists()

"""Answers of `serve` for segmentation."""

from __future__ import annotations

from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionattn as va
from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.jobs.serve import open_served
from visionattn.jobs.service import Limits, Service


def test_mask_overlay_and_shares(garden_run: Path, photos: Path) -> None:
    limits, warnings = Limits(pixels=100_000), list[str]()
    loaded = open_served(garden_run, [], limits, Console(quiet=True))
    service = Service("garden", loaded, limits, torch.device("cpu"), nullcontext, warnings.append)
    answer = service.predict((photos / "odd.png").read_bytes(), 5)
    ((expected,), _) = va.predict(garden_run, photos / "odd.png")
    assert answer.facts == {"height": expected.height, "width": expected.width, "shares": expected.shares}
    assert answer.pictures["mask"] == ("image/png", expected.mask)
    overlay = Image.open(BytesIO(answer.pictures["overlay"][1]))
    assert answer.pictures["overlay"][0] == "image/jpeg" and overlay.size == (expected.width, expected.height)
    assert [bar.share for bar in answer.bars] == sorted(expected.shares.values(), reverse=True)
    colours = {"ground": "#000000", "leaf": "#28a03c", "stone": "#c8501e"}
    assert all(bar.colour == colours[bar.name] for bar in answer.bars)
    facts, picture = service.explain((photos / "odd.png").read_bytes(), None)
    assert "mean over the" in facts["where"] and np.asarray(Image.open(BytesIO(picture))).std() > 5


def test_images_in_several_files_are_not_served(garden_run: Path) -> None:
    loaded = open_served(garden_run, [], Limits(), Console(quiet=True))
    data = loaded.config.data.model_copy(update={"channel_files": True})
    with pytest.raises(UserError, match="cannot be served"):
        loaded.task.presenter(loaded.config.model_copy(update={"data": data}), loaded.target, 5)

"""Importing and reading leave the settings of other libraries as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.masks.pairs import load, pairs, settings
from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.masks.check import check_masks
from visionattn.data.readers import UnreadableFile, image_facts, read_image, read_mask, upright_size

MODULES = """
import pkgutil, sys
import PIL.Image, PIL.ImageFile, cv2, numpy, random, torch
import albumentations, scipy.stats, sklearn.model_selection, timm, torchvision.datasets  # whatever these change is not ours
def state():
    return {
        "pixels": PIL.Image.MAX_IMAGE_PIXELS, "truncated": PIL.ImageFile.LOAD_TRUNCATED_IMAGES,
        "opencv": (cv2.getNumThreads(), cv2.ocl.useOpenCL()), "torch": (torch.get_num_threads(), torch.get_rng_state().tolist()),
        "random": random.getstate(), "numpy": numpy.random.get_state()[1].tolist(),
    }
numpy.random.seed(0)
before = state()
import visionattn.data, visionattn.tasks
for package in (visionattn.data, visionattn.tasks):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(module.name)
assert "visionattn.data.masks.transforms" in sys.modules
assert state() == before, [key for key, value in state().items() if value != before[key]]
"""


def test_importing_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("limit", [None, 1000])
def test_reading_changes_nothing(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images above Pillow's own limit included, which holds for all of a process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    threads = cv2.getNumThreads()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.tif", "a.gif", "a.webp", "a.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_image(tmp_path / name, settings=ImageDataConfig(), in_chans=3).shape == (60, 80, 3)
        assert image_facts(tmp_path / name, max_bytes=10**8).width == 80 and upright_size(tmp_path / name, max_bytes=10**8) == (60, 80)
        with pytest.raises(UnreadableFile, match="the limit is 28,799"):
            read_image(tmp_path / name, settings=ImageDataConfig(max_bytes=28_799), in_chans=3)
    frames = [Image.fromarray(np.roll(pixels, shift, axis=0)) for shift in range(3)]
    for name in ("several.gif", "several.tif", "several.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert image_facts(tmp_path / name, max_bytes=10**8).more_frames
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", max_bytes=10**8).values.shape == (60, 80)
    root = pairs(tmp_path / "d")
    check_masks(load(root, workers=4), settings(root, workers=4), cache_dir=tmp_path / "cache")  # several threads
    assert limit == Image.MAX_IMAGE_PIXELS and cv2.getNumThreads() == threads

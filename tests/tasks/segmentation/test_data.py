"""Samples of segmentation as a loader reads them, and their preview."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.data.masks.pairs import load, pairs
from visionattn.data.masks.palettes import overlay
from visionattn.data.masks.settings import IGNORE, MaskAugmentConfig
from visionattn.data.masks.transforms import mask_eval_transform, mask_train_transform
from visionattn.tasks.batch import collate
from visionattn.tasks.segmentation.data import MaskedImages, preview


def test_samples(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "images/train/train3.png").write_bytes(b"")
    data = load(root)
    transform = mask_train_transform(MaskAugmentConfig(), (32, 24), (0.5,) * 3, (0.25,) * 3)
    dataset = MaskedImages(data.train, transform, seed=3)
    batch = collate([dataset[(1, index)] for index in range(4)])
    assert batch["image"].shape == (3, 3, 32, 24) and batch["label"].shape == (3, 32, 24) and batch["label"].dtype == torch.int64
    assert batch.indices == [0, 1, 2] and [name for name, _ in batch.unreadable] == ["images/train/train3.png"]
    assert torch.equal(batch["image"][1], dataset[(1, 1)]["image"]) and not torch.equal(batch["image"][1], dataset[(2, 1)]["image"])
    evaluation = MaskedImages(data.val, mask_eval_transform(MaskAugmentConfig(resize=32), (32, 32), (0.5,) * 3, (0.25,) * 3))
    batch = collate([evaluation[0]])
    assert batch["image"].shape == (1, 3, 32, 40) and batch["label"].shape == (1, 16, 20)
    np.testing.assert_array_equal(batch["label"][0], np.asarray(Image.open(data.val.mask_paths[0])))


def test_overlay_and_preview(tmp_path: Path) -> None:
    image = np.full((2, 3, 1), 100, np.uint8)
    shown = overlay(image, np.array([[0, 1, IGNORE]] * 2), [(0, 0, 0), (200, 0, 0)])
    assert shown[0].tolist() == [[100, 100, 100], [150, 50, 50], [100, 100, 100]]
    data = load(pairs(tmp_path / "d"))
    transform = mask_train_transform(MaskAugmentConfig(), (32, 48), (0.5,) * 3, (0.5,) * 3)
    preview(data.train, data.classes, data.palette, transform, 4, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (6 + 2 * (48 + 6), 6 + 2 * (32 + 16 + 6))
    whole = mask_eval_transform(MaskAugmentConfig(), (32, 48), (0.5,) * 3, (0.5,) * 3)
    preview(data.val, data.classes, data.palette, whole, 4, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (6 + 20 + 6, 6 + 2 * (16 + 16 + 6))

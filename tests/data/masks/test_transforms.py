"""Augmentation of images with masks."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch

from visionattn.data.masks.settings import IGNORE, MaskAugmentConfig
from visionattn.data.masks.transforms import distort, mask_train_transform, resized_shape
from visionattn.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_image_and_mask_stay_together(channels: int, kind: type) -> None:
    label = np.zeros((60, 80), np.uint8)
    label[10:40, 20:70] = 1
    image = np.repeat(label[:, :, None] * 200, channels, axis=2).astype(np.uint8)
    if kind is np.float32:
        image = (image / 255).astype(np.float32)
    augment = MaskAugmentConfig(vflip=0.5, rotate90=0.5, rotate=25, elastic=0.5, photometric=False, cat_max_ratio=1)
    transform = mask_train_transform(augment, (64, 64), (0.1,) * channels, (1.0,) * channels)
    random.seed(0), np.random.seed(0)
    seen, uncovered = set(), 0
    for seed in range(30):
        before = image.copy()
        tensor, mapped = transform(image, label, seed)
        np.testing.assert_array_equal(image, before)
        again, mapped_again = transform(image, label, seed)
        assert torch.equal(tensor, again) and np.array_equal(mapped, mapped_again)
        assert tensor.shape == (channels, 64, 64) and mapped.shape == (64, 64) and mapped.dtype == np.uint8
        values = tensor[0].numpy() + 0.1
        known = mapped != IGNORE
        assert ((values > 0.4) == (mapped == 1))[known].mean() > 0.97  # bilinear and nearest differ at borders only
        outside = cv2.erode((~known).astype(np.uint8), np.ones((5, 5), np.uint8)) == 1  # not at the edge, which is interpolated
        assert not outside.any() or np.abs(values[outside] - 0.1).max() < 0.01
        uncovered += int(outside.sum())
        seen.add(float(values.sum()))
    assert len(seen) > 25 and uncovered > 1000


def test_scaling_crop_and_sizes() -> None:
    assert resized_shape((512, 683), (2048, 512), (1, 1)) == (512, 683) and resized_shape((1000, 4000), (2048, 512), (1, 1)) == (512, 2048)
    assert resized_shape((100, 200), 50, (1, 1)) == (50, 100) and resized_shape((100, 200), "fixed", (7, 9)) == (7, 9)
    label = np.zeros((64, 64), np.uint8)
    label[:, 56:] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    still = MaskAugmentConfig(scale=(1.0, 1.0), hflip=0, photometric=False)
    mixed = [mask_train_transform(still, (16, 16), (0.5,) * 3, (0.5,) * 3)(image, label, seed)[1] for seed in range(60)]
    share = np.mean([(part == 1).any() for part in mixed])
    anywhere = still.model_copy(update={"cat_max_ratio": 1.0})
    plain = [mask_train_transform(anywhere, (16, 16), (0.5,) * 3, (0.5,) * 3)(image, label, seed)[1] for seed in range(60)]
    assert share > 0.45 and np.mean([(part == 1).any() for part in plain]) < 0.35
    tensor, padded = mask_train_transform(still, (80, 72), (0.5,) * 3, (0.5,) * 3)(image, label, 0)
    np.testing.assert_array_equal(padded[:64, :64], label)
    assert (padded[64:] == IGNORE).all() and (padded[:, 64:] == IGNORE).all() and tensor[:, 64:].abs().max() < 0.01
    with pytest.raises(UserError, match="square"):
        mask_train_transform(MaskAugmentConfig(rotate90=0.5), (32, 24), (0.5,) * 3, (0.5,) * 3)


def test_distortion() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    results = [distort(image, random.Random(seed)) for seed in range(50)]
    assert any(np.array_equal(result, image) for result in results) and len({result.tobytes() for result in results}) > 30
    as_float = (image / 255).astype(np.float32)
    for seed, result in enumerate(results):
        difference = np.abs(distort(as_float, random.Random(seed)) * 255 - result)
        assert difference.mean() < 2  # 8 bits round and clip between the steps
    grey = image[:, :, :1]
    assert distort(grey, random.Random(1)).shape == grey.shape

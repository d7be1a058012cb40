"""Samples of classification as a loader reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.data.images.folders import flowers, load, save_npz
from tests.data.images.shards import flower_shards
from visionattn.data.images.sets import LabelledData
from visionattn.data.images.settings import AugmentConfig
from visionattn.data.images.transforms import eval_transform, train_transform
from visionattn.data.sampling import TrainSampler
from visionattn.tasks.batch import Batch, collate
from visionattn.tasks.classification.data import preview
from visionattn.tasks.images import LabelledImages


def batches(data: LabelledData, workers: int, epoch: int, step: int = 0) -> list[Batch]:
    transform = train_transform(AugmentConfig(color_jitter=0.4, rotate=10, random_erasing=0.5), (32, 32), (0.5,) * 3, (0.5,) * 3)
    sampler = TrainSampler(len(data.train), 3, seed=1)
    sampler.set_position(epoch, step)
    dataset = LabelledImages(data.train, transform, seed=1)
    return list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate))


@pytest.mark.parametrize("make", [flowers, flower_shards])
def test_workers_and_resuming_change_nothing_and_epochs_differ(make: Callable[[Path], Path], tmp_path: Path) -> None:
    data = load(make(tmp_path))
    alone, parallel = batches(data, 0, 0), batches(data, 2, 0)
    assert len(alone) == len(parallel) == 3
    for first, second in zip(alone, parallel, strict=True):
        assert torch.equal(first["image"], second["image"]) and torch.equal(first["label"], second["label"])
        assert first.indices == second.indices and first.ids == second.ids and first.unreadable == second.unreadable == []
    assert torch.equal(batches(data, 0, 0, step=2)[0]["image"], alone[2]["image"])

    def by_index(found: list[Batch]) -> dict[int, torch.Tensor]:
        return {index: image for batch in found for index, image in zip(batch.indices, batch["image"], strict=True)}

    before, after = by_index(alone), by_index(batches(data, 0, 1))
    common = set(before) & set(after)
    assert len(common) >= 8 and all(not torch.equal(before[index], after[index]) for index in common)


def test_unreadable_samples_are_left_out_never_replaced(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    (root / "val/rose/1.png").write_bytes((root / "val/rose/1.png").read_bytes()[:90])
    data = load(root)
    dataset = LabelledImages(data.val, eval_transform((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic", crop_pct=1))
    (batch,) = DataLoader(dataset, batch_size=8, collate_fn=collate)
    assert batch.indices == [0, 2, 3, 4] and batch.ids == batch.cases == [data.val.ids[index] for index in batch.indices]
    assert batch["image"].shape == (4, 3, 32, 32) and batch["label"].tolist() == [0, 1, 1, 1]
    ((name, reason),) = batch.unreadable
    assert name == "val/rose/1.png" and reason
    empty = collate([dataset[1]])
    assert len(empty) == 0 and empty.data == {} and empty.indices == [] and empty.unreadable == [(name, reason)]


def test_labels_of_several_classes_are_stacked(tmp_path: Path) -> None:
    hot = np.eye(4, dtype=np.int64)[np.arange(12) % 4]
    data = load(save_npz(tmp_path / "x.npz", train_labels=hot, val_labels=hot[:6], test_labels=hot[:3]), multi_label=True)
    dataset = LabelledImages(data.val, eval_transform((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic", crop_pct=1))
    batch = collate([dataset[0], dataset[5]])
    assert batch["label"].dtype == torch.float32 and batch["label"].tolist() == hot[[0, 5]].tolist()


@pytest.mark.parametrize("in_chans", [1, 3])
def test_preview(tmp_path: Path, in_chans: int) -> None:
    data = load(flowers(tmp_path / "flowers"), in_chans=in_chans)
    transform = train_transform(AugmentConfig(color_jitter=0.3), (32, 48), (0.5,) * in_chans, (0.5,) * in_chans)
    path = tmp_path / "preview.png"
    preview(data.train, data.classes, transform, 9, path)
    with Image.open(path) as sheet:
        assert sheet.size == (6 + 3 * (48 + 6), 6 + 3 * (32 + 16 + 6)) and np.asarray(sheet).std() > 20
    first = path.read_bytes()
    preview(data.train, data.classes, transform, 9, path)
    assert path.read_bytes() == first

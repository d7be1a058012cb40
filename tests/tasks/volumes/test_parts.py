"""Patches, the loss with deep supervision and of regions, the network, and windows, each against an obvious version."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.volumes.made import balls, oblique
from tests.tasks.test_windows import RECORDS, ROI_3D, ramp_net, recorded_image
from tests.tasks.volumes.conftest import TINY
from visionattn.data.masks.settings import IGNORE
from visionattn.data.volumes.augment import PatchAugment, crop, neighbours
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.settings import VolumeAugmentConfig
from visionattn.errors import UserError
from visionattn.heads.base import Aux, HeadOutput
from visionattn.models import load_checkpoint
from visionattn.models.unet3d import UNet3d, pool_strides
from visionattn.tasks import load_config
from visionattn.tasks.batch import Batch
from visionattn.tasks.losses import binary_cross_entropy, cross_entropy, dice, nearest_label
from visionattn.tasks.volumes.data import VolumePatches, patch_size
from visionattn.tasks.volumes.model import VolumeNet, build_model
from visionattn.tasks.volumes.objective import VolumeObjective
from visionattn.tasks.volumes.predictor import VolumePredictor
from visionattn.tasks.volumes.settings import NETWORKS

PLAIN = VolumeAugmentConfig(spatial=0, noise=0, intensity=0, blur=0)


def config(*more: str) -> Any:
    return load_config(None, [*TINY, *more])


def test_patches_surround_their_voxel() -> None:
    image, label = balls()
    cut = PatchAugment(PLAIN, (8, 40, 8))
    for seed in range(20):
        generator = np.random.default_rng(seed)
        place = generator.integers(0, label.shape).tolist()
        patch, truth = cut(image[None], label, place, generator)
        assert patch.shape == (1, 8, 40, 8) and truth.shape == (8, 40, 8) and truth.dtype == torch.uint8
        assert (patch == image[tuple(place)]).any() and (patch != 0).sum() == 8 * 20 * 8, "the volume is smaller along one axis"


def test_augmentation_follows_the_seed() -> None:
    image, label = balls()
    image = (image - image.mean()) / image.std()
    augment = PatchAugment(VolumeAugmentConfig(spatial=1.0, flip=0.5), (16, 16, 8))
    draw = lambda seed: augment(image[None], label, [12, 10, 6], np.random.default_rng(seed))  # noqa: E731
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[0], other[0])
    fresh = PatchAugment(VolumeAugmentConfig(spatial=1.0, flip=0.5), (16, 16, 8))
    assert torch.equal(fresh(image[None], label, [12, 10, 6], np.random.default_rng(1))[0], first[0]), "whatever was drawn before"
    assert set(first[1].unique().tolist()) <= {0, 1, 2} and first[0].shape == (1, 16, 16, 8)
    bright = np.where(label == 2, 5.0, 0.0).astype(np.float32)[None]  # image and labels move together
    moved = PatchAugment(PLAIN.model_copy(update={"spatial": 1.0, "flip": 0.5}), (16, 16, 12))(
        bright, label, None, np.random.default_rng(3)
    )
    agree = ((moved[0][0] > 2.5) == (moved[1] == 2)).float().mean()
    assert float(agree) > 0.97


def test_crop_and_neighbours() -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    padded = np.pad(array, ((0, 0), (3, 3), (3, 3), (3, 3)))
    for start in ((-2, 1, 0), (0, 0, 3), (2, -3, 4), (9, 9, 9)):
        want = padded[(slice(None), *(slice(first + 3, first + 6) for first in start))] if start[0] < 9 else np.zeros((2, 3, 3, 3), int)
        np.testing.assert_array_equal(crop(array, start, (3, 3, 3)), want)
    np.testing.assert_array_equal(neighbours(array, 2, 0, 1), array[..., [0, 0, 1]].transpose(0, 3, 1, 2).reshape(6, 3, 4))
    np.testing.assert_array_equal(neighbours(array, 0, 2, 1), array[:, [1, 2, 2]].reshape(6, 4, 5))


def test_loss_is_that_of_all_levels() -> None:
    settings = config("loss=[{name: cross_entropy}, {name: dice, weight: 0.5, args: {include_background: false}}]")
    random = torch.Generator().manual_seed(0)
    levels = [torch.randn(4, 3, *(side,) * 3, generator=random) for side in (8, 4, 2)]
    label = torch.randint(0, 3, (2, 2, 8, 8, 8), generator=random).to(torch.uint8)
    label[0, 0, 0] = IGNORE
    output = HeadOutput(levels[0], (Aux("level1", levels[1], 0.5), Aux("level2", levels[2], 0.25)))
    found = VolumeObjective(settings, 3, []).loss(output, Batch({"label": label}, [0, 1], ["a", "b"], ["a", "b"]))
    flat = label.flatten(0, 1).long()
    want = 0.0
    for logits, weight in zip(levels, (4 / 7, 2 / 7, 1 / 7), strict=True):
        truth = nearest_label(flat, logits.shape[2:])
        want += weight * (cross_entropy(logits, truth) + 0.5 * dice(logits, truth, include_background=False)).item()
    assert found["loss"].item() == pytest.approx(want) and set(found) == {"loss", "cross_entropy", "dice"}


def test_each_region_is_a_loss_against_all_else() -> None:
    settings = config("loss=[{name: cross_entropy}]")
    logits, label = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.randint(0, 3, (1, 1, 4, 4, 4))
    label[0, 0, 0] = IGNORE
    found = VolumeObjective(settings, 2, [[1, 2], [2]]).loss(HeadOutput(logits), Batch({"label": label.to(torch.uint8)}, [0], [""], [""]))
    truth = torch.stack([label[:, 0] > 0, label[:, 0] == 2], 1).long().where(label != IGNORE, IGNORE)
    want = binary_cross_entropy(logits.flatten(0, 1)[:, None], truth.flatten(0, 1))
    assert found["loss"].item() == pytest.approx(want.item(), rel=1e-5)


def test_network_of_any_size() -> None:
    net = UNet3d(2, 3, width=4, depth=3)
    volume = torch.randn(1, 2, 9, 14, 11)
    levels = net.train()(volume)
    assert [tuple(level.shape) for level in levels] == [(1, 3, 9, 14, 11), (1, 3, 5, 7, 6)]
    sum(level.square().mean() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    plain = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    other = copy.deepcopy(net)
    other.zero_grad()
    other.set_grad_checkpointing(True)
    sum(level.square().mean() for level in other(volume)).backward()
    for before, parameter in zip(plain, other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before)
    assert len(net.eval()(volume)) == 1
    with pytest.raises(ValueError, match="strides: expected 2"):
        UNet3d(1, 2, depth=3, strides=[(2, 2, 2)])


def test_weights_of_another_run() -> None:
    given = VolumeNet(UNet3d(1, 3, width=4, depth=3))
    for classes, anew in ((3, 0), (5, 2)):  # outputs of two levels
        model = VolumeNet(UNet3d(1, classes, width=4, depth=3))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        report = load_checkpoint(model, given.state_dict())
        kept = [
            name for name, value in model.state_dict().items() if ".logits." in name and value.ndim > 1 and torch.equal(value, before[name])
        ]
        assert len(kept) == anew and bool(report.reshaped) == bool(anew)
        assert torch.equal(model.backbone.stem.conv1.weight, given.backbone.stem.conv1.weight)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="does not fit"):
        load_checkpoint(VolumeNet(UNet3d(1, 3, width=8, depth=3)), given.state_dict())


def test_strides_follow_spacing_and_patch() -> None:
    assert pool_strides((64, 64, 64), (1, 1, 1), 4) == [(2, 2, 2)] * 3
    assert pool_strides((128, 128, 16), (0.5, 0.5, 3.0), 4) == [(2, 2, 1), (2, 2, 1), (2, 2, 2)]
    assert pool_strides((64, 64, 4), (1, 1, 1), 3) == [(2, 2, 1), (2, 2, 1)]


def test_size_of_a_patch() -> None:
    assert patch_size([35.0, 50.0, 36.0], 3) == (40, 56, 40)
    assert patch_size([512, 512, 100], 3) == (96, 96, 96)
    assert patch_size([200, 180, 9], 3)[2] == 16 and patch_size([20, 20, 9], 3) == (32, 32, 16)
    assert patch_size([35.0, 50.0, 30.0], 2) == (56, 40)


class Blur(nn.Module):
    """Logits of each voxel that depend on its neighbours only."""

    def __init__(self, dims: int, chans: int) -> None:
        super().__init__()
        kind = nn.Conv3d if dims == 3 else nn.Conv2d
        self.conv = kind(chans, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.conv(x)
        return found


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_built_from_a_config(name: str) -> None:
    settings = config(f"model.name={name}", "model.args={width: 4, depth: 3}", "model.img_size=32")
    torch.manual_seed(0)
    model: Any = build_model(settings, {"classes": ["background", "organ"], "plan": {"spacing": [1, 1, 1]}, "slice_axis": 0})
    volume, found = torch.randn(1, 1, 17, 16, 12), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)  # of dropout
        output = model.train()(volume)
        assert output.logits.shape == (1, 2, 17, 16, 12) and output.aux[0].weight == 0.5
        model.zero_grad()
        sum(item.square().mean() for item in (output.logits, *(aux.logits for aux in output.aux))).backward()
        found.append([value.grad.clone() for value in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))
    assert model.eval()(volume).shape == (1, 2, 17, 16, 12)


@pytest.mark.parametrize("name", ["unet3d", "eca_resnet18"])
def test_inference_covers_the_volume(name: str) -> None:
    dims = 3 if name == "unet3d" else 2
    settings = config(f"model.name={name}", "model.args={}", "model.img_size=32", "eval.blend=constant")
    torch.manual_seed(0)
    model, volume = Blur(dims, 1 if dims == 3 else 3).eval(), torch.randn(1, 1, 20, 24, 12)
    how: dict[str, Any] = {"slice_axis": 1, "regions": False}
    data = {"image": volume, "grid": [Grid((24, 20, 12), oblique())]}
    with torch.inference_mode():
        found = VolumePredictor(model, settings, torch.device("cpu"), **how)(Batch(data, [0], ["a"], ["a"]))
        if dims == 3:
            want = model(volume)[0]
        else:
            slices = [torch.from_numpy(neighbours(volume[0].numpy(), 1, place, 1)) for place in range(24)]
            want = torch.stack([model(part[None])[0] for part in slices], 2)
        torch.testing.assert_close(found.parts[0], want.softmax(0), atol=1e-5, rtol=1e-5)
        settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"flips": True})})
        flipped = VolumePredictor(model, settings, torch.device("cpu"), **how)
        assert not torch.allclose(flipped(Batch(data, [0], ["a"], ["a"])).parts[0], found.parts[0])
    assert found.labels().shape == (24, 20, 12)


@pytest.mark.parametrize(("overlap", "blend"), [(0.5, "gaussian"), (0.25, "constant")])
def test_inference_is_that_of_monai(overlap: float, blend: str) -> None:
    """The recorded network in windows of 12 x 16 x 8, its logits divided so that probabilities are not all 0 or 1."""
    settings = config(f"eval.overlap={overlap}", f"eval.blend={blend}", "eval.window_batch=3")
    small = settings.model.model_copy(update={"img_size": ROI_3D})  # than a config may ask for
    settings = settings.model_copy(update={"model": small})
    how: dict[str, Any] = {"slice_axis": 2, "regions": False}
    predict = VolumePredictor(cast(nn.Module, lambda x: ramp_net(x) / 100), settings, torch.device("cpu"), **how)
    data = {"image": recorded_image("sw.vol", 20, 27, 9), "grid": [Grid((20, 27, 9), oblique())]}
    found = predict(Batch(data, [0], ["a"], ["a"])).parts[0][:, ::3, ::2, ::2]
    want = torch.from_numpy(RECORDS[f"sliding_3d_{blend}_{overlap}/out"][0]) / 100
    torch.testing.assert_close(found, want.softmax(0), atol=1e-6, rtol=1e-5)
    assert want.softmax(0).amin() > 0.1


def test_samples_of_training(root: Path) -> None:
    from visionattn.data.volumes.sets import load_volume_data

    settings = config(f"data.root={root}", "augment.patches=3", "augment.foreground=1.0", "model.img_size=[32, 32, 8]")
    data = load_volume_data(settings.data, seed=0)
    cfg = {"plan": {"spacing": [1.0, 1.0, 2.5], "scalings": [None]}, "slice_axis": 2}
    dataset = VolumePatches(settings, data.train, cfg)
    sample = dataset[(0, 1)]
    assert (
        sample["image"].shape == (3, 1, 32, 32, 8) and sample["label"].shape == (3, 32, 32, 8) and sample["label"].flatten(1).any(1).all()
    )
    assert torch.equal(dataset[(0, 1)]["image"], sample["image"]) and not torch.equal(dataset[(1, 1)]["image"], sample["image"])
    flat = config(f"data.root={root}", "model.name=eca_resnet18", "model.args={}", "model.img_size=32", "model.context=2")
    assert VolumePatches(flat, data.train, cfg)[(0, 0)]["image"].shape == (2, 5, 32, 32)

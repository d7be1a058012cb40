"""Windows, flips and scales against recorded figures of MONAI and nnU-Net, and against slow, obvious versions."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visionattn.tasks.windows import (
    class_map,
    importance_map,
    resized_classes,
    sliding_logits,
    spread_starts,
    window_starts,
    with_flips,
    with_scales,
)

ROOT = Path(__file__).parents[2]
RECORDS = np.load(ROOT / "tests" / "fixtures" / "segmentation" / "windows.npz")
ROI, ROI_3D = (16, 24), (12, 16, 8)


def recorded_image(name: str, *size: int) -> torch.Tensor:
    draws = np.random.RandomState(zlib.crc32(f"input:{name}".encode())).standard_normal((1, 1, *size))
    return torch.from_numpy(draws.astype(np.float32))


def ramp_net(x: torch.Tensor) -> torch.Tensor:
    """The recorded network: what it gives depends on where in the window a pixel is."""
    ramp = torch.zeros(())
    for axis, side in enumerate(x.shape[2:], 1):
        ramp = ramp[..., None] + axis * torch.arange(float(side))
    return torch.cat([x * ramp, x + 0.1 * ramp], 1)


def assert_recorded(got: torch.Tensor, name: str) -> None:
    want = torch.from_numpy(RECORDS[name])
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("overlap", [0.5, 0.25])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_sliding_window_is_that_of_monai(blend: str, overlap: float, batch: int) -> None:
    image = recorded_image("sw.img", 37, 50)
    got = sliding_logits(ramp_net, image, ROI, overlap=overlap, blend=blend, batch=batch)  # type: ignore[arg-type]
    assert_recorded(got, f"sliding_2d_{blend}_{overlap}/out")


@pytest.mark.parametrize("overlap", [0.5, 0.25])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_sliding_window_over_a_volume_is_that_of_monai(blend: str, overlap: float) -> None:
    """Every third voxel along the first axis and every second along the others was kept, and sums over all."""
    got = sliding_logits(ramp_net, recorded_image("sw.vol", 20, 27, 9), ROI_3D, overlap=overlap, blend=blend)  # type: ignore[arg-type]
    assert_recorded(got[..., ::3, ::2, ::2], f"sliding_3d_{blend}_{overlap}/out")
    digest = [got.double().sum(), got.double().abs().sum(), got.min(), got.max()]
    np.testing.assert_allclose(digest, RECORDS[f"sliding_3d_{blend}_{overlap}/digest"], rtol=1e-5)


def test_image_smaller_than_the_window() -> None:
    image = recorded_image("sw.small", 10, 12)
    got = sliding_logits(ramp_net, image, ROI, blend="gaussian")
    assert_recorded(got, "sliding_2d_smaller_than_roi/out")
    one_side = sliding_logits(lambda x: x, recorded_image("sw.img", 37, 12), ROI, overlap=0.3, blend="gaussian")
    torch.testing.assert_close(one_side, recorded_image("sw.img", 37, 12))


@pytest.mark.parametrize("axes", [2, 3])
def test_importance_maps_are_those_of_monai_and_nnunet(axes: int) -> None:
    window = ROI if axes == 2 else ROI_3D
    np.testing.assert_allclose(importance_map(window).numpy(), RECORDS[f"importance_monai_{axes}d/map"], rtol=1e-6)
    want = RECORDS[f"importance_nnunet_{axes}d/map"]
    np.testing.assert_allclose(importance_map(window, nnunet=True).numpy(), want, rtol=2e-6, atol=0)


def test_grid_of_nnunet() -> None:
    """Recorded starts, and a loop over them."""
    assert spread_starts(110, 64, 32) == [0, 23, 46]
    assert (spread_starts(37, 16, 8), spread_starts(50, 24, 12)) == ([0, 7, 14, 21], [0, 9, 17, 26])
    assert [spread_starts(*axis) for axis in ((20, 12, 6.0), (27, 16, 8.0), (9, 8, 4.0))] == [[0, 4, 8], [0, 6, 11], [0, 1]]
    assert spread_starts(16, 16, 5) == spread_starts(3, 16, 5) == [0]
    image, weight = recorded_image("sw.img", 37, 50), importance_map(ROI, nnunet=True)
    total, covered = torch.zeros(1, 2, 37, 50), torch.zeros(37, 50)
    for row in (0, 7, 14, 21):
        for column in (0, 9, 17, 26):
            total[:, :, row : row + 16, column : column + 24] += weight * ramp_net(image[:, :, row : row + 16, column : column + 24])
            covered[row : row + 16, column : column + 24] += weight
    torch.testing.assert_close(sliding_logits(ramp_net, image, ROI, blend="nnunet"), total / covered)


def test_flips_are_those_of_nnunet() -> None:
    image = recorded_image("sw.img", 37, 50)
    assert_recorded(with_flips(ramp_net, axes=(-2, -1))(image), "tta_flip_2d/out")
    one = (ramp_net(image) + ramp_net(image.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(with_flips(ramp_net)(image), one)


def test_starts() -> None:
    assert window_starts(37, 16, 8) == [0, 8, 16, 21]  # as recorded of MONAI
    assert window_starts(50, 24, 12) == [0, 12, 24, 26]
    assert [window_starts(*axis) for axis in ((20, 12, 6), (27, 16, 8), (9, 8, 4))] == [[0, 6, 8], [0, 8, 11], [0, 1]]
    assert window_starts(48, 16, 8) == [0, 8, 16, 24, 32]
    assert window_starts(16, 16, 5) == window_starts(3, 16, 5) == [0]
    for size in range(1, 60):  # mmsegmentation's count of windows
        assert len(window_starts(size, 16, 11)) == max(size - 16 + 11 - 1, 0) // 11 + 1


def test_stride_and_batches_of_images_against_a_loop() -> None:
    image = torch.randn(3, 2, 21, 30, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (8, 12) and len(x) <= 12
        return torch.cat([ramp_net(x[:, :1]), x.cumsum(3)], 1).bfloat16()

    total, count = torch.zeros(3, 4, 21, 30), torch.zeros(21, 30)
    for row in (0, 5, 10, 13):
        for column in (0, 7, 14, 18):
            total[:, :, row : row + 8, column : column + 12] += model(image[:, :, row : row + 8, column : column + 12]).float()
            count[row : row + 8, column : column + 12] += 1
    got = sliding_logits(model, image, (8, 12), stride=(5, 7), batch=4)
    torch.testing.assert_close(got, total / count)
    assert got.dtype == torch.float32 and not got.requires_grad


def test_gaps_and_unknown_blends_are_errors() -> None:
    image = torch.zeros(1, 1, 20, 20)
    for arguments in ({"stride": 9}, {"stride": 0}, {"overlap": 1.0}, {"overlap": -0.1}, {"blend": "mean"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            sliding_logits(ramp_net, image, 8, **arguments)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=next(iter(arguments))):
            class_map(ramp_net, image, 2, 8, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one image"):
        class_map(ramp_net, image.expand(2, 1, 20, 20), 2, 8)


def classes_net(x: torch.Tensor) -> torch.Tensor:
    """Seven classes that depend on the place in the window too."""
    weight = torch.randn(7, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return F.conv2d(x, weight, padding=2) + 0.1 * ramp_net(x[:, :1])[:, :1]


@pytest.mark.parametrize("held_bytes", [2**29, 4 * 7 * 16 * 31, 0])
@pytest.mark.parametrize("blend", ["constant", "gaussian", "nnunet"])
@pytest.mark.parametrize(("height", "width"), [(53, 71), (16, 90), (10, 40), (60, 9), (7, 8)])
def test_class_map_is_the_largest_logit_of_the_sliding_window(height: int, width: int, blend: str, held_bytes: int) -> None:
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))
    seen: list[torch.Size] = []

    def prepare(window: torch.Tensor) -> torch.Tensor:
        assert window.dtype == torch.uint8
        seen.append(window.shape[2:])
        return window.float() / 64 - 2

    whole = sliding_logits(classes_net, image, 16, stride=11, blend=blend, prepare=prepare)  # type: ignore[arg-type]
    count = len(seen)
    got = class_map(classes_net, image, 7, 16, stride=11, blend=blend, batch=2, prepare=prepare, held_bytes=held_bytes)  # type: ignore[arg-type]
    assert got.dtype == torch.uint8 and torch.equal(got.long(), whole[0].argmax(0))
    assert all(rows <= 16 and columns <= 16 for rows, columns in seen)
    if held_bytes == 2**29:
        assert len(seen) == 2 * count  # nothing runs twice while the band is small enough


def test_class_map_of_one_class_and_of_many() -> None:
    image = torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(class_map(lambda x: x, image, 1, 8), (image[0, 0] > 0).to(torch.uint8))
    many = class_map(lambda x: torch.cat([x.new_zeros(1, 299, *x.shape[2:]), x], 1), image, 300, 8)
    assert many.dtype == torch.int16
    assert torch.equal(many.long(), 299 * (image[0, 0] > 0))


@pytest.mark.parametrize("size", [(70, 64), (23, 31), (9, 11), (40, 31), (1, 1)])
@pytest.mark.parametrize("classes", [1, 6])
def test_classes_of_resized_logits_in_bands(size: tuple[int, int], classes: int) -> None:
    logits = torch.randn(1, classes, 23, 31, generator=torch.Generator().manual_seed(3))
    resized = F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)[0]
    want = resized.argmax(0) if classes > 1 else resized[0] > 0
    for held_bytes in (2**28, 4 * classes * size[1] * 7, 1):
        got = resized_classes(logits, size, held_bytes)
        assert got.dtype == torch.uint8 and torch.equal(got, want.to(torch.uint8))


def test_scales_are_resized_back_and_averaged() -> None:
    image = torch.randn(1, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    sizes: list[tuple[int, ...]] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape[2:]))
        return ramp_net(x)

    got = with_scales(model, (0.5, 1.0, 1.75))(image)
    assert sizes == [(12, 16), (24, 32), (42, 56)]
    want = ramp_net(image)
    for size in (sizes[0], sizes[2]):
        scaled = ramp_net(F.interpolate(image, size, mode="bilinear", align_corners=False))
        want = want + F.interpolate(scaled, (24, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, want / 3)


def test_flips_scales_and_windows_compose() -> None:
    image = torch.randn(1, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    inside = sliding_logits(with_flips(ramp_net), image, 16)
    around = with_flips(lambda x: sliding_logits(ramp_net, x, 16))(image)
    torch.testing.assert_close(inside, around)  # the grid of this size is symmetric
    assert with_scales(lambda x: sliding_logits(ramp_net, x, 16), (0.5, 2.0))(image).shape == (1, 2, 24, 32)


@pytest.mark.slow
def test_a_large_image_stays_below_two_gigabytes() -> None:
    command = [sys.executable, str(ROOT / "tools" / "large_image.py"), "--limit", "1.86"]  # GiB: 2 GB
    # Memory is bounded whatever the number of classes and the width, time is not.
    command += ["--backbone", "eca_resnet18", "--classes", "40", "model.args={width: 16}", "model.head.args={width: 32}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4000 x 3000, 40 classes" in done.stdout
    assert re.search(r"classes found \d{1,2},", done.stdout)

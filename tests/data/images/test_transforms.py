import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from visionattn.data.images.settings import AugmentConfig, CropConfig
from visionattn.data.images.transforms import Normalize, eval_transform, train_transform
from visionattn.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


EVERYTHING = AugmentConfig(vflip=0.5, rotate=20, shift=0.1, zoom=0.2, color_jitter=0.4, random_erasing=0.5)
RAND = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
MIX = AugmentConfig(rand_augment="augmix-m3-w3-a0.4")


@pytest.mark.parametrize("augment", [EVERYTHING, RAND, MIX], ids=["albumentations", "rand_augment", "augmix"])
def test_a_seed_gives_one_result_anywhere(augment: AugmentConfig) -> None:
    image = picture(60, 80)
    transform = train_transform(augment, (48, 40), MEAN, STD)
    first = [transform(image, seed) for seed in range(8)]
    again = pickle.loads(pickle.dumps(transform))  # as a spawned loader process gets it
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    for seed in reversed(range(8)):
        assert torch.equal(again(image, seed), first[seed])
    assert first[0].shape == (3, 48, 40) and first[0].dtype == torch.float32 and first[0].is_contiguous()
    assert all(not torch.equal(first[0], other) for other in first[1:])
    assert transform(image, 2**32 - 1).isfinite().all()


@pytest.mark.parametrize("augment", [EVERYTHING, RAND, MIX], ids=["albumentations", "rand_augment", "augmix"])
def test_global_generators_are_left_alone(augment: AugmentConfig) -> None:
    transform = train_transform(augment, (32, 32), MEAN, STD)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for seed in range(5):
        transform(picture(40, 40), seed)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_the_image_is_not_changed() -> None:
    for augment in (EVERYTHING, RAND, AugmentConfig(random_resized_crop=None, hflip=0, color_jitter=0.4)):
        image = picture(32, 32)
        before = image.copy()
        transform = train_transform(augment, (32, 32), MEAN, STD)
        for seed in range(5):
            transform(image, seed)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_and_types(channels: int, kind: type) -> None:
    image = picture(50, 70, channels)
    if kind is np.float32:
        image = (image / 255).astype(np.float32)
    mean, std = MEAN[:channels], STD[:channels]
    for augment in (EVERYTHING, AugmentConfig(random_resized_crop=None, pad_crop=4, rotate=10)):
        tensor = train_transform(augment, (32, 32), mean, std)(image, 3)
        assert tensor.shape == (channels, 32, 32) and tensor.dtype == torch.float32 and tensor.isfinite().all()
    tensor = eval_transform((32, 32), mean, std, interpolation="bicubic", crop_pct=0.9)(image)
    assert tensor.shape == (channels, 32, 32) and tensor.isfinite().all()


def test_nothing_but_normalisation() -> None:
    image = picture(32, 32)
    tensor = train_transform(AugmentConfig(random_resized_crop=None, hflip=0), (32, 32), MEAN, STD)(image, 0)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = torch.from_numpy(image).permute(2, 0, 1).float().div(255).sub(mean).div(std)
    assert torch.equal(tensor, expected)
    assert torch.allclose(Normalize(MEAN, STD)((image / 255).astype(np.float32)), expected, atol=1e-6)
    np.testing.assert_array_equal(Normalize(MEAN, STD).undo(tensor), image)


def test_flips() -> None:
    image = picture(16, 16)
    plain, horizontal, vertical = (
        train_transform(AugmentConfig(random_resized_crop=None, hflip=h, vflip=v), (16, 16), MEAN, STD)(image, 0)
        for h, v in ((0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(horizontal, plain.flip(2)) and torch.equal(vertical, plain.flip(1))
    half = train_transform(AugmentConfig(random_resized_crop=None), (16, 16), MEAN, STD)
    flipped = sum(torch.equal(half(image, seed), horizontal) for seed in range(200))
    assert 70 < flipped < 130


def test_crops_have_the_asked_area() -> None:
    rows, columns = np.mgrid[:200, :300].astype(np.float32)
    image = np.stack([rows / 200, columns / 300, 0 * rows], axis=2)
    augment = AugmentConfig(random_resized_crop=CropConfig(scale=(0.2, 0.5), ratio=(0.8, 1.25)), hflip=0)
    transform = train_transform(augment, (64, 64), (0, 0, 0), (1, 1, 1))
    areas, centres = [], []
    for seed in range(300):
        tensor = transform(image, seed)
        tall, wide = (float(tensor[c].max() - tensor[c].min()) * 64 / 63 for c in (0, 1))
        areas.append(tall * wide)
        centres.append(float(tensor[0].mean()))
        assert 0.75 < (wide * 300) / (tall * 200) < 1.35
    assert 0.18 < min(areas) < 0.23 and 0.46 < max(areas) < 0.53
    assert abs(np.mean(centres) - 0.5) < 0.03 and np.std(centres) > 0.05


def test_a_crop_that_never_fits_is_central() -> None:
    image = picture(20, 400)
    augment = AugmentConfig(random_resized_crop=CropConfig(scale=(1, 1), ratio=(0.9, 1.1)), hflip=0)
    transform = train_transform(augment, (20, 22), MEAN, STD)
    expected = Normalize(MEAN, STD)(image[:, 189:211])
    assert torch.equal(transform(image, 0), expected) and torch.equal(transform(image, 1), expected)


def test_large_images_are_averaged_not_sampled() -> None:
    noise = picture(640, 640)
    transform = train_transform(AugmentConfig(random_resized_crop=None, hflip=0), (32, 32), (0, 0, 0), (1, 1, 1))
    assert float(transform(noise, 0).std()) < 0.03  # 0.29 / 20; bilinear alone would leave half of 0.29


def test_pad_crop_shifts_within_the_border() -> None:
    image = picture(32, 32)
    transform = train_transform(AugmentConfig(random_resized_crop=None, pad_crop=4, hflip=0), (32, 32), MEAN, STD)
    padded = Normalize(MEAN, STD)(np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect"))
    windows = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    found = set()
    for seed in range(60):
        tensor = transform(image, seed)
        found.add(next(place for place, window in windows.items() if torch.equal(window, tensor)))
    assert len(found) > 30


def test_rotate_shift_zoom_reflect_at_the_border() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    augment = AugmentConfig(random_resized_crop=None, rotate=45, shift=0.3, zoom=0.3)
    transform = train_transform(augment, (40, 40), (0, 0, 0), (1, 1, 1))
    for seed in range(20):
        assert torch.allclose(transform(image, seed), torch.tensor(200 / 255), atol=0.01)
    moved = train_transform(augment, (40, 40), MEAN, STD)
    assert not torch.equal(moved(picture(40, 40), 0), moved(picture(40, 40), 1))


def test_color_jitter_always_acts_and_erasing_erases() -> None:
    image = np.full((32, 32, 3), (150, 100, 50), np.uint8)
    jitter = train_transform(AugmentConfig(random_resized_crop=None, color_jitter=0.4), (32, 32), (0, 0, 0), (1, 1, 1))
    plain = torch.tensor([150, 100, 50]).view(3, 1, 1) / 255
    assert sum(torch.allclose(jitter(image, seed), plain, atol=0.005) for seed in range(30)) <= 1
    erase = train_transform(AugmentConfig(random_resized_crop=None, random_erasing=1), (32, 32), (0, 0, 0), (1, 1, 1))
    for seed in range(10):
        changed = (erase(image, seed) != plain.expand(3, 32, 32)).any(0).float().mean()
        assert 0.01 < changed < 0.36


def test_rand_augment_many_seeds_float_and_whole_image() -> None:
    transform = train_transform(RAND, (32, 32), MEAN, STD)
    image = picture(40, 50)
    for seed in range(150):
        assert transform(image, seed).isfinite().all()
    assert torch.equal(transform((image / 255).astype(np.float32), 4), transform(image, 4))
    whole = AugmentConfig(rand_augment="rand-m5-n1", random_resized_crop=None, pad_crop=2)
    assert train_transform(whole, (24, 32), MEAN, STD)(image, 0).shape == (3, 24, 32)


@pytest.mark.parametrize(
    ("augment", "key"),
    [
        (AugmentConfig(pad_crop=4), "augment.pad_crop=0"),
        (AugmentConfig(rand_augment="rand-m9", rotate=5, color_jitter=0.4), "augment.rotate=0 augment.color_jitter=0"),
        (AugmentConfig(rand_augment="augmix-q3"), "rand-m9"),
        (AugmentConfig(rand_augment="rand-q7"), "rand-m9"),
    ],
)
def test_settings_that_exclude_each_other(augment: AugmentConfig, key: str) -> None:
    with pytest.raises(UserError) as caught:
        train_transform(augment, (32, 32), MEAN, STD)
    assert caught.value.code == "VA-C002" and caught.value.exit_code == 2 and key in caught.value.fix


def test_rand_augment_is_for_colour() -> None:
    with pytest.raises(UserError, match="colour"):
        train_transform(RAND, (32, 32), (0.5,), (0.5,))


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (224, 224), (64, 301), (256, 256), (225, 224)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_equals_timm(shape: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    image = picture(*shape)
    reference = create_transform((3, 96, 96), is_training=False, interpolation=interpolation, mean=MEAN, std=STD, crop_pct=crop_pct)
    transform = eval_transform((96, 96), MEAN, STD, interpolation=interpolation, crop_pct=crop_pct)  # type: ignore[arg-type]
    assert torch.equal(transform(image), reference(Image.fromarray(image)))


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (64, 96), (50, 50)])
def test_evaluation_at_other_ratios_covers_the_centre(shape: tuple[int, int]) -> None:
    transform = eval_transform((64, 96), (0, 0, 0), (1, 1, 1), interpolation="bilinear", crop_pct=0.8)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    image = np.stack([rows / shape[0], columns / shape[1], 0 * rows], axis=2)
    tensor = transform(image)
    assert tensor.shape == (3, 64, 96)
    assert abs(float(tensor[0].mean()) - 0.5) < 0.03 and abs(float(tensor[1].mean()) - 0.5) < 0.03
    tall, wide = (float(tensor[c].max() - tensor[c].min()) for c in (0, 1))
    assert max(tall, wide) == pytest.approx(0.8, abs=0.03) and max(tall, wide) < 0.83
    assert (wide * shape[1]) / (tall * shape[0]) == pytest.approx(1.5, rel=0.05)  # nothing is stretched


def test_plain_resize_of_square_images_and_float_agree() -> None:
    image = picture(80, 80)
    transform = eval_transform((32, 32), (0, 0, 0), (1, 1, 1), interpolation="bicubic", crop_pct=1.0)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(transform(image).permute(1, 2, 0).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(transform((image / 255).astype(np.float32)).permute(1, 2, 0).numpy(), expected, atol=0.004)
    grey = eval_transform((32, 32), (0,), (1,), interpolation="bicubic", crop_pct=1.0)
    assert torch.equal(grey(image[:, :, :1])[0], transform(image)[0])


@pytest.mark.parametrize(("shape", "size", "crop"), [((60, 81), (48, 40), 0.875), ((33, 20), (32, 32), 1.0), ((200, 90), (64, 48), 0.7)])
def test_a_point_is_followed_through_resizing_and_crop(shape: tuple[int, int], size: tuple[int, int], crop: float) -> None:
    transform = eval_transform(size, (0.0,) * 3, (1.0,) * 3, interpolation="bilinear", crop_pct=crop)
    row, column = shape[0] // 2 - 4, shape[1] // 2 + 3
    image = np.zeros((*shape, 3), np.uint8)
    image[row, column] = 255
    x, y = transform.position(column + 0.5, row + 0.5, shape)
    found = transform(image)[0]
    rows, columns = (torch.arange(length) + 0.5 for length in found.shape)
    centre = (found.sum(1) @ rows / found.sum(), found.sum(0) @ columns / found.sum())
    assert abs(float(centre[0]) - y) < 0.6 and abs(float(centre[1]) - x) < 0.6
    assert transform.position(0, 0, shape)[0] <= 0 and transform.position(0, 0, shape)[1] <= 0

"""Settings of images: loading, labels and augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from visionattn.config.schema import Auto, DataConfig, Section, chosen, setting


class ImageDataConfig(DataConfig):
    """The `data` section of tasks on images: how a file is decoded."""

    alpha_background: Literal["black", "white"] = setting("black", "Background under transparent pixels.")
    range: Literal["dtype", "percentile"] | tuple[float, float] = setting(
        "dtype",
        "Scaling of 16-bit and float images: dtype maximum (floats of TIFF, npy and npz as they are), 1st-99th percentile, or [low, high].",
    )
    mean: list[float] | Auto | None = setting(
        "auto",
        "Mean of each channel that is subtracted, after data.range; null: that of the weights; auto: null for pictures of 8 bits with 1 or "
        "3 channels, else measured on the training set.",
    )
    std: list[float] | Auto | None = setting("auto", "Standard deviation of each channel that is divided by, as data.mean.")
    preview: list[int] | Auto | None = setting(
        "auto",
        "Channels, counted from 1, that pictures show of images of 16 bits, floats, or other than 1 or 3 channels: one, or red, green and "
        "blue, [4, 3, 2]; auto: the first three, with stretched contrast; null: pictures of 8 bits, as they are.",
    )
    max_bytes: int = setting(
        2**30,
        "Largest file, and largest image in memory, in bytes: 6 per pixel, 8 with transparency, 18 to 24 of 16-bit and float images.",
        ge=1,
    )
    cache: Literal["none", "ram"] = setting("none", "ram keeps decoded images in memory, up to data.cache_bytes; not in predict.")
    cache_bytes: int = setting(2**32, "Memory for data.cache=ram in bytes, per split, all loader processes together.", ge=0)

    @model_validator(mode="after")
    def _check_channels(self) -> ImageDataConfig:
        given = [type(value) if isinstance(value, list) else value for value in (self.mean, self.std)]
        if given[0] != given[1]:
            raise ValueError("data.mean: data.mean and data.std belong together, a number per channel in both")
        if isinstance(self.mean, list) and isinstance(self.std, list):
            if len(self.mean) != len(self.std) or not self.mean:
                raise ValueError(f"data.std: expected {len(self.mean)} numbers, one for each of data.mean, got {len(self.std)}")
            if min(self.std) <= 0:
                raise ValueError(f"data.std: expected numbers > 0, got {self.std}")
        if isinstance(self.preview, list) and not (len(self.preview) in (1, 3) and min(self.preview) >= 1):
            raise ValueError(f"data.preview: expected one channel or three, counted from 1, got {self.preview}")
        return self

    def read_once(self) -> Self:
        return self.model_copy(update={"cache": "none"})


class LabelDataConfig(ImageDataConfig):
    """The `data` section of classification."""

    root: str = setting(
        "",
        "Folder of images, of CSV lists, of WebDataset or parquet shards, or of save_to_disk; an .npz file; a cache folder for "
        "format torchvision.",
    )
    format: Literal["auto", "folders", "csv", "npz", "webdataset", "hf", "digits", "torchvision"] = setting(
        "auto", "Layout of data.root; auto detects it from the files."
    )
    dataset: str = setting(
        "", "Class in torchvision.datasets, for format torchvision; USER/NAME[@REVISION] on the Hugging Face hub, for format hf."
    )
    image_column: str = setting("", "Column of images, for format hf; empty: the only one of type Image.")
    label_column: str = setting("", "Column of labels, for format hf; empty: the only one of type ClassLabel.")
    classes: Literal["auto"] | list[str] | str = setting(
        "auto", "Class names in order: auto (classes.txt or the training set), a list, or a text file."
    )
    max_classes: int = setting(100_000, "Most classes accepted; labels that are ids or paths make more.", ge=1)
    multi_label: bool = setting(False, "Several classes per image: labels separated by ';' in CSV, multi-hot in npz.")

    @property
    def has_source(self) -> bool:
        """Whether there is something to load; the digits need no files."""
        return bool(self.root) or self.format == "digits" or self.on_hub

    @property
    def on_hub(self) -> bool:
        """Whether the data are named instead of data.root, and come from the Hugging Face hub."""
        return self.format == "hf" and bool(self.dataset)

    def at(self, root: str) -> Self:
        """Settings for another folder; torchvision datasets keep their format."""
        form = "torchvision" if self.format == "torchvision" else "auto"
        return super().at(root).model_copy(update={"format": form})


class CropConfig(Section):
    scale: tuple[float, float] | Auto = setting(
        "auto", "Range of the crop's area, as a share of the image; auto: [0.08, 1], or [0.35, 1] from weights."
    )
    ratio: tuple[float, float] = setting((0.75, 1.3333), "Range of the crop's width / height.")

    @property
    def area(self) -> tuple[float, float]:
        """`scale`; that of training from scratch where it is still auto."""
        low, high = chosen(self.scale, "augment.random_resized_crop.scale")
        return low, high


class AugmentConfig(Section):
    random_resized_crop: CropConfig | None = setting(CropConfig(), "Random crop, resized to img_size; null resizes the whole image.")
    pad_crop: int = setting(0, "Pixels of reflected border before a random crop of img_size (with random_resized_crop: null).", ge=0)
    hflip: float = setting(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vflip: float = setting(0.0, "Probability of an up-down flip.", ge=0, le=1)
    rotate: float = setting(0.0, "Largest rotation in degrees.", ge=0, le=180)
    shift: float = setting(0.0, "Largest shift, as a share of the size.", ge=0, lt=1)
    zoom: float = setting(0.0, "Largest relative change of scale.", ge=0, lt=1)
    color_jitter: float = setting(0.0, "Strength of brightness, contrast and saturation changes (hue: a quarter).", ge=0)
    rand_augment: str = setting(
        "auto",
        "RandAugment or AugMix in timm's notation, for example rand-m9-mstd0.5-inc1 or augmix-m3-w3; empty: none; auto: none, or a gentle "
        "one for pictures in colour from weights.",
    )
    random_erasing: float = setting(0.0, "Probability of erasing a rectangle.", ge=0, le=1)
    mixup: float = setting(0.0, "Mixup alpha; 0 is off.", ge=0)
    cutmix: float = setting(0.0, "CutMix alpha; 0 is off.", ge=0)

    @property
    def policy(self) -> str:
        """`rand_augment`; that of training from scratch where it is still auto."""
        policy: str = chosen(self.rand_augment, "augment.rand_augment")
        return policy

"""Settings of images with masks: location, mask values and augmentation."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Self

from visionattn.config.schema import Auto, Section, chosen, setting
from visionattn.data.images.settings import ImageDataConfig

# Label of pixels excluded from loss and metrics; all ignored mask values are mapped to it on loading.
IGNORE = 255


class MaskDataConfig(ImageDataConfig):
    root: str = setting("", "Folder of images and masks, or a CSV file of pairs.")
    format: Literal["auto", "pairs", "csv", "ade20k", "cityscapes", "voc", "camvid", "isic", "nnunet"] = setting(
        "auto", "Layout of data.root; auto detects it from the files."
    )
    images: str = setting("", "Folder of images, with {split} for the split; empty: the layout's, for example images/{split}.")
    masks: str = setting("", "Folder of masks, for example masks/{split}; empty: the layout's.")
    mask_suffix: str = setting(
        "", "Suffix of a mask's name after the image's, for example _mask.png; empty: the same name, any image type."
    )
    classes: Literal["auto"] | int | list[str] | str = setting(
        "auto",
        "Class names in order of the mask values: auto (classes.txt, or the layout's), a list, a count, "
        "a text file, or one of ade20k, cityscapes, voc, camvid.",
    )
    ignore_index: int | Literal["auto", "none"] = setting(
        "auto", "Mask value excluded from loss and metrics; auto: classes named void or unlabelled, or none."
    )
    map: dict[int, int] = setting({}, "Mask values to replace, for example {128: 1}; 255 means ignored.")
    palette: Literal["auto"] | list[tuple[int, int, int]] | str = setting(
        "auto",
        "Colours of RGB masks and pictures, in order of the values: auto (from the classes), a list, or a file of `index name R G B`.",
    )
    mask_resize: Literal["error", "nearest"] = setting(
        "error", "Masks whose size differs from their image: stop, or resize to the nearest pixels."
    )
    channel_files: bool | Auto = setting(
        "auto", "For predict: each channel of an image is a file, CASE_0000.tif, CASE_0001.tif, ...; auto: as in the training data."
    )
    reduce_zero_label: bool = setting(False, "Ignore mask value 0; classes start at 1.")

    def at(self, root: str) -> Self:
        """Settings for another folder."""
        return super().at(root).model_copy(update={"format": "auto"})


class MaskAugmentConfig(Section):
    resize: Literal["none", "fixed"] | int | tuple[int, int] = setting(
        "none",
        "Resize before other transforms, in training and evaluation: none, fixed (to img_size, changing the ratio), "
        "a number for the short side, or [long, short] to fit into.",
    )
    scale: tuple[float, float] | Auto = setting(
        "auto", "Range of random scaling in training, before a random crop of img_size; auto: [0.5, 2], or [0.75, 1.5] from weights."
    )
    cat_max_ratio: float = setting(0.75, "Largest share of one class in a crop, if ten draws find such a crop; 1: any crop.", gt=0, le=1)
    hflip: float = setting(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vflip: float = setting(0.0, "Probability of an up-down flip.", ge=0, le=1)
    rotate90: float = setting(0.0, "Probability of a rotation by a multiple of 90 degrees (square img_size).", ge=0, le=1)
    rotate: float = setting(0.0, "Largest rotation in degrees.", ge=0, le=180)
    elastic: float = setting(0.0, "Probability of a mild elastic deformation.", ge=0, le=1)
    photometric: bool | Auto = setting(
        "auto",
        "Random brightness, contrast, saturation and hue; grey images: brightness and contrast; auto: true for pictures of 8 bits, else "
        "false.",
    )

    @property
    def factors(self) -> tuple[float, float]:
        """`scale`; that of training from scratch where it is still auto."""
        low, high = chosen(self.scale, "augment.scale")
        return low, high

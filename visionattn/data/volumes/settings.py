"""Settings of volumes: where they are, how they are prepared and augmented."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Self

from visionattn.config.schema import DataConfig, Section, setting

# Ends of the names of files that hold a volume.
NIFTI = (".nii.gz", ".nii")


class VolumeDataConfig(DataConfig):
    root: str = setting("", "Folder of volumes and their label maps.")
    format: Literal["auto", "folders", "nnunet"] = setting(
        "auto", "Layout of data.root: folders of images and labels, or dataset.json with imagesTr and labelsTr; auto detects it."
    )
    images: str = setting("", "Folder of images, with {split} for the split; empty: images/{split}, or images.")
    labels: str = setting("", "Folder of label maps, for example labels/{split}; empty: labels/{split} or masks/{split}, or without split.")
    classes: Literal["auto"] | list[str] = setting(
        "auto", "Class names in order of the label values from 0 on: auto (dataset.json, or the values found), or a list."
    )
    regions: dict[str, list[int]] = setting(
        {}, "Overlapping classes, each a list of label values, for example {whole: [1, 2, 3], core: [2, 3]}; empty: those of dataset.json."
    )
    spacing: Literal["auto"] | tuple[float, float, float] | None = setting(
        "auto", "Voxel size in mm that volumes are resampled to: auto (the median of the training set), three numbers, or null: their own."
    )
    intensity: Literal["auto", "zscore", "ct", "none"] | tuple[float, float] = setting(
        "auto",
        "Normalisation: zscore per volume; ct: clipped and scaled by what the training set has in the foreground; a window [low, high], "
        "scaled to 0..1; none; auto: ct where dataset.json or DICOM says CT, else zscore.",
    )
    max_bytes: int = setting(2**33, "Largest volume in memory, in bytes, 4 per voxel and channel.", ge=1)
    cache: Literal["none", "ram", "disk"] = setting(
        "ram", "Where prepared training volumes are kept, up to data.cache_bytes: in memory, on the disk (read patch by patch), or nowhere."
    )
    cache_bytes: int = setting(2**32, "Size limit of data.cache in bytes; volumes beyond it are prepared each time.", ge=0)

    def at(self, root: str) -> Self:
        return super().at(root).model_copy(update={"format": "auto", "cache": "none"})

    def read_once(self) -> Self:
        return self.model_copy(update={"cache": "none"})


class VolumeAugmentConfig(Section):
    patches: int = setting(2, "Patches (2.5D: slices) drawn from each volume of a batch.", ge=1)
    foreground: float = setting(0.33, "Share of patches centred on a voxel of a class other than the background.", ge=0, le=1)
    flip: float = setting(0.0, "Probability of a flip along each axis; left and right then have to look alike.", ge=0, le=1)
    rotate: float = setting(15.0, "Largest rotation about each axis in degrees.", ge=0, le=180)
    scale: float = setting(0.2, "Largest relative change of scale.", ge=0, lt=1)
    spatial: float = setting(0.3, "Probability of rotation and scaling.", ge=0, le=1)
    noise: float = setting(0.1, "Standard deviation of Gaussian noise, relative to that of the volume.", ge=0)
    intensity: float = setting(0.2, "Strength of random brightness, contrast and gamma.", ge=0, lt=1)
    blur: float = setting(1.0, "Largest sigma of a Gaussian blur in voxels.", ge=0)

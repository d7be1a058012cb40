"""Small volumes of two balls, on a grid that is oblique, anisotropic and runs backwards; NIfTI files and DICOM series of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

SPACING = (0.9, 1.1, 2.5)


def oblique(spacing: Sequence[float] = SPACING) -> np.ndarray:
    """An affine whose first axis runs to the back, the second to the left, the third upwards, all of them tilted."""
    turn = Rotation.from_euler("xyz", (12, -8, 15), degrees=True).as_matrix()
    axes = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, 1]], float)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = (20.5, -13.25, 7.125)
    return affine


def balls(number: int = 0, shape: tuple[int, int, int] = (24, 20, 12)) -> tuple[np.ndarray, np.ndarray]:
    """A grey volume and its labels: 1 in one ball, 2 in another, elsewhere 0."""
    random = np.random.default_rng(number)
    places = np.indices(shape).transpose(1, 2, 3, 0) / np.array(shape)
    label = np.zeros(shape, np.uint8)
    for value, centre in ((1, (0.3, 0.4, 0.5)), (2, (0.7, 0.6, 0.5))):
        offset = places - centre + random.uniform(-0.05, 0.05, 3)
        label[(offset**2).sum(-1) < 0.19**2] = value
    image = random.normal(0, 8, shape) + np.array([60, 160, 240])[label]
    return image.astype(np.float32), label


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file with codes and units of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, oblique() if affine is None else affine)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 2)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def folders(root: Path, counts: dict[str, int], names: dict[str, Any] | None = None) -> Path:
    """images/<split> and labels/<split>; case i of a patient i // 2."""
    for split, count in counts.items():
        for number in range(count):
            image, label = balls(number + 100 * list(counts).index(split))
            name = f"p{number // 2}_{number}.nii.gz"
            save(root / "images" / split / name, image)
            save(root / "labels" / split / name, label)
    if names is not None:
        (root / "dataset.json").write_text(json.dumps(names))
    return root


def series(
    folder: Path,
    values: np.ndarray,
    *,
    uid: str = "",
    skip: Sequence[int] = (),
    slope: float = 2.0,
    intercept: float = -1000.0,
    **tags: Any,
) -> np.ndarray:
    """Write the slices of stored values `[x, y, z]` as an oblique CT series in shuffled order; returns the affine they lie on."""
    affine = oblique()
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    for place in np.random.default_rng(0).permutation(values.shape[2]).tolist():
        if place in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        file.Modality, file.SeriesInstanceUID = "CT", uid
        file.Columns, file.Rows = values.shape[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
        file.PixelSpacing = [f"{SPACING[1]:.6f}", f"{SPACING[0]:.6f}"]
        axes = flipped[:3, :2] / np.array(SPACING[:2])
        file.ImageOrientationPatient = [f"{value:.10f}" for value in axes.T.ravel()]
        file.ImagePositionPatient = [f"{value:.8f}" for value in (flipped @ [0, 0, place, 1])[:3]]
        file.RescaleSlope, file.RescaleIntercept = slope, intercept
        file.PixelData = values[:, :, place].T.astype(np.uint16).tobytes()
        for name, value in tags.items():
            setattr(file, name, value)
        pydicom.dcmwrite(folder / f"{uid[-6:]}-{len(list(folder.iterdir())):03d}.dcm", file, enforce_file_format=True)
    return affine

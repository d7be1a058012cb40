"""Read NIfTI files and DICOM series: voxels as float32 with their grid, and what is wrong with them in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.readers import LIMIT_SETTING, UnreadableFile
from visionattn.data.volumes.extra import library
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.recognise import is_dicom
from visionattn.errors import UserError
from visionattn.files import counted

GEOMETRY = "VA-D030"  # a grid that no volume has: 4D, an affine or a spacing that cannot be
SERIES = "VA-D031"  # a folder that is not one whole DICOM series
COMPRESSED = "VA-D032"  # a transfer syntax that needs another package

_EVEN = 0.05  # share by which distances of slices may differ from their median
_TILT = 1e-3  # by which cosines of slices may differ

# Packages that decode compressed DICOM, by a part of the name of the transfer syntax.
_DECODERS = (
    ("JPEG 2000", "pylibjpeg pylibjpeg-openjpeg"),
    ("High-Throughput", "pylibjpeg pylibjpeg-openjpeg"),
    ("JPEG-LS", "pyjpegls"),
    ("JPEG", "pylibjpeg pylibjpeg-libjpeg"),
    ("RLE", "pydicom"),
)


@dataclass(frozen=True)
class Source:
    """The files of a volume.

    Attributes:
        paths: a NIfTI file, one NIfTI file per channel, or the files of a DICOM series.
        channels: how many channels it has; the fourth axis of a single NIfTI file may hold them.
        dicom: whether the files are a DICOM series.
    """

    paths: tuple[str, ...]
    channels: int = 1
    dicom: bool = False

    @property
    def name(self) -> str:
        """The file, or the folder of a series."""
        return os.path.dirname(self.paths[0]) if self.dicom else self.paths[0]

    def grid(self) -> Grid:
        """Read the grid without the voxels.

        Raises:
            UnreadableFile: a damaged file; VA-D030, VA-D031, VA-D032.
        """
        if self.dicom:
            return _series(self.paths)[0]
        grids = [nifti_grid(path, self._in_file) for path in self.paths]
        for path, grid in zip(self.paths[1:], grids[1:], strict=True):
            if difference := grids[0].difference(grid):
                raise UnreadableFile(path, f"channels on different grids: {difference}", GEOMETRY)
        return grids[0]

    def read(self, max_bytes: int) -> tuple[np.ndarray, Grid]:
        """Load the voxels, float32 `[channels, x, y, z]`, and their grid.

        Raises:
            UnreadableFile: as `grid`; voxels that are not finite; VA-D020, larger than `max_bytes`.
        """
        grid, ordered = _series(self.paths) if self.dicom else (self.grid(), [])
        _require_room(self.name, 4 * self.channels * int(np.prod(grid.shape)), max_bytes)
        voxels = _series_voxels(ordered)[None] if self.dicom else np.concatenate([_nifti_voxels(path) for path in self.paths])
        if len(voxels) != self.channels:
            raise UnreadableFile(self.name, f"{counted(len(voxels), 'channel')}: expected {self.channels}", GEOMETRY)
        if wrong := int(voxels.size - np.isfinite(voxels).sum()):
            raise UnreadableFile(self.name, f"{counted(wrong, 'voxel')} NaN or infinite")
        return voxels, grid

    def stamp(self) -> str:
        """Text that changes with the files.

        Raises:
            UnreadableFile: a file is gone.
        """
        return "|".join(map(file_stamp, self.paths))

    @property
    def _in_file(self) -> int:
        """Channels in each file."""
        return self.channels // len(self.paths)


def file_stamp(path: str) -> str:
    """Text that changes with a file.

    Raises:
        UnreadableFile: it is gone.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableFile(path, error.strerror or str(error)) from error
    return f"{path}|{status.st_size}|{status.st_mtime_ns}"


def _require_room(path: str, needed: int, max_bytes: int) -> None:
    if needed > max_bytes:
        reason = f"{needed:,} bytes in memory: the limit is {max_bytes:,}; if you trust it, {LIMIT_SETTING}{needed}"
        raise UnreadableFile(path, reason, "VA-D020")


# ---------------------------------------------------------------- NIfTI


def nifti_grid(path: str, channels: int = 1) -> Grid:
    """Read the grid of a NIfTI file.

    Args:
        channels: how many volumes its fourth axis may have.

    Raises:
        UnreadableFile: a damaged file; VA-D030, 4D, or no grid.
    """
    with _explained(path):
        nibabel = library("nibabel")
        image = nibabel.load(path)
        shape, header, affine = tuple(image.shape), image.header.copy(), np.asarray(image.affine, np.float64)
        del header.extensions[:]  # which may name the patient
        with nibabel.openers.ImageOpener(path) as file:  # loading has put 1 in the place of 0
            sizes = np.asarray(type(header).from_fileobj(file, check=False)["pixdim"][1:4], float)
    if len(shape) > 3 and set(shape[3:]) != {1} and (len(shape) > 4 or shape[3] != channels):
        dims = " x ".join(map(str, shape))
        raise UnreadableFile(path, f"{len(shape)}D ({dims}): expected a volume of 3 axes" + _declared(channels), GEOMETRY)
    if len(shape) < 3:
        raise UnreadableFile(path, f"{len(shape)}D: expected a volume of 3 axes", GEOMETRY)
    if min(shape) < 1:
        raise UnreadableFile(path, "an axis without voxels", GEOMETRY)
    if not np.isfinite(affine).all():
        raise UnreadableFile(path, "its affine has NaN or infinite values", GEOMETRY)
    if not (np.isfinite(sizes) & (sizes > 0)).all() or (np.linalg.norm(affine[:3, :3], axis=0) < 1e-6).any():
        text = " x ".join(f"{size:g}" for size in sizes)
        raise UnreadableFile(path, f"voxels of {text} mm: a size that is not positive", GEOMETRY)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6 * np.prod(np.linalg.norm(affine[:3, :3], axis=0)):
        raise UnreadableFile(path, "its affine is singular: two axes of the array have the same direction", GEOMETRY)
    return Grid((shape[0], shape[1], shape[2]), affine, header)


def _declared(channels: int) -> str:
    return f", or {channels} volumes as dataset.json declares" if channels > 1 else ""


def _nifti_array(path: str) -> np.ndarray:
    with _explained(path):
        array: np.ndarray = np.asanyarray(library("nibabel").load(path).dataobj)
    return array


def _nifti_voxels(path: str) -> np.ndarray:
    """Voxels `[channels, x, y, z]`."""
    array = _nifti_array(path)
    if array.dtype.kind not in "fiub":
        raise UnreadableFile(path, f"voxels of type {array.dtype}: expected numbers")
    return np.moveaxis(array.reshape(*array.shape[:3], -1).astype(np.float32), -1, 0)


def read_labels(path: str, max_bytes: int) -> tuple[np.ndarray, Grid]:
    """Load a label map: integers `[x, y, z]`, and their grid.

    Raises:
        UnreadableFile: a damaged file; VA-D030; VA-D012, values that are not whole numbers; VA-D020, larger than `max_bytes`.
    """
    grid = nifti_grid(path)
    _require_room(path, 4 * int(np.prod(grid.shape)), max_bytes)
    array = _nifti_array(path).reshape(grid.shape)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UnreadableFile(path, "labels that are NaN or infinite", "VA-D012")
        fractions = array != np.rint(array)
        if fractions.any():
            raise UnreadableFile(path, f"labels that are not whole numbers, for example {float(array[fractions][0]):g}", "VA-D012")
    elif array.dtype.kind not in "iub":
        raise UnreadableFile(path, f"labels of type {array.dtype}: expected whole numbers", "VA-D012")
    return array.astype(np.int32), grid


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Report whatever a damaged file raises, except a lack of memory."""
    try:
        yield
    except (UnreadableFile, UserError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())  # some span lines
        raise UnreadableFile(path, reason or type(error).__name__) from error


# ---------------------------------------------------------------- DICOM


def _series(paths: Sequence[str]) -> tuple[Grid, list[str]]:
    """The grid of a series, and its files in the order of their positions along the normal.

    Raises:
        UnreadableFile: VA-D010, VA-D030, VA-D031, VA-D032.
    """
    folder = os.path.dirname(paths[0])
    headers = [_slice_header(path) for path in paths]
    series: dict[str, int] = {}
    for header in headers:
        uid = str(header.get("SeriesInstanceUID", ""))
        series[uid] = series.get(uid, 0) + 1
    if len(series) > 1:
        counts = ", ".join(f"{count} slices" for count in series.values())
        raise UnreadableFile(folder, f"{len(series)} series in one folder ({counts}): expected one", SERIES)
    first = headers[0]
    orientation, pixels = np.array(first.ImageOrientationPatient, float), np.array(first.PixelSpacing, float)
    for path, header in zip(paths, headers, strict=True):
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            sizes = f"{header.Columns} x {header.Rows} and {first.Columns} x {first.Rows}"
            raise UnreadableFile(path, f"slices of different sizes in one series: {sizes}", SERIES)
        if np.abs(np.array(header.ImageOrientationPatient, float) - orientation).max() > _TILT:
            raise UnreadableFile(path, "slices of different orientation in one series", SERIES)
        if np.abs(np.array(header.PixelSpacing, float) - pixels).max() > _TILT:
            raise UnreadableFile(path, "slices of different pixel spacing in one series", SERIES)
    if len(paths) < 2:
        raise UnreadableFile(folder, "a series of a single slice: expected a volume", SERIES)
    row, column = orientation[:3], orientation[3:]
    positions = np.array([np.array(header.ImagePositionPatient, float) for header in headers])
    along = positions @ np.cross(row, column)
    order = np.argsort(along, kind="stable")
    _require_even(folder, along[order])
    step = (positions[order[-1]] - positions[order[0]]) / (len(paths) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * pixels[1], column * pixels[0], step, positions[order[0]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's x runs to the left, its y to the back
    if not np.isfinite(affine).all() or min(np.linalg.norm(affine[:3, :3], axis=0)) < 1e-6:
        raise UnreadableFile(folder, "a pixel spacing or a position that cannot be", GEOMETRY)
    return Grid((int(first.Columns), int(first.Rows), len(paths)), affine), [paths[index] for index in order]


def _slice_header(path: str) -> Any:
    """The header of a slice, checked to be one.

    Raises:
        UnreadableFile: VA-D010, VA-D031, VA-D032.
    """
    pydicom = library("pydicom")
    with _explained(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise UnreadableFile(path, "several frames in one file: expected a file per slice, as dcm2niix -o converts them", SERIES)
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise UnreadableFile(path, "a picture in colour: expected a slice of one channel", SERIES)
    missing = [key for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns") if not header.get(key)]
    if missing:
        raise UnreadableFile(path, f"no slice of a volume: {', '.join(missing)} missing", SERIES)
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_compressed:
        _require_decoder(path, syntax)
    return header


def _require_decoder(path: str, syntax: Any) -> None:
    try:
        available = bool(library("pydicom.pixels").get_decoder(syntax).is_available)
    except NotImplementedError:
        available = False
    if not available:
        package = next((package for part, package in _DECODERS if part in syntax.name), "")
        fix = f": pip install {package}" if package else ", and no package decodes it; dcmdjpeg or gdcmconv may"
        raise UnreadableFile(path, f"its transfer syntax is compressed ({syntax.name})" + fix, COMPRESSED)


def _require_even(folder: str, along: np.ndarray) -> None:
    """Stop at slices that are missing, or twice there.

    Args:
        along: positions along the normal in mm, sorted.
    """
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    if usual <= 1e-4 or gaps.min() <= 1e-4:
        place = along[int(gaps.argmin())]
        raise UnreadableFile(folder, f"two slices at the same position ({place:.1f} mm): repeated, or two series mixed", SERIES)
    wrong = np.flatnonzero(np.abs(gaps - usual) > _EVEN * usual)
    if len(wrong):
        first = int(wrong[0])
        what = f"a gap of {gaps[first]:.2f} mm after {along[first]:.1f} mm, the other slices are {usual:.2f} mm apart"
        count = round(float((gaps / usual - 1).clip(0).sum()))
        raise UnreadableFile(folder, f"{counted(count, 'slice')} missing: {what}" if count else f"uneven slices: {what}", SERIES)


def _series_voxels(ordered: Sequence[str]) -> np.ndarray:
    """Voxels `[x, y, z]` in the units of the scanner: rescale slope and intercept of each slice are applied."""
    pydicom, slices = library("pydicom"), []
    for path in ordered:
        with _explained(path):
            found = pydicom.dcmread(path)
            pixels = found.pixel_array.astype(np.float32)
            slope, intercept = _rescaling(found)
        slices.append(pixels.T * np.float32(slope) + np.float32(intercept))
    return np.stack(slices, -1)


def _rescaling(header: Any) -> tuple[float, float]:
    """Slope and intercept from stored values to those of the scanner."""
    return float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))


def dicom_modality(source: Source) -> str:
    """Modality of a DICOM series, for example CT; empty for other files."""
    return str(_slice_header(source.paths[0]).get("Modality", "")) if source.dicom else ""


def dicom_rescaling(source: Source) -> str:
    """How the first slice of a DICOM series is rescaled; empty if it is not, and for other files."""
    slope, intercept = _rescaling(_slice_header(source.paths[0])) if source.dicom else (1.0, 0.0)
    return "" if (slope, intercept) == (1, 0) else f"slope {slope:g}, intercept {intercept:g}"


# ---------------------------------------------------------------- grouping


def group_files(paths: Sequence[str], channels: int, warn: Callable[[str, str], object] = lambda path, reason: None) -> list[Source]:
    """Volumes among files: NIfTI files, channels of nnU-Net (`CASE_0000.nii.gz`, ...), and DICOM series by folder and series.

    Args:
        channels: of a volume.
        warn: takes the path of a file that is no part of a volume, and the reason.
    """
    sources: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        lower = path.lower()
        if lower.endswith((".nii", ".nii.gz")):
            sources.setdefault(("nifti", _case(path) if channels > 1 else path), []).append(path)
        elif is_dicom(path):
            if os.path.basename(path) != "DICOMDIR":
                sources.setdefault(("dicom", f"{os.path.dirname(path)}|{_uid(path)}"), []).append(path)
        else:
            warn(path, "neither NIfTI nor DICOM")
    return [Source(tuple(files if kind == "dicom" else sorted(files)), channels, kind == "dicom") for (kind, _), files in sources.items()]


def _case(path: str) -> str:
    """A path without nnU-Net's number of the channel."""
    stem = path[: path.lower().rindex(".nii")]
    return stem[:-5] if stem[-5:-4] == "_" and stem[-4:].isdigit() else stem


def _uid(path: str) -> str:
    try:
        return str(
            library("pydicom").dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID", "")
        )
    except UserError:
        raise
    except Exception:  # reported when it is read
        return ""


def folder_series(folder: Path) -> Source | None:
    """The DICOM files in a folder as one series; None without any."""
    paths = sorted(str(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = tuple(path for path in paths if os.path.basename(path) != "DICOMDIR" and is_dicom(path))
    return Source(found, dicom=True) if found else None

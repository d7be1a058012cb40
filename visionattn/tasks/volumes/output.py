"""Output of `predict`: label maps in NIfTI on the grid of each volume, pictures of three planes, and the size of each class."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionattn.data.volumes.extra import library
from visionattn.data.volumes.files import Source, group_files
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.recognise import is_nifti, without_ending
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.names import from_path, plain_path, shown
from visionattn.tasks.base import Prediction, Target, Writer, WriterRequest
from visionattn.tasks.batch import Batch
from visionattn.tasks.volumes.pictures import three_planes
from visionattn.tasks.volumes.predictor import VolumePrediction, painted
from visionattn.tasks.volumes.scores import shown_labels


@dataclass(frozen=True)
class LabelMap(Prediction):
    """Prediction for one volume.

    Attributes:
        path: the file, or the folder of a DICOM series.
        shape: voxels along each axis of the file.
        spacing: size of a voxel in mm along them.
        millilitres: volume of each class, without the background.
        mask: label map in NIfTI: the file, or its content if nothing is saved; None if only other formats are saved.
        overlay: file of the picture, if saved.
    """

    path: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    millilitres: dict[str, float]
    mask: Path | bytes | None = None
    overlay: Path | None = None

    def class_map(self) -> np.ndarray:
        """Load the label value of each voxel, `[x, y, z]`.

        Raises:
            ValueError: predictions were saved, but not their label maps.
        """
        if self.mask is None:
            raise ValueError(f"the label map of {self.path} was not saved")
        nibabel = library("nibabel")
        if isinstance(self.mask, bytes):
            return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(self.mask)).dataobj)
        return np.asarray(nibabel.load(self.mask).dataobj)

    def display_row(self) -> dict[str, str]:
        """Row of the table on the terminal."""
        largest = sorted(self.millilitres.items(), key=lambda item: -item[1])
        text = "  ".join(f"{name} {size:.3g} ml" for name, size in largest[:4]) + ("  ..." if len(largest) > 4 else "")
        return {"volume": self.path, "voxels": " x ".join(map(str, self.shape)), "found": text}

    def as_dict(self) -> dict[str, Any]:
        """Entry in `predictions.json`."""
        files = {"mask": self.mask if isinstance(self.mask, Path) else None, "overlay": self.overlay}
        facts = {"path": self.path, "shape": list(self.shape), "spacing": list(self.spacing), "millilitres": self.millilitres}
        return facts | {name: str(path) for name, path in files.items() if path is not None}


class LabelMapWriter(Writer):
    """Save the label map of each volume before the next one is loaded.

    Args:
        target: classes or regions, and the values that are written for them.
        channels: of a volume.

    Raises:
        UserError: VA-C002, two volumes would be saved under the same name.
    """

    def __init__(self, target: Target, channels: int, request: WriterRequest) -> None:
        self.target, self.out, self.formats = target, request.out, request.formats
        self.names = output_names(volumes_of(request.files, channels), request.files)
        self.regions = bool(target["regions"])
        self.classes: list[str] = target["classes"] if self.regions else target["classes"][1:]

    def planned_files(self) -> list[Path]:
        if self.out is None:
            return []
        files = {"mask": mask_file, "overlay": overlay_file}
        return [file(self.out, name) for kind, file in files.items() if kind in self.formats for name in self.names]

    def write(self, predictions: VolumePrediction, batch: Batch) -> list[LabelMap]:
        """Write the label map of one volume."""
        grid, labels = predictions.grid, predictions.labels()
        millilitre = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
        counts = labels.reshape(len(labels), -1).sum(1, dtype=np.int64) if self.regions else np.bincount(labels.ravel(), minlength=256)[1:]
        sizes = {name: float(f"{int(count) * millilitre:.6g}") for name, count in zip(self.classes, counts, strict=False)}
        found = LabelMap(batch.ids[0], grid.shape, grid.spacing, sizes)
        content = nifti_bytes(painted(labels, self.target["outputs"], regions=self.regions), grid)
        if self.out is None:
            return [replace(found, mask=content)]
        name = self.names[batch.indices[0]]
        if "mask" in self.formats:
            found = replace(found, mask=_save(mask_file(self.out, name), content))
        if "overlay" in self.formats:
            names = ["", *self.classes]
            picture = three_planes(batch["source"][0].numpy(), shown_labels(labels, regions=self.regions), grid, names)
            buffer = BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            found = replace(found, overlay=_save(overlay_file(self.out, name), buffer.getvalue()))
        return [found]

    def table(self, predictions: Sequence[LabelMap]) -> tuple[list[str], Iterable[list[Any]]]:
        """Tabulate the size of each class."""
        columns = ["path", "shape", "spacing_mm", *(f"{name} ml" for name in self.classes)]

        def row(item: LabelMap) -> list[Any]:
            sizes = [item.millilitres.get(name, 0.0) for name in self.classes]
            return [item.path, " x ".join(map(str, item.shape)), " x ".join(f"{size:.6g}" for size in item.spacing), *sizes]

        return columns, map(row, predictions)


def nifti_bytes(values: np.ndarray, grid: Grid) -> bytes:
    """Encode a label map on the grid of a volume as .nii.gz: affine, codes and units are those of its header."""
    nibabel = library("nibabel")
    if grid.header is None:  # DICOM, which is in mm and in the space of the scanner
        image = nibabel.Nifti1Image(values, grid.affine)
        image.set_qform(grid.affine, 1)
        image.set_sform(grid.affine, 1)
        image.header.set_xyzt_units("mm")
    else:
        header = nibabel.Nifti1Header.from_header(grid.header)
        for key in ("cal_min", "cal_max", "descrip", "aux_file", "intent_code", "intent_name", "db_name"):
            header[key] = 0 if header[key].dtype.kind != "S" else b""
        header.set_data_dtype(values.dtype)
        header.set_slope_inter(1, 0)
        image = nibabel.Nifti1Image(values, grid.affine, header)
        image.header.set_data_dtype(values.dtype)
    content: bytes = gzip.compress(image.to_bytes(), 6, mtime=0)
    return content


def volumes_of(files: dict[Path, Path], channels: int) -> list[Source]:
    """Volumes among the files that `predict` was given; what is none becomes a volume that cannot be read, and is reported as such."""
    others: list[Source] = []
    sources = group_files([str(path) for path in files], channels, lambda path, reason: others.append(Source((path,), channels)))
    return [*sources, *others]


def output_names(sources: Sequence[Source], files: dict[Path, Path]) -> list[Path]:
    """Name the results by the place of each volume in its source: that of a file without its ending, or of the folder of a series.

    Raises:
        UserError: VA-C002, volumes of the same name.
    """
    seen: dict[Path, Source] = {}
    for source in sources:
        path = Path(source.paths[0])
        if source.dicom:
            folder = files[path].parent
            place = folder if folder.parts else Path(from_path(path.absolute().parent.name) or "series")
        else:
            place = files[path].with_name(without_ending(files[path].name)) if is_nifti(path.name) else files[path]
            if len(source.paths) > 1:
                place = place.with_name(place.name[:-5])
        name, number = plain_path(place), 2
        while source.dicom and name in seen:  # several series in one folder
            name, number = plain_path(place.with_name(f"{place.name}-{number}")), number + 1
        if name in seen:
            where = shown(f"{seen[name].name}, {source.name}")
            raise UserError(
                "VA-C002", f'two volumes would be saved as "{name}"', where=where, fix="use a separate --source and --out for each"
            )
        seen[name] = source
    return list(seen)


def mask_file(out: Path, name: Path) -> Path:
    """Path of the label map of a volume."""
    return out / "masks" / name.with_name(f"{name.name}.nii.gz")


def overlay_file(out: Path, name: Path) -> Path:
    """Path of the picture of a volume."""
    return out / "overlays" / name.with_name(f"{name.name}.png")


def _save(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    return path

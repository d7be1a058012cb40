"""NIfTI files and DICOM series: what is read, and the one line that each fault gets."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from tests.data.volumes.made import SPACING, balls, oblique, save, series
from visionattn.console import Console
from visionattn.data.readers import UnreadableFile
from visionattn.data.volumes import extra
from visionattn.data.volumes.files import Source, folder_series, group_files, read_labels
from visionattn.data.volumes.grid import Grid
from visionattn.data.volumes.layouts import find_cases
from visionattn.data.volumes.settings import VolumeDataConfig
from visionattn.errors import UserError
from visionattn.jobs.predict import find_files
from visionattn.tasks import TASKS

LIMIT = 2**30


def test_a_nifti_file_is_read_as_it_is(tmp_path: Path) -> None:
    image, label = balls()
    voxels, grid = Source((str(save(tmp_path / "a.nii.gz", image)),)).read(LIMIT)
    np.testing.assert_array_equal(voxels[0], image)
    np.testing.assert_allclose(grid.affine, oblique(), atol=1e-6)
    assert grid.spacing == pytest.approx(SPACING, abs=1e-5)
    values, _ = read_labels(str(save(tmp_path / "b.nii", label.astype(np.float32))), LIMIT)  # labels are often stored as float
    np.testing.assert_array_equal(values, label)
    with pytest.raises(UnreadableFile, match=r"the limit is 1,000; if you trust it, data\.max_bytes=23040"):
        Source((str(tmp_path / "a.nii.gz"),)).read(1000)


def test_channels_are_files_or_a_fourth_axis(tmp_path: Path) -> None:
    image, _ = balls()
    both = np.stack([image, 2 * image], -1)
    files = tuple(str(save(tmp_path / f"a_000{number}.nii.gz", both[..., number])) for number in (0, 1))
    for source in (Source(files, 2), Source((str(save(tmp_path / "b.nii.gz", both)),), 2)):
        np.testing.assert_array_equal(source.read(LIMIT)[0], both.transpose(3, 0, 1, 2))
    with pytest.raises(UnreadableFile, match="1 channel: expected 2"):
        Source(files[:1], 2).read(LIMIT)
    save(tmp_path / "a_0001.nii.gz", image, np.eye(4))
    with pytest.raises(UnreadableFile, match="channels on different grids"):
        Source(files, 2).read(LIMIT)


def patched(offset: int, *values: float) -> Callable[[Path], None]:
    """Overwrite numbers of the header."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset : offset + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
        path.write_bytes(content)

    return damage


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def four_axes(path: Path) -> None:
    save(path, np.zeros((4, 4, 4, 3), np.float32))


def not_a_number(path: Path) -> None:
    image, _ = balls()
    image[2, 3, 4] = np.nan
    save(path, image)


NAN = float("nan")


@pytest.mark.parametrize(
    ("damage", "code", "reason"),
    [
        (four_axes, "VA-D030", r"4D \(4 x 4 x 4 x 3\): expected a volume of 3 axes"),
        (patched(280, NAN), "VA-D030", "its affine has NaN or infinite values"),
        (patched(280, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1), "VA-D030", "its affine is singular"),
        (patched(80, 1, 0, 1), "VA-D030", "voxels of 1 x 0 x 1 mm: a size that is not positive"),
        (not_a_number, "VA-D010", "1 voxel NaN or infinite"),
        (truncated, "VA-D010", "."),
        (lambda path: path.write_bytes(b""), "VA-D010", "."),
    ],
    ids=["4D", "NaN affine", "singular", "zero spacing", "NaN voxel", "truncated", "empty"],
)
def test_a_volume_that_cannot_be_used(tmp_path: Path, damage: Callable[[Path], None], code: str, reason: str) -> None:
    path = save(tmp_path / "a.nii", balls()[0])
    damage(path)
    with pytest.raises(UnreadableFile, match=reason) as caught:
        Source((str(path),)).read(LIMIT)
    assert caught.value.code == code and "\n" not in caught.value.reason


def test_labels_are_whole_numbers(tmp_path: Path) -> None:
    _, label = balls()
    for value, reason in ((0.5, "not whole numbers, for example 0.5"), (np.inf, "NaN or infinite")):
        wrong = label.astype(np.float32)
        wrong[0, 0, 0] = value
        with pytest.raises(UnreadableFile, match=reason) as caught:
            read_labels(str(save(tmp_path / "a.nii.gz", wrong)), LIMIT)
        assert caught.value.code == "VA-D012"


# ---------------------------------------------------------------- DICOM


STORED = np.random.default_rng(1).integers(0, 2000, (9, 7, 5))


def test_a_series_is_sorted_and_rescaled(tmp_path: Path) -> None:
    affine = series(tmp_path, STORED)
    (tmp_path / "README.txt").write_text("not a slice")
    source = folder_series(tmp_path)
    assert source is not None and len(source.paths) == 5
    voxels, grid = source.read(LIMIT)
    written = Grid(STORED.shape, affine)  # whose slices run against the normal, along which a series is sorted
    np.testing.assert_allclose(grid.to_canonical(voxels[0]), written.to_canonical(2.0 * STORED - 1000))
    np.testing.assert_allclose(grid.canonical_affine, written.canonical_affine, atol=1e-6)
    assert grid.difference(written) == "" and grid.shape == STORED.shape


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"skip": [2]}, "VA-D031", "1 slice missing: a gap of 5.00 mm after .*, the other slices are 2.50 mm apart"),
        ({"skip": [0, 1, 3, 4]}, "VA-D031", "a single slice"),
        ({"NumberOfFrames": 5}, "VA-D031", "several frames in one file"),
        ({"SamplesPerPixel": 3}, "VA-D031", "a picture in colour"),
        ({"ImagePositionPatient": None}, "VA-D031", "no slice of a volume: ImagePositionPatient missing"),
    ],
    ids=["missing", "single", "frames", "colour", "position"],
)
def test_a_folder_that_is_no_series(tmp_path: Path, change: dict[str, object], code: str, reason: str) -> None:
    series(tmp_path, STORED, **change)  # type: ignore[arg-type]
    source = folder_series(tmp_path)
    assert source is not None
    with pytest.raises(UnreadableFile, match=reason) as caught:
        source.read(LIMIT)
    assert caught.value.code == code and "\n" not in caught.value.reason


def test_mixed_and_uneven_series(tmp_path: Path) -> None:
    series(tmp_path / "a", STORED, uid="1.2.3.4000001")
    series(tmp_path / "a", STORED, uid="1.2.3.4000002")
    for folder, reason in (("a", r"2 series in one folder \(5 slices, 5 slices\)"), ("b", "two slices at the same position")):
        if folder == "b":
            for number in (1, 2):
                series(tmp_path / "b", STORED, uid="1.2.3.4000003") if number == 1 else None
            again = pydicom.dcmread(sorted((tmp_path / "b").iterdir())[0])
            again.save_as(tmp_path / "b" / "again.dcm")
        source = folder_series(tmp_path / folder)
        assert source is not None
        with pytest.raises(UnreadableFile, match=reason):
            source.read(LIMIT)
    series(tmp_path / "c", STORED, uid="1.2.3.4000004")
    odd = sorted((tmp_path / "c").iterdir())[0]
    turned = pydicom.dcmread(odd)
    turned.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    turned.save_as(odd)
    source = folder_series(tmp_path / "c")
    assert source is not None
    with pytest.raises(UnreadableFile, match="different orientation"):
        source.grid()


def test_a_compressed_series_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path, STORED)
    for path in tmp_path.iterdir():
        file = pydicom.dcmread(path)
        file.file_meta.TransferSyntaxUID = JPEG2000Lossless
        file.PixelData = pydicom.encaps.encapsulate([b"\0" * 8])
        file.save_as(path)
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(type(decoder), "is_available", False)  # whatever this machine has
    source = folder_series(tmp_path)
    assert source is not None
    with pytest.raises(UnreadableFile, match=r"compressed \(JPEG 2000 .*\): pip install pylibjpeg pylibjpeg-openjpeg") as caught:
        source.grid()
    assert caught.value.code == "VA-D032"


def test_a_series_under_any_names(tmp_path: Path) -> None:
    """Names are identifiers, numbers or whatever an export made of them; the content tells that a file is DICOM."""
    for split in ("train", "val"):
        folder = tmp_path / "data/images" / split / "scan"
        affine = series(folder, STORED)
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / (f"1.2.840.113619.2.55.3.{number}", f"IM-{number:04d}", f"slice.DCM.{number}")[number % 3])
        (folder / "notes.txt").write_text("no slice")
        save(tmp_path / "data/labels" / split / "scan.nii.gz", (STORED > 1000).astype(np.uint8), affine)
    (case,) = find_cases(VolumeDataConfig(root=str(tmp_path / "data"))).parts["train"]
    assert case.id == "images/train/scan" and len(case.source.paths) == 5 and case.source.read(LIMIT)[0].shape == (1, *STORED.shape)
    task = TASKS["volumes"]
    found = find_files([tmp_path / "data/images"], task.input_suffixes, [], Console(quiet=True), task.is_input)
    assert len(found) == 10 and len(group_files([str(path) for path in found], 1)) == 2
    assert not TASKS["classify"].is_input(str(next(iter(found))))


def test_files_become_volumes(tmp_path: Path) -> None:
    image, _ = balls()
    series(tmp_path / "scan", STORED, uid="1.2.3.4000001")
    series(tmp_path / "scan", STORED, uid="1.2.3.4000002")
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        save(tmp_path / f"{name}.nii.gz", image)
    (tmp_path / "x.gz").write_bytes(b"?")
    others: list[str] = []
    files = [str(path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    found = group_files(files, 2, lambda path, reason: others.append(Path(path).name))
    assert [(source.dicom, len(source.paths)) for source in found] == [(False, 2), (False, 2), (True, 5), (True, 5)]
    assert others == ["x.gz"] and len(group_files(files, 1)) == 6


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="volumes need the package nibabel") as caught:
        extra.require_libraries()
    assert caught.value.fix == 'pip install "visionattn[medical]"' and nibabel.__version__

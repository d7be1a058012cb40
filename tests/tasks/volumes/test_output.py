"""Names and content of label maps."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.data.volumes.made import balls, oblique, save, series
from visionattn.data.volumes.files import nifti_grid
from visionattn.data.volumes.grid import Grid
from visionattn.errors import UserError
from visionattn.tasks.volumes.output import nifti_bytes, output_names, volumes_of
from visionattn.tasks.volumes.predictor import painted


def places(root: Path) -> dict[Path, Path]:
    return {path: path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()}


def test_names_of_files_channels_and_series(tmp_path: Path) -> None:
    image, _ = balls()
    for name in ("a/x_0000.nii.gz", "a/x_0001.nii.gz", "b/x_0000.nii", "b/x_0001.nii"):
        save(tmp_path / "one" / name, image)
    files = places(tmp_path / "one")
    assert output_names(volumes_of(files, 2), files) == [Path("a/x"), Path("b/x")]
    for uid in ("1.2.3.4000001", "1.2.3.4000002"):
        series(tmp_path / "two" / "scan", np.zeros((4, 4, 3), int), uid=uid)
    files = places(tmp_path / "two")
    assert output_names(volumes_of(files, 1), files) == [Path("scan"), Path("scan-2")]
    files = places(tmp_path / "two" / "scan")
    assert output_names(volumes_of(files, 1), files) == [Path("scan"), Path("scan-2")], "named by the folder itself"
    for name in ("c.nii", "c.nii.gz"):
        save(tmp_path / "three" / name, image)
    files = places(tmp_path / "three")
    with pytest.raises(UserError, match='two volumes would be saved as "c"'):
        output_names(volumes_of(files, 1), files)
    wild = {tmp_path / "three/c.nii": Path("../..") / "e\x1bvil.nii"}
    (name,) = output_names(volumes_of(wild, 1), wild)
    assert not name.is_absolute() and ".." not in name.parts and "\x1b" not in str(name)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 2)])
def test_headers_of_more_axes_and_scaled_values(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = nibabel.Nifti1Image(np.zeros(shape, np.int16), oblique())
    source.header.set_slope_inter(0.5, 100)
    source.header["descrip"], source.header["cal_max"] = b"patient", 300
    source.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"patient"))
    nibabel.save(source, tmp_path / "a.nii")
    values = (np.arange(210) % 5).reshape(5, 6, 7).astype(np.uint8)
    content = gzip.decompress(nifti_bytes(values, nifti_grid(str(tmp_path / "a.nii"), shape[3] if len(shape) > 3 else 1)))
    written = nibabel.Nifti1Image.from_bytes(content)
    assert written.shape == (5, 6, 7) and written.get_data_dtype() == np.uint8 and b"patient" not in content
    np.testing.assert_array_equal(np.asarray(written.dataobj), values)
    np.testing.assert_allclose(written.affine, oblique(), atol=1e-6)
    assert float(written.header["cal_max"]) == 0


def test_values_of_classes_and_regions() -> None:
    labels = np.array([[[0, 1, 2]]], np.uint8)
    assert painted(labels, (0, 5, 9), regions=False).tolist() == [[[0, 5, 9]]]
    assert painted(labels, (0, 5, 1000), regions=False).dtype == np.int16
    inside = np.array([[[[1, 1, 0]]], [[[0, 1, 0]]]], np.uint8)
    assert painted(inside, (1, 2), regions=True).tolist() == [[[1, 2, 0]]]
    assert Grid((1, 1, 3), np.eye(4)).from_canonical(labels).shape == (1, 1, 3)

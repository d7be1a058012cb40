"""Images of any number of channels: TIFF, npy and npz, and what is wrong with them."""

from __future__ import annotations

import io
import random
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import UnreadableFile, header_facts, image_facts, read_image, read_mask, upright_size
from visionattn.data.sources import ChannelFiles, FileImages, further_channels
from visionattn.data.statistics import are_pictures, channels_of, measure

BANDS = np.random.default_rng(0).integers(100, 12_000, (20, 30, 5)).astype(np.uint16)  # H W C
FIRST = BANDS.transpose(2, 0, 1)


def tiff(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read(data: bytes | Path, in_chans: int = 5, **settings: object) -> np.ndarray:
    return read_image(data, settings=ImageDataConfig(**settings), in_chans=in_chans)  # type: ignore[arg-type]


GREY = {"photometric": "minisblack"}
FILES = {
    "interleaved": tiff(BANDS, **GREY, planarconfig="contig"),
    "planes": tiff(FIRST, **GREY, planarconfig="separate"),
    "deflated": tiff(BANDS, **GREY, planarconfig="contig", compression="zlib", predictor=True, tile=(16, 16)),
    "big": tiff(BANDS, **GREY, planarconfig="contig", bigtiff=True, byteorder=">"),
    "imagej": tiff(FIRST, imagej=True, metadata={"axes": "CYX"}),
    "ome": tiff(FIRST, ome=True, metadata={"axes": "CYX"}),
    "array, channels first": tiff(FIRST, **GREY),
    "array, channels last": tiff(BANDS, **GREY),  # thirty pages, as a careless imwrite makes them
    "npy": npy(BANDS),
    "npy, channels first": npy(FIRST),
    "npy, Fortran order": npy(np.asfortranarray(BANDS)),
    "npz": npz(image=FIRST),
    "npz, compressed": npz(True, image=BANDS),
}


@pytest.mark.parametrize("name", FILES)
def test_values_stay_as_they_are(name: str) -> None:
    image = read(FILES[name])
    assert image.dtype == np.float32
    np.testing.assert_allclose(image * 65535, BANDS, rtol=1e-6)
    facts = image_facts(FILES[name], max_bytes=10**8)
    assert (facts.width, facts.height, facts.channels, facts.depth) == (30, 20, 5, 16) and facts.fits(5) and not facts.fits(3)
    assert (facts.low, facts.high) == (BANDS.min(), BANDS.max())
    header = header_facts(FILES[name], max_bytes=10**8)
    assert header.channels == 5 and header.low is None and upright_size(FILES[name], max_bytes=10**8) == (20, 30)


def test_pages_without_a_meaning_are_channels_where_as_many_are_asked_for() -> None:
    data = tiff(FIRST, **GREY, metadata=None)
    np.testing.assert_allclose(read(data) * 65535, BANDS, rtol=1e-6)
    np.testing.assert_array_equal(read(data, 1), read(tiff(BANDS[:, :, 0]), 1), "else the first page is the image, as ever")
    facts = image_facts(data, max_bytes=10**8)
    assert facts.more_frames and (facts.channels, facts.pages) == (1, 5) and facts.fits(5) and facts.fits(1) and not facts.fits(4)


def test_floats_and_signed_values_are_not_clipped() -> None:
    decibel = (BANDS.astype(np.float32) - 6000) / 100
    np.testing.assert_array_equal(read(npy(decibel)), decibel)
    np.testing.assert_array_equal(read(tiff(decibel, **GREY, planarconfig="contig")), decibel)
    np.testing.assert_array_equal(read(npy(decibel[:, :, :3]), 3), decibel[:, :, :3], "three channels likewise")
    signed = BANDS.astype(np.int16) - 6000
    np.testing.assert_allclose(read(npy(signed)) * 32767, signed, atol=1e-3)
    small = (BANDS // 64).astype(np.uint8)
    assert read(npy(small)).dtype == np.uint8 and (read(npy(small)) == small).all()


def test_range() -> None:
    image = read(FILES["npy"], range=(1000, 9000))
    np.testing.assert_allclose(image, ((BANDS - 1000.0) / 8000).clip(0, 1), atol=1e-6)
    stretched = read(npy(BANDS * np.array([1, 2, 1, 1, 3], np.uint16)), range="percentile")
    assert np.abs(np.median(stretched, (0, 1)) - 0.5).max() < 0.1, "each channel by its own"


def test_pictures_as_bands() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    np.testing.assert_array_equal(read(buffer.getvalue(), 4), picture)
    np.testing.assert_array_equal(read(tiff(picture, photometric="rgb"), 4), picture)
    with pytest.raises(UnreadableFile, match=r"4 channels, model.in_chans is 5"):
        read(buffer.getvalue(), 5)


def test_arrays_of_pictures() -> None:
    colour = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(npy(colour), 3), colour)
    buffer = io.BytesIO()
    Image.fromarray(colour).save(buffer, "PNG")
    np.testing.assert_array_equal(read(npy(colour), 1), read(buffer.getvalue(), 1))
    np.testing.assert_array_equal(read(npy(colour[:, :, 0]), 3), np.repeat(colour[:, :, :1], 3, 2))
    three = tiff(FIRST[:3], imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_allclose(read(three, 3) * 65535, BANDS[:, :, :3], rtol=1e-6)


def test_masks_in_arrays() -> None:
    labels = np.random.default_rng(3).integers(0, 4, (20, 30))
    for data in (npy(labels), npy(labels.astype(np.uint8)), npy(labels[:, :, None].astype(float)), tiff(labels.astype(np.int64))):
        found = read_mask(data, max_bytes=10**8)
        np.testing.assert_array_equal(found.values, labels)
        assert not found.colour
    with pytest.raises(UnreadableFile, match="a mask of 5 channels"):
        read_mask(FILES["npy"], max_bytes=10**8)


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object))
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(npy(np.zeros((2, 2), np.uint8)).replace(b"(2, 2), }", b"(99999, 99999), }")[:128])
        for _ in range(4):
            file.write(bytes(2**20))
    return buffer.getvalue()


def lzw() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(BANDS[:, :, 0].astype(np.uint8)).save(buffer, "TIFF", compression="tiff_lzw")
    return buffer.getvalue()


def tiff_bomb() -> bytes:
    """A strip that decompresses to 300 MB in a file that declares a few."""
    data = bytearray(tiff(np.zeros((1700, 1700, 5), np.uint8), **GREY, planarconfig="contig", compression="zlib", rowsperstrip=1700))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        page = file.pages.first
        counts, offsets = page.tags["StripByteCounts"].valueoffset, page.tags["StripOffsets"].valueoffset
    strip = zlib.compress(bytes(300 * 2**20))
    data[counts : counts + 4], data[offsets : offsets + 4] = len(strip).to_bytes(4, "little"), len(data).to_bytes(4, "little")
    return bytes(data) + strip


def with_nan() -> np.ndarray:
    array = BANDS.astype(np.float32)
    array[3, 4, 2] = np.nan
    return array


BROKEN = {
    "truncated npy": (FILES["npy"][:-100], "VA-D010", "truncated"),
    "truncated npz": (FILES["npz"][:-100], "VA-D010", "zip"),
    "truncated TIFF": (FILES["interleaved"][:2000], "VA-D010", "failed to read"),
    "cut header": (FILES["npy"][:20], "VA-D010", "header"),
    "NaN in npy": (npy(with_nan()), "VA-D010", "NaN or infinite"),
    "NaN in TIFF": (tiff(with_nan(), **GREY, planarconfig="contig"), "VA-D010", "NaN or infinite"),
    "objects": (objects(), "VA-D010", "never unpickled"),
    "complex": (npy(BANDS.astype(complex)), "VA-D010", "complex128"),
    "several arrays": (npz(a=BANDS, b=BANDS), "VA-D010", r"2 arrays in the file \(a, b\)"),
    "no array": (npz(), "VA-D010", r"0 arrays in the file \(none\)"),
    "4-D array": (npy(np.zeros((2, 5, 20, 30), np.uint8)), "VA-D010", "2 x 5 x 20 x 30: expected height x width"),
    "stack of planes": (tiff(BANDS.reshape(3, 10, 4, 5 * 5), imagej=True, metadata={"axes": "ZCYX"}), "VA-D010", "a stack of axes ZCYX"),
    "other channels": (npy(BANDS[:, :, :4]), "VA-D022", "4 channels, model.in_chans is 5"),
    "a compression of its own": (lzw(), "VA-D010", "LZW compression needs a package for it: pip install imagecodecs"),
    "too large": (npy(np.zeros((1000, 1000, 9), np.uint16)), "VA-D020", "data.max_bytes="),
    "a bomb": (bomb(), "VA-D010", "truncated"),
    "a bomb in TIFF": (tiff_bomb(), "VA-D010", "a part holds more than the 14,450,000 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_clear_error(name: str) -> None:
    data, code, reason = BROKEN[name]
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read(data, max_bytes=15 * 10**6)
    assert caught.value.code == code


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_at_random() -> None:
    """Whatever a file holds, it is read or refused."""
    rng, files = random.Random(0), list(FILES.values())
    settings, refused = ImageDataConfig(max_bytes=10**7), 0
    for _ in range(300):
        data = bytearray(rng.choice(files))
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), 600))] = rng.choice((0, 1, 255, rng.randrange(256)))
        content = bytes(data[: rng.choice((len(data), rng.randrange(1, len(data))))])
        for look in (image_facts, header_facts, read_mask, upright_size):
            with suppress(UnreadableFile):
                look(content, max_bytes=10**7)
        for in_chans in (3, 5):
            try:
                assert read_image(content, settings=settings, in_chans=in_chans).shape[2] == in_chans
            except UnreadableFile:
                refused += 1
    assert 100 < refused < 600


def test_an_ome_file_names_no_other_file(tmp_path: Path) -> None:
    """Series over several files would lead anywhere."""
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, FIRST[1], **GREY)
    xml = tifffile.OmeXml()
    xml.addimage(np.uint16, (2, 20, 30), (2, 1, 1, 20, 30, 1), axes="CYX")
    text = (
        xml.tostring()
        .replace('IFD="1"', 'IFD="0"')
        .replace("</Pixels>", f'<TiffData IFD="0" FirstC="1"><UUID FileName="{secret.name}">urn:uuid:1</UUID></TiffData></Pixels>')
    )
    path = tmp_path / "image.ome.tif"
    tifffile.imwrite(path, FIRST[0], **GREY, description=text, metadata=None)
    with pytest.raises(UnreadableFile):
        read(path, 2)
    np.testing.assert_allclose(read(path, 1)[:, :, 0] * 65535, FIRST[0], rtol=1e-6)


def test_channels_and_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    stack = rng.normal([5, -20, 0.1, 3, 4], [2, 4, 0.05, 1, 1], (9, 20, 30, 5)).astype(np.float32)
    stack[..., 4] = 4
    paths = []
    for number, image in enumerate(stack):
        paths.append(str(tmp_path / f"{number}.npy"))
        np.save(paths[-1], image if number % 2 else image.transpose(2, 0, 1))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\1\0")
    images = FileImages((str(tmp_path / "broken.npy"), *paths), ImageDataConfig(), 5)
    assert channels_of(images) == 5 and not are_pictures(images)
    found = measure(images)
    assert found is not None and found.images == 9
    np.testing.assert_allclose(found.mean, stack.astype(float).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.std[:4], stack.astype(float).std((0, 1, 2))[:4], rtol=1e-5)
    assert found.std[4] == 1 and measure(images) == found, "a constant channel; the same again"


def test_files_of_channels(tmp_path: Path) -> None:
    for number in range(5):
        tifffile.imwrite(tmp_path / f"a_{number:04d}.tif", FIRST[number])
        tifffile.imwrite(tmp_path / f"b_{number:04d}.tif", FIRST[number].astype(np.float32) - 6000)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "c_0000.png")
    paths = tuple(str(tmp_path / name) for name in ("a_0000.tif", "b_0000.tif", "c_0000.png"))
    images = ChannelFiles(paths, ImageDataConfig(), 5, further=tuple(map(further_channels, paths)))
    np.testing.assert_allclose(images.read(0) * 65535, BANDS, rtol=1e-6)
    np.testing.assert_array_equal(images.read(1), BANDS.astype(np.float32) - 6000)
    assert channels_of(images) == 5 and images.facts(0).fits(5) and images.take([1]).read(0).min() < 0
    assert images.size(0) == sum((tmp_path / f"a_{number:04d}.tif").stat().st_size for number in range(5))
    with pytest.raises(UnreadableFile, match="3 channels in a file that should hold one"):
        images.read(2)
    before = images.stamp(0)
    tifffile.imwrite(tmp_path / "a_0003.tif", FIRST[3, :10])
    assert images.stamp(0) != before
    with pytest.raises(UnreadableFile, match="different sizes"):
        images.read(0)


@pytest.mark.parametrize("made", [npy, lambda array: tiff(array, photometric="minisblack")])
def test_the_limit_counts_the_values_of_an_array_once(made: Callable[[np.ndarray], bytes]) -> None:
    """Either of the first and the last axis may be channels; the other is not counted too."""
    data = made(np.zeros((60, 50, 5), np.uint8))
    assert header_facts(data, max_bytes=10**5).decoded == 60 * 50 * 5
    with pytest.raises(UnreadableFile, match="15,000 bytes decoded"):
        header_facts(data, max_bytes=14_999)


def test_negative_sides_are_damage() -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (-1, 10, 3)})
    with pytest.raises(UnreadableFile, match="an array of -1 x 10 x 3"):
        header_facts(buffer.getvalue() + bytes(30), max_bytes=10**6)

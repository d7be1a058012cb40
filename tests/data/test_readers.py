import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import UnreadableFile, _bounds, _scaled, image_facts, read_array, read_image

SETTINGS = ImageDataConfig()


def picture(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    small = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.GaussianBlur(small, (0, 0), 2)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(source: object, in_chans: int = 3, **settings: object) -> np.ndarray:
    return read_image(source, settings=ImageDataConfig(**settings), in_chans=in_chans)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_colour_is_read_as_pillow_reads_it(form: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(picture()), form))
    expected = np.asarray(Image.open(path).convert("RGB"))
    array = read(path)
    assert array.dtype == np.uint8 and array.shape == (24, 32, 3)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(read(Image.open(path)), expected)
    np.testing.assert_array_equal(read(path, 1)[:, :, 0], np.asarray(Image.open(path).convert("L")))


@pytest.mark.parametrize(
    "options", [{"quality": 95, "subsampling": 0}, {"quality": 60, "progressive": True}, {"quality": 80, "subsampling": 2}]
)
def test_the_fast_jpeg_decoder_gives_pillows_pixels(options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(picture(75, 101)), "JPEG", **options)
    np.testing.assert_array_equal(read(data), np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    np.testing.assert_array_equal(read(data), expected)
    assert read(data).shape[:2] == ((24, 32) if orientation < 5 else (32, 24))
    assert image_facts(data, max_bytes=10**8).rotated == (orientation != 1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_of_sixteen_bits(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    upright = {1: values, 3: values[::-1, ::-1], 6: np.rot90(values, -1)}[orientation]
    for form in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(values), form, exif=exif)
        np.testing.assert_allclose(read(data, 1)[:, :, 0], upright / 65535, atol=1e-6)


def test_grey_and_palette() -> None:
    grey = picture(channels=1)
    data = encoded(Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(read(data), np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(read(data, 1)[:, :, 0], grey)
    assert image_facts(data, max_bytes=10**8).grey
    palette = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(read(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    one_bit = Image.fromarray(grey > 128)
    np.testing.assert_array_equal(read(encoded(one_bit, "PNG"))[:, :, 0], np.where(grey > 128, 255, 0))


@pytest.mark.parametrize(("background", "value"), [("black", 0), ("white", 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_the_background(mode: str, background: str, value: int) -> None:
    image = Image.new("RGBA", (8, 4), (200, 200, 200, 255))
    image.paste((90, 90, 90, 0), (0, 0, 4, 4))
    if mode == "P":
        palette = Image.new("P", (8, 4), 1)
        palette.putpalette([0, 0, 0, 200, 200, 200])
        palette.paste(0, (0, 0, 4, 4))
        data = encoded(palette, "PNG", transparency=0)
    elif mode == "RGB":
        data = encoded(image.convert("RGB"), "PNG", transparency=(90, 90, 90))
    else:
        data = encoded(image.convert(mode), "PNG")
    array = read(data, alpha_background=background)
    assert array.shape == (4, 8, 3)
    assert (array[:, :4] == value).all() and (array[:, 4:] == 200).all()
    assert (read(data, 1, alpha_background=background)[:, :4] == value).all()
    assert image_facts(data, max_bytes=10**8).alpha


def test_half_transparent() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (100, 100, 100, 128)), "PNG")
    assert abs(int(read(data)[0, 0, 0]) - 50) <= 1
    assert abs(int(read(data, alpha_background="white")[0, 0, 0]) - 177) <= 1


def test_cmyk() -> None:
    image = Image.fromarray(picture()).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    np.testing.assert_array_equal(read(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))
    assert image_facts(data, max_bytes=10**8).mode == "CMYK"


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP"])
def test_the_first_frame_is_read(form: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert read(data)[0, 0].tolist() == [255, 0, 0]
    assert image_facts(data, max_bytes=10**8).more_frames


def test_sixteen_bit_grey() -> None:
    values = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    for form in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(values), form)
        array = read(data)
        assert array.dtype == np.float32 and array.shape == (24, 32, 3)
        np.testing.assert_allclose(array[:, :, 1], values / 65535, atol=1e-6)
        facts = image_facts(data, max_bytes=10**8)
        assert (facts.depth, facts.low, facts.high, facts.grey) == (16, 0, 65535, True)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_keeps_its_bits(suffix: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (12, 10, channels), dtype=np.uint16)
    data = cv2.imencode(suffix, values[:, :, [2, 1, 0, 3][:channels]])[1].tobytes()
    transparent = channels == 4 and suffix == ".png"  # OpenCV does not mark the fourth band of a TIFF as transparency
    expected = values[:, :, :3] / 65535
    if transparent:
        expected = expected * (values[:, :, 3:] / 65535)
    np.testing.assert_allclose(read(data), expected, atol=1e-6)
    facts = image_facts(data, max_bytes=10**8)
    assert facts.depth == 16 and facts.high == values.max() and facts.alpha == transparent
    assert facts.spare_band == (channels == 4 and not transparent)


@pytest.mark.parametrize("extra", [None, 0, 2])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_fourth_band_of_a_tiff_is_transparency_only_if_the_file_says_so(extra: int | None, kind: type) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (6, 5, 4)).astype(kind)
    data = tiff(values, extra)
    expected = values[:, :, :3] / np.iinfo(kind).max
    if extra == 2:
        expected = expected * (values[:, :, 3:] / np.iinfo(kind).max)
    array = read(data)
    np.testing.assert_allclose(array / (255 if array.dtype == np.uint8 else 1), expected, atol=0.003)
    facts = image_facts(data, max_bytes=10**8)
    assert (facts.alpha, facts.spare_band) == (extra == 2, extra != 2)


def tiff(values: np.ndarray, extra: int | None) -> bytes:
    """An uncompressed TIFF of four bands, with or without ExtraSamples."""
    height, width, bands = values.shape
    tags = [(256, 4, width), (257, 4, height), (259, 3, 1), (262, 3, 2), (277, 3, bands), (278, 4, height), (279, 4, values.nbytes)]
    tags += [] if extra is None else [(338, 3, extra)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = [(number, struct.pack("<HHII", number, form, 1, value)) for number, form, value in tags]
    entries += [(258, struct.pack("<HHII", 258, 3, bands, start)), (273, struct.pack("<HHII", 273, 4, 1, start + 2 * bands))]
    folder = struct.pack("<H", len(entries)) + b"".join(entry for _, entry in sorted(entries)) + b"\0" * 4
    depths = struct.pack(f"<{bands}H", *[8 * values.dtype.itemsize] * bands)
    return b"II*\0" + struct.pack("<I", 8) + folder + depths + values.tobytes()


def test_large_images_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    palette = Image.fromarray(picture()).quantize(16)
    sources = [encoded(Image.fromarray(picture(channels=channels)), "PNG") for channels in (1, 3, 4)]
    sources += [encoded(palette, "PNG", transparency=3), encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG")]
    sources += [cv2.imencode(".png", generator.integers(0, 9000, (24, 32, n), dtype=np.uint16))[1].tobytes() for n in (1, 3, 4)]
    for source in sources:
        for in_chans in (1, 3):
            whole = read(source, in_chans, range="percentile")
            with monkeypatch.context() as patch:
                patch.setattr("visionattn.data.readers._STRIP", 5 * 32)
                np.testing.assert_allclose(read(source, in_chans, range="percentile"), whole, rtol=1e-6)


@pytest.mark.parametrize(("bits", "colours", "needed"), [(8, 2, 6), (8, 6, 8), (16, 0, 18), (16, 6, 24)])
def test_the_limit_counts_what_an_image_takes(bits: int, colours: int, needed: int) -> None:
    """Bytes per pixel; a small file can unpack to more than fits in memory."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, bits, colours, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(UnreadableFile, match=f"image of 10000 x 10000 pixels, {needed * 10**8:,} bytes decoded"):
        read(data, max_bytes=10**8)


def test_float_image() -> None:
    values = np.linspace(0, 0.5, 48, dtype=np.float32).reshape(6, 8)
    np.testing.assert_allclose(read(encoded(Image.fromarray(values), "TIFF"), 1)[:, :, 0], values)
    np.testing.assert_allclose(read(encoded(Image.fromarray(values * 100), "TIFF"), 1)[:, :, 0], values * 2, atol=1e-6)
    values[0, 0] = np.nan
    with pytest.raises(UnreadableFile, match="NaN"):
        read(encoded(Image.fromarray(values), "TIFF"))


def to_unit(samples: np.ndarray, rule: str | tuple[float, float]) -> np.ndarray:
    return _scaled(samples, *_bounds(samples, rule))


def test_range_rules() -> None:
    samples = np.arange(1001, dtype=np.uint16)
    assert to_unit(samples, "dtype").max() == pytest.approx(1000 / 65535)
    np.testing.assert_allclose(to_unit(samples, (100.0, 600.0))[[0, 100, 350, 600, 1000]], [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(to_unit(samples, "percentile")[[0, 10, 500, 990, 1000]], [0, 0, 0.5, 1, 1], atol=1e-6)
    assert not to_unit(np.full(4, 7, np.uint16), "percentile").any()
    assert to_unit(np.array([0, 65535], np.int32), "dtype").tolist() == [0, 1]
    assert to_unit(np.array([0, 2**31 - 1], np.int32), "dtype").tolist() == [0, 1]
    assert to_unit(np.array([-5], np.int32), "dtype").tolist() == [0]
    data = encoded(Image.fromarray(np.full((4, 4), 350, np.uint16)), "PNG")
    assert read(data, range=(100.0, 600.0))[0, 0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_arrays(in_chans: int) -> None:
    for array in (picture(), picture(channels=1), picture(channels=1)[:, :, None], picture(channels=4)):
        assert read_array(array, settings=SETTINGS, in_chans=in_chans).shape == (24, 32, in_chans)
        deep = read_array(array.astype(np.uint16) * 257, settings=SETTINGS, in_chans=in_chans)
        shallow = read_array(array, settings=SETTINGS, in_chans=in_chans)
        assert deep.dtype == np.float32
        np.testing.assert_allclose(deep * 255, shallow, atol=1.01)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_truncated(form: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UnreadableFile) as caught:
        read(path)
    assert caught.value.code == "VA-D010" and caught.value.path == str(path) and caught.value.reason
    with pytest.raises(UnreadableFile):
        image_facts(path, max_bytes=10**8)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty file"), (b"hello, this is text", "not an image"), (b"\xff\xd8\xff", "not an image")]
)
def test_no_image(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "fake.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read(path)
    assert caught.value.code == "VA-D011" and "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "zero byte"])
def test_only_plain_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "x\0.png"
    with pytest.raises(UnreadableFile, match="null" if kind == "zero byte" else "not a regular file"):
        read(path)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.touch()
    os.truncate(path, 2**40)  # a hole: a terabyte that takes no place
    with pytest.raises(UnreadableFile, match=r"data\.max_bytes=1099511627776") as caught:
        read(path)
    assert caught.value.code == "VA-D020"


def test_no_other_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to the program gs, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\necho 9.55\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n(x) print\n")
    for image in (tmp_path / "photo.jpg", encoded(Image.new("RGB", (4, 4)), "ICO"), encoded(Image.new("RGB", (4, 4)), "PCX")):
        with pytest.raises(UnreadableFile, match="not an image"):
            read(image)
    assert not (tmp_path / "was_run").exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="No such file"):
        read(tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged EXIF
def test_flipped_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        data = encoded(Image.fromarray(picture()), form)
        for _ in range(40):
            damaged = bytearray(data)
            for position in generator.integers(0, len(data), 6):
                damaged[position] = generator.integers(0, 256)
            try:
                assert read(bytes(damaged), max_bytes=10**6).dtype in (np.uint8, np.float32)
            except UnreadableFile as error:
                assert error.code in ("VA-D010", "VA-D011", "VA-D020")


def test_decompression_bomb(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (200, 100)).save(path)
    with pytest.raises(UnreadableFile) as caught:
        read(path, max_bytes=119_999)
    assert caught.value.code == "VA-D020" and caught.value.path == str(path)
    assert "119,999" in caught.value.reason and "data.max_bytes=120000" in caught.value.reason
    assert read(path, max_bytes=120_000).shape == (100, 200, 3)


def test_the_limit_holds_above_and_below_pillows_own(tmp_path: Path) -> None:
    path = tmp_path / "header.png"
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = (20_000).to_bytes(4, "big") * 2  # 400 million pixels, more than Pillow opens
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match="image of 20000 x 20000 pixels"):
        read(path)

"""Masks in files: the values as they are stored."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from visionattn.data.masks.palettes import mask_png
from visionattn.data.readers import read_mask


def test_forms_of_masks(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).integers(0, 3, (16, 20)).astype(np.uint8)
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]

    def read(name: str) -> np.ndarray:
        return read_mask(tmp_path / name, max_bytes=10**8).values

    (tmp_path / "p.png").write_bytes(mask_png(wanted, palette))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png").convert("RGB")), np.array(palette, np.uint8)[wanted])
    few = Image.fromarray(wanted)
    few.putpalette([part for colour in palette for part in colour])
    few.save(tmp_path / "p2.png")  # two bits per pixel
    Image.fromarray(wanted).save(tmp_path / "l.png")
    Image.fromarray(wanted).save(tmp_path / "l.tif")
    Image.fromarray(wanted.astype(np.uint16)).save(tmp_path / "i.png")
    Image.fromarray(wanted.astype(np.int32)).save(tmp_path / "i.tif")
    Image.fromarray(wanted.astype(np.float32)).save(tmp_path / "f.tif")
    for name in ("p.png", "p2.png", "l.png", "l.tif", "i.png", "i.tif", "f.tif"):
        np.testing.assert_array_equal(read(name), wanted, err_msg=name)
    Image.fromarray(wanted > 0).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read("1.png"), wanted > 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wanted).save(tmp_path / "r.png", exif=exif)
    np.testing.assert_array_equal(read("r.png"), np.rot90(wanted, -1))
    large = wanted.astype(np.int32) * 300
    (tmp_path / "16.png").write_bytes(mask_png(large, palette))
    np.testing.assert_array_equal(read("16.png"), large)


def test_grey_values_of_four_bits_are_not_spread(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes([0x01, 0x23]) for _ in range(2))  # 4 x 2 pixels: 0 1 2 3
    header = struct.pack(">IIBBBBB", 4, 2, 4, 0, 0, 0, 0)
    (tmp_path / "4.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert read_mask(tmp_path / "4.png", max_bytes=1000).values.tolist() == [[0, 1, 2, 3]] * 2

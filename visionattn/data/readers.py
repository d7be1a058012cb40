"""Decode image files into arrays; the only module that does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from visionattn.data.images.settings import ImageDataConfig
from visionattn.errors import UserError

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

Source = Path | bytes | Image.Image

_PILLOW_LIMIT = Lock()  # Pillow's limit is global: only one thread at a time may change and restore it

_ORIENTATION = 0x0112  # EXIF tag
_JPEG_END = b"\xff\xd9"  # missing from truncated files
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow's convert("L")


class UnreadableFile(Exception):
    """A file that cannot be decoded.

    Args:
        path: the file, or `<bytes>`.
        reason: the decoder's message.
        code: VA-D010, corrupt or truncated; VA-D011, empty or not an image.
    """

    def __init__(self, path: str, reason: str, code: str = "VA-D010") -> None:
        super().__init__(path, reason, code)
        self.path, self.reason, self.code = path, reason, code

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ImageFacts:
    """Properties of one image for the data check.

    Width and height are as stored, before EXIF rotation; `low` and `high` are the extreme values
    of 16-bit and float images, None for 8 bits; `more_frames` means animated or with several pages.
    """

    width: int
    height: int
    mode: str
    depth: int
    alpha: bool
    grey: bool
    rotated: bool
    more_frames: bool
    low: float | None
    high: float | None


def read_image(source: Source, *, settings: ImageDataConfig, in_chans: int) -> np.ndarray:
    """Decode the first frame to height x width x in_chans: uint8, or float32 in 0..1 for 16-bit and float sources.

    The EXIF orientation is applied, transparency is composited on `settings.alpha_background`, grey is copied to three channels.

    Args:
        in_chans: 1 (colour becomes luminance) or 3.

    Raises:
        UnreadableFile: the file is not an image, or damaged.
        UserError: VA-D020, more than `settings.max_pixels`.
    """
    image, data = _open(source, settings.max_pixels)
    if in_chans == 3 and image.format == "JPEG" and image.mode == "RGB" and data.endswith(_JPEG_END):
        # Gives the same pixels as Pillow in less time; files that OpenCV rejects go to Pillow for its message.
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if array is not None:
            return _upright(array, _orientation(image))
    samples = _load(image, data, _name(source))
    orientation = _orientation(image)
    if samples is not None:
        array = _from_samples(samples, settings, in_chans, _name(source))
    else:
        try:
            array = _from_eight_bits(image, settings.alpha_background, in_chans)
        except ValueError as error:  # a mode that cannot be converted, such as LAB
            raise UnreadableFile(_name(source), f"mode {image.mode}: {error}") from error
    return _upright(array, orientation)


def read_array(array: np.ndarray, *, settings: ImageDataConfig, in_chans: int) -> np.ndarray:
    """Convert an array as `read_image` does a file: height x width [x 1, 3 or 4], uint8, integers, or floats."""
    if array.dtype != np.uint8:
        return _from_samples(array, settings, in_chans, "<array>")
    return _from_eight_bits(Image.fromarray(_without_single_channel(array)), settings.alpha_background, in_chans)


def image_facts(source: Source, *, max_pixels: int) -> ImageFacts:
    """Decode an image and describe it; raises like `read_image`."""
    image, data = _open(source, max_pixels)
    rotated = image.format == "TIFF" and _orientation(image) != 1  # before loading, which rotates TIFF upright
    samples = _load(image, data, _name(source))
    rotated = rotated or _orientation(image) != 1
    try:
        # The second picture of a phone's MPO file is a preview or a depth map, not a page.
        with _at_any_size(image):
            more_frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except (OSError, EOFError, SyntaxError, ValueError):  # the first frame is fine, a later one is damaged
        more_frames = True
    depth = {"1": 1, "I": 32, "F": 32}.get(image.mode, 8 if samples is None else 16)
    return ImageFacts(
        width=image.width,
        height=image.height,
        mode=image.mode,
        depth=depth,
        alpha=image.has_transparency_data and (samples is None or samples.ndim == 3),
        grey=image.mode.split(";")[0] in _GREY_MODES,
        rotated=rotated,
        more_frames=more_frames,
        low=None if samples is None else float(samples.min()),
        high=None if samples is None else float(samples.max()),
    )


def array_facts(array: np.ndarray) -> ImageFacts:
    """Describe an array of height x width [x channels] as `image_facts` does a file."""
    channels = array.shape[2] if array.ndim == 3 else 1
    deep = array.dtype != np.uint8
    return ImageFacts(
        width=array.shape[1],
        height=array.shape[0],
        mode={1: "L", 3: "RGB", 4: "RGBA"}[channels],
        depth=8 * array.dtype.itemsize,
        alpha=channels == 4,
        grey=channels == 1,
        rotated=False,
        more_frames=False,
        low=float(array.min()) if deep else None,
        high=float(array.max()) if deep else None,
    )


def upright_size(source: Source, *, max_pixels: int) -> tuple[int, int]:
    """Read height and width after EXIF rotation from the header alone; raises like `read_image`."""
    image, _ = _open(source, max_pixels)
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow reports the upright size of TIFF
    return (image.width, image.height) if turned else (image.height, image.width)


@dataclass(frozen=True)
class MaskPixels:
    """The stored values of a mask, upright.

    `values` are (H, W) integers: palette indices, grey values, or, with `colour`, red * 65536 + green * 256 + blue.
    `indexed`: the file has a palette; `lossy`: it is a JPEG; `rotated`: its EXIF tag required a rotation.
    """

    values: np.ndarray
    colour: bool
    indexed: bool
    lossy: bool
    rotated: bool


def read_mask(source: Source, *, max_pixels: int) -> MaskPixels:
    """Read the values stored in a mask file, without colour conversion.

    Raises:
        UnreadableFile: the file is not an image, is damaged, or contains fractions.
        UserError: VA-D020, more than `max_pixels`.
    """
    image, data = _open(source, max_pixels)
    lossy = image.format in ("JPEG", "MPO")
    # Pillow scales grey values of 2 and 4 bits to 0..255
    spread = next((step for tile in getattr(image, "tile", ()) for bits, step in (("L;2", 85), ("L;4", 17)) if tile[3] == bits), 1)
    samples = _load(image, data, _name(source))
    orientation = _orientation(image)
    if image.mode == "LA":
        image = image.getchannel("L")
    colour = image.mode not in ("1", "L", "P", "I", "F") and not image.mode.startswith("I;16")
    values: np.ndarray
    if colour:
        pixels = np.asarray(image.convert("RGB")).astype(np.int32)
        values = pixels[:, :, 0] << 16 | pixels[:, :, 1] << 8 | pixels[:, :, 2]
    else:
        values = np.asarray(image) if samples is None else samples
        if values.dtype.kind == "f" and (values != np.floor(values)).any():
            raise UnreadableFile(_name(source), "a mask of fractions: expected whole numbers")
        small = values.dtype in (np.bool_, np.uint8)
        values = values.astype(np.uint8 if small else np.int32)
        values = values // spread if small else values
    return MaskPixels(_upright(values, orientation), colour, image.mode == "P", lossy, orientation != 1)


def to_unit(samples: np.ndarray, rule: str | tuple[float, float]) -> np.ndarray:
    """Scale 16-bit, 32-bit and float samples to float32 in 0..1, with clipping.

    `dtype` divides by the maximum of the type: 65535 for 16 bits. 32-bit integers are mostly 16-bit values in a
    wider type, so they are divided by 65535 too, unless a sample exceeds it (then by 2**31 - 1). Floats up to 1 are
    unchanged; if the image's maximum is above 1, they are divided by it. `percentile` maps the image's 1st to 99th
    percentile to 0..1; a pair maps [low, high].
    """
    values = samples.astype(np.float32)
    if rule == "percentile":
        low, high = (float(value) for value in np.percentile(values, (1, 99)))
    elif isinstance(rule, tuple):
        low, high = rule
    else:
        low, high = 0.0, _type_maximum(samples)
    scaled: np.ndarray = (values - np.float32(low)) / np.float32(max(high - low, 1e-30))
    return scaled.clip(0, 1)


def _type_maximum(samples: np.ndarray) -> float:
    largest = float(samples.max())
    if samples.dtype.kind == "f":
        return max(1.0, largest)
    return 65535.0 if largest <= 65535 else 2.0**31 - 1


def _name(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "<bytes>"


def _open(source: Source, max_pixels: int) -> tuple[Image.Image, bytes]:
    """Open the image and parse its header; return it with the bytes of the file (empty for a Pillow image)."""
    name, data = _name(source), b""
    if isinstance(source, Image.Image):
        image = source
    else:
        try:
            data = source.read_bytes() if isinstance(source, Path) else source
            image = _parse(data)
        except UnidentifiedImageError as error:
            reason = "not an image: no known format starts like this" if data else "empty file (0 bytes)"
            raise UnreadableFile(name, reason, "VA-D011") from error
        except Exception as error:
            raise _unreadable(name, error) from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise UserError(
            "VA-D020",
            f"image of {image.width} x {image.height} = {pixels:,} pixels, the limit is {max_pixels:,}",
            where=name,
            why="a small file can unpack to more than fits in memory",
            fix=f"remove it, or data.max_pixels={pixels} if you trust it",
        )
    return image, data


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit on pixels: data.max_pixels takes its place."""
    with _PILLOW_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _at_any_size(image: Image.Image) -> Iterator[None]:
    """Let Pillow decode an image above its limit; only such images wait for each other."""
    with _PILLOW_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
    with nullcontext() if limit is None or image.width * image.height <= limit else _without_pillow_limit():
        yield


def _parse(data: bytes) -> Image.Image:
    """Read the header."""
    with _without_pillow_limit():
        return Image.open(BytesIO(data))


def _load(image: Image.Image, data: bytes, name: str) -> np.ndarray | None:
    """Decode the first frame; return the samples (H, W) or (H, W, C) if Pillow cannot represent or convert them."""
    # the raw mode shows 16 bits per colour channel, of which Pillow keeps 8; it is lost on loading
    deep_colour = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    try:
        with _at_any_size(image):
            image.load()
    except Exception as error:
        raise _unreadable(name, error) from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        samples = np.asarray(image)
    elif deep_colour:
        samples = _sixteen_bit_colour(data, name)
    else:
        return None
    if not np.isfinite(samples).all():
        raise UnreadableFile(name, "pixels that are NaN or infinite")
    return samples


def _unreadable(name: str, error: Exception) -> Exception:
    """Convert a decoder's error: a damaged file can raise anything, and only a lack of memory is not the file's fault."""
    if isinstance(error, MemoryError):
        return error
    return UnreadableFile(name, getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, intact pixels
        return 1
    return value if value in range(1, 9) else 1


def _sixteen_bit_colour(data: bytes, name: str) -> np.ndarray:
    samples: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise UnreadableFile(name, "16 bits per channel in a format that OpenCV cannot decode")
    if samples.ndim == 3:
        samples = samples[:, :, [2, 1, 0, 3][: samples.shape[2]]]  # OpenCV orders blue, green, red
    return samples


def _from_eight_bits(image: Image.Image, background: str, in_chans: int) -> np.ndarray:
    if image.has_transparency_data:
        under = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(under, image.convert("RGBA"))
    mode = "L" if in_chans == 1 else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[:, :, None] if in_chans == 1 else array


def _from_samples(samples: np.ndarray, settings: ImageDataConfig, in_chans: int, name: str) -> np.ndarray:
    samples = _without_single_channel(samples)
    if samples.ndim == 2:
        grey = to_unit(samples, settings.range)[:, :, None]
        return grey if in_chans == 1 else np.repeat(grey, 3, axis=2)
    if samples.shape[2] not in (3, 4):
        raise UnreadableFile(name, f"{samples.shape[2]} channels: expected 1, 3 or 4")
    colour: np.ndarray = to_unit(samples[:, :, :3], settings.range)
    if samples.shape[2] == 4:
        alpha = to_unit(samples[:, :, 3:], "dtype")
        colour = colour * alpha + (1 - alpha) * np.float32(settings.alpha_background == "white")
    if in_chans == 1:
        colour = np.matmul(colour, _LUMINANCE)[:, :, None]
    return colour


def _without_single_channel(array: np.ndarray) -> np.ndarray:
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return array
    if orientation >= 5:  # stored with rows and columns swapped
        array = array.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(array[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])

"""Decode image files into arrays; with `stacks`, which it calls, the only module that does."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.stacks import CODECS, TIFF_MAGIC, Stack, array_stack, is_array_file, scaled_values, tiff_stack

# Pillow's names of the formats behind walk.IMAGE_SUFFIXES. No others: it hands PostScript, for example, to another program.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

LIMIT_SETTING = "data.max_bytes="  # with the number that a file needs, in the reason why it is not read
Source = Path | bytes | Image.Image

_PILLOW_LIMIT = Lock()  # Pillow's limit is global: only one thread at a time may change and restore it

_ORIENTATION = 0x0112  # EXIF tag
_JPEG_END = b"\xff\xd9"  # missing from truncated files
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow's convert("L")
# TIFF tags; the last one gives the meaning of bands after red, green and blue
_PHOTOMETRIC, _DESCRIPTION, _SAMPLES_PER_PIXEL, _EXTRA_SAMPLES = 262, 270, 277, 338
_ALPHA = {1, 2, 999}  # its values for transparency; the last one is Corel's
_MASK_VALUES = 32  # that a file has at most which is taken for a mask
_STRIP = 2**22  # pixels that are converted at a time, so that intermediate arrays of a large image stay small


class UnreadableFile(Exception):
    """A file that cannot be decoded.

    Args:
        path: the file, or `<bytes>`.
        reason: the decoder's message.
        code: VA-D010, corrupt or truncated; VA-D011, empty or not an image; VA-D020, larger than data.max_bytes; VA-D022, of other
            channels than the model takes.
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
    of 16-bit and float images, None for 8 bits; `more_frames` means animated or with several pages; `spare_band`, a fourth
    band of a TIFF that is not marked as transparency; `decoded`, what `decoded_bytes` gives. `channels` are counted with
    transparency, and of `pages` as many may be channels as well, see `Stack`; `array` means that it is no picture but an array.
    """

    width: int
    height: int
    mode: str
    depth: int
    alpha: bool
    grey: bool
    rotated: bool
    more_frames: bool
    spare_band: bool
    low: float | None
    high: float | None
    decoded: int
    channels: int
    pages: int = 0
    array: bool = False

    def fits(self, in_chans: int) -> bool:
        """Whether `read_image` gives as many channels; pictures have 1 or 3, with or without transparency."""
        if in_chans not in (1, 3):
            return in_chans in (self.channels, self.pages)
        return self.channels in (1, 3) or in_chans == self.pages or not self.array


def read_image(source: Source, *, settings: ImageDataConfig, in_chans: int) -> np.ndarray:
    """Decode the first frame to height x width x in_chans: uint8, or float32 for 16-bit and float sources, of pictures in 0..1.

    The EXIF orientation is applied, transparency is composited on `settings.alpha_background`, grey is copied to three channels.

    Args:
        in_chans: 1 (colour becomes luminance) or 3; any other number has to be that of the file, whose channels are left as they are.

    Raises:
        UnreadableFile: the file is not an image, damaged, of other channels, or larger than `settings.max_bytes`.
    """
    data = b"" if isinstance(source, Image.Image) else _content(source, settings.max_bytes)
    return _read(source, data, settings, in_chans)


def read_channel(path: Path, *, settings: ImageDataConfig) -> np.ndarray:
    """Decode a file that holds one channel of an image to height x width x 1: uint8, or float32, floats as they are.

    Raises:
        UnreadableFile: as `read_image`, or it holds colours.
    """
    data = _content(path, settings.max_bytes)
    facts = header_facts(data, max_bytes=settings.max_bytes)
    if facts.channels != 1:
        raise UnreadableFile(str(path), f"{facts.channels} channels in a file that should hold one")
    if facts.mode == "F" and data.startswith(TIFF_MAGIC):
        stack = _stack(path, data, settings.max_bytes, 0)
        assert stack is not None
        return _from_stack(stack, settings, 1, str(path))
    return _read(path, data, settings, 1)


def _read(source: Source, data: bytes, settings: ImageDataConfig, in_chans: int) -> np.ndarray:
    """`read_image` of a source with these bytes."""
    stack = _stack(source, data, settings.max_bytes, in_chans)
    if stack is not None:
        return _from_stack(stack, settings, in_chans, _name(source))
    image = _open(source, data, settings.max_bytes)
    spare = _has_spare_band(image)
    if in_chans == 3 and image.format == "JPEG" and image.mode == "RGB" and data.endswith(_JPEG_END):
        # Gives the same pixels as Pillow in less time; files that OpenCV rejects go to Pillow for its message.
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if array is not None:
            return _upright(array, _orientation(image))
    samples = _load(image, data, _name(source))
    orientation = _orientation(image)
    if in_chans not in (1, 3):
        array = np.asarray(image) if samples is None else samples
        array = array[:, :, None] if array.ndim == 2 else array
        _require_channels(array.shape[2], in_chans, _name(source))
        array = scaled_values(array, settings.range)
    elif samples is not None:
        array = _from_samples(samples[:, :, :3] if spare else samples, settings, in_chans, _name(source))
    else:
        try:
            array = _from_eight_bits(image, None if spare else settings.alpha_background, in_chans)
        except ValueError as error:  # a mode that cannot be converted, such as LAB
            raise UnreadableFile(_name(source), f"mode {image.mode}: {error}") from error
    return _upright(array, orientation)


def read_array(array: np.ndarray, *, settings: ImageDataConfig, in_chans: int) -> np.ndarray:
    """Convert an array as `read_image` does a file: height x width [x channels], uint8, integers, or floats."""
    if in_chans not in (1, 3):
        _require_channels(1 if array.ndim == 2 else array.shape[2], in_chans, "<array>")
        return _finite(scaled_values(array.reshape(*array.shape[:2], in_chans), settings.range), "<array>")
    if array.dtype != np.uint8:
        return _from_samples(array, settings, in_chans, "<array>")
    return _from_eight_bits(Image.fromarray(_without_single_channel(array)), settings.alpha_background, in_chans)


def image_facts(source: Source, *, max_bytes: int) -> ImageFacts:
    """Decode an image and describe it; raises like `read_image`, but for its channels."""
    data = b"" if isinstance(source, Image.Image) else _content(source, max_bytes)
    stack = _stack(source, data, max_bytes)
    if stack is not None:
        return _stack_facts(stack, _stack_values(stack, None, _name(source)))
    image = _open(source, data, max_bytes)
    spare = _has_spare_band(image)
    rotated = image.format == "TIFF" and _orientation(image) != 1  # before loading, which rotates TIFF upright
    samples = _load(image, data, _name(source))
    rotated = rotated or _orientation(image) != 1
    try:
        # The second picture of a phone's MPO file is a preview or a depth map, not a page.
        with _at_any_size(image):
            more_frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Exception:  # the first frame is fine, a later one is damaged, of which Pillow raises anything
        more_frames = True
    depth = {"1": 1, "I": 32, "F": 32}.get(image.mode, 8 if samples is None else 16)
    return ImageFacts(
        width=image.width,
        height=image.height,
        mode=image.mode,
        depth=depth,
        alpha=image.has_transparency_data and not spare and (samples is None or samples.ndim == 3),
        grey=image.mode.split(";")[0] in _GREY_MODES,
        rotated=rotated,
        more_frames=more_frames,
        spare_band=spare,
        low=None if samples is None else float(samples.min()),
        high=None if samples is None else float(samples.max()),
        decoded=decoded_bytes(image),
        channels=_channels(image, samples),
        pages=_pages(image),
    )


def header_facts(source: Source, *, max_bytes: int) -> ImageFacts:
    """Describe an image by its header: extreme values and further frames stay unknown, damage behind it too; raises like `image_facts`."""
    stack = _stack(source, None, max_bytes)
    if stack is not None:
        return _stack_facts(stack, None)
    with _opened(source, max_bytes) as image:
        deep, spare = _is_deep(image), _has_spare_band(image)
        return ImageFacts(
            width=image.width,
            height=image.height,
            mode=image.mode,
            depth={"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if deep else 8),
            alpha=image.has_transparency_data and not spare,
            grey=image.mode.split(";")[0] in _GREY_MODES,
            rotated=_orientation(image) != 1,
            more_frames=False,
            spare_band=spare,
            low=None,
            high=None,
            decoded=decoded_bytes(image),
            channels=_channels(image, None),
            pages=_pages(image),
        )


def array_facts(array: np.ndarray) -> ImageFacts:
    """Describe an array of height x width [x channels] as `image_facts` does a file."""
    channels = array.shape[2] if array.ndim == 3 else 1
    deep = array.dtype != np.uint8
    return ImageFacts(
        width=array.shape[1],
        height=array.shape[0],
        mode={1: "L", 3: "RGB", 4: "RGBA"}.get(channels, array.dtype.name),
        depth=8 * array.dtype.itemsize,
        alpha=channels == 4,
        grey=channels == 1,
        rotated=False,
        more_frames=False,
        spare_band=False,
        low=float(array.min()) if deep else None,
        high=float(array.max()) if deep else None,
        decoded=array.nbytes,
        channels=channels,
        array=channels not in (1, 3, 4),
    )


def decoded_bytes(image: Image.Image) -> int:
    """Bytes of an image's pixels and of the array made of them: uint8, or float32 for 16-bit and float images."""
    value = {"I": 4, "F": 4}.get(image.mode, 2 if _is_deep(image) else 1)
    return image.width * image.height * max(3, len(image.getbands())) * (value + (1 if value == 1 else 4))


def file_content(path: Path, *, max_bytes: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        UnreadableFile: not a regular file, or larger than `max_bytes`.
    """
    _regular_size(path, max_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(str(path), error.strerror or str(error)) from error


def _regular_size(path: Path, max_bytes: int) -> int:
    """Size of a regular file; raises like `file_content`."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise UnreadableFile(str(path), getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFile(str(path), "not a regular file, but a folder, FIFO, socket or device", "VA-D011")
    if status.st_size > max_bytes:
        needed = max(status.st_size, _decoded_size(path))
        raise UnreadableFile(str(path), f"file of {status.st_size:,} bytes: {_too_large(needed, max_bytes)}", "VA-D020")
    return status.st_size


def _decoded_size(path: Path) -> int:
    """`decoded_bytes` of a file, from its header; 0 if it cannot be opened as an image."""
    try:
        with path.open("rb") as file:
            return decoded_bytes(_parse(file, str(path), empty=False))
    except (OSError, UnreadableFile):
        return 0


def upright_size(source: Source, *, max_bytes: int) -> tuple[int, int]:
    """Read height and width after EXIF rotation from the header alone; raises like `image_facts`."""
    stack = _stack(source, None, max_bytes)
    if stack is not None:
        return _upright_sides(stack)
    with _opened(source, max_bytes) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow reports the upright size of TIFF
    return (image.width, image.height) if turned else (image.height, image.width)


@dataclass(frozen=True)
class MaskPixels:
    """The stored values of a mask, upright.

    `values` are (H, W) integers: palette indices, grey values, or, with `colour`, red * 65536 + green * 256 + blue.
    `palette`: of a file with a palette, the colours of its indices, packed like values; `lossy`: it is a JPEG; `rotated`:
    its EXIF tag required a rotation; `decoded`, what `decoded_bytes` gives.
    """

    values: np.ndarray
    colour: bool
    palette: tuple[int, ...]
    lossy: bool
    rotated: bool
    decoded: int


def read_mask(source: Source, *, max_bytes: int) -> MaskPixels:
    """Read the values stored in a mask file, without colour conversion.

    Encoders of GIF number the colours of each file anew, so a GIF is read by its grey levels or colours.

    Raises:
        UnreadableFile: the file is not an image, is damaged, contains fractions, or is larger than `max_bytes`.
    """
    data = b"" if isinstance(source, Image.Image) else _content(source, max_bytes)
    stack = _stack(source, data, max_bytes)
    if stack is not None:
        values = _upright(_whole_numbers(_stack_values(stack, None, _name(source)), _name(source)), stack.orientation)
        return MaskPixels(values, False, (), False, stack.orientation != 1, stack.decoded)
    image = _open(source, data, max_bytes)
    decoded, lossy = decoded_bytes(image), image.format in ("JPEG", "MPO")
    # Pillow scales grey values of 2 and 4 bits to 0..255
    spread = next((step for tile in getattr(image, "tile", ()) for bits, step in (("L;2", 85), ("L;4", 17)) if tile[3] == bits), 1)
    samples = _load(image, data, _name(source))
    orientation = _orientation(image)
    palette: tuple[int, ...] = ()
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB") or [], np.int32).reshape(-1, 3)
        if image.format == "GIF":
            image = image.convert("L" if (colours == colours[:, :1]).all() else "RGB")
        else:
            palette = tuple(_packed(colours).tolist())
    if image.mode == "LA":
        image = image.getchannel("L")
    colour = _has_colours(image.mode)
    if colour:
        values = _packed(np.asarray(image.convert("RGB")))
    else:
        values = _whole_numbers(np.asarray(image) if samples is None else samples, _name(source))
        values = values // spread if values.dtype == np.uint8 else values
    return MaskPixels(_upright(values, orientation), colour, palette, lossy, orientation != 1, decoded)


def _whole_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """The values of a mask without colours, `[H, W]` uint8 or int32.

    Raises:
        UnreadableFile: they are fractions, or there are several per pixel.
    """
    values = _without_single_channel(values)
    if values.ndim != 2:
        raise UnreadableFile(name, f"a mask of {values.shape[2]} channels: expected one, the class of each pixel")
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise UnreadableFile(name, "a mask of fractions: expected whole numbers")
    return values.astype(np.uint8 if values.dtype in (np.bool_, np.uint8) else np.int32)


@dataclass(frozen=True)
class MaskHeader:
    """What the header of a mask tells: the upright size, and `colour`, `lossy`, `rotated` and `decoded` as in `MaskPixels`."""

    size: tuple[int, int]
    colour: bool
    lossy: bool
    rotated: bool
    decoded: int


def mask_header(source: Source, *, max_bytes: int) -> MaskHeader:
    """Read what the header of a mask tells; raises like `read_mask`."""
    stack = _stack(source, None, max_bytes)
    if stack is not None:
        return MaskHeader(_upright_sides(stack), False, False, stack.orientation != 1, stack.decoded)
    with _opened(source, max_bytes) as image:
        colour = _has_colours(image.mode)  # of a GIF only decoding tells it
        return MaskHeader(_upright_size(image), colour, image.format in ("JPEG", "MPO"), _orientation(image) != 1, decoded_bytes(image))


def _has_colours(mode: str) -> bool:
    """Whether the values of a mask of a Pillow mode are colours."""
    return mode not in ("1", "L", "LA", "P", "I", "F") and not mode.startswith("I;16")


def is_mask_of(mask: Path, image: Path, *, max_bytes: int) -> bool:
    """Whether a file has few values, as masks have, and another of its size many."""
    try:
        first, second = (read_mask(path, max_bytes=max_bytes).values for path in (mask, image))
    except UnreadableFile:
        return False
    return first.shape == second.shape and len(np.unique(first)) <= _MASK_VALUES < len(np.unique(second))


def _packed(colours: np.ndarray) -> np.ndarray:
    """Colours `[..., 3]` as red * 65536 + green * 256 + blue."""
    values = colours[..., 0].astype(np.int32)
    for channel in (1, 2):
        values <<= 8
        values |= colours[..., channel]
    return values


def _bounds(samples: np.ndarray, rule: str | tuple[float, float]) -> tuple[float, float]:
    """The values that become 0 and 1 where 16-bit, 32-bit and float samples are scaled.

    `dtype` divides by the maximum of the type: 65535 for 16 bits. 32-bit integers are mostly 16-bit values in a
    wider type, so they are divided by 65535 too, unless a sample exceeds it (then by 2**31 - 1). Floats up to 1 are
    unchanged; if the image's maximum is above 1, they are divided by it. `percentile` maps the image's 1st to 99th
    percentile to 0..1; a pair maps [low, high].
    """
    if rule == "percentile":
        low, high = np.percentile(samples.astype(np.float32), (1, 99))
        return float(low), float(high)
    return rule if isinstance(rule, tuple) else (0.0, _type_maximum(samples))


def _scaled(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """Samples as float32 in 0..1, with clipping."""
    scaled: np.ndarray = (samples.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-30))
    return scaled.clip(0, 1)


def _type_maximum(samples: np.ndarray) -> float:
    largest = float(samples.max())
    if samples.dtype.kind == "f":
        return max(1.0, largest)
    return 65535.0 if largest <= 65535 else 2.0**31 - 1


def _name(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "<bytes>"


def _content(source: Path | bytes, max_bytes: int) -> bytes:
    """The bytes of a file."""
    return file_content(source, max_bytes=max_bytes) if isinstance(source, Path) else source


def _open(source: Source, data: bytes, max_bytes: int) -> Image.Image:
    """Open the image and parse its header; `data` are the bytes of the file."""
    image = source if isinstance(source, Image.Image) else _parse(BytesIO(data), _name(source), empty=not data)
    return _of_accepted_size(image, _name(source), max_bytes)


@contextmanager
def _opened(source: Source, max_bytes: int) -> Iterator[Image.Image]:
    """The image with its header parsed; of a file no more is read than that takes."""
    if not isinstance(source, Path):
        yield _open(source, source if isinstance(source, bytes) else b"", max_bytes)
        return
    size = _regular_size(source, max_bytes)
    try:
        file = source.open("rb")
    except OSError as error:
        raise UnreadableFile(str(source), error.strerror or str(error)) from error
    with file:
        yield _of_accepted_size(_parse(file, str(source), empty=not size), str(source), max_bytes)


def _of_accepted_size(image: Image.Image, name: str, max_bytes: int) -> Image.Image:
    needed = decoded_bytes(image)
    if needed > max_bytes:
        what = f"image of {image.width} x {image.height} pixels, {needed:,} bytes decoded"
        raise UnreadableFile(name, f"{what}: {_too_large(needed, max_bytes)}", "VA-D020")
    return image


def _too_large(needed: int, max_bytes: int) -> str:
    return f"the limit is {max_bytes:,}; if you trust it, {LIMIT_SETTING}{needed}"


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits per value; the raw mode shows them, and is lost on loading."""
    return image.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _has_spare_band(image: Image.Image) -> bool:
    """Whether a TIFF has a band after red, green and blue that is not marked as transparency: near infrared, for example."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return False
    is_colour, bands = tags.get(_PHOTOMETRIC) == 2, tags.get(_SAMPLES_PER_PIXEL)
    return is_colour and bands == 4 and not _ALPHA & set(tags.get(_EXTRA_SAMPLES, ()))


def _channels(image: Image.Image, samples: np.ndarray | None) -> int:
    """Channels of a picture, with transparency; inks and other spaces count as colours."""
    if samples is not None:
        return samples.shape[2] if samples.ndim == 3 else 1
    bands = image.getbands()
    return len(bands) if bands in (("L",), ("L", "A"), ("R", "G", "B"), ("R", "G", "B", "A"), ("R", "G", "B", "X")) else min(len(bands), 3)


def _pages(image: Image.Image) -> int:
    """Grey pages of a TIFF, which may be channels; 0 if there is one."""
    if image.format != "TIFF" or len(image.getbands()) > 1:
        return 0
    try:
        count = int(getattr(image, "n_frames", 1))
    except Exception:  # a further page is damaged
        return 0
    return count if count > 1 else 0


# ---------------------------------------------------------------- arrays


def _stack(source: Source, data: bytes | None, max_bytes: int, in_chans: int | None = None) -> Stack | None:
    """The array in a file that is no picture: `.npy`, `.npz`, and TIFF of other channels than pictures have; None for a picture.

    Args:
        data: the bytes of the file; None reads no more of it than the header takes, and leaves the values unread.
        in_chans: channels to read; TIFF is an array where they are none of a picture.
    """
    if isinstance(source, Image.Image):
        return None
    if isinstance(source, Path) and data is None:
        _regular_size(source, max_bytes)
        try:
            with source.open("rb") as file:
                return _stack_in(file, str(source), max_bytes, in_chans)
        except OSError as error:
            raise UnreadableFile(str(source), error.strerror or str(error)) from error
    content = data if data is not None else source
    assert isinstance(content, bytes)
    return _stack_in(BytesIO(content), _name(source), max_bytes, in_chans)


def _stack_in(file: IO[bytes], name: str, max_bytes: int, in_chans: int | None) -> Stack | None:
    start = file.read(6)
    try:
        if is_array_file(start):
            stack = array_stack(file)
        elif start.startswith(TIFF_MAGIC) and not (in_chans in (None, 1, 3) and _is_picture(file)):
            stack = tiff_stack(file)
        else:
            return None
    except Exception as error:
        raise _unreadable(name, error) from error
    if stack.decoded > max_bytes:
        what = f"image of {stack.width} x {stack.height} pixels with {stack.channels} channels, {stack.decoded:,} bytes decoded"
        raise UnreadableFile(name, f"{what}: {_too_large(stack.decoded, max_bytes)}", "VA-D020")
    return stack


def _is_picture(file: IO[bytes]) -> bool:
    """Whether Pillow reads all of a TIFF that makes a picture: 1, 3 or 4 samples per pixel, and no channels in pages."""
    file.seek(0)
    try:
        image = _parse(file, "", empty=False)
    except UnreadableFile:
        return False
    tags = getattr(image, "tag_v2", {})
    if tags.get(_SAMPLES_PER_PIXEL, 1) > 4:  # Pillow leaves out those after the fourth
        return False
    try:
        if not getattr(image, "is_animated", False):
            return True
    except Exception:  # a further page is damaged
        return True
    try:
        return tiff_stack(file).channels in (1, tags.get(_SAMPLES_PER_PIXEL, 1))
    except Exception:  # plain pages of colour; a stack that names its axes is reported where it is read
        return not any(word in str(tags.get(_DESCRIPTION, "")) for word in ("ImageJ=", "<OME", '"shape"'))


def _stack_values(stack: Stack, in_chans: int | None, name: str) -> np.ndarray:
    """The values of an array as they are stored, height x width x channels."""
    try:
        return _finite(stack.read(in_chans), name)
    except Exception as error:
        raise _unreadable(name, error) from error


def _from_stack(stack: Stack, settings: ImageDataConfig, in_chans: int, name: str) -> np.ndarray:
    values = _stack_values(stack, in_chans, name)
    if values.shape[2] != in_chans and {values.shape[2], in_chans} != {1, 3}:
        _require_channels(values.shape[2], in_chans, name)
    array = _finite(scaled_values(values, settings.range), name)
    if array.shape[2] < in_chans:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] > in_chans:
        grey = np.matmul(array.astype(np.float32), _LUMINANCE)[:, :, None]
        array = grey if array.dtype != np.uint8 else np.rint(grey).astype(np.uint8)
    return _upright(array, stack.orientation)


def _stack_facts(stack: Stack, values: np.ndarray | None) -> ImageFacts:
    deep = values is not None and values.dtype != np.uint8
    return ImageFacts(
        width=stack.width,
        height=stack.height,
        mode=stack.dtype.name,
        depth=8 * stack.dtype.itemsize,
        alpha=False,
        grey=stack.channels == 1,
        rotated=stack.orientation != 1,
        more_frames=False,
        spare_band=False,
        low=float(values.min()) if deep and values is not None else None,
        high=float(values.max()) if deep and values is not None else None,
        decoded=stack.decoded,
        channels=stack.channels,
        pages=stack.pages,
        array=True,
    )


def _upright_sides(stack: Stack) -> tuple[int, int]:
    return (stack.width, stack.height) if stack.orientation >= 5 else (stack.height, stack.width)


def _require_channels(found: int, wanted: int, name: str) -> None:
    """Stop at another number of channels.

    Raises:
        UnreadableFile: VA-D022.
    """
    if found != wanted:
        raise UnreadableFile(name, f"{found} channel{'s' * (found != 1)}, model.in_chans is {wanted}", "VA-D022")


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableFile(name, "pixels that are NaN or infinite")
    return values


# ---------------------------------------------------------------- pictures


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit on pixels: data.max_bytes takes its place."""
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


def _parse(file: IO[bytes], name: str, *, empty: bool) -> Image.Image:
    """Read the header."""
    try:
        with _without_pillow_limit():
            Image.init()
            return Image.open(file, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])  # AVIF may be missing
    except UnidentifiedImageError as error:
        reason = "empty file (0 bytes)" if empty else "not an image: no known format starts like this"
        raise UnreadableFile(name, reason, "VA-D011") from error
    except Exception as error:
        raise _unreadable(name, error) from error


def _load(image: Image.Image, data: bytes, name: str) -> np.ndarray | None:
    """Decode the first frame; return the samples (H, W) or (H, W, C) if Pillow cannot represent or convert them."""
    deep_colour = _is_deep(image)  # of which Pillow keeps 8 bits
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
    return _finite(samples, name)


def _unreadable(name: str, error: Exception) -> Exception:
    """Convert a decoder's error: a damaged file can raise anything, and only a lack of memory is not the file's fault."""
    if isinstance(error, (MemoryError, UnreadableFile)):
        return error
    if "imagecodecs" in str(error):  # tifffile's: <COMPRESSION.LZW: 5> requires the 'imagecodecs' package
        kind = re.search(r"<\w+\.(\w+)", str(error))
        return UnreadableFile(name, f"a TIFF of {kind[1] if kind else 'a'} compression needs a package for it: {CODECS}")
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
    if samples.ndim == 3:  # OpenCV orders blue, green, red
        samples[:, :, [0, 2]] = samples[:, :, [2, 0]]
    return samples


def _strips(height: int, width: int) -> Iterator[slice]:
    rows = max(1, _STRIP // width)
    return (slice(start, start + rows) for start in range(0, height, rows))


def _from_eight_bits(image: Image.Image, background: str | None, in_chans: int) -> np.ndarray:
    """Convert to grey or RGB; without a background, transparency is ignored."""
    if image.width * image.height <= _STRIP:
        return _strip_of_eight_bits(image, background, in_chans)
    result = np.empty((image.height, image.width, in_chans), np.uint8)
    for rows in _strips(image.height, image.width):
        strip = image.crop((0, rows.start, image.width, min(rows.stop, image.height)))
        result[rows] = _strip_of_eight_bits(strip, background, in_chans)
    return result


def _strip_of_eight_bits(image: Image.Image, background: str | None, in_chans: int) -> np.ndarray:
    if background is not None and image.has_transparency_data:
        under = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(under, image.convert("RGBA"))
    mode = "L" if in_chans == 1 else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[:, :, None] if in_chans == 1 else array


def _from_samples(samples: np.ndarray, settings: ImageDataConfig, in_chans: int, name: str) -> np.ndarray:
    samples = _without_single_channel(samples)
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    if channels not in (1, 3, 4):
        raise UnreadableFile(name, f"{channels} channels: expected 1, 3 or 4")
    low, high = _bounds(samples if channels == 1 else samples[:, :, :3], settings.range)
    opaque = _type_maximum(samples[:, :, 3]) if channels == 4 else 1.0
    result = np.empty((*samples.shape[:2], in_chans), np.float32)
    for rows in _strips(*samples.shape[:2]):
        if channels == 1:
            result[rows] = _scaled(samples[rows], low, high)[:, :, None]
            continue
        colour = _scaled(samples[rows, :, :3], low, high)
        if channels == 4:
            alpha = _scaled(samples[rows, :, 3:], 0.0, opaque)
            colour = colour * alpha + (1 - alpha) * np.float32(settings.alpha_background == "white")
        result[rows] = np.matmul(colour, _LUMINANCE)[:, :, None] if in_chans == 1 else colour
    return result


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

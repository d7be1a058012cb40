"""Images by position: from files, from an array, from a torchvision dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import (
    ImageFacts,
    UnreadableFile,
    array_facts,
    file_content,
    header_facts,
    image_facts,
    read_array,
    read_channel,
    read_image,
)


class Images(Protocol):
    """Images by position; small and picklable, so that it is cheap to send to loader processes."""

    @property
    def settings(self) -> ImageDataConfig: ...

    @property
    def in_chans(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Load an image as height x width x in_chans; raises UnreadableFile."""

    def content(self, index: int) -> bytes:
        """Return the bytes that identify the image; raises UnreadableFile."""

    def facts(self, index: int) -> ImageFacts: ...

    def header(self, index: int) -> ImageFacts:
        """What can be told of the image without decoding it; raises UnreadableFile."""

    def path(self, index: int) -> str | None:
        """The file that holds the image; None if there is none."""

    def size(self, index: int) -> int:
        """Bytes of its content."""

    def stamp(self, index: int) -> str | None:
        """Text that changes with the stored image, by which findings are cached; None if nothing tells. Raises UnreadableFile."""

    def take(self, indices: Sequence[int]) -> Images: ...


@dataclass
class KeptImages:
    """Decoded images in the memory of this process; none is dropped, as every epoch needs all of them."""

    images: dict[int, np.ndarray] = field(default_factory=dict)
    size: int = 0

    def keep(self, index: int, image: np.ndarray, limit: int) -> None:
        """Keep an image if it fits into this process' share of `limit` bytes."""
        from torch.utils.data import get_worker_info  # long loaded where images are read again and again

        worker = get_worker_info()
        if self.size + image.nbytes <= limit // (1 if worker is None else worker.num_workers):
            self.images[index] = image
            self.size += image.nbytes


@dataclass(frozen=True)
class FileImages:
    """Images in files."""

    paths: tuple[str, ...]
    settings: ImageDataConfig
    in_chans: int
    _kept: KeptImages = field(default_factory=KeptImages, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        if index in self._kept.images:
            return self._kept.images[index]
        image = read_image(Path(self.paths[index]), settings=self.settings, in_chans=self.in_chans)
        if self.settings.cache == "ram":
            self._kept.keep(index, image, self.settings.cache_bytes)
        return image

    def content(self, index: int) -> bytes:
        return file_content(Path(self.paths[index]), max_bytes=self.settings.max_bytes)

    def facts(self, index: int) -> ImageFacts:
        return image_facts(Path(self.paths[index]), max_bytes=self.settings.max_bytes)

    def header(self, index: int) -> ImageFacts:
        return header_facts(Path(self.paths[index]), max_bytes=self.settings.max_bytes)

    def path(self, index: int) -> str:
        return self.paths[index]

    def size(self, index: int) -> int:
        return os.path.getsize(self.paths[index])

    def stamp(self, index: int) -> str:
        path = self.paths[index]
        try:
            status = os.stat(path)
        except OSError as error:
            raise UnreadableFile(path, error.strerror or str(error)) from error
        return f"{path}|{status.st_size}|{status.st_mtime_ns}"

    def take(self, indices: Sequence[int]) -> FileImages:
        return FileImages(tuple(self.paths[index] for index in indices), self.settings, self.in_chans)


@dataclass(frozen=True)
class ChannelFiles(FileImages):
    """Images whose channels are in several files each; `paths` are the first ones.

    Attributes:
        further: the other files of each image, in order.
    """

    further: tuple[tuple[str, ...], ...] = ()

    def read(self, index: int) -> np.ndarray:
        if index in self._kept.images:
            return self._kept.images[index]
        channels = [read_channel(path, settings=self.settings) for path in self._files(index)]
        if len({channel.shape for channel in channels}) > 1:
            raise UnreadableFile(self.paths[index], "the files of its channels have different sizes")
        if len(channels) != self.in_chans:
            raise UnreadableFile(self.paths[index], f"{len(channels)} channels, model.in_chans is {self.in_chans}", "VA-D022")
        if len({channel.dtype for channel in channels}) > 1:
            channels = [channel / np.float32(255) if channel.dtype == np.uint8 else channel for channel in channels]
        image: np.ndarray = np.concatenate(channels, axis=2)
        if self.settings.cache == "ram":
            self._kept.keep(index, image, self.settings.cache_bytes)
        return image

    def content(self, index: int) -> bytes:
        return b"".join(file_content(path, max_bytes=self.settings.max_bytes) for path in self._files(index))

    def facts(self, index: int) -> ImageFacts:
        return _facts_together([image_facts(path, max_bytes=self.settings.max_bytes) for path in self._files(index)], self.paths[index])

    def header(self, index: int) -> ImageFacts:
        return _facts_together([header_facts(path, max_bytes=self.settings.max_bytes) for path in self._files(index)], self.paths[index])

    def size(self, index: int) -> int:
        return sum(map(os.path.getsize, self._files(index)))

    def stamp(self, index: int) -> str:
        return "|".join(super(ChannelFiles, replace(self, paths=(str(path),))).stamp(0) for path in self._files(index))

    def take(self, indices: Sequence[int]) -> ChannelFiles:
        further = tuple(self.further[index] for index in indices)
        return ChannelFiles(tuple(self.paths[index] for index in indices), self.settings, self.in_chans, further=further)

    def _files(self, index: int) -> list[Path]:
        return [Path(path) for path in (self.paths[index], *self.further[index])]


def further_channels(path: str) -> tuple[str, ...]:
    """The files of the other channels beside that of the first, as nnU-Net names them: CASE_0001.tif beside CASE_0000.tif, and so on."""
    stem, suffix = os.path.splitext(path)
    found: list[str] = []
    while stem.endswith("_0000") and os.path.exists(following := f"{stem[:-4]}{len(found) + 1:04d}{suffix}"):
        found.append(following)
    return tuple(found)


def _facts_together(facts: Sequence[ImageFacts], name: str) -> ImageFacts:
    """The facts of an image whose channels are files of their own."""
    if len({(part.width, part.height) for part in facts}) > 1:
        raise UnreadableFile(name, "the files of its channels have different sizes")
    if colour := [part for part in facts if part.channels != 1]:
        raise UnreadableFile(name, f"{colour[0].channels} channels in a file that should hold one")
    low, high = ([value for part in facts if (value := getattr(part, key)) is not None] for key in ("low", "high"))
    return replace(
        facts[0],
        grey=False,
        low=min(low, default=None),
        high=max(high, default=None),
        decoded=sum(part.decoded for part in facts),
        channels=len(facts),
        array=True,
    )


@dataclass(frozen=True)
class JoinedImages:
    """Images of several sources.

    Attributes:
        source, position: which source each image is in, and where.
    """

    sources: tuple[Images, ...]
    source: np.ndarray
    position: np.ndarray

    @property
    def settings(self) -> ImageDataConfig:
        return self.sources[0].settings

    @property
    def in_chans(self) -> int:
        return self.sources[0].in_chans

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> np.ndarray:
        return self.sources[self.source[index]].read(int(self.position[index]))

    def content(self, index: int) -> bytes:
        return self.sources[self.source[index]].content(int(self.position[index]))

    def facts(self, index: int) -> ImageFacts:
        return self.sources[self.source[index]].facts(int(self.position[index]))

    def header(self, index: int) -> ImageFacts:
        return self.sources[self.source[index]].header(int(self.position[index]))

    def path(self, index: int) -> str | None:
        return self.sources[self.source[index]].path(int(self.position[index]))

    def size(self, index: int) -> int:
        return self.sources[self.source[index]].size(int(self.position[index]))

    def stamp(self, index: int) -> str | None:
        return self.sources[self.source[index]].stamp(int(self.position[index]))

    def take(self, indices: Sequence[int]) -> JoinedImages:
        chosen = np.asarray(indices, np.int64)
        return replace(self, source=self.source[chosen], position=self.position[chosen])


def join_images(first: Images, second: Images) -> Images:
    """The images of one source, then those of another."""
    if isinstance(first, FileImages) and isinstance(second, FileImages):
        return FileImages(first.paths + second.paths, first.settings, first.in_chans)
    source = np.repeat([0, 1], [len(first), len(second)])
    return JoinedImages((first, second), source, np.concatenate([np.arange(len(first)), np.arange(len(second))]))


@dataclass(frozen=True)
class ArrayImages:
    """Images in one array (N, H, W) or (N, H, W, C)."""

    array: np.ndarray
    settings: ImageDataConfig
    in_chans: int

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> np.ndarray:
        return read_array(np.asarray(self.array[index]), settings=self.settings, in_chans=self.in_chans)

    def content(self, index: int) -> bytes:
        image: np.ndarray = self.array[index]
        return image.tobytes()

    def facts(self, index: int) -> ImageFacts:
        return array_facts(self.array[index])

    def header(self, index: int) -> ImageFacts:
        return array_facts(self.array[index])

    def path(self, index: int) -> None:
        return None

    def size(self, index: int) -> int:
        return int(self.array[index].nbytes)

    def stamp(self, index: int) -> None:
        return None

    def take(self, indices: Sequence[int]) -> ArrayImages:
        return ArrayImages(self.array[list(indices)], self.settings, self.in_chans)


@dataclass(frozen=True)
class TorchvisionImages:
    """Images at the given positions of a torchvision dataset."""

    source: Any
    indices: tuple[int, ...]
    settings: ImageDataConfig
    in_chans: int

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> np.ndarray:
        return read_image(self._picture(index), settings=self.settings, in_chans=self.in_chans)

    def content(self, index: int) -> bytes:
        pixels: np.ndarray = np.asarray(self._picture(index))
        return pixels.tobytes()

    def facts(self, index: int) -> ImageFacts:
        return image_facts(self._picture(index), max_bytes=self.settings.max_bytes)

    def header(self, index: int) -> ImageFacts:
        return header_facts(self._picture(index), max_bytes=self.settings.max_bytes)

    def path(self, index: int) -> None:
        return None

    def size(self, index: int) -> int:
        return len(self.content(index))

    def stamp(self, index: int) -> None:
        return None

    def take(self, indices: Sequence[int]) -> TorchvisionImages:
        return replace(self, indices=tuple(self.indices[index] for index in indices))

    def _picture(self, index: int) -> Any:
        return self.source[self.indices[index]][0]

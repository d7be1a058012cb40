"""WebDataset shards of small pictures."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Member = tuple[str, bytes] | tarfile.TarInfo


def png(number: int, size: tuple[int, int] = (10, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[Member], *, format: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    """A tar of files (name, content) and of members without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as file:  # type: ignore[call-overload]
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def samples(labels: Iterable[object], first: int = 0) -> list[Member]:
    """A picture and a cls member for each label."""
    members: list[Member] = []
    for number, label in enumerate(labels, first):
        members += [(f"{number:06}.png", png(number)), (f"{number:06}.cls", str(label).encode())]
    return members


def flower_shards(root: Path) -> Path:
    """Two shards to train on, ten pictures; one of five to validate."""
    write_tar(root / "train-000000.tar", samples(["rose", "tulip", "rose", "rose", "tulip"]))
    write_tar(root / "train-000001.tar", samples(["tulip", "rose", "tulip", "rose", "rose"], 5))
    write_tar(root / "val-000000.tar", samples(["rose", "tulip", "tulip", "rose", "tulip"], 10))
    return root

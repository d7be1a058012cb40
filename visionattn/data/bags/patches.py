"""Features of folders of patches: computed once by a frozen backbone, a few patches at a time, and kept in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.bags.readers import Bag, Place
from visionattn.data.bags.recognise import PLACE
from visionattn.data.bags.settings import PatchConfig
from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import UnreadableFile, read_image
from visionattn.files import atomic_write, cache_folder, sha256_of
from visionattn.names import to_path

VERSION = 1  # increase when features of the same patches change: those in caches are then computed again
_THREADS = 4


@dataclass
class PatchFeatures:
    """The frozen backbone and the folder of its features; built when it is first needed.

    Attributes:
        settings: of the backbone.
        device: train.device; auto is a GPU if there is one.
    """

    settings: PatchConfig
    device: str
    _network: Network | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}  # a loader process builds its own, if it needs one at all

    def read(self, place: Place) -> Bag:
        """Features of the patches in a folder, from the cache if they are there.

        Raises:
            UnreadableFile: a patch cannot be decoded.
            UserError: weights that cannot be had.
        """
        if self._network is None:
            self._network = Network(self.settings, self.device)
        network = self._network
        path = network.folder / f"{_identity(place.patches)}.npy"
        features = _cached(path, len(place.patches), network.features)
        if features is None:
            features = network.describe(place.patches)
            content = BytesIO()
            np.save(content, features)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, content.getvalue())
        return Bag(features, places_of(place.patches))


class Network:
    """A frozen backbone with its preprocessing.

    Attributes:
        features: numbers per patch.
        folder: of its features, by backbone, weights and preprocessing.
    """

    def __init__(self, settings: PatchConfig, device: str) -> None:
        import torch
        from torch.utils.data import get_worker_info

        from visionattn.data.images.transforms import eval_transform
        from visionattn.models import create_model

        file = Path(to_path(settings.weights)).expanduser()
        from_file = settings.weights not in ("pretrained", "none") and file.is_file()
        tag: bool | str = settings.weights == "pretrained" or (settings.weights if settings.weights != "none" and not from_file else False)
        with torch.random.fork_rng():  # the stream of dropout must not shift
            torch.manual_seed(0)
            model = create_model(
                settings.backbone,
                pretrained=tag,
                checkpoint_path=file if from_file else None,
                num_classes=0,
                img_size=None if settings.img_size == "auto" else settings.img_size,
                **settings.args,
            )
        auto = "cuda" if torch.cuda.is_available() and get_worker_info() is None else "cpu"
        self.device = torch.device(auto if device == "auto" else device)
        self.model, self.batch_size, self.features = (
            model.eval().requires_grad_(False).to(self.device),
            settings.batch_size,
            model.head_hidden_size,
        )
        cfg = model.pretrained_cfg
        size = tuple(cfg["input_size"][1:])
        self.transform = eval_transform(size, cfg["mean"], cfg["std"], interpolation=cfg["interpolation"], crop_pct=cfg["crop_pct"])
        facts = {key: cfg.get(key) for key in ("architecture", "input_size", "mean", "std", "interpolation", "crop_pct")}
        weights = sha256_of(file) if from_file else "none" if not tag else f"{cfg.get('tag')} {cfg.get('sha256')}"
        text = json.dumps([VERSION, facts, settings.args, weights], sort_keys=True, default=str)
        above = Path(to_path(settings.cache)).expanduser() if settings.cache else cache_folder() / "features"
        name = settings.backbone.replace(":", "-")  # of timm:NAME; no name of a folder on Windows has a colon
        self.folder = above / f"{name}-{blake2b(text.encode(), digest_size=8).hexdigest()}"

    def describe(self, paths: Sequence[str]) -> np.ndarray:
        """Features `[N, features]` of patches, float32; as many are in memory as a step takes."""
        import torch

        found = np.empty((len(paths), self.features), np.float32)
        with ThreadPoolExecutor(_THREADS) as pool, torch.inference_mode():
            for start, part in _blocks(paths, self.batch_size):
                images = torch.stack(list(pool.map(self._load, part)))
                found[start : start + len(part)] = self.model(images.to(self.device)).float().cpu().numpy()
        return found

    def _load(self, path: str) -> Any:
        return self.transform(read_image(Path(path), settings=ImageDataConfig(), in_chans=3))


def _blocks(paths: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    return ((start, paths[start : start + size]) for start in range(0, len(paths), size))


def _cached(path: Path, count: int, features: int) -> np.ndarray | None:
    """Features in the cache; None if there are none, or they are damaged."""
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (count, features) and found.dtype == np.float32 else None


def _identity(paths: Sequence[str]) -> str:
    """A text that changes with any of the files."""
    digest = blake2b(digest_size=16)
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UnreadableFile(path, error.strerror or str(error)) from error
        digest.update(f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def places_of(paths: Sequence[str]) -> np.ndarray | None:
    """Coordinates in the names of patches, `[N, 2]`; None if any has none."""
    matches = [PLACE.search(Path(path).stem) for path in paths]
    if not all(matches):
        return None
    return np.array([[float(match[1]), float(match[2])] for match in matches if match])

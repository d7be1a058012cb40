"""A loaded model that answers requests about images, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from visionattn.data.readers import UnreadableFile, header_facts
from visionattn.jobs.explain import explained_picture
from visionattn.runs.load import LoadedModel
from visionattn.tasks.base import Answer, Question

LONGEST = 32  # times the shorter side: preprocessing enlarges the shorter side of an image to that of the network


@dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Attributes:
        bytes: of an upload.
        pixels: of an image.
        waiting: requests that wait for the one that is computed; further ones are told to come back.
    """

    bytes: int = 20 * 2**20
    pixels: int = 36_000_000
    waiting: int = 16


class Service:
    """Answers about images, one at a time.

    Args:
        name: of the model, to show.
        loaded: its model is on `device`.
        autocast: makes the context of its precision.
        warn: takes a line for the terminal.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        limits: Limits,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        warn: Callable[[str], object],
    ) -> None:
        self.name, self.loaded, self.limits, self.device, self.autocast = name, loaded, limits, device, autocast
        task, config = loaded.task, loaded.config
        task.presenter(config, loaded.target, 1)  # a task that is not served stops here
        self.predictor = task.file_predictor(config, loaded.target, loaded.model, device, (), warn)
        backbone = getattr(loaded.model, "backbone", None)  # an exported graph has none, and some have no maps
        self.explains = len(getattr(backbone, "stages", ())) > 0

    def about(self) -> dict[str, Any]:
        """Facts about the model."""
        classes = self.loaded.target.get("display_classes") or self.loaded.target.get("classes") or []
        return {
            "model": self.name,
            "network": self.loaded.config.model.name,
            "task": self.loaded.task.name,
            "classes": list(classes),
            "explains": self.explains,
            "max_bytes": self.limits.bytes,
            "max_pixels": self.limits.pixels,
        }

    def predict(self, content: bytes, topk: int) -> Answer:
        """Answer what an image shows.

        Args:
            content: that of the file.

        Raises:
            UnreadableFile: not an image, damaged, or above a limit.
            UserError: VA-M004, a size that an exported network does not take.
        """
        self._require_small(content)
        task, config = self.loaded.task, self.loaded.config
        dataset = task.upload_dataset(config, self.loaded.model, content)
        batch = dataset.collate([dataset[0]])
        if batch.unreadable:
            raise UnreadableFile(*batch.unreadable[0])
        with self._current_device(), self.autocast(), torch.inference_mode():
            return task.presenter(config, self.loaded.target, topk)(self.predictor(batch), batch)

    def explain(self, content: bytes, class_name: str | None) -> tuple[dict[str, str], bytes]:
        """Explain an image: facts, and a picture as PNG.

        Raises:
            UnreadableFile: as `predict`.
            UserError: VA-C002, a class that is not there; VA-D010, damaged; VA-R007, a package is missing.
        """
        self._require_small(content)
        with self._current_device():
            picture, facts = explained_picture(self.loaded, Question(content, None, class_name), self.device)
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return facts, buffer.getvalue()

    def _current_device(self) -> AbstractContextManager[Any]:
        """The GPU as the current one of this thread, for kernels."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _require_small(self, content: bytes) -> None:
        """Look at the header before anything is decoded.

        Raises:
            UnreadableFile: VA-D020, above a limit.
        """
        facts = header_facts(content, max_bytes=2**62)
        sides = sorted((facts.width, facts.height))
        if sides[0] * sides[1] * max(1, facts.channels // 4) > self.limits.pixels:
            what = f"image of {facts.width} x {facts.height} pixels: the limit is {self.limits.pixels:,} pixels"
            raise UnreadableFile("upload", what, "VA-D020")
        if sides[1] > LONGEST * sides[0]:
            what = f"image of {facts.width} x {facts.height} pixels: a side may be {LONGEST} times the other at most"
            raise UnreadableFile("upload", what, "VA-D020")

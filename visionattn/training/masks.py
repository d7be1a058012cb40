"""Class maps of image files: one image at a time, in bounded memory; saved as masks, overlays and tables."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from visionattn.config import SegmentConfig
from visionattn.data.mask_transforms import MaskEvalTransform, resized_shape
from visionattn.data.palettes import mask_png, overlay
from visionattn.data.segmentation import resize_labels
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.tasks.segmentation import Segmentation
from visionattn.tasks.windows import resized_classes
from visionattn.training.build import build_task
from visionattn.training.run import csv_text
from visionattn.training.segmentation import as_picture, legend_entries, with_legend

# Images above one of these are predicted in windows whatever eval.mode says: pixels, and bytes of their logits.
LARGE_PIXELS = 2**22
LARGE_LOGITS = 2**30

_OVERLAY_SIDE = 4096  # longest side of an overlay


@dataclass(frozen=True)
class MaskPrediction:
    """One image: how much of it each class has, and where its class map is.

    Attributes:
        path: of the image.
        height: of the image, upright; so is `width`.
        shares: share of the pixels by class name; classes without pixels are left out.
        mask: palette PNG of the class map: the file saved, or the PNG itself where nothing is saved; None where other things are.
        overlay: file of the picture, if it was saved.
    """

    path: str
    height: int
    width: int
    shares: dict[str, float]
    mask: Path | bytes | None = None
    overlay: Path | None = None

    def class_map(self) -> np.ndarray:
        """The class of each pixel, (height, width), decoded anew at each call.

        Raises:
            ValueError: predictions were saved, but not their masks.
        """
        if self.mask is None:
            raise ValueError(f"the mask of {self.path} was not saved")
        return np.asarray(Image.open(BytesIO(self.mask) if isinstance(self.mask, bytes) else self.mask))

    def shown(self) -> dict[str, str]:
        """A row for people."""
        largest = sorted(self.shares.items(), key=lambda item: -item[1])
        text = "  ".join(f"{name} {100 * share:.1f} %" for name, share in largest[:4])
        return {"image": self.path, "size": f"{self.width} x {self.height}", "pixels": text + ("  ..." if len(largest) > 4 else "")}

    def as_dict(self) -> dict[str, Any]:
        """What `predict --json` prints of the image."""
        files = {"mask": self.mask if isinstance(self.mask, Path) else None, "overlay": self.overlay}
        facts = {"path": self.path, "height": self.height, "width": self.width, "shares": self.shares}
        return facts | {name: str(path) for name, path in files.items() if path is not None}


def csv_table(predictions: Sequence[MaskPrediction], classes: Sequence[str]) -> str:
    """`predictions.csv`: the size of each image and the share of each class."""
    columns = ["path", "height", "width", *classes]
    rows = [[item.path, item.height, item.width, *(f"{item.shares.get(name, 0):.6f}" for name in classes)] for item in predictions]
    return csv_text(columns, rows)


class Mapper:
    """From images as they were read to class maps of their size.

    Images of which a whole set of logits would be too large are predicted in windows of eval.tile, or else model.img_size, at the scale
    1: the map then differs a little from that of the whole image, as a window sees less around it.

    Args:
        model: in evaluation mode, on `device`.
        transform: of evaluation.
        say: is told once that an image was too large.
    """

    def __init__(
        self,
        config: SegmentConfig,
        model: nn.Module,
        task: Segmentation,
        transform: MaskEvalTransform,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.model, self.task, self.transform = model, task, transform
        self.device, self.autocast, self.say = device, autocast, say
        windows = config.model_copy(update={"eval": config.eval.model_copy(update={"mode": "slide", "scales": []})})
        tiled = build_task(windows, task.classes, np.ones(len(task.classes), np.int64), task.palette)
        assert isinstance(tiled, Segmentation)
        self.tiled = tiled

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Class numbers (H, W) of an image (H, W, C), uint8 or float32 in 0..1."""
        size = (image.shape[0], image.shape[1])
        height, width = resized_shape(size, self.transform.resize, self.transform.size)
        large = height * width > LARGE_PIXELS or 4 * height * width * len(self.task.classes) > LARGE_LOGITS
        if large and (self.task.window is None or self.task.scales):
            window = " x ".join(map(str, (self.tiled.window or {})["window"]))
            self.say(f"image of {width} x {height} pixels: too large for one piece, predicted in windows of {window}")
            self.say = lambda text: None
        with self.autocast(), torch.inference_mode():
            if large or (self.task.window is not None and not self.task.scales):
                return self._in_windows(image, (height, width), size)
            logits = self.task.predict(self.model, self.transform(image)[None].to(self.device))
            return resized_classes(logits, size).numpy()

    def _in_windows(self, image: np.ndarray, shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The image is normalised window by window, its logits never exist as a whole."""
        if image.shape[:2] != shape:
            resized: np.ndarray = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
            image = resized if resized.ndim == 3 else resized[:, :, None]
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]

        def prepare(window: torch.Tensor) -> torch.Tensor:
            return self.transform.normalize(window[0].permute(1, 2, 0).contiguous().numpy())[None].to(self.device)

        task = self.tiled if self.task.window is None or self.task.scales else self.task
        found = task.class_map(self.model, planes, prepare).numpy()
        return found if found.shape == size else resize_labels(found, size)


def save_map(
    image: np.ndarray, class_map: np.ndarray, name: Path, task: Segmentation, out: Path | None, formats: Collection[str], path: str
) -> MaskPrediction:
    """Write what is asked for of one image.

    Args:
        image: as it was read.
        name: of the files in `masks/` and `overlays/`, without suffix.
        out: folder; without one, the mask is kept in the result.
        formats: of "mask" and "overlay".
        path: of the image.
    """
    counts = np.bincount(class_map.ravel(), minlength=len(task.classes))
    shares = {task.classes[number]: float(counts[number] / class_map.size) for number in np.flatnonzero(counts)}
    found = MaskPrediction(path, class_map.shape[0], class_map.shape[1], shares)
    if out is None:
        return replace(found, mask=mask_png(class_map, task.palette))
    if "mask" in formats:
        found = replace(found, mask=mask_file(out, name))
        _write(mask_file(out, name), mask_png(class_map, task.palette))
    if "overlay" in formats:
        found = replace(found, overlay=overlay_file(out, name))
        _write(overlay_file(out, name), _overlay_jpeg(image, class_map, counts, task))
    return found


def mask_file(out: Path, name: Path) -> Path:
    """Where the mask of an image is written."""
    return out / "masks" / name.with_name(f"{name.name}.png")


def overlay_file(out: Path, name: Path) -> Path:
    """Where the overlay of an image is written."""
    return out / "overlays" / name.with_name(f"{name.name}.jpg")


def output_names(found: dict[Path, Path]) -> list[Path]:
    """Names of the results of images: where they lie in their source, without suffix unless two would have the same name.

    Args:
        found: place within its source by file.

    Raises:
        UserError: VA-C002, sources with images of the same name.
    """
    count = Counter(place.with_suffix("") for place in found.values())
    names = [place if count[place.with_suffix("")] > 1 else place.with_suffix("") for place in found.values()]
    seen: dict[Path, Path] = {}
    for path, name in zip(found, names, strict=True):
        if name in seen:
            raise UserError(
                "VA-C002", f'two images would be saved as "{name}"', where=f"{seen[name]}, {path}", fix="one --source and --out each"
            )
        seen[name] = path
    return names


def require_new(files: Sequence[Path]) -> None:
    """Stop before anything is overwritten.

    Raises:
        UserError: VA-R007.
    """
    there = [path for path in files if path.exists()]
    if there:
        what = f"{there[0]} exists already" + (f", and {len(there) - 1} more of the files to write" if len(there) > 1 else "")
        raise UserError("VA-R007", what, fix="another --out FOLDER, or remove them")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def _overlay_jpeg(image: np.ndarray, class_map: np.ndarray, counts: np.ndarray, task: Segmentation) -> bytes:
    factor = _OVERLAY_SIDE / max(class_map.shape)
    if factor < 1:
        size = (max(1, round(class_map.shape[0] * factor)), max(1, round(class_map.shape[1] * factor)))
        image, class_map = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), resize_labels(class_map, size)
        image = image if image.ndim == 3 else image[:, :, None]
    picture = overlay(as_picture(image), class_map, task.palette)
    letters = min(40, max(14, picture.shape[1] // 60))
    buffer = BytesIO()
    Image.fromarray(with_legend(picture, legend_entries(counts, task.classes, task.palette), letters)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

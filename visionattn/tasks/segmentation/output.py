"""Output of `predict`: masks at the image's size, overlays, probabilities, annotations in COCO's format, and the share of each class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from visionattn.data.images.transforms import resized_channels
from visionattn.data.masks.annotations.records import is_background
from visionattn.data.masks.areas import regions
from visionattn.data.masks.palettes import Colour, mask_png, overlay
from visionattn.data.masks.sets import resize_labels
from visionattn.errors import UserError
from visionattn.files import atomic_write, json_text
from visionattn.names import from_path, plain_path, shown
from visionattn.spill import Rows, npy_pieces
from visionattn.tasks.base import Answer, Bar, Prediction, Writer, WriterRequest
from visionattn.tasks.batch import Batch
from visionattn.tasks.images import as_picture
from visionattn.tasks.segmentation.decision import ImageMaps
from visionattn.tasks.segmentation.pictures import legend_entries, with_legend

_OVERLAY_SIDE = 4096  # longest side of an overlay
_SERVED_SIDE = 1280  # and of one on a page
_COCO = "coco.json"
_CLASSES = "classes.txt"  # the order of probabilities


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """Prediction for one image: the share of each class, and its class map.

    Attributes:
        path: path of the image.
        height: height of the upright image.
        width: width of the upright image.
        shares: share of the pixels by class name, without absent classes.
        mask: palette PNG of the class map: the file, or the PNG itself if nothing is saved; None if only other formats are saved.
        overlay: file of the overlay, if saved.
        confidence: file of the probability of each pixel's class, if saved.
        probabilities: file of the probabilities of all classes, if saved.
    """

    path: str
    height: int
    width: int
    shares: dict[str, float]
    mask: Path | bytes | None = None
    overlay: Path | None = None
    confidence: Path | None = None
    probabilities: Path | None = None

    def class_map(self) -> np.ndarray:
        """Decode the class of each pixel, `[height, width]`.

        Raises:
            ValueError: predictions were saved, but not their masks.
        """
        if self.mask is None:
            raise ValueError(f"the mask of {self.path} was not saved")
        return np.asarray(Image.open(BytesIO(self.mask) if isinstance(self.mask, bytes) else self.mask, formats=["PNG"]))

    def display_row(self) -> dict[str, str]:
        """Row of the table on the terminal."""
        largest = sorted(self.shares.items(), key=lambda item: -item[1])
        text = "  ".join(f"{name} {100 * share:.1f} %" for name, share in largest[:4])
        return {"image": self.path, "size": f"{self.width} x {self.height}", "pixels": text + ("  ..." if len(largest) > 4 else "")}

    def as_dict(self) -> dict[str, Any]:
        """Entry in `predictions.json`."""
        files = {"mask": self.mask if isinstance(self.mask, Path) else None, "overlay": self.overlay}
        files |= {"confidence": self.confidence, "probabilities": self.probabilities}
        facts = {"path": self.path, "height": self.height, "width": self.width, "shares": self.shares}
        return facts | {name: str(path) for name, path in files.items() if path is not None}


class MaskWriter(Writer):
    """Save the class map of each image before the next one is loaded.

    Args:
        classes: class names.
        palette: colour of each class.
        preview: channels that overlays show, as data.preview.

    Raises:
        UserError: VA-C002, two images would be saved under the same name.
    """

    def __init__(
        self, classes: Sequence[str], palette: Sequence[Colour], request: WriterRequest, preview: Sequence[int] | str | None = None
    ) -> None:
        self.classes, self.palette, self.out, self.preview = classes, palette, request.out, preview
        self.formats = request.formats
        self.names = output_names(request.files)
        self.places = list(request.files.values())
        self.categories = {name: number for number, name in enumerate((name for name in classes if not is_background(name)), 1)}
        self.annotated: Rows[tuple[dict[str, Any], list[dict[str, Any]]]] = Rows()

    def planned_files(self) -> list[Path]:
        if self.out is None:
            return []
        files = {"mask": mask_file, "overlay": overlay_file, "confidence": confidence_file, "probs": probabilities_file}
        planned = [file(self.out, name) for kind, file in files.items() if kind in self.formats for name in self.names]
        return planned + [self.out / _COCO] * ("coco" in self.formats) + [self.out / _CLASSES] * ("probs" in self.formats)

    def write(self, predictions: list[ImageMaps], batch: Batch) -> list[MaskPrediction]:
        """Write the maps of images `[H, W, C]`."""
        triples = zip(batch["image"], predictions, range(len(batch)), strict=True)
        return [self._write(image.numpy(), found, batch.indices[row], batch.ids[row]) for image, found, row in triples]

    def finish(self) -> None:
        if self.out is not None and "coco" in self.formats:
            atomic_write(self.out / _COCO, coco_json(self.annotated, self.categories))
        if self.out is not None and "probs" in self.formats:
            atomic_write(self.out / _CLASSES, "".join(f"{shown(name)}\n" for name in self.classes))

    def table(self, predictions: Sequence[MaskPrediction]) -> tuple[list[str], Iterable[list[Any]]]:
        """Tabulate the size of each image and the share of each class."""
        columns = ["path", "height", "width", *self.classes]
        return columns, ([item.path, item.height, item.width, *self._shares(item)] for item in predictions)

    def _shares(self, item: MaskPrediction) -> list[str]:
        return [f"{item.shares.get(name, 0):.6f}" for name in self.classes]

    def _write(self, image: np.ndarray, maps: ImageMaps, index: int, path: str) -> MaskPrediction:
        class_map = maps.classes
        counts = np.bincount(class_map.ravel(), minlength=len(self.classes))
        shares = {self.classes[number]: float(counts[number] / class_map.size) for number in np.flatnonzero(counts).tolist()}
        found = MaskPrediction(path, class_map.shape[0], class_map.shape[1], shares)
        if self.out is None:
            return replace(found, mask=mask_png(class_map, self.palette))
        name = self.names[index]
        if "mask" in self.formats:
            found = replace(found, mask=_save(mask_file(self.out, name), mask_png(class_map, self.palette)))
        if "overlay" in self.formats:
            found = replace(found, overlay=_save(overlay_file(self.out, name), self._overlay_jpeg(image, class_map, counts)))
        if maps.confidence is not None:
            picture = BytesIO()
            Image.fromarray(maps.confidence).save(picture, "PNG")
            found = replace(found, confidence=_save(confidence_file(self.out, name), picture.getvalue()))
        if maps.probabilities is not None:
            found = replace(found, probabilities=_save(probabilities_file(self.out, name), npy_pieces(maps.probabilities)))
        if "coco" in self.formats:
            place = from_path(self.places[index].as_posix())
            self.annotated.append(coco_records(place, class_map, index + 1, self.classes, self.categories))
        return found

    def present(self, predictions: list[ImageMaps], batch: Batch) -> Answer:
        """The prediction for one image as an answer of `serve`, with its mask and an overlay; `out` is None."""
        (found,), (image,), (maps,) = self.write(predictions, batch), batch["image"], predictions
        assert isinstance(found.mask, bytes)
        buffer = BytesIO()
        Image.fromarray(self._overlay(image.numpy(), maps.classes, _SERVED_SIDE)).save(buffer, "JPEG", quality=90)
        colours = dict(zip(self.classes, self.palette, strict=True))
        largest = sorted(found.shares.items(), key=lambda item: -item[1])
        bars = [Bar(shown(name), share, "#{:02x}{:02x}{:02x}".format(*colours[name])) for name, share in largest]
        facts = {key: value for key, value in found.as_dict().items() if key != "path"}
        pictures = {"overlay": ("image/jpeg", buffer.getvalue()), "mask": ("image/png", found.mask)}
        return Answer(facts, f"{found.width} x {found.height} pixels", "share of the pixels", bars, pictures)

    def _overlay(self, image: np.ndarray, class_map: np.ndarray, side: int) -> np.ndarray:
        """The classes over the image, at most `side` pixels per side."""
        factor = side / max(class_map.shape)
        if factor < 1:
            size = (max(1, round(class_map.shape[0] * factor)), max(1, round(class_map.shape[1] * factor)))
            image, class_map = resized_channels(image, size, cv2.INTER_AREA), resize_labels(class_map, size)
        return overlay(as_picture(image, self.preview), class_map, self.palette)

    def _overlay_jpeg(self, image: np.ndarray, class_map: np.ndarray, counts: np.ndarray) -> bytes:
        picture = self._overlay(image, class_map, _OVERLAY_SIDE)
        letters = min(40, max(14, picture.shape[1] // 60))
        entries = legend_entries(counts, self.classes, self.palette)
        buffer = BytesIO()
        Image.fromarray(with_legend(picture, entries, letters)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def coco_records(
    name: str, class_map: np.ndarray, number: int, classes: Sequence[str], categories: Mapping[str, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An image and the connected regions of its classes as entries of a COCO file; their ids are given where they are written.

    Args:
        categories: ids of the classes to write.
    """
    image = {"id": number, "file_name": name, "width": class_map.shape[1], "height": class_map.shape[0]}
    found = [
        {"image_id": number, "category_id": categories[classes[value]], "iscrowd": 0, **region._asdict()}
        for value in np.unique(class_map).tolist()
        if classes[value] in categories
        for region in regions(class_map == value)
    ]
    return image, found


def coco_json(annotated: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], categories: Mapping[str, int]) -> Iterator[str]:
    """A COCO file in pieces: a line per image and per annotation."""
    yield '{"images": ['
    for position, (image, _) in enumerate(annotated):
        yield f"{',' * (position > 0)}\n {_one_line(image)}"
    yield '\n], "annotations": ['
    number = 0
    for _, found in annotated:
        for annotation in found:
            number += 1
            yield f"{',' * (number > 1)}\n {json.dumps({'id': number, **annotation})}"
    named = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
    yield f'\n], "categories": {_one_line(named)}}}\n'


def _one_line(value: Any) -> str:
    return json_text(value).replace("\n", "")  # a line break in a text is an escape


def mask_file(out: Path, name: Path) -> Path:
    """Path of the mask of an image."""
    return out / "masks" / name.with_name(f"{name.name}.png")


def overlay_file(out: Path, name: Path) -> Path:
    """Path of the overlay of an image."""
    return out / "overlays" / name.with_name(f"{name.name}.jpg")


def confidence_file(out: Path, name: Path) -> Path:
    """Path of the confidence map of an image."""
    return out / "confidence" / name.with_name(f"{name.name}.png")


def probabilities_file(out: Path, name: Path) -> Path:
    """Path of the probabilities of an image."""
    return out / "probabilities" / name.with_name(f"{name.name}.npy")


def output_names(files: dict[Path, Path]) -> list[Path]:
    """Name the results by the path of each image in its source, without suffix unless two would then be equal.

    Parts that cannot name a file everywhere are changed: unprintable ones, `..`, and those without room for another suffix.

    Args:
        files: path within its source, by file.

    Raises:
        UserError: VA-C002, sources with images of the same name.
    """
    count = Counter(place.with_suffix("") for place in files.values())
    names = [plain_path(place if count[place.with_suffix("")] > 1 else place.with_suffix("")) for place in files.values()]
    seen: dict[Path, Path] = {}
    for path, name in zip(files, names, strict=True):
        if name in seen:
            raise UserError(
                "VA-C002",
                f'two images would be saved as "{name}"',
                where=f"{seen[name]}, {path}",
                fix="use a separate --source and --out for each",
            )
        seen[name] = path
    return names


def _save(path: Path, content: bytes | Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    return path

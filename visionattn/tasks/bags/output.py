"""Results of `predict` for bags: probabilities, attention of each instance, and heat maps over the slide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionattn.data.bags.readers import Bag
from visionattn.data.images.settings import ImageDataConfig
from visionattn.data.readers import UnreadableFile, read_image
from visionattn.data.walk import IMAGE_SUFFIXES
from visionattn.errors import UserError
from visionattn.files import atomic_write, csv_lines
from visionattn.heads.mil import BagOutput
from visionattn.names import file_name, to_path
from visionattn.tasks import base
from visionattn.tasks.bags.data import bags_of_files
from visionattn.tasks.bags.heatmap import heat_map
from visionattn.tasks.base import WriterRequest
from visionattn.tasks.batch import Batch


@dataclass(frozen=True)
class BagPrediction(base.Prediction):
    """One bag: classes with their probabilities, most probable first, and the files about its instances."""

    path: str
    classes: list[str]
    probabilities: list[float]
    instances: int
    attention: str | None = None
    heatmap: str | None = None

    def display_row(self) -> dict[str, str]:
        """A row of the table on the terminal."""
        return {"bag": self.path, "class": self.classes[0], "probability": f"{self.probabilities[0]:.3f}", "instances": str(self.instances)}


class BagWriter(base.Writer):
    """Writes a table of attention and a heat map per bag besides the tables.

    Args:
        classes: names in the order of the outputs.
        thumbnails: folder of pictures of the slides; empty for none.

    Raises:
        UserError: VA-D001, no such folder.
    """

    def __init__(self, classes: list[str], request: WriterRequest, thumbnails: str) -> None:
        self.classes, self.request = classes, request
        self.names = _file_names([bag.name for bag in bags_of_files(list(request.files))])
        self.thumbnails = _pictures(thumbnails) if thumbnails else {}
        self.written: list[Path] = []

    def planned_files(self) -> list[Path]:
        """Files of all bags; those that were written, once some were: only bags with coordinates have heat maps."""
        out = self.request.out
        if out is None or self.written:
            return self.written
        kinds = {"attention": ("attention", ".csv"), "heatmap": ("heatmaps", ".png")}
        return [out / kinds[form][0] / f"{name}{kinds[form][1]}" for form in kinds if form in self.request.formats for name in self.names]

    def write(self, predictions: BagOutput, batch: Batch) -> list[BagPrediction]:
        """Results of the output of bags."""
        found = predictions.logits.float().softmax(1).cpu().numpy()
        shares = predictions.attention.float().cpu().numpy()
        rows = zip(batch.indices, batch.ids, batch["bag"], found, shares, strict=True)
        return [self._written(index, name, bag, values, attention[: len(bag)]) for index, name, bag, values, attention in rows]

    def table(self, predictions: Sequence[BagPrediction]) -> tuple[list[str], Iterable[list[Any]]]:
        """A column per class."""
        columns = ["path", "prediction", *(f"p({name})" for name in self.classes), "instances"]
        return columns, (self._row(item) for item in predictions)

    def _row(self, item: BagPrediction) -> list[Any]:
        values = dict(zip(item.classes, item.probabilities, strict=True))
        return [item.path, item.classes[0], *(f"{values[name]:.6f}" for name in self.classes), item.instances]

    def _written(self, index: int, name: str, bag: Bag, values: np.ndarray, attention: np.ndarray) -> BagPrediction:
        order = np.argsort(-values, kind="stable")
        ranked = [self.classes[number] for number in order]
        found = BagPrediction(name, ranked, [float(value) for value in values[order]], len(bag))
        out, formats = self.request.out, self.request.formats
        if out is not None and "attention" in formats:
            path = out / "attention" / f"{self.names[index]}.csv"
            found = replace(found, attention=self._save(path, "".join(csv_lines(*attention_table(bag, attention)))))
        if out is not None and "heatmap" in formats and bag.coords is not None:
            picture = heat_map(attention, bag.coords, thumbnail=self._thumbnail(name), slide_size=bag.slide_size)
            content = BytesIO()
            Image.fromarray(picture).save(content, "PNG")
            found = replace(found, heatmap=self._save(out / "heatmaps" / f"{self.names[index]}.png", content.getvalue()))
        return found

    def _save(self, path: Path, content: str | bytes) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
        self.written.append(path)
        return str(path)

    def _thumbnail(self, name: str) -> Image.Image | None:
        """The picture of a slide; None if there is none."""
        path = self.thumbnails.get(Path(name).stem) or self.thumbnails.get(Path(name).name)
        if path is None:
            return None
        try:
            pixels = read_image(path, settings=ImageDataConfig(), in_chans=3)
        except UnreadableFile as error:
            raise UserError("VA-D010", f"the thumbnail of {name} cannot be read: {error.reason}", where=str(path)) from error
        return Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8))


def attention_table(bag: Bag, attention: np.ndarray) -> tuple[list[str], Iterable[Sequence[Any]]]:
    """Columns and rows of a table of instances: number, place if known, share of the attention."""
    shares = (f"{value:.8g}" for value in attention.tolist())
    if bag.coords is None:
        return ["instance", "attention"], zip(range(len(bag)), shares, strict=True)
    places = ([f"{value:.10g}" for value in place] for place in bag.coords.tolist())
    return ["instance", "x", "y", "attention"], (
        [number, *place, share] for number, (place, share) in enumerate(zip(places, shares, strict=True))
    )


def _file_names(names: Sequence[str]) -> list[str]:
    """A name of a file per bag, by the last part of its own; numbered where several are alike."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = base_name = file_name(_without_ending(Path(name).name), "")
        number = 2
        while plain.lower() in taken:
            plain, number = f"{base_name}-{number}", number + 1
        taken.add(plain.lower())
        found.append(plain)
    return found


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in ("h5", "hdf5", "npz", "pt") else name


def _pictures(folder: str) -> dict[str, Path]:
    """Pictures in a folder by their names without ending.

    Raises:
        UserError: VA-D001.
    """
    path = Path(to_path(folder)).expanduser()
    if not path.is_dir():
        raise UserError(
            "VA-D001", f'eval.thumbnails "{folder}" is not a folder', fix="eval.thumbnails=FOLDER, pictures named like the bags"
        )
    return {item.stem: item for item in sorted(path.iterdir()) if item.suffix.lower() in IMAGE_SUFFIXES}

"""Draw annotations as masks: index PNGs beside links to the images, in the layout that training reads, and a report."""

from __future__ import annotations

import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np

from visionattn.console import Console
from visionattn.data.masks.annotations.coco import read_coco
from visionattn.data.masks.annotations.cvat import read_cvat, read_cvat_masks
from visionattn.data.masks.annotations.find import (
    COCO,
    CVAT,
    CVAT_MASKS,
    LABEL_STUDIO,
    LABELME,
    ROBOFLOW,
    ROBOFLOW_MASKS,
    YOLO,
    Found,
    annotation_walker,
    find_annotations,
)
from visionattn.data.masks.annotations.label_studio import read_label_studio
from visionattn.data.masks.annotations.labelme import read_labelme
from visionattn.data.masks.annotations.records import AnnotatedImage, Annotations, Shape, is_background, is_ignored, refuse, split_of
from visionattn.data.masks.annotations.roboflow import read_roboflow_masks
from visionattn.data.masks.annotations.yolo import read_yolo
from visionattn.data.masks.areas import BadArea, Patch, Size, polygon_area, union
from visionattn.data.masks.convert import new_values
from visionattn.data.masks.palettes import default_palette, mask_png
from visionattn.data.masks.settings import IGNORE, MaskDataConfig
from visionattn.data.names import FileNames
from visionattn.data.readers import UnreadableFile, read_mask, upright_size
from visionattn.data.walk import IMAGE_SUFFIXES
from visionattn.errors import UserError
from visionattn.files import atomic_folder, atomic_write, counted, json_text
from visionattn.names import from_path, shown

_READERS: dict[str, Callable[[Found], Annotations]] = {
    COCO: read_coco,
    ROBOFLOW: read_coco,
    YOLO: read_yolo,
    LABELME: read_labelme,
    CVAT: read_cvat,
    CVAT_MASKS: read_cvat_masks,
    ROBOFLOW_MASKS: read_roboflow_masks,
    LABEL_STUDIO: read_label_studio,
}
_MOST_OBJECTS = 100_000  # of an image
_MOST_LAYERS = 1000  # times that the objects of an image may cover it
_CROSSING = 20  # pixels that take as long to fill as one crossing of an edge with a row takes to compute
_LEAST_WORK = 10**8
_MOST_CLASSES = 253
_SHOWN = 5
_LONGEST = 200  # characters of a name in a remark


@dataclass
class ClassReport:
    """Objects of one class: their number and that of images with them, areas in pixels, and visible pixels in all masks."""

    value: int
    name: str
    objects: int = 0
    images: int = 0
    pixels: int = 0
    smallest: int = 0
    median: float = 0
    largest: int = 0


@dataclass
class DrawnMasks:
    """What was drawn.

    Attributes:
        format: format of the annotations.
        files: number of their files.
        out: the new folder.
        images: images written by split; `all` if there are no splits.
        copied: images copied because they could not be linked.
        overlaps: pixels by "class on top over class below".
        rule: which of two objects that overlap is on top, and why.
        at_border: objects that touch the border of their image, which probably cuts them.
        beyond_border: of these, those with points outside of the image, which were cut off.
        without_pixels: objects too small or too far outside to cover the centre of a pixel.
        never_used: classes without an object.
        without_objects: images whose mask is only background.
        without_image: annotated images that were not found.
        not_annotated: images that the annotations do not name.
        other_size: images whose size is not that of their annotations.
        unreadable: images that cannot be read, with the reason.
        left_out: number of what is not an area, by a description.
    """

    format: str
    files: int
    out: str
    images: dict[str, int] = field(default_factory=dict)
    copied: int = 0
    classes: list[ClassReport] = field(default_factory=list)
    overlaps: dict[str, int] = field(default_factory=dict)
    rule: str = ""
    at_border: int = 0
    beyond_border: int = 0
    without_pixels: int = 0
    never_used: list[str] = field(default_factory=list)
    without_objects: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    not_annotated: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """What a user should know before training, a line each."""
        lines = [f"{pair}: {pixels:,} pixels" for pair, pixels in list(self.overlaps.items())[:_SHOWN]]
        if lines:
            lines = ["objects overlap: " + "; ".join(lines) + (" ..." if len(self.overlaps) > _SHOWN else ""), self.rule]
        if self.at_border:
            beyond = f", {self.beyond_border:,} of them with points outside, which are cut off" if self.beyond_border else ""
            lines.append(f"{counted(self.at_border, 'object')} at the border of an image{beyond}")
        if self.without_pixels:
            lines.append(f"{counted(self.without_pixels, 'object')} too small or too far outside to cover a pixel")
        if self.never_used:
            lines.append(f"classes without an object: {_some(self.never_used)}")
        lists = {
            "without an object, so only background": self.without_objects,
            "named by the annotations but not found": self.without_image,
            "not named by the annotations, left out": self.not_annotated,
            "left out, because their size is not that of the annotations": self.other_size,
            "left out, because they cannot be read": self.unreadable,
        }
        lines += [f"{counted(len(names), 'image')} {what}: {_some(names)}" for what, names in lists.items() if names]
        return lines + [f"left out {number:,}: {what}" for what, number in self.left_out.items()]


def draw_masks(source: Path, *, images: Path | None = None, out: Path | None = None, console: Console | None = None) -> DrawnMasks:
    """Write the masks of annotated images as palette PNGs, with links to the images, to a new folder that training reads.

    Images are hard links where the system allows them, otherwise copies: the folder then holds all that training needs, whatever
    happens to the old one, and takes no more space.

    Args:
        source: folder or file of annotations.
        images: folder of the images, if they are not below that of the annotations.
        out: new folder, by default `<source>-masks` beside source.
        console: where progress is printed.

    Raises:
        UserError: VA-D001, no such folder, or none of the images; VA-D002, annotations that cannot be used; VA-C002, more classes than
            a mask has values; VA-R007, `out` exists. Nothing is written in these cases.
    """
    source = source.expanduser().resolve()
    found = find_annotations(source)
    target = source.with_name(f"{source.stem if source.is_file() else source.name}-masks") if out is None else out.expanduser().resolve()
    if target.exists():
        raise UserError("VA-R007", f"{shown(str(target))} exists already", fix="--out with a new folder")
    annotations = _READERS[found.format](found)
    values = _values(annotations.classes)
    report = DrawnMasks(found.format, len(found.files), str(target), left_out=dict(annotations.left_out), rule=annotations.rule)
    folder = _image_folder(found, images)
    pairs = _with_paths(annotations, folder, report)
    report.classes = [ClassReport(value, name) for name, value in values.items()]
    areas: dict[int, array[int]] = {value: array("Q") for value in values.values()}
    splits = _splits([image for image, _ in pairs])
    console = console or Console(quiet=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as new, console.progress("masks", len(pairs)) as bar:
        for number, (image, path, place) in enumerate(_placed(pairs, splits), 1):
            drawn = _draw(image, path, annotations, values, report)
            if drawn is not None:
                split = splits[image.split]
                _write(new, split, place, path, drawn, report)
                report.images[split or "all"] = report.images.get(split or "all", 0) + 1
                _add(report, areas, drawn, image)
            bar.update(number)
        if not report.images:
            where = "\n".join([*report.other_size, *report.unreadable][:_SHOWN])
            fix = "--images FOLDER, with the images that were annotated"
            raise UserError("VA-D013", "no image can be read and has the size of its annotations", where=where, fix=fix)
        _finish(report, areas)
        atomic_write(new / "classes.txt", _class_lines(report))
        atomic_write(new / "report.json", json_text(asdict(report)))
    return report


# ---------------------------------------------------------------- images


def _image_folder(found: Found, images: Path | None) -> Path:
    if images is not None:
        images = images.expanduser().resolve()
        if not images.is_dir():
            raise UserError("VA-D001", f'--images "{shown(str(images))}" is not a folder')
        return images
    # COCO keeps its files in a folder beside those of the images.
    return found.root.parent if found.root.name == "annotations" else found.root


def _with_paths(annotations: Annotations, folder: Path, report: DrawnMasks) -> list[tuple[AnnotatedImage, str]]:
    """The annotated images with their files, by names that lead nowhere else: a name is looked up among the files of the folder."""
    files = [path for path in annotation_walker(IMAGE_SUFFIXES).files(folder) if not _is_mask(path, folder, annotations)]
    names = FileNames(files, folder, folder)
    pairs: list[tuple[AnnotatedImage, str]] = []
    twice: dict[str, str] = {}
    for image in annotations.images:
        fitting = _fitting(image, names, folder)
        if len(fitting) > 1:
            raise UserError(
                "VA-D002",
                f'"{_some([image.name])}" fits {len(fitting):,} images',
                where="\n".join([image.where, *sorted(fitting)[:_SHOWN]]),
                fix="--images with the folder of those that are meant",
            )
        if not fitting:
            report.without_image.append(image.name)
            continue
        path = next(iter(fitting))
        if path in twice:
            refuse(f"{twice[path]}, {image.where}", f"{from_path(os.path.relpath(path, folder))} is annotated twice")
        twice[path] = image.where
        pairs.append((image, path))
    if not pairs:
        what = f"none of the {counted(len(annotations.images), 'annotated image')} is in {shown(str(folder))}"
        example = f"for example {_some(report.without_image[:1])}" if report.without_image else "the annotations name no image"
        raise UserError("VA-D001", what, why=example, fix="--images FOLDER")
    report.not_annotated = [from_path(os.path.relpath(path, folder)) for path in files if path not in twice]
    return pairs


def _is_mask(path: str, folder: Path, annotations: Annotations) -> bool:
    if annotations.mask_suffix and path.endswith(annotations.mask_suffix):
        return True
    return bool(set(annotations.mask_folders) & set(Path(os.path.relpath(path, folder)).parts[:-1]))


def _fitting(image: AnnotatedImage, names: FileNames, folder: Path) -> set[str]:
    """The files that may be an image: by its path, its name, its other name; of several the one in a folder named after its split."""
    for name in (image.name, image.name.replace("\\", "/").rpartition("/")[2], image.other_name):
        fitting = names.fitting(name) if name else set()
        if len(fitting) > 1:
            near = {path for path in fitting if split_of(*Path(os.path.relpath(path, folder)).parts[:-1]) == image.split}
            fitting = near if len(near) == 1 else fitting
        if fitting:
            return fitting
    return set()


def _splits(images: Sequence[AnnotatedImage]) -> dict[str, str]:
    """The folder of each split; none if there is only one, because nothing else could then be trained on."""
    present = {image.split for image in images}
    if len(present) < 2 or "train" not in present | {"train" if "all" in present else ""}:
        return dict.fromkeys(present, "")
    return {split: "train" if split == "all" else split for split in present}


def _placed(pairs: Sequence[tuple[AnnotatedImage, str]], splits: dict[str, str]) -> list[tuple[AnnotatedImage, str, Path]]:
    """Each image with its place in the folder of its split: below what the paths of the split have in common, with a unique stem."""
    above = {
        split: os.path.commonpath([os.path.dirname(path) for image, path in pairs if splits[image.split] == split])
        for split in set(splits.values())
    }
    places = [Path(os.path.relpath(path, above[splits[image.split]])) for image, path in pairs]
    stems = Counter((splits[image.split], place.with_suffix("")) for (image, _), place in zip(pairs, places, strict=True))
    placed = []
    seen: set[tuple[str, Path]] = set()
    for (image, path), place in zip(pairs, places, strict=True):
        split = splits[image.split]
        if stems[split, place.with_suffix("")] > 1:  # a mask belongs to an image by its name without ending
            place = place.with_name(f"{place.stem}-{place.suffix[1:]}{place.suffix}")
        if (split, place.with_suffix("")) in seen:
            raise UserError(
                "VA-C002", f'two images would both be called "{shown(str(place))}"', where=shown(path), fix="rename one of them"
            )
        seen.add((split, place.with_suffix("")))
        placed.append((image, path, place))
    return placed


def _write(new: Path, split: str, place: Path, path: str, drawn: Drawn, report: DrawnMasks) -> None:
    image, mask = new / "images" / split / place, (new / "masks" / split / place).with_suffix(".png")
    for file in (image, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
    mask.write_bytes(mask_png(drawn.labels, default_palette(len(report.classes))))
    original = os.path.realpath(path)  # of a link, which could lead nowhere from its new place
    try:
        os.link(original, image)
    except OSError:  # another disk, or a system without links
        shutil.copyfile(original, image)
        report.copied += 1


# ---------------------------------------------------------------- classes


def _values(classes: list[str]) -> dict[str, int]:
    """The value of each class: 0 for the background, whatever it is called, the others in their order."""
    background = next(filter(is_background, classes), "background")
    others = [name for name in classes if name != background]
    if len(others) > _MOST_CLASSES - 1:
        fix = "leave classes out in the tool that the annotations come from"
        raise UserError("VA-C002", f"{len(others):,} classes, at most {_MOST_CLASSES - 1} besides the background", fix=fix)
    return {background: 0, **{name: value for value, name in enumerate(others, 1)}}


def _class_lines(report: DrawnMasks) -> str:
    palette = default_palette(len(report.classes))
    lines = [f"{item.value} {item.name} {' '.join(map(str, colour))}" for item, colour in zip(report.classes, palette, strict=True)]
    return "".join(f"{line}\n" for line in lines)


# ---------------------------------------------------------------- drawing


class Drawn(NamedTuple):
    """A mask, the class and area of each object, pixels of overlaps by (class on top, class below), and counts for the report."""

    labels: np.ndarray
    objects: list[tuple[int, int]]
    overlaps: Counter[tuple[int, int]]
    at_border: int
    beyond_border: int


def _draw(image: AnnotatedImage, path: str, annotations: Annotations, values: dict[str, int], report: DrawnMasks) -> Drawn | None:
    """The mask of an image; None, with an entry in the report, for one that cannot be used."""
    limit = MaskDataConfig().max_bytes
    try:
        size = upright_size(Path(path), max_bytes=limit)
        if image.size is not None and image.size != size:
            report.other_size.append(f"{image.name}: {size[1]} x {size[0]}, annotated {image.size[1]} x {image.size[0]}")
            return None
        if image.mask is not None:
            labels = _labels_of(image.mask, annotations, values, limit)
            if labels.shape != size:
                report.other_size.append(f"{image.name}: {size[1]} x {size[0]}, mask {labels.shape[1]} x {labels.shape[0]}")
                return None
            return _regions_of(labels)
    except UnreadableFile as error:
        report.unreadable.append(f"{image.name}: {error.reason}")
        return None
    return _paint(image, size, annotations.on_top == "smaller", values)


def _labels_of(path: Path, annotations: Annotations, values: dict[str, int], limit: int) -> np.ndarray:
    """Values of the classes for those of a mask file."""
    pixels = read_mask(path, max_bytes=limit)
    classes = {index: values[name] for index, name in enumerate(annotations.classes)}
    changes = {number: classes[index] for number, index in annotations.numbers.items()}
    try:
        labels = new_values(str(path), pixels, changes, annotations.colours, Counter(), Counter())
    except UserError as error:
        fix = "name them in the list of classes beside the masks"
        raise UserError(error.code, error.what, where=error.where, why=error.why, fix=fix) from error
    known = {*annotations.numbers} if not annotations.colours else {*range(len(annotations.classes))}
    if not pixels.colour and not (pixels.palette and annotations.colours):
        stray = sorted(set(np.unique(pixels.values).tolist()) - known)
        if stray:
            raise UserError(
                "VA-D012", f"values without a class: {', '.join(map(str, stray[:8]))}", where=shown(str(path)), why="nothing was written"
            )
    return labels.astype(np.uint8)


def _regions_of(labels: np.ndarray) -> Drawn:
    """A finished mask, whose connected regions are counted as objects."""
    objects, at_border = [], 0
    height, width = labels.shape
    for value in np.unique(labels[labels > 0]).tolist():
        count, _, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8), connectivity=8)
        left, top, wide, high, area = stats[1:count].T
        objects += [(value, pixels) for pixels in area.tolist()]
        at_border += int(((left == 0) | (top == 0) | (left + wide == width) | (top + high == height)).sum())
    return Drawn(labels, objects, Counter(), at_border, 0)


def _paint(image: AnnotatedImage, size: Size, smaller_on_top: bool, values: dict[str, int]) -> Drawn:
    """Paint the objects of an image, layer by layer; smaller ones stay on top of those that are painted later."""
    shapes = image.shapes(size)
    if len(shapes) > _MOST_OBJECTS:
        refuse(image.where, f"{len(shapes):,} objects in an image, at most {_MOST_OBJECTS:,} are drawn")
    labels, covered = np.zeros(size, np.uint8), np.zeros(size, bool)
    area_on_top = np.full(size, np.iinfo(np.int32).max, np.int32)
    drawn = Drawn(labels, [], Counter(), 0, 0)
    at_border = beyond_border = work = 0
    layer = None
    for number, shape in sorted(enumerate(shapes, 1), key=lambda item: item[1].layer):
        if smaller_on_top and layer != shape.layer:
            layer = shape.layer
            area_on_top[:] = np.iinfo(np.int32).max
        try:
            work += _CROSSING * sum(map(_crossings, shape.rings, [size] * len(shape.rings)))
            if work > max(_MOST_LAYERS * size[0] * size[1], _LEAST_WORK):
                raise BadArea(f"the objects before it cover the image {_MOST_LAYERS:,} times or have as many points")
            patch = shape.draw(size) if shape.draw is not None else union([polygon_area([ring], size) for ring in shape.rings])
        except BadArea as error:
            refuse(f"{image.where}: object {number}", str(error))
        work += patch.pixels.size
        area = int(patch.pixels.sum())
        value = IGNORE if is_ignored(shape.label) else values[shape.label]
        drawn.objects.append((value, area))
        if area == 0:
            continue
        box = patch.within(labels)
        wins = patch.pixels & (area <= patch.within(area_on_top)) if smaller_on_top else patch.pixels
        _count_overlaps(drawn.overlaps, patch, box, patch.within(covered), wins, value)
        box[wins] = value
        patch.within(covered)[patch.pixels] = True
        if smaller_on_top:
            patch.within(area_on_top)[wins] = area
        at_border += _touches_border(patch, size)
        beyond_border += _leaves(shape, size)
    return drawn._replace(at_border=at_border, beyond_border=beyond_border)


def _crossings(ring: np.ndarray, size: Size) -> int:
    """Times that the edges of a polygon cross a row of pixels, about."""
    heights = ring[:, 1].clip(0, size[0])
    return int(np.abs(heights - np.roll(heights, 1)).sum()) + len(ring)


def _count_overlaps(
    overlaps: Counter[tuple[int, int]], patch: Patch, box: np.ndarray, covered: np.ndarray, wins: np.ndarray, value: int
) -> None:
    """Count the pixels that an object shares with others of another class, before it is painted."""
    shared = patch.pixels & covered & (box != value)
    if not shared.any():
        return
    for won in (True, False):
        below, pixels = np.unique(box[shared & (wins == won)], return_counts=True)
        for other, count in zip(below.tolist(), pixels.tolist(), strict=True):
            overlaps[(value, other) if won else (other, value)] += count


def _touches_border(patch: Patch, size: Size) -> bool:
    rows, columns = np.flatnonzero(patch.pixels.any(1)), np.flatnonzero(patch.pixels.any(0))
    top, left = patch.row + rows[0], patch.column + columns[0]
    return bool(top == 0 or left == 0 or patch.row + rows[-1] == size[0] - 1 or patch.column + columns[-1] == size[1] - 1)


def _leaves(shape: Shape, size: Size) -> bool:
    """Whether points lie outside of the image by more than a pixel."""
    return any(bool((ring < -1).any() or (ring > (size[1] + 1, size[0] + 1)).any()) for ring in shape.rings)


# ---------------------------------------------------------------- report


def _add(report: DrawnMasks, areas: dict[int, array[int]], drawn: Drawn, image: AnnotatedImage) -> None:
    """Add one image to the report."""
    names = {item.value: item.name for item in report.classes}
    pixels = np.bincount(drawn.labels.ravel(), minlength=256)
    if IGNORE not in names and any(value == IGNORE for value, _ in drawn.objects):
        report.classes.append(ClassReport(IGNORE, "ignored"))
        areas[IGNORE] = array("Q")
        names[IGNORE] = "ignored"
    present = {value for value, _ in drawn.objects}
    for item in report.classes:
        item.pixels += int(pixels[item.value])
        item.images += item.value in present
    for value, area in drawn.objects:
        areas[value].append(area)
        report.without_pixels += area == 0
    for (top, below), count in drawn.overlaps.items():
        pair = f"{names[top]} over {names[below]}"
        report.overlaps[pair] = report.overlaps.get(pair, 0) + count
    report.at_border += drawn.at_border
    report.beyond_border += drawn.beyond_border
    if not drawn.objects:
        report.without_objects.append(image.name)


def _finish(report: DrawnMasks, areas: dict[int, array[int]]) -> None:
    for item in report.classes:
        found = areas[item.value]
        item.objects = len(found)
        if found:
            item.smallest, item.median, item.largest = min(found), median(found), max(found)
    report.never_used = [item.name for item in report.classes if item.value and not item.objects]
    report.overlaps = dict(sorted(report.overlaps.items(), key=lambda pair: -pair[1]))


def _some(names: list[str]) -> str:
    return shown(", ".join(name[:_LONGEST] for name in names[:3])) + (", ..." if len(names) > 3 else "")

"""CVAT's exports: the XML of "CVAT for images 1.1", and the pictures of "Segmentation mask 1.1".

https://docs.cvat.ai/docs/dataset_management/formats
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from visionattn.data.masks.annotations.find import Found
from visionattn.data.masks.annotations.records import (
    AnnotatedImage,
    Annotations,
    Shape,
    class_name,
    is_background,
    numbers,
    refuse,
    require_some,
    ring,
    split_of,
)
from visionattn.data.masks.areas import BadArea, Patch, Size, ellipse, rectangle, run_area, turned
from visionattn.data.tables import read_lines

_RULE = "the object with the higher z_order is on top, of equal ones the later one, as CVAT shows them"
_AREAS = ("polygon", "mask", "box", "ellipse")
_MOST_BYTES = 2**28
_COLOURED = "the masks are finished: what was on top in CVAT is in them"


# ---------------------------------------------------------------- XML


def read_cvat(found: Found) -> Annotations:
    """Read the images of all XML files; boxes and ellipses are areas, as in CVAT's own export of masks."""
    roots = {path: _parse(path) for path in found.files}
    left_out: Counter[str] = Counter()
    names: dict[str, None] = {}
    count = 0
    for path, root in roots.items():
        if root.find("track") is not None:
            refuse(path, "tracks of a video", why='export the task as "CVAT for images 1.1", with the images')
        names |= dict.fromkeys(class_name(name.text, path) for name in root.iterfind("meta//labels/label/name"))
        for item in (item for image in root.iterfind("image") for item in image):
            if item.tag in _AREAS:
                count += 1
                names[class_name(item.get("label"), path)] = None
            else:
                left_out[f"a {item.tag}, which has no area"] += 1
    require_some(count, left_out, found.root)
    return Annotations(list(names), list(_images(roots, found.root)), "later", _RULE, left_out)


def _parse(path: Path) -> ElementTree.Element:
    """The tree of an XML file without definitions, with which a small file can become a large tree or name other files."""
    if path.stat().st_size > _MOST_BYTES:
        refuse(path, f"a file of {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(path, f"not text in UTF-8: {error.reason}")
    if "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):
        refuse(path, "definitions in XML (<!DOCTYPE ...>), which CVAT does not write")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError) as error:
        refuse(path, f"not XML: {error}")


def _images(roots: dict[Path, ElementTree.Element], folder: Path) -> Iterator[AnnotatedImage]:
    for path, root in roots.items():
        for image in root.iterfind("image"):
            name = image.get("name") or ""
            where = f"{path.relative_to(folder).as_posix()}: image {name}"
            if not name:
                refuse(where, "an image without a name")
            width, height = (int(value) for value in numbers(image, ["width", "height"], where))
            split = split_of(image.get("subset") or "")
            yield AnnotatedImage(name, split, (height, width), partial(_shapes, image, where), where)


def _shapes(image: ElementTree.Element, where: str, size: Size) -> list[Shape]:
    return [_shape(item, f"{where}: {item.tag} {number}") for number, item in enumerate(image, 1) if item.tag in _AREAS]


def _shape(item: ElementTree.Element, where: str) -> Shape:
    label, layer = class_name(item.get("label"), where), int(numbers({"z_order": item.get("z_order") or 0}, ["z_order"], where)[0])
    if item.tag == "polygon":
        points = ring([pair.split(",") for pair in (item.get("points") or "").split(";") if pair.strip()], where)
        return Shape(label, (points,) if len(points) > 2 else (), layer=layer)
    if item.tag == "mask":
        top, left, height, width = (int(value) for value in numbers(item, ["top", "left", "height", "width"], where))
        return Shape(label, draw=partial(_draw_mask, item.get("rle") or "", (top, left, height, width)), layer=layer)
    angle = numbers({"rotation": item.get("rotation") or 0}, ["rotation"], where)[0]
    if item.tag == "box":
        x1, y1, x2, y2 = numbers(item, ["xtl", "ytl", "xbr", "ybr"], where)
        outline, centre = rectangle(x1, y1, x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2)
    else:
        x, y, radius_x, radius_y = numbers(item, ["cx", "cy", "rx", "ry"], where)
        outline, centre = ellipse(x, y, radius_x, radius_y), (x, y)
    return Shape(label, (turned(outline, centre, angle) if angle else outline,), layer=layer)


def _draw_mask(text: str, box: tuple[int, int, int, int], size: Size) -> Patch:
    """Run lengths along the rows of a box."""
    top, left, height, width = box
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise BadArea(f"a mask of {width} x {height} pixels at {left}, {top}, which reaches out of the image")
    counts = text.split(",")
    if not all(count.strip().isdecimal() and len(count) < 12 for count in counts):
        raise BadArea("run lengths that are not whole numbers")
    return Patch(top, left, run_area([int(count) for count in counts], (height, width), by_column=False))


# ---------------------------------------------------------------- pictures


def read_cvat_masks(found: Found) -> Annotations:
    """Read labelmap.txt, `label:R,G,B:parts:actions`, and list the masks in SegmentationClass."""
    if len(found.files) > 1:
        refuse(found.root, f"{len(found.files)} files labelmap.txt", why="give one of them: visionattn data masks from FOLDER/labelmap.txt")
    path = found.files[0]
    classes: list[str] = []
    colours: dict[int, int] = {}
    for line in read_lines(path):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and len(part) < 6 and int(part) < 256 for part in parts):
            refuse(path, f"a line that is not label:R,G,B:parts:actions: {line[:80]}")
        red, green, blue = map(int, parts)
        colours.setdefault(red << 16 | green << 8 | blue, len(classes))
        classes.append(class_name(name, path))
    if not classes:
        refuse(path, "a list of labels without a label")
    nothing = next((index for index, name in enumerate(classes) if is_background(name)), len(classes))
    if nothing == len(classes):
        classes.append("background")
    colours.setdefault(0, nothing)  # black stays where nothing was drawn
    values = {index: index for index in range(len(classes))}
    images = list(_masks(path.parent))
    folders = ("SegmentationClass", "SegmentationObject")
    return Annotations(classes, images, "later", _COLOURED, numbers=values, colours=colours, mask_folders=folders)


def _masks(root: Path) -> Iterator[AnnotatedImage]:
    """The masks, each in the split whose list names it."""
    splits: dict[str, str] = {}
    for listed in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        splits |= dict.fromkeys(read_lines(listed), split_of(listed.stem))
    folder = root / "SegmentationClass"
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        where = path.relative_to(root).as_posix()
        yield AnnotatedImage(name, splits.get(name, "all"), None, lambda size: [], where, path)

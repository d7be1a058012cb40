"""Recognise what annotations a folder or a file contains, by names and first bytes; needs neither numpy nor torch."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from visionattn.config.schema import DataConfig
from visionattn.data.walk import Walker
from visionattn.errors import UserError
from visionattn.names import shown, to_path

COCO, ROBOFLOW, ROBOFLOW_MASKS, YOLO = "COCO", "Roboflow (COCO)", "Roboflow (masks)", "YOLO polygons"
LABELME, CVAT, CVAT_MASKS, LABEL_STUDIO = "LabelMe", "CVAT (XML)", "CVAT (segmentation mask)", "Label Studio"

_ACCEPTED = """accepted annotations:
  COCO: a .json file per split; Roboflow's: _annotations.coco.json beside the images of each split
  YOLO polygons: data.yaml, images/train/*.jpg and labels/train/*.txt (or train/images and train/labels)
  LabelMe: a .json file per image
  CVAT: annotations.xml of "CVAT for images 1.1", or labelmap.txt and SegmentationClass of "Segmentation mask 1.1"
  Roboflow masks: X.jpg, X_mask.png and _classes.csv in the folder of each split
  Label Studio: the .json file of its export "JSON\""""
_START = 2**16  # bytes that tell what a JSON or XML file is
_TEXTS = frozenset({".json", ".xml", ".yaml", ".yml", ".txt", ".csv"})
_LAYOUT_ERRORS = ("VA-D002", "VA-D003", "VA-D021", "VA-C002")
_FEW = 200  # text files of which one has to look like YOLO's; folders that are looked into for advice
_DEPTH = 3  # of these folders
_LISTED = 20  # files of each
_YOLO_LINE = re.compile(r"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*", re.IGNORECASE)
_KEYS = {key: re.compile(rf'"{key}"\s*:\s*\[') for key in ("images", "annotations", "categories", "shapes", "completions", "result")}


class Found(NamedTuple):
    """Annotations of one format: the folder given or that of the file given, and the files, sorted."""

    format: str
    root: Path
    files: tuple[Path, ...]


def find_annotations(source: Path) -> Found:
    """The annotations in a folder or file.

    Raises:
        UserError: VA-D001, nothing there; VA-D002, none of the formats, or several.
    """
    if not source.is_dir() and not source.is_file():
        what = "is not a regular file" if source.exists() else "not found"
        raise UserError("VA-D001", f'"{shown(str(source))}" {what}', fix="visionattn data masks from FOLDER_OR_FILE")
    found = _in_folder(source, map(Path, annotation_walker(_TEXTS).files(source))) if source.is_dir() else _in_file(source)
    if not found:
        raise UserError(
            "VA-D002", f'no annotations recognised in "{shown(str(source))}"', why=_ACCEPTED, fix="give the folder or file of one"
        )
    if len(found) > 1:
        kinds = [f"{item.format}: {shown(str(item.files[0]))}" for item in found]
        raise UserError(
            "VA-D002",
            "annotations of several formats",
            where="\n".join(kinds),
            fix="\n".join(map(masks_command, (i.files[0] for i in found))),
        )
    return found[0]


@contextmanager
def annotations_advised(root: str) -> Iterator[None]:
    """Add to an error about the layout of a folder that annotations lie in it, with the command that draws them as masks."""
    try:
        yield
    except UserError as error:
        folder, found = Path(to_path(root)).expanduser(), []
        if root and error.code in _LAYOUT_ERRORS:
            with suppress(OSError):
                found = _in_folder(folder, _some_files(folder))
        # The folders of these two are taken for images with masks whose classes are unknown.
        if not found or (error.code == "VA-C002" and found[0].format not in (ROBOFLOW_MASKS, YOLO)):
            raise
        why = f"data.root contains annotations of {found[0].format}, which can be drawn as masks"
        fix = masks_command(folder)  # which prints the command that trains, with data.val_fraction where it is needed
        # Images held out of folders that are no classes, and classes of masks that are not there, would help nobody.
        if error.code != "VA-D003" and found[0].format != YOLO:
            why, fix = f"{why}\n{error.why}".rstrip(), fix + (f"\nor {error.fix}" if error.fix else "")
        raise UserError(error.code, error.what, where=error.where, why=why, fix=fix, exit_code=error.exit_code) from error


def _some_files(root: Path) -> list[Path]:
    """Files near the top of a folder, of which there may be any number."""
    found: list[Path] = []
    for place, folders, names in islice(os.walk(root), _FEW):
        if len(Path(place).relative_to(root).parts) >= _DEPTH:
            folders.clear()
        found += [Path(place, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in _TEXTS][:_LISTED]
    return found


def masks_command(source: Path) -> str:
    """`visionattn data masks from` for a folder or file."""
    return f"visionattn data masks from {shlex.quote(str(source))}"


def annotation_walker(suffixes: Iterable[str]) -> Walker:
    """A walker that skips what data.exclude skips by default."""
    return Walker(frozenset(suffixes), DataConfig().exclude)


def _in_file(path: Path) -> list[Found]:
    root, name = path.parent, path.name.lower()
    if name == "_classes.csv":
        return [Found(ROBOFLOW_MASKS, root, (path,))] if _lists_values(path) else []
    if name == "labelmap.txt":
        return [Found(CVAT_MASKS, root, (path,))] if (root / "SegmentationClass").is_dir() else []
    if name.endswith((".yaml", ".yml")):
        labels = any(folder.is_dir() for pattern in ("labels", "*/labels") for folder in root.glob(pattern))
        return [Found(YOLO, root, (path,))] if labels and _names_classes(path) else []
    kind = _kind(path)
    return [Found(kind, root, (path,))] if kind else []


def _in_folder(root: Path, paths: Iterable[Path]) -> list[Found]:
    files: dict[str, list[Path]] = {}
    texts: list[Path] = []
    for path in paths:
        if path.suffix.lower() == ".txt" and path.name.lower() != "labelmap.txt":
            texts.append(path)
        else:
            for item in _in_file(path) if path.is_file() else ():
                files.setdefault(item.format, []).append(path)
    labels = [path for path in texts if "labels" in path.relative_to(root).parts[:-1] and path.is_file()]
    if YOLO not in files and any(_YOLO_LINE.fullmatch(_first_line(path)) for path in labels[:_FEW]):
        files[YOLO] = labels[:1]
    # The original data set has captions and key points of the same images in further files.
    files[COCO] = [path for path in files.get(COCO, []) if path.name.startswith("instances_")] or files.get(COCO, [])
    return [Found(kind, root, tuple(sorted(paths))) for kind, paths in files.items() if paths]


def _kind(path: Path) -> str:
    """The format of a JSON or XML file, by its beginning."""
    if path.suffix.lower() not in (".json", ".xml") or not path.is_file():
        return ""
    text = _start(path).lstrip()
    if path.suffix.lower() == ".xml":
        return CVAT if re.search(r"<annotations\b", text) else ""
    has = {key for key, pattern in _KEYS.items() if pattern.search(text)}
    if text.startswith("["):
        return LABEL_STUDIO if has & {"annotations", "completions"} and ("result" in has or '"data"' in text) else ""
    if "shapes" in has:
        return LABELME
    if "images" in has or has >= {"annotations", "categories"}:
        return ROBOFLOW if path.name == "_annotations.coco.json" else COCO
    return ""


def _lists_values(path: Path) -> bool:
    return "pixel value" in _first_line(path).lower()


def _names_classes(path: Path) -> bool:
    return re.search(r"^names:", _start(path), re.MULTILINE) is not None


def _first_line(path: Path) -> str:
    return _start(path).partition("\n")[0].rstrip("\r")


def _start(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_START).decode("utf-8-sig", "replace")

"""Find the images and masks of a segmentation dataset: the accepted layouts, each read into pairs of files."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from visionattn.data.images.layouts import SPLITS, class_folders, csv_header, excluded, image_files, split_names, tree
from visionattn.data.masks.settings import MaskDataConfig
from visionattn.data.root import find_root
from visionattn.data.splits import Note
from visionattn.errors import UserError
from visionattn.names import from_path, shown, to_path

_ACCEPTED = """accepted layouts:
  ROOT/images/train/*.jpg and ROOT/masks/train/*.png (and val, test), or ROOT/train/images and ROOT/train/masks
  ROOT/images/*.jpg and ROOT/masks/*.png, with data.val_fraction=0.2 or ROOT/split.csv: columns image,split
  ROOT/train.csv and ROOT/val.csv, or ROOT a .csv file: columns image,mask[,split]
  ADE20K, Cityscapes, Pascal VOC or CamVid as they are published
  others: data.images=FOLDER/{split} data.masks=FOLDER/{split} (data.mask_suffix)"""


@dataclass(frozen=True)
class MaskLayout:
    """Location of images and masks below `root`; `{split}` in a pattern is replaced by the names in `names`.

    An image `a` + image_suffix has the mask `a` + mask_suffix; empty suffixes match any image type. `lists` is the
    pattern of text files with the stems of a split. `classes` is the class list of the layout.
    """

    format: str
    root: Path
    images: str
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""
    lists: str = ""
    classes: str = ""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def unsplit(self) -> bool:
        """Whether the folders do not determine the split."""
        return "{split}" not in self.images and not self.lists

    def part(self, pattern: str, split: str) -> Path | None:
        """Return the folder or file of a split, if it exists."""
        paths = [self.root / pattern.format(split=name) for name in self.names[split]]
        return next((path for path in paths if path.exists()), None)


_HERE = Path()
_KNOWN = (
    MaskLayout(
        "cityscapes", _HERE, "leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit.png", "_gtFine_labelIds.png", classes="cityscapes"
    ),
    MaskLayout("ade20k", _HERE, "images/{split}", "annotations/{split}", classes="ade20k"),
    MaskLayout("voc", _HERE, "JPEGImages", "SegmentationClass", lists="ImageSets/Segmentation/{split}.txt", classes="voc"),
    MaskLayout("camvid", _HERE, "{split}", "{split}annot", classes="camvid"),
    MaskLayout("pairs", _HERE, "images/{split}", "masks/{split}"),
    MaskLayout("pairs", _HERE, "{split}/images", "{split}/masks"),
    MaskLayout("pairs", _HERE, "images/{split}", "annotations/{split}"),
    MaskLayout("pairs", _HERE, "images", "masks"),
)


@dataclass(frozen=True)
class Pair:
    """An image with its mask; ids are paths relative to data.root."""

    id: str
    path: str
    mask_id: str
    mask_path: str


@dataclass(frozen=True)
class Pairs:
    """Contents of a layout: pairs by split (`all` if it has no splits), and files without a partner."""

    parts: dict[str, list[Pair]]
    without_mask: list[str]
    without_image: list[str]
    notes: list[Note]


def find_mask_layout(settings: MaskDataConfig, depth: int = 2) -> MaskLayout:
    """Identify the layout of data.root from the settings or its contents.

    Args:
        depth: number of nested folders to search: archives often unpack into a folder inside root.

    Raises:
        UserError: VA-D001, root missing; VA-D002, none of the accepted layouts; VA-C002, only one of the patterns is given.
    """
    root = find_root(settings)
    names = split_names(settings)
    if bool(settings.images) != bool(settings.masks):
        raise UserError("VA-C002", "data.images and data.masks belong together", fix="data.images=images/{split} data.masks=masks/{split}")
    if settings.images:
        layout = MaskLayout("pairs", root, settings.images, settings.masks, mask_suffix=settings.mask_suffix, names=names)
        if _has(layout):
            return layout
        raise _wrong_layout(settings, root, f"no folders {settings.images} and {settings.masks}")
    if root.is_file() or settings.format == "csv":
        return MaskLayout("csv", root, "", "", names=names)
    known = [replace(layout, root=root, names=names) for layout in _KNOWN if settings.format in ("auto", layout.format)]
    for layout in known:
        if layout.format == "ade20k" and settings.train == "train":
            layout = replace(layout, names={"train": ("training",), "val": ("validation",), "test": ()})
        if _has(layout):
            return _fitted(layout, settings)
    if settings.format == "auto" and any((root / f"{name}.csv").is_file() for name in names["train"]):
        return MaskLayout("csv", root, "", "", names=names)
    inside = []
    for folder in class_folders(root, settings) if depth else ():
        try:
            inside.append(find_mask_layout(settings.model_copy(update={"root": str(folder)}), depth - 1))
        except UserError:
            continue
    if len(inside) == 1:
        return inside[0]
    raise _wrong_layout(settings, root, "none of the accepted layouts of images and masks")


def read_pairs(layout: MaskLayout, settings: MaskDataConfig) -> Pairs:
    """List all images with their masks, without decoding them."""
    if layout.format == "csv":
        return _read_csv(layout)
    skipped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    pairs = Pairs({}, [], [], [])
    for split in ("all",) if layout.unsplit else SPLITS:
        chosen = None
        if layout.unsplit:
            images, masks = layout.root / layout.images, layout.root / layout.masks
        elif layout.lists:
            listed = layout.part(layout.lists, split)
            if listed is None:
                continue
            chosen = {line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()}
            images, masks = layout.root / layout.images, layout.root / layout.masks
        else:
            found, annotated = layout.part(layout.images, split), layout.part(layout.masks, split)
            if found is None:
                continue
            if annotated is None and split == "test":
                pairs.notes.append(Note("info", "", "test has no masks and is left out"))
                continue
            images, masks = found, annotated or layout.root / layout.masks.format(split=layout.names[split][0])
        image_paths = image_files(images, settings, skipped, others)
        mask_paths = image_files(masks, settings, skipped, others)
        _match(pairs, split, (images, masks), (image_paths, mask_paths), layout, chosen)
    if layout.unsplit:
        _deal_out(pairs, layout)
    if skipped:
        examples = shown(", ".join(name for name, _ in skipped.most_common(4)))
        text = f"{sum(skipped.values()):,} hidden or system files and folders skipped ({examples}); data.exclude"
        pairs.notes.append(Note("info", "", text))
    return pairs


def near_suffix(layout: MaskLayout, without_mask: list[str], without_image: list[str]) -> str:
    """Find the suffix that separates names of unmatched masks from those of unmatched images, if it is always the same."""
    stems = {Path(name).stem for name in without_mask}
    ends = {
        Path(name).name[len(stem) :]
        for name in without_image
        for stem in stems
        if Path(name).name.startswith(stem) and Path(name).stem != stem
    }
    return ends.pop() if len(ends) == 1 else ""


def _has(layout: MaskLayout) -> bool:
    if layout.lists:
        folders = (layout.root / layout.images, layout.root / layout.masks)
        return all(folder.is_dir() for folder in folders) and any(layout.part(layout.lists, split) for split in SPLITS)
    if layout.unsplit:
        return (layout.root / layout.images).is_dir() and (layout.root / layout.masks).is_dir()
    return any(layout.part(layout.images, split) and layout.part(layout.masks, split) for split in SPLITS)


def _fitted(layout: MaskLayout, settings: MaskDataConfig) -> MaskLayout:
    """Apply data.mask_suffix, or use Cityscapes' training ids if there are no others."""
    if settings.mask_suffix:
        return replace(layout, mask_suffix=settings.mask_suffix)
    if layout.format == "cityscapes":
        folder = layout.root / "gtFine"
        if not any(folder.rglob("*_labelIds.png")) and any(folder.rglob("*_labelTrainIds.png")):
            return replace(layout, mask_suffix="_gtFine_labelTrainIds.png")
    return layout


def _match(
    pairs: Pairs, split: str, folders: tuple[Path, Path], paths: tuple[list[str], list[str]], layout: MaskLayout, chosen: set[str] | None
) -> None:
    images = [(key, path) for path in paths[0] if (key := _key(path, folders[0], layout.image_suffix)) is not None]
    masks: dict[str, str] = {}
    # of two masks for one image, the JPEG is not used
    for path in sorted(paths[1], key=lambda path: path.lower().endswith((".jpg", ".jpeg"))):
        key = _key(path, folders[1], layout.mask_suffix)
        if key is not None:
            masks.setdefault(key, path)
    used = {key for key, _ in images}
    for key, path in images:
        if chosen is not None and key not in chosen:
            continue
        if key not in masks:
            pairs.without_mask.append(_id(path, layout.root))
            continue
        pair = Pair(_id(path, layout.root), path, _id(masks[key], layout.root), masks[key])
        pairs.parts.setdefault(split, []).append(pair)
    if chosen is None:
        pairs.without_image.extend(_id(path, layout.root) for key, path in masks.items() if key not in used)


def _key(path: str, folder: Path, suffix: str) -> str | None:
    """Key shared by image and mask: the path inside the folder without its suffix."""
    inside = Path(from_path(os.path.relpath(path, folder)))
    if not suffix:
        return inside.with_suffix("").as_posix()
    text = inside.as_posix()
    return text.removesuffix(suffix) if text.endswith(suffix) else None


def _id(path: str, root: Path) -> str:
    return from_path(Path(os.path.relpath(path, root)).as_posix())


def _deal_out(pairs: Pairs, layout: MaskLayout) -> None:
    """Assign pairs to splits by split.csv, if it exists."""
    path = next((path for name in ("split.csv", "splits.csv") if (path := layout.root / name).is_file()), None)
    everything = pairs.parts.get("all", [])
    if path is None or not everything:
        return
    header = csv_header(path)
    column = next((name for name in ("image", "path", "file") if name in header), None)
    if column is None or "split" not in header:
        raise UserError(
            "VA-D002", f"{path.name} needs the columns image,split", where=str(path), why=shown(f"columns found: {', '.join(header)}")
        )
    split_of = {Path(row[column]).stem: row["split"] for row in _rows(path)}
    by_name = {name: split for split, known in layout.names.items() for name in known}
    _require_known(split_of.values(), by_name, path)
    missing = [pair.id for pair in everything if Path(pair.id).stem not in split_of]
    if missing:
        pairs.notes.append(
            Note("warning", "", f"{len(missing):,} images left out, not listed in {path.name}: {shown(', '.join(missing[:3]))}")
        )
    del pairs.parts["all"]
    for pair in everything:
        if Path(pair.id).stem in split_of:
            pairs.parts.setdefault(by_name[split_of[Path(pair.id).stem]], []).append(pair)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{name.strip(): (value or "").strip() for name, value in row.items() if name} for row in csv.DictReader(file)]


def _require_known(values: Iterable[str], by_name: dict[str, str], path: Path) -> None:
    unknown = sorted(set(values) - set(by_name))
    if unknown:
        raise UserError(
            "VA-D002",
            shown(f"column split has unknown values: {', '.join(unknown[:5])}"),
            where=str(path),
            fix=f"use {', '.join(by_name)}, or name them with data.train, data.val, data.test",
        )


def _read_csv(layout: MaskLayout) -> Pairs:
    by_name = {name: split for split, known in layout.names.items() for name in known}
    if layout.root.is_file():
        files = {"": layout.root}
    else:
        files = {split: path for split in SPLITS for name in layout.names[split] if (path := layout.root / f"{name}.csv").is_file()}
    pairs = Pairs({}, [], [], [])
    for file_split, path in files.items():
        header = csv_header(path)
        if "image" not in header or "mask" not in header:
            raise UserError(
                "VA-D002", f"{path.name} needs the columns image,mask", where=str(path), why=shown(f"columns found: {', '.join(header)}")
            )
        rows = _rows(path)
        if not file_split and "split" in header:
            _require_known((row["split"] for row in rows), by_name, path)
        absent = [row["image"] for row in rows if not (path.parent / to_path(row["image"])).is_file()]
        if absent:
            why = f"paths are relative to the folder of the CSV file, {path.parent}"
            raise UserError(
                "VA-D001", f"{len(absent):,} of {len(rows):,} listed images do not exist", where="\n".join(map(shown, absent[:5])), why=why
            )
        for row in rows:
            split = file_split or (by_name[row["split"]] if "split" in header else "all")
            image, mask = path.parent / to_path(row["image"]), path.parent / to_path(row["mask"])
            if row["mask"] and mask.is_file():
                pairs.parts.setdefault(split, []).append(Pair(row["image"], str(image), row["mask"], str(mask)))
            else:
                pairs.without_mask.append(row["image"])
    return pairs


def _wrong_layout(settings: MaskDataConfig, root: Path, what: str) -> UserError:
    folders = [path for path in root.iterdir() if path.is_dir() and not excluded(path.name, settings)] if root.is_dir() else []
    fix = (
        f"data.images={folders[0].name} data.masks={folders[1].name}" if len(folders) == 2 else "arrange the files in one of these layouts"
    )
    return UserError("VA-D002", f'data.root "{settings.root}": {what}', where="\n".join(tree(root, settings)), why=_ACCEPTED, fix=fix)

"""Find the images and masks of a segmentation dataset: the accepted layouts, each read into pairs of files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

from visionattn.data.images.layouts import class_folders, image_walker, is_image, require_files, require_one_value, tree
from visionattn.data.masks.nnunet import file_ending
from visionattn.data.masks.recognise import PAIR_COLUMNS, folder_pair, mask_suffix_beside, suffix_below
from visionattn.data.masks.settings import MaskDataConfig
from visionattn.data.names import find_listed
from visionattn.data.readers import is_mask_of
from visionattn.data.root import find_root
from visionattn.data.sources import further_channels
from visionattn.data.split_names import SPLITS, split_names
from visionattn.data.splits import Note
from visionattn.data.tables import read_csv, read_lines
from visionattn.data.walk import is_image_name
from visionattn.errors import UserError
from visionattn.names import from_path, shown, to_path, typed

_ACCEPTED = """accepted layouts:
  ROOT/images/train/*.jpg and ROOT/masks/train/*.png (and val, test), or ROOT/train/images and ROOT/train/masks
  ROOT/images/*.jpg and ROOT/masks/*.png, with data.val_fraction=0.2 or ROOT/split.csv: columns image,split
  ROOT/train.csv and ROOT/val.csv, or ROOT a .csv file: columns image,mask[,split]
  also image, img, imgs; mask, gt, label, labels, annotation, annotations; and X.jpg beside X_mask.png in one folder
  mmsegmentation's ROOT/img_dir/train and ROOT/ann_dir/train, nnU-Net's ROOT/imagesTr, ROOT/labelsTr and ROOT/dataset.json (2D)
  ADE20K, Cityscapes, Pascal VOC, CamVid or ISIC as they are published
  others: data.images=FOLDER/{split} data.masks=FOLDER/{split} (data.mask_suffix)"""


@dataclass(frozen=True)
class MaskLayout:
    """Location of images and masks below `root`; `{split}` in a pattern is replaced by the names in `names`.

    An image `a` + image_suffix has the mask `a` + mask_suffix; empty suffixes match any image type. `lists` is the
    pattern of text files that list the images of a split. `classes` is the class list of the layout.
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
        for name in self.names[split]:
            inside = pattern.replace("{split}", name)
            paths = sorted(self.root.glob(inside)) if self.format == "isic" else [self.root / inside]
            if len(paths) == 1 and paths[0].exists():
                return paths[0]
        return None


_DEPTH = 3  # folders below data.root in which images and masks are looked for, to name them in a message
_PATTERNS = 8  # of such folders that are tried with each other
_FEW = 100  # folders and files that are looked at for it
_COMPARED = 5  # pairs whose content is
_HERE = Path()
_KNOWN = (
    MaskLayout(
        "cityscapes", _HERE, "leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit.png", "_gtFine_labelIds.png", classes="cityscapes"
    ),
    MaskLayout("ade20k", _HERE, "images/{split}", "annotations/{split}", classes="ade20k"),
    MaskLayout("voc", _HERE, "JPEGImages", "SegmentationClass", lists="ImageSets/Segmentation/{split}.txt", classes="voc"),
    MaskLayout("camvid", _HERE, "{split}", "{split}annot", classes="camvid"),
    MaskLayout("isic", _HERE, "*_{split}_Input", "*_{split}_GroundTruth", ".jpg", "_segmentation.png"),
    MaskLayout("isic", _HERE, "*_{split}_Data", "*_{split}_Part1_GroundTruth", ".jpg", "_segmentation.png"),
    MaskLayout("nnunet", _HERE, "images{split}", "labels{split}"),
)
# Splits as these datasets call them, where data.train has its default.
_OWN_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "ade20k": {"train": ("training",), "val": ("validation",), "test": ()},
    "isic": {"train": ("Training",), "val": ("Validation",), "test": ("Test_v2", "Test")},
    "nnunet": {"train": ("Tr",), "val": (), "test": ("Ts",)},
}


@dataclass(frozen=True)
class Pair:
    """An image with its mask; ids are paths relative to data.root. `further` are the files of other channels than the first."""

    id: str
    path: str
    mask_id: str
    mask_path: str
    further: tuple[str, ...] = ()


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
        fix = suggest_folders(settings, root) or "give both: data.images=FOLDER/{split} data.masks=FOLDER/{split}"
        raise UserError("VA-C002", "data.images and data.masks belong together", fix=fix)
    if settings.images:
        layout = MaskLayout("pairs", root, settings.images, settings.masks, mask_suffix=settings.mask_suffix, names=names)
        if Path(settings.images) == Path(settings.masks) and not settings.mask_suffix:
            suffix = _suffix_in(root / settings.images.replace("{split}", settings.train)) or "_mask.png"
            fix = f"{typed(f'data.mask_suffix={suffix}')} tells the masks apart"
            raise UserError("VA-C002", "data.images and data.masks are the same folder", fix=fix)
        if _has(layout):
            return layout
        raise _wrong_layout(settings, root, f"no folders {settings.images} and {settings.masks}")
    if root.is_file() or settings.format == "csv":
        return MaskLayout("csv", root, "", "", names=names)
    known = [replace(layout, root=root, names=names) for layout in _KNOWN if settings.format in ("auto", layout.format)]
    if settings.format in ("auto", "pairs"):
        known += _pair_layouts(root, names)
    for layout in known:
        if layout.format in _OWN_NAMES and settings.train == "train":
            layout = replace(layout, names=_OWN_NAMES[layout.format])
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


def _pair_layouts(root: Path, names: dict[str, tuple[str, ...]]) -> Iterator[MaskLayout]:
    """The layouts that names of folders and files in root suggest."""
    if not root.is_dir():
        return
    if (pair := folder_pair(root)) is not None:
        yield MaskLayout("pairs", root, f"{pair.images}/{{split}}", f"{pair.masks}/{{split}}", names=names)
    for train in (root / name for name in names["train"]):
        if (inside := folder_pair(train)) is not None:
            yield MaskLayout("pairs", root, f"{{split}}/{inside.images}", f"{{split}}/{inside.masks}", names=names)
        if suffix := mask_suffix_beside(train):
            yield MaskLayout("pairs", root, "{split}", "{split}", mask_suffix=suffix, names=names)
    if pair is not None:
        yield MaskLayout("pairs", root, pair.images, pair.masks, names=names)
    if suffix := suffix_below(root):
        yield MaskLayout("pairs", root, "", "", mask_suffix=suffix, names=names)


def read_pairs(layout: MaskLayout, settings: MaskDataConfig) -> Pairs:
    """List all images with their masks, without decoding them.

    Raises:
        UserError: VA-D001, listed images do not exist; VA-D002, VA-D012, lists that cannot be used.
    """
    if layout.format == "csv":
        return _read_csv(layout)
    walker = image_walker(settings)
    pairs = Pairs({}, [], [], [])
    for split in ("all",) if layout.unsplit else SPLITS:
        listed = layout.part(layout.lists, split) if layout.lists else None
        if layout.unsplit or layout.lists:
            if layout.lists and listed is None:
                continue
            images, masks = layout.root / layout.images, layout.root / layout.masks
        else:
            found, annotated = layout.part(layout.images, split), layout.part(layout.masks, split)
            if found is None:
                continue
            if annotated is None and split == "test":
                pairs.notes.append(Note("info", "", "test has no masks and is left out"))
                continue
            images, masks = found, annotated or layout.root / layout.masks.replace("{split}", layout.names[split][0])
        image_paths = walker.files(images)
        mask_paths = image_paths if images == masks else walker.files(masks) if masks.is_dir() else []
        if layout.mask_suffix:
            image_paths = [path for path in image_paths if not path.endswith(layout.mask_suffix)]
        image_paths = walker.without_strays([image_paths])[0]
        mask_paths = mask_paths if images == masks else walker.without_strays([mask_paths])[0]
        used = None if listed is None else set(find_listed(read_lines(listed), image_paths, images, layout.root, where=listed))
        _match(pairs, split, (images, masks), (image_paths, mask_paths), layout, used)
    if layout.unsplit:
        _deal_out(pairs, layout)
    pairs.notes.extend(Note("info", "", line) for line in walker.report())
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
    """Apply data.mask_suffix, nnU-Net's file ending, or use Cityscapes' training ids if there are no others.

    Raises:
        UserError: VA-D002, files of nnU-Net that are not read; masks of CVAT, whose classes are not those of Pascal VOC.
    """
    if layout.format == "nnunet":
        ending = file_ending(layout.root, [folder for split in SPLITS if (folder := layout.part(layout.images, split))])
        return replace(layout, image_suffix=f"_0000{ending}")
    if layout.format == "voc" and settings.classes == "auto" and (layout.root / "labelmap.txt").is_file():
        what = "the folders of Pascal VOC with classes of their own, in labelmap.txt"
        raise UserError("VA-D002", what, where=str(layout.root), fix="name the classes in order of the mask values: data.classes=[...]")
    if settings.mask_suffix:
        return replace(layout, mask_suffix=settings.mask_suffix)
    if layout.format == "cityscapes":
        folder = layout.root / "gtFine"
        if not any(folder.rglob("*_labelIds.png")) and any(folder.rglob("*_labelTrainIds.png")):
            return replace(layout, mask_suffix="_gtFine_labelTrainIds.png")
    return layout


def _match(
    pairs: Pairs, split: str, folders: tuple[Path, Path], paths: tuple[list[str], list[str]], layout: MaskLayout, listed: set[str] | None
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
        if listed is not None and path not in listed:
            continue
        if key not in masks:
            pairs.without_mask.append(_id(path, layout.root))
            continue
        further = further_channels(path) if layout.format == "nnunet" else ()
        pair = Pair(_id(path, layout.root), path, _id(masks[key], layout.root), masks[key], further)
        pairs.parts.setdefault(split, []).append(pair)
    if listed is None:
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
    table = read_csv(path, ("image|path|file", "split"))
    require_one_value([table], "image", "split")
    by_name = {name: split for split, known in layout.names.items() for name in known}
    _require_known((row["split"] for row in table.rows), by_name, path)
    listed = [row["image"] for row in table.rows]
    without_mask = [str(layout.root / name) for name in pairs.without_mask]
    found = find_listed(listed, [*(pair.path for pair in everything), *without_mask], layout.root / layout.images, layout.root, where=path)
    split_of = {name: by_name[row["split"]] for name, row in zip(found, table.rows, strict=True)}
    missing = [pair.id for pair in everything if pair.path not in split_of]
    if missing:
        pairs.notes.append(
            Note("warning", "", f"{len(missing):,} images left out, not listed in {path.name}: {shown(', '.join(missing[:3]))}")
        )
    del pairs.parts["all"]
    for pair in everything:
        if pair.path in split_of:
            pairs.parts.setdefault(split_of[pair.path], []).append(pair)


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
    tables = {file_split: read_csv(path, PAIR_COLUMNS) for file_split, path in files.items()}
    require_one_value(tables.values(), "image", "mask")
    for file_split, table in tables.items():
        folder, has_split = table.path.parent, "split" in table.columns
        if not file_split and has_split:
            _require_known((row["split"] for row in table.rows), by_name, table.path)
        names = [row["image"] for row in table.rows]
        require_files([str(folder / to_path(name)) for name in names], names, folder)
        for row in table.rows:
            split = file_split or (by_name[row["split"]] if has_split else "all")
            image, mask = folder / to_path(row["image"]), folder / to_path(row["mask"])
            if row["mask"] and mask.is_file():
                pairs.parts.setdefault(split, []).append(Pair(row["image"], str(image), row["mask"], str(mask)))
            else:
                pairs.without_mask.append(row["image"])
    return pairs


def _wrong_layout(settings: MaskDataConfig, root: Path, what: str) -> UserError:
    fix = suggest_folders(settings, root) or "arrange the files in one of these layouts"
    return UserError("VA-D002", f'data.root "{settings.root}": {what}', where="\n".join(tree(root, settings)), why=_ACCEPTED, fix=fix)


# ---------------------------------------------------------------- folders under other names


def suggest_folders(settings: MaskDataConfig, root: Path) -> str:
    """The settings that find pairs in folders of any name; empty if none do. The content tells masks from images."""
    names = split_names(settings)
    folders = _image_folders(root, settings)
    patterns = list(dict.fromkeys(_as_pattern(folder, names) for folder in folders))[:_PATTERNS]
    best: tuple[int, str] = (0, "")
    for images, masks in permutations(patterns, 2):
        layout = MaskLayout("pairs", root, images, masks, names=names)
        if layout.unsplit != ("{split}" not in masks) or not _has(layout):
            continue
        pairs = read_pairs(layout, settings)
        suffix = ""
        if not pairs.parts and (suffix := near_suffix(layout, pairs.without_mask[:_FEW], pairs.without_image[:_FEW])):
            pairs = read_pairs(replace(layout, mask_suffix=suffix), settings)
        found = pairs.parts.get("train", pairs.parts.get("all", []))
        if len(found) > best[0] and all(
            is_mask_of(Path(p.mask_path), Path(p.path), max_bytes=settings.max_bytes) for p in found[:_COMPARED]
        ):
            words = [f"data.images={images}", f"data.masks={masks}", *([f"data.mask_suffix={suffix}"] if suffix else [])]
            best = len(found), " ".join(map(typed, words))
    return best[1]


def _image_folders(root: Path, settings: MaskDataConfig) -> list[Path]:
    """Some folders below root, relative to it, that contain images directly."""
    walker = image_walker(settings)
    found, level = [], [root] if root.is_dir() else []
    for _ in range(_DEPTH):
        level = [inside for folder in level for inside in walker.folders(folder)][:_FEW]
        found += [folder.relative_to(root) for folder in level if any(is_image(path.name, settings) for path in folder.iterdir())]
    return found


def _as_pattern(folder: Path, names: dict[str, tuple[str, ...]]) -> str:
    """A folder with `{split}` for the name of a split, which may be a part of a name: `train_masks`."""
    known = "|".join(re.escape(name) for split in names.values() for name in split)
    return "/".join(re.sub(rf"^({known})(?=$|[_-])|(?<=[_-])({known})$", "{split}", part, count=1) for part in folder.parts)


def _suffix_in(folder: Path) -> str:
    """The suffix that turns names of images into those of masks in one folder, if it is always the same."""
    names = sorted(path.name for path in folder.iterdir() if is_image_name(path.name))[:_FEW] if folder.is_dir() else []
    stems = {Path(name).stem for name in names}
    ends = {name[len(stem) :] for name in names for stem in stems if name.startswith(stem) and Path(name).stem != stem}
    return ends.pop() if len(ends) == 1 else ""

"""Which task a folder is for, by the names in it; needs no other library, so that a mistake in the settings is said at once."""

from __future__ import annotations

from pathlib import Path

# Folders of images and of their masks, side by side.
_PAIRS = (
    {"images", "masks"},
    {"images", "annotations"},
    {"leftImg8bit", "gtFine"},
    {"JPEGImages", "SegmentationClass"},
    {"train", "trainannot"},
)


def guess_task(root: str | Path) -> str:
    """`segment` where images lie beside masks or a CSV file pairs them, else `classify`; also in a single folder inside."""
    root = Path(root).expanduser()
    lists = [root] if root.is_file() else [root / "train.csv"]
    if any(path.suffix == ".csv" and path.is_file() and _pairs_masks(path) for path in lists):
        return "segment"
    inside = _folders(root)
    if len(inside) == 1 and inside != {"train"}:  # archives often unpack into a folder of their own
        root = root / inside.pop()
        inside = _folders(root)
    split = _folders(root / "train")
    # A class may be called masks; with nothing but images beside it, it is none.
    return "segment" if split == {"images", "masks"} or any(pair <= inside for pair in _PAIRS) else "classify"


def _folders(path: Path) -> set[str]:
    if not path.is_dir():
        return set()
    return {item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith((".", "__"))}


def _pairs_masks(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        columns = {name.strip().strip('"') for name in file.readline().split(",")}
    return {"image", "mask"} <= columns

"""What users get wrong, what they are told, and what they then do: one case for each piece of advice that can be followed here.

The first ones are a newcomer's. Each is run in an empty folder in which `make` puts the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.commands import CLASSES, picture, save_npz, truncate

TINY = "'model.args={width: 8}' model.img_size=32 train.batch_size=4 data.workers=0 log.tensorboard=false train.device=cpu"
DRY = f"{TINY} --dry-run"

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Step:
    """A way to follow advice: `text` stands in it, word for word.

    Attributes:
        kind: add it to the command; use it instead of `old`, in the command or (edit) in my.yaml; or run it, a command of its own.
        fill: what its placeholders stand for.
        extra: words that keep a command short here.
        again: whether the command of the case is tried again afterwards.
    """

    kind: str
    text: str
    old: str = ""
    fill: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""
    again: bool = False


def add(text: str, **fill: str) -> Step:
    return Step("add", text, fill=fill)


def instead(old: str, text: str) -> Step:
    return Step("instead", text, old)


def run(text: str, extra: str = "", *, again: bool = False, **fill: str) -> Step:
    return Step("run", text, fill={name.replace("dots", "..."): value for name, value in fill.items()}, extra=extra, again=again)


@dataclass(frozen=True)
class Case:
    """A command that fails, or that advises.

    Attributes:
        source: file of the package that has the advice.
        code: of the error; empty if the command succeeds.
        advice: a part of what is printed.
        steps: ways to follow it, each of which has to lead to a command that succeeds and does not repeat the advice.
        also: suggestions in it that are not followed here, with the reason.
        with_run: put a copy of a trained run at runs/flowers/001.
    """

    source: str
    command: str
    code: str
    advice: str
    steps: tuple[Step, ...]
    make: Make = lambda folder: None
    also: Mapping[str, str] = field(default_factory=dict)
    with_run: bool = False


# ---------------------------------------------------------------- files


def flowers(folder: Path, train: int = 2, val: int = 1, test: int = 0, name: str = "flowers") -> Path:
    for split, count, start in (("train", train, 0), ("val", val, 1000), ("test", test, 2000)):
        for index, kind in enumerate(CLASSES):
            for number in range(count):
                picture(folder / name / split / kind / f"{number}.png", index, start + 100 * index + number)
    return folder / name


def without_val(folder: Path) -> None:
    flowers(folder, train=4, val=0)


def broken(folder: Path) -> None:
    for path in [*sorted(flowers(folder, train=4).glob("train/*/0.png")), folder / "flowers/val/rose/0.png"]:
        truncate(path)


def photograph(path: Path, number: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def labels(path: Path, values: tuple[int, ...], number: int, size: tuple[int, int] = (20, 16)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(number).choice(np.array(values, np.uint8), (size[1], size[0]))
    Image.fromarray(array).save(path)
    return array


def roads(
    folder: Path,
    values: tuple[int, ...] = (0, 1),
    classes: str = "background\ncrack\n",
    images: str = "images/{}",
    masks: str = "masks/{}",
    suffix: str = ".png",
    splits: tuple[str, ...] = ("train", "val"),
) -> Path:
    root = folder / "roads"
    for index, split in enumerate(splits):
        for number in range(2):
            photograph(root / images.format(split) / f"{split}{number}.jpg", 10 * index + number)
            labels(root / masks.format(split) / f"{split}{number}{suffix}", values, 10 * index + number)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def masks_of(*values: int, classes: str = "background\ncrack\n") -> Make:
    return lambda folder: roads(folder, values, classes)


def layout(images: str, masks: str, **more: object) -> Make:
    return lambda folder: roads(folder, images=images, masks=masks, **more)  # type: ignore[arg-type]


def coloured(colours: list[tuple[int, int, int]], classes: str = "background\ncrack\n") -> Make:
    def make(folder: Path) -> None:
        for path in (roads(folder, tuple(range(len(colours))), classes) / "masks").rglob("*.png"):
            Image.fromarray(np.array(colours, np.uint8)[np.asarray(Image.open(path))]).save(path)

    return make


def jpeg_masks(folder: Path) -> None:
    for path in (roads(folder) / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path.with_suffix(".jpg"))
        path.unlink()


def small_masks(folder: Path) -> None:
    for path in (roads(folder) / "masks").rglob("*.png"):
        labels(path, (0, 1), 1, (10, 8))


def palettes_that_differ(folder: Path) -> None:
    root = roads(folder)
    (root.parent / "colours.txt").write_text("0 background 0 0 0\n1 crack 255 0 0\n")
    for path in (root / "masks").rglob("*.png"):
        image = Image.fromarray(np.asarray(Image.open(path)))
        image.putpalette([0, 0, 0, 255, 0, 0] if path.stem.endswith("0") else [255, 0, 0, 0, 0, 0])
        image.save(path)


def beside(suffix: str, kind: str = "") -> Make:
    """Masks in the folders of their images, in a folder of each class if `kind` names one."""

    def make(folder: Path) -> None:
        root = folder / "roads"
        for split in ("train", "val"):
            for index, name in enumerate((kind, "other") if kind else ("",)):
                for number in range(2):
                    place = root / split / name
                    photograph(place / f"{number}.png", 10 * index + number + 100 * (split == "val"))
                    labels(place / f"{number}{suffix}", (0, 1), number)
        (root / "classes.txt").write_text("background\ncrack\n" if not kind else f"{kind}\nother\n")

    return make


def npz_of_many(folder: Path) -> None:
    save_npz(folder / "blood.npz", lambda count: np.eye(3, dtype=np.int64)[np.arange(count) % 3])


def yaml_file(text: str, make: Make) -> Make:
    def both(folder: Path) -> None:
        make(folder)
        (folder / "my.yaml").write_text(text)

    return both


# ---------------------------------------------------------------- the first hour

FIRST = [
    Case(
        "cli/run.py",
        "train",
        "VA-C005",
        "visionattn train --config quickstart\nvisionattn train --data FOLDER",
        (run("visionattn train --config quickstart", "--dry-run"), run("visionattn train --data FOLDER", DRY, FOLDER="flowers")),
        flowers,
    ),
    Case("data/root.py", "data check flowrs", "VA-D001", 'Did you mean "flowers"', (instead("flowrs", "flowers"),), flowers),
    Case(
        "data/root.py",
        "data check nowhere",
        "VA-D001",
        "data.root=FOLDER",
        (add("data.root=FOLDER", FOLDER="pictures"),),
        lambda folder: flowers(folder, name="pictures"),
    ),
    Case(
        "data/root.py",
        f"train train.epochs=1 {DRY}",
        "VA-D001",
        "data.root=FOLDER (or --data FOLDER); data.format=digits needs no files",
        (add("data.root=FOLDER", FOLDER="flowers"), add("--data FOLDER", FOLDER="flowers"), add("data.format=digits")),
        flowers,
    ),
    Case(
        "backbones/registry.py",
        f"train --data flowers --model eca_resnet81 {DRY}",
        "VA-M001",
        "Did you mean eca_resnet18",
        (instead("eca_resnet81", "eca_resnet18"),),
        flowers,
    ),
    Case(
        "config/read.py",
        "config show quickstrat",
        "VA-C004",
        "Did you mean quickstart? List them: visionattn config list",
        (instead("quickstrat", "quickstart"), run("visionattn config list")),
    ),
    Case(
        "config/messages.py",
        f"train --data flowers optim.weigth_decay=0.1 {DRY}",
        "VA-C001",
        "Did you mean optim.weight_decay?\n  fix   Keys and their meaning: visionattn config show",
        (instead("optim.weigth_decay", "optim.weight_decay"), run("visionattn config show")),
        flowers,
    ),
    Case(
        "config/read.py",
        "config show task=segment data.imges=x",
        "VA-C001",
        "Did you mean data.images?\n  fix   Keys and their meaning: visionattn config show task=segment",
        (instead("data.imges", "data.images"), run("visionattn config show task=segment")),
    ),
    Case(
        "config/read.py",
        "config show quickstart train.epochs",
        "VA-C001",
        "Example: train.epochs=5",
        (instead("train.epochs", "train.epochs=5"),),
    ),
    Case(
        "config/messages.py",
        "data check roads task=classify data.mask_suffix=_mask.png",
        "VA-C001",
        "it belongs to task segment",
        (instead("classify", "segment"),),
        beside("_mask.png"),
    ),
    Case(
        "data/images/layouts.py",
        "data check flowers",
        "VA-D003",
        "visionattn train --val-fraction 0.2 ... (or data.val_fraction=0.2)",
        (run("visionattn train --val-fraction 0.2 ...", dots=f"--data flowers {DRY}"), add("data.val_fraction=0.2")),
        without_val,
    ),
    Case("data/check.py", "data check flowers", "VA-D010", "data.on_error=skip", (add("data.on_error=skip"),), broken),
    Case(
        "data/readers.py",
        "data check flowers data.max_bytes=9000",
        "VA-D020",
        "if you trust all of the large files: data.max_bytes=28800",
        (add("data.max_bytes=28800"),),
        lambda folder: picture(flowers(folder) / "train/rose/large.png", 0, 1, (80, 60)),
    ),
    Case(
        "data/readers.py",
        "data check flowers data.max_bytes=13000",
        "VA-D020",
        "file of 13,898 bytes: the limit is 13,000; if you trust it, data.max_bytes=28800",
        (add("data.max_bytes=28800"),),
        lambda folder: picture(flowers(folder) / "train/rose/large.png", 0, 1, (80, 60)),
    ),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D012",
        '255 in 4 files: the class "crack", or pixels without a label?\n'
        '  if it is "crack"  -> "data.map={255: 1}"\n'
        "  if these pixels have no label  -> data.ignore_index=255",
        (add('"data.map={255: 1}"'), add("data.ignore_index=255")),
        masks_of(0, 255),
    ),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D012",
        '255 in 4 files looks like an ignore label  -> "data.map={128: 1}" data.ignore_index=255',
        (add('"data.map={128: 1}" data.ignore_index=255'),),
        masks_of(0, 128, 255),
    ),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D012",
        "the classes start at 1  -> data.reduce_zero_label=true",
        (add("data.reduce_zero_label=true"),),
        masks_of(1, 2, classes="crack\nspall\n"),
    ),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D012",
        'the classes start at 1  -> "data.map={1: 0, 2: 1}"',
        (add('"data.map={1: 0, 2: 1}"'),),
        masks_of(1, 2),
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "VA-C002",
        'data.classes=[background,object] "data.map={255: 1}"',
        (add('data.classes=[background,object] "data.map={255: 1}"'),),
        masks_of(0, 255, classes=""),
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "VA-C002",
        'name them in order of their values, if 255 is a class: data.classes=[background,class1,class2] "data.map={255: 2}"\n'
        "or, if it marks pixels without a label: data.classes=[background,object] data.ignore_index=255",
        (
            add('data.classes=[background,class1,class2] "data.map={255: 2}"'),
            add("data.classes=[background,object] data.ignore_index=255"),
        ),
        masks_of(0, 1, 255, classes=""),
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "VA-C002",
        "data.classes=[class1,class2,class3] data.reduce_zero_label=true",
        (add("data.classes=[class1,class2,class3] data.reduce_zero_label=true"),),
        masks_of(1, 2, 3, classes=""),
    ),
    Case("data/masks/check.py", "data check roads", "VA-D013", "data.mask_resize=nearest", (add("data.mask_resize=nearest"),), small_masks),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D014",
        "-> data.palette=[[9,9,9],[255,0,0]], in the order of the classes",
        (add("data.palette=[[9,9,9],[255,0,0]]"),),
        coloured([(9, 9, 9), (9, 9, 9), (9, 9, 9), (255, 0, 0)]),
    ),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D017",
        "visionattn data masks convert roads --in-place --map 0-127:0 --map 128-255:1",
        (run("visionattn data masks convert roads --in-place --map 0-127:0 --map 128-255:1", again=True),),
        jpeg_masks,
    ),
    Case(
        "data/masks/layouts.py",
        "data check roads --task segment",
        "VA-D002",
        "data.images=pictures/{split} data.masks=a_truth/{split}",
        (add("data.images=pictures/{split} data.masks=a_truth/{split}"),),
        layout("pictures/{}", "a_truth/{}"),
    ),
    Case(
        "data/masks/layouts.py",
        "data check roads --task segment",
        "VA-D002",
        "data.images={split}/rgb data.masks={split}/coarse data.mask_suffix=-seg.png",
        (add("data.images={split}/rgb data.masks={split}/coarse data.mask_suffix=-seg.png"),),
        layout("{}/rgb", "{}/coarse", suffix="-seg.png", splits=("train", "valid")),
    ),
    Case(
        "data/images/labels.py",
        "data check roads data.classes=[coarse,rgb]",
        "VA-D002",
        "task=segment data.images={split}/rgb data.masks={split}/coarse\nor, if they are classes: data.format=folders",
        (add("task=segment data.images={split}/rgb data.masks={split}/coarse"), add("data.format=folders")),
        layout("{}/rgb", "{}/coarse", classes=""),
    ),
    Case(
        "data/images/labels.py",
        "data check roads data.classes=[benign,other]",
        "VA-D002",
        "task=segment data.images={split} data.masks={split} data.mask_suffix=_mask.png\n"
        "or, to classify the images: \"data.exclude=['.*','*_mask.png']\"",
        (
            add("task=segment data.images={split} data.masks={split} data.mask_suffix=_mask.png"),
            add("\"data.exclude=['.*','*_mask.png']\""),
        ),
        beside("_mask.png", kind="benign"),
    ),
    Case(
        "config/messages.py",
        "config show my.yaml",
        "VA-C003",
        'put the value in quotes: images: "{split}/images"',
        (Step("edit", 'images: "{split}/images"', "images: {split}/images"),),
        yaml_file("task: segment\ndata:\n  images: {split}/images\n", lambda folder: None),
    ),
    Case(
        "engine/devices.py",
        f"train --data flowers train.precision=fp16 {DRY}",
        "VA-C002",
        "train.precision=auto",
        (add("train.precision=auto"),),
        flowers,
    ),
    Case("cli/models.py", "models list resnet", "VA-M001", "visionattn models list", (run("visionattn models list"),)),
    Case("cli/weights.py", "weights list resnet", "VA-W007", "visionattn weights list", (run("visionattn weights list"),)),
    Case(
        "models/weights/download.py",
        f"train --data flowers model.weights=in1k {DRY}",
        "VA-W001",
        "or train without: model.weights=none",
        (add("model.weights=none"),),
        flowers,
        also={"visionattn weights import FILE": "in the case of weights import below"},
    ),
]

CASES = FIRST

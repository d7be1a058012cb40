"""Mistakes, the advice that the user gets, and the commands that follow it: one case for each piece of advice that can be followed here.

The first ones are a newcomer's. Each is run in an empty folder in which `make` puts the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import visionattn as va
from tests.commands import CLASSES, done, picture, save_npz, truncate
from tests.data.bags.bags import slides
from tests.data.images.shards import flower_shards
from tests.data.masks.annotated import coco, cvat_masks
from tests.data.volumes.made import balls, folders, save
from visionattn.models import speed
from visionattn.models.classifier import Classifier
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config, run_config
from visionattn.tasks.classification import Classification

SMALL = "model.img_size=32 train.batch_size=4 data.workers=0 log.to=[] train.device=cpu"
TINY = f"model.name=eca_resnet18 'model.args={{width: 8}}' {SMALL}"
DRY = f"{TINY} --dry-run"
VOLUMES = "'model.args={width: 2, depth: 2}' 'model.img_size=[32, 32, 8]' train.batch_size=1 data.workers=0 train.device=cpu --dry-run"
BAGS = "data.val_fraction=0.2 train.device=cpu --dry-run"

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Step:
    """A way to follow advice: `text` stands in it, word for word.

    Attributes:
        kind: add it to the command; use it instead of `old`, in the command or (edit) in my.yaml; run it, a command of its own; or set
            a variable of the environment (env).
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
        advice: a part of what is printed, with HERE for the folder.
        steps: ways to follow it, each of which has to lead to a command that succeeds and does not repeat the advice.
        exit_code: if it is not the one of the letter of the code.
        with_run: put a copy of a trained run at runs/flowers/001.
        patch: bring about what a test cannot do by files.
    """

    source: str
    command: str
    code: str
    advice: str
    steps: tuple[Step, ...]
    make: Make = lambda folder: None
    with_run: bool = False
    exit_code: int | None = None
    patch: Callable[[pytest.MonkeyPatch], object] = lambda monkeypatch: None


# ---------------------------------------------------------------- files


def flowers(folder: Path, train: int = 2, val: int = 1, test: int = 0, name: str = "flowers") -> Path:
    for split, count, start in (("train", train, 0), ("val", val, 1000), ("test", test, 2000)):
        for index, kind in enumerate(CLASSES):
            for number in range(count):
                picture(folder / name / split / kind / f"{number}.png", index, start + 100 * index + number)
    return folder / name


def fields(folder: Path) -> None:
    """Class folders of arrays with five channels."""
    for path in [*flowers(folder, train=4, name="fields").rglob("*.png")]:
        pixels = np.asarray(Image.open(path)).astype(np.float32)
        np.save(path.with_suffix(".npy"), np.concatenate([pixels, pixels[:, :, :2]], axis=2))
        path.unlink()


def pages(folder: Path) -> None:
    """Class folders of TIFF with four pages that nothing names."""
    for path in [*flowers(folder, name="scans").rglob("*.png")]:
        page = Image.open(path).convert("L")
        page.save(path.with_suffix(".tif"), save_all=True, append_images=[page] * 3)
        path.unlink()


def without_val(folder: Path) -> None:
    flowers(folder, train=4, val=0)


def broken(folder: Path) -> None:
    for path in [*sorted(flowers(folder, train=4).glob("train/*/0.png")), folder / "flowers/val/rose/0.png"]:
        truncate(path)


def scans(folder: Path) -> None:
    folders(folder / "scans", {"train": 1, "val": 1}, {"labels": {"0": "background", "1": "front", "2": "back"}})


def scans_without_val(folder: Path) -> None:
    folders(folder / "scans", {"": 5})


def decathlon(folder: Path) -> None:
    for number in range(3):
        image, label = balls(number)
        save(folder / f"scans/imagesTr/c{number}.nii.gz", image)
        save(folder / f"scans/labelsTr/c{number}.nii.gz", label)
    (folder / "scans/dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": {"background": 0, "a": 1, "b": 2}}))


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


def plots(folder: Path) -> None:
    """Arrays of five channels with masks."""
    for path in [*roads(folder).rename(folder / "plots").glob("images/*/*")]:
        pixels = np.asarray(Image.open(path)).astype(np.float32)
        np.save(path.with_suffix(".npy"), np.concatenate([pixels, pixels[:, :, :2]], axis=2))
        path.unlink()


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
        "file of 14,454 bytes: the limit is 13,000; if you trust it, data.max_bytes=28800",
        (add("data.max_bytes=28800"),),
        lambda folder: picture(flowers(folder) / "train/rose/large.bmp", 0, 1, (80, 60)),
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
        "data/masks/check.py",
        "data check roads",
        "VA-D012",
        'and 255 looks like an ignore label  -> "data.map={1: 0, 2: 1}" data.ignore_index=255',
        (add('"data.map={1: 0, 2: 1}" data.ignore_index=255'),),
        masks_of(1, 2, 255),
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "VA-C002",
        'if 255 is a class: data.classes=[background,class1,class2] "data.map={1: 0, 2: 1, 255: 2}"\n'
        "or, if it marks pixels without a label: data.classes=[class1,class2] data.reduce_zero_label=true",
        (
            add('data.classes=[background,class1,class2] "data.map={1: 0, 2: 1, 255: 2}"'),
            add("data.classes=[class1,class2] data.reduce_zero_label=true"),
        ),
        masks_of(1, 2, 255, classes=""),
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
    ),
]

# ---------------------------------------------------------------- data


def one_csv(folder: Path) -> None:
    root = folder / "my flowers"
    lines = [
        f"{path.relative_to(folder / 'my flowers')},{path.parent.name},{path.parent.parent.name}"
        for path in sorted(flowers(folder, name="my flowers/a/b").rglob("*.png"))
    ]
    (root / "list.csv").write_text("\n".join(["path,label,split", *lines]))


def other_splits(train: str, val: str) -> Make:
    def make(folder: Path) -> None:
        root = flowers(folder)
        (root / "train").rename(root / train)
        (root / "val").rename(root / val)

    return make


def grey(folder: Path) -> None:
    for path in flowers(folder).rglob("*.png"):
        Image.open(path).convert("L").save(path)


def some_wide(folder: Path) -> None:
    for path in (roads(folder, classes="") / "masks").rglob("*.png"):
        Image.fromarray(np.arange(320, dtype=np.uint8).reshape(16, 20) % 70).save(path)


def stray_values(folder: Path) -> None:
    for path in (roads(folder) / "masks").rglob("*.png"):
        Image.fromarray(np.arange(320, dtype=np.uint8).reshape(16, 20) % 70).save(path)


def void_class(folder: Path) -> None:
    roads(folder, (0, 1, 2), classes="road\ncrack\nvoid\n")


def with_suffix(folder: Path) -> None:
    roads(folder, suffix="-labels.png")


def in_one_folder(folder: Path) -> None:
    beside("-truth.png")(folder)


def deep_masks(folder: Path) -> None:
    for path in (roads(folder) / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.int32) * 70_000).save(path.with_suffix(".tif"))
        path.unlink()


def two_lists(folder: Path) -> None:
    coloured([(9, 9, 9), (255, 0, 0)])(folder)
    (folder / "wrong.txt").write_text("0 background 9 9 9\n")
    (folder / "right.txt").write_text("0 background 9 9 9\n1 crack 255 0 0\n")


def parquet(folder: Path) -> None:
    hf = pytest.importorskip("datasets")
    pictures = [{"bytes": flower.read_bytes(), "path": None} for flower in sorted(flowers(folder).rglob("*.png"))]
    features = hf.Features(
        {name: hf.Image() for name in ("front", "back")}
        | {name: hf.ClassLabel(names=["a", "b", "c"]) for name in ("kind", "colour")}
        | {"number": hf.Value("float64")}
    )
    count = len(pictures)
    columns = {
        "front": pictures,
        "back": pictures,
        "kind": [number % 3 for number in range(count)],
        "colour": [0] * count,
        "number": [0.5] * count,
    }
    split = hf.Dataset.from_dict(columns, features=features)
    hf.DatasetDict({"train": split, "validation": split}).save_to_disk(str(folder / "saved"))


DATA = [
    Case(
        "data/images/layouts.py",
        "data check 'my flowers'",
        "VA-D002",
        "'data.root=my flowers/list.csv'",
        (add("'data.root=my flowers/list.csv'"),),
        one_csv,
    ),
    Case(
        "data/images/layouts.py",
        "data check flowers",
        "VA-D002",
        "name the splits: data.train=training data.val=validating",
        (add("data.train=training data.val=validating"),),
        other_splits("training", "validating"),
    ),
    Case(
        "data/images/layouts.py",
        "data check flowers",
        "VA-D002",
        "data.train=NAME data.val=NAME data.test=NAME, from one, two",
        (Step("add", "data.train=NAME data.val=NAME", fill={"train=NAME": "train=one", "val=NAME": "val=two"}),),
        other_splits("one", "two"),
    ),
    Case("data/check.py", "data check flowers model.in_chans=4", "VA-D022", "-> model.in_chans=3", (add("model.in_chans=3"),), flowers),
    Case("data/check.py", "data check scans", "", "if the pages are channels: model.in_chans=4", (add("model.in_chans=4"),), pages),
    Case(
        "data/images/transforms.py",
        f"train --data fields {DRY} augment.color_jitter=0.4",
        "VA-C002",
        "augment.color_jitter=0",
        (add("augment.color_jitter=0"),),
        fields,
    ),
    Case(
        "data/images/transforms.py",
        f"train --data fields {DRY} data.preview=[7]",
        "VA-C002",
        "data.preview=auto",
        (add("data.preview=auto"),),
        fields,
    ),
    Case(
        "tasks/images.py",
        f"train --data fields {DRY} data.mean=[0] data.std=[1]",
        "VA-C002",
        "data.mean=auto data.std=auto",
        (add("data.mean=auto data.std=auto"),),
        fields,
    ),
    Case(
        "data/images/layouts.py",
        "data check blood.npz data.group_by=patient",
        "VA-C002",
        'data.group_by=""',
        (add('data.group_by=""'),),
        lambda folder: save_npz(folder / "blood.npz"),
    ),
    Case(
        "data/images/layouts.py",
        "data check shards data.multi_label=true",
        "VA-C002",
        "data.multi_label=false",
        (add("data.multi_label=false"),),
        lambda folder: flower_shards(folder / "shards"),
    ),
    Case(
        "data/images/layouts.py",
        "data check shards data.cache=ram",
        "VA-C002",
        "data.cache=none",
        (add("data.cache=none"),),
        lambda folder: flower_shards(folder / "shards"),
    ),
    Case(
        "data/images/layouts.py",
        "data check blood.npz",
        "VA-D002",
        "data.multi_label=true if these are several classes per image",
        (add("data.multi_label=true"),),
        npz_of_many,
    ),
    Case(
        "data/images/layouts.py",
        "data check saved data.format=hf data.dataset=user/name data.image_column=front data.label_column=kind",
        "VA-C002",
        'data.root="" or data.dataset=""',
        (add('data.dataset=""'),),
        parquet,
    ),
    Case(
        "data/images/hub.py",
        "data check saved data.label_column=kind",
        "VA-D002",
        "data.image_column=NAME",
        (add("data.image_column=NAME", NAME="front"),),
        parquet,
    ),
    Case(
        "data/images/hub.py",
        "data check saved data.image_column=front",
        "VA-D002",
        "data.label_column=NAME",
        (add("data.label_column=NAME", NAME="kind"),),
        parquet,
    ),
    Case(
        "data/images/hub.py",
        f"train data.format=hf data.dataset=user/name data.image_column=front data.label_column=kind {DRY}",
        "VA-D001",
        'or data.root=FOLDER data.dataset="", where the parquet files are',
        (add('data.root=FOLDER data.dataset=""', FOLDER="saved"),),
        parquet,
    ),
    Case(
        "data/check.py",
        "data check flowers",
        "",
        "are grey: copied to 3 channels (model.in_chans=1 trains on grey)",
        (add("model.in_chans=1"),),
        grey,
    ),
    Case(
        "data/sampling.py",
        f"train --data flowers {DRY} train.batch_size=9",
        "VA-C011",
        "train.batch_size=6",
        (add("train.batch_size=6"),),
        flowers,
    ),
    Case(
        "data/images/labels.py",
        "eval runs/flowers/001 --data other --split test",
        "VA-D002",
        "--split train",
        (add("--split train"),),
        lambda folder: flowers(folder, name="other"),
        with_run=True,
    ),
    Case(
        "data/images/transforms.py",
        f"train --data flowers {DRY} augment.pad_crop=2",
        "VA-C002",
        "augment.random_resized_crop=null, or augment.pad_crop=0",
        (add("augment.random_resized_crop=null"), add("augment.pad_crop=0")),
        flowers,
    ),
    Case(
        "data/images/transforms.py",
        f"train --data flowers {DRY} augment.rand_augment=rand-m9-mstd0.5-inc1 augment.color_jitter=0.4 augment.rotate=9",
        "VA-C002",
        "augment.rotate=0 augment.color_jitter=0",
        (add("augment.rotate=0 augment.color_jitter=0"),),
        flowers,
    ),
    Case(
        "data/images/transforms.py",
        f"train --data flowers {DRY} augment.rand_augment=rand-m9-mstd0.5-inc1 model.in_chans=1",
        "VA-C002",
        'augment.rand_augment="" or model.in_chans=3',
        (add('augment.rand_augment=""'), add("model.in_chans=3")),
        grey,
    ),
    Case(
        "data/images/transforms.py",
        f"train --data flowers {DRY} augment.rand_augment=m9",
        "VA-C002",
        "Example: rand-m9-mstd0.5-inc1",
        (instead("m9", "rand-m9-mstd0.5-inc1"),),
        flowers,
    ),
    # masks
    Case(
        "data/masks/transforms.py",
        f"train --data plots {DRY} train.batch_size=2 augment.photometric=true",
        "VA-C002",
        "augment.photometric=false",
        (add("augment.photometric=false"),),
        plots,
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "",
        "mask value 2 (void) is ignored because of its name; data.ignore_index=none makes it a class",
        (add("data.ignore_index=none"),),
        void_class,
    ),
    Case(
        "data/masks/sets.py",
        "data check roads data.reduce_zero_label=true",
        "VA-C002",
        "data.reduce_zero_label=false",
        (add("data.reduce_zero_label=false"),),
        roads,
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "VA-D021",
        "data.mask_suffix=-labels.png",
        (add("data.mask_suffix=-labels.png"),),
        with_suffix,
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "VA-C002",
        "data.classes=[background,class1,class2] data.palette=[[9,9,9],[255,0,0],[0,0,255]]\nor write classes.txt in data.root",
        (add("data.classes=[background,class1,class2] data.palette=[[9,9,9],[255,0,0],[0,0,255]]"),),
        coloured([(9, 9, 9)] * 4 + [(255, 0, 0)] * 2 + [(0, 0, 255)], classes=""),
    ),
    Case("data/masks/sets.py", "data check roads", "VA-C002", "or count them: data.classes=70", (add("data.classes=70"),), some_wide),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D012",
        "68 values have no class  -> data.classes=70, if each of them is one",
        (add("data.classes=70"),),
        stray_values,
    ),
    Case(
        "data/masks/check.py",
        "data check roads",
        "VA-D014",
        "visionattn data masks convert roads --in-place --palette FILE takes the colours as classes, by a file of `index name R G B`\n"
        "-> visionattn data masks convert roads --in-place --map 0:0 keeps the indices as classes",
        (
            run("visionattn data masks convert roads --in-place --palette FILE", again=True, FILE="colours.txt"),
            run("visionattn data masks convert roads --in-place --map 0:0", again=True),
        ),
        palettes_that_differ,
    ),
    Case(
        "data/masks/layouts.py",
        "data check roads data.images=pictures/{split}",
        "VA-C002",
        "data.images=pictures/{split} data.masks=truth/{split}",
        (add("data.images=pictures/{split} data.masks=truth/{split}"),),
        layout("pictures/{}", "truth/{}"),
    ),
    Case(
        "data/masks/layouts.py",
        "data check roads data.images=pictures/{split}",
        "VA-C002",
        "give both: data.images=FOLDER/{split} data.masks=FOLDER/{split}",
        (
            Step(
                "add",
                "data.images=FOLDER/{split} data.masks=FOLDER/{split}",
                fill={"images=FOLDER/{split}": "images=a/b/c/pictures/{split}", "masks=FOLDER/{split}": "masks=a/b/c/truth/{split}"},
            ),
        ),
        layout("a/b/c/pictures/{}", "a/b/c/truth/{}"),
    ),
    Case(
        "data/masks/layouts.py",
        "data check roads data.images={split} data.masks={split}",
        "VA-C002",
        "data.mask_suffix=-truth.png tells the masks apart",
        (add("data.mask_suffix=-truth.png"),),
        in_one_folder,
    ),
    Case(
        "data/masks/layouts.py",
        "data check roads data.images=photos/{split} data.masks=truth/{split}",
        "VA-D002",
        "others: data.images=FOLDER/{split} data.masks=FOLDER/{split} (data.mask_suffix)\n"
        "  fix   data.images=pictures/{split} data.masks=truth/{split}",
        (add("data.images=pictures/{split} data.masks=truth/{split}"),),
        layout("pictures/{}", "truth/{}"),
    ),
    Case("cli/data.py", "data masks convert roads", "VA-C002", "Example: --map 128:1", (add("--map 128:1"),), roads),
    Case(
        "data/masks/convert.py",
        "data masks convert roads --map 128",
        "VA-C002",
        "Example: --map 128:1 or --map 128-255:1",
        (instead("--map 128", "--map 128:1"), instead("--map 128", "--map 128-255:1")),
        roads,
    ),
    Case(
        "data/masks/convert.py",
        "data masks convert roads --map 128:1 --out roads/images",
        "VA-R007",
        "--out NEW_FOLDER, or --in-place",
        (add("--out NEW_FOLDER"), add("--in-place")),
        roads,
    ),
    Case(
        "data/masks/convert.py",
        "data masks convert roads --map 128:1",
        "VA-D014",
        "or data.images=pictures/{split} data.masks=truth/{split}",
        (add("data.images=pictures/{split} data.masks=truth/{split}"),),
        layout("pictures/{}", "truth/{}"),
    ),
    Case(
        "data/masks/convert.py",
        "data masks convert roads --map 128:1",
        "VA-D014",
        "or data.images=FOLDER data.masks=FOLDER",
        (
            Step(
                "add",
                "data.images=FOLDER data.masks=FOLDER",
                fill={"images=FOLDER": "images=a/b/c/pictures/{split}", "masks=FOLDER": "masks=a/b/c/truth/{split}"},
            ),
        ),
        layout("a/b/c/pictures/{}", "a/b/c/truth/{}"),
    ),
    Case(
        "data/masks/convert.py",
        "data masks convert roads --map 1:2",
        "VA-D012",
        "for example --map 70000:255",
        (add("--map 70000:255"),),
        deep_masks,
    ),
    Case(
        "data/masks/convert.py",
        "data masks convert roads --palette wrong.txt",
        "VA-D014",
        "--palette FILE, a line for each colour",
        (add("--palette FILE", FILE="right.txt"),),
        two_lists,
    ),
]


# ---------------------------------------------------------------- runs and weights


def photos(folder: Path) -> None:
    picture(folder / "photos/one.png", 0, 1)
    picture(folder / "flowers/train/daisy/0.png", 0, 2)


def wide(folder: Path) -> None:
    """An image of which classifiers see the middle."""
    picture(folder / "rose.png", 1, 1, (400, 160))


def without_grad_cam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.models.explain.cams.PACKAGE", "no_such_package")


def results_in_out(folder: Path) -> None:
    photos(folder)
    (folder / "out").mkdir()
    (folder / "out/predictions.json").write_text("{}")


def a_file_in_the_way(folder: Path) -> None:
    flowers(folder)
    (folder / "taken").write_text("")


def only_the_best(folder: Path) -> None:
    flowers(folder)
    for path in (folder / "runs/flowers/001/checkpoints").iterdir():
        if path.name != "best":
            shutil.rmtree(path)


def nothing_saved_yet(folder: Path) -> None:
    run = folder / "runs/flowers/001"
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "metrics.jsonl").unlink()


def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which three images fit."""
    forward = Classifier.forward

    def limited(self: Classifier, images: torch.Tensor, *given: object) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *given)

    monkeypatch.setattr(Classifier, "forward", limited)


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object, **named: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VISIONATTN_CACHE")
    monkeypatch.setattr("visionattn.files.user_cache_path", fails)


def mobile(name: str, classes: int = 3, *, head: bool = True) -> Make:
    """A file of an ECA-MobileNetV2."""

    def make(folder: Path) -> None:
        flowers(folder)
        photos(folder)
        (folder / "names.txt").write_text("daisy\nrose\ntulip\n")
        torch.manual_seed(0)
        state = va.create_model("eca_mobilenetv2", num_classes=classes).state_dict()
        torch.save({key: value for key, value in state.items() if head or not key.startswith("head.")}, folder / name)

    return make


def imported(name: str, *, head: bool = True, words: str = "") -> Make:
    def make(folder: Path) -> None:
        mobile(name, head=head)(folder)
        done("weights", "import", name, *words.split())

    return make


def module(text: str) -> Make:
    return lambda folder: (folder / "my_module.py").write_text(text)


def with_a_plugin(folder: Path) -> None:
    (folder / "their_code.py").write_text("")
    config = folder / "runs/flowers/001/config.yaml"
    config.write_text(config.read_text().replace("plugins: []", "plugins: [their_code.py]"))


def calibration(text: str) -> Make:
    return lambda folder: (folder / "runs/flowers/001/calibration.json").write_text(text)


def run_without_data(folder: Path) -> None:
    photos(folder)
    meta = folder / "runs/flowers/001/checkpoints/best/meta.json"
    content = json.loads(meta.read_text())
    content["config"]["data"]["root"] = ""
    meta.unlink()  # `last` may be the same file
    meta.write_text(json.dumps(content))


RUNS = [
    Case(
        "jobs/neighbors.py",
        "neighbors runs/flowers/001 photos",
        "VA-C005",
        "--data FOLDER",
        (add("--data FOLDER", FOLDER="flowers"),),
        run_without_data,
        with_run=True,
    ),
    Case(
        "jobs/evaluate.py",
        "eval runs/flowers/001 --split test --calibrate",
        "VA-C002",
        "visionattn eval runs/flowers/001 --calibrate",
        (run("visionattn eval runs/flowers/001 --calibrate"),),
        with_run=True,
    ),
    Case(
        "runs/load.py",
        "eval runs/flowers/001",
        "",
        "is of other weights, and not used; to fit it anew: visionattn eval runs/flowers/001 --calibrate",
        (run("visionattn eval runs/flowers/001 --calibrate"),),
        calibration('{"weights": "1f", "count": 9, "eval": {"temperature": 2.0}, "before": {}}'),
        with_run=True,
    ),
    Case(
        "runs/calibration.py",
        "eval runs/flowers/001",
        "VA-W005",
        "remove it, or fit it anew: visionattn eval runs/flowers/001 --calibrate",
        (run("visionattn eval runs/flowers/001 --calibrate"),),
        calibration("{"),
        with_run=True,
    ),
    Case(
        "cli/options.py",
        "predict runs/flowers/001 photos --threshold rose",
        "VA-C002",
        "Example: --threshold 0.7, or --threshold cat=0.7,dog=0.4",
        (
            instead("--threshold rose", "--threshold 0.7"),
            Step("instead", "--threshold cat=0.7,dog=0.4", "--threshold rose", {"cat": "rose", "dog": "tulip"}),
        ),
        photos,
        with_run=True,
    ),
    Case(
        "tasks/thresholds.py",
        "predict runs/flowers/001 photos --threshold rise=0.5",
        "VA-C002",
        "Did you mean rose?",
        (instead("rise", "rose"),),
        photos,
        with_run=True,
    ),
    Case(
        "cli/features.py",
        "features runs/flowers/001 photos",
        "VA-C005",
        "give --out FOLDER, or --out NAME.npy",
        (add("--out FOLDER", FOLDER="new"), add("--out NAME.npy", NAME="new")),
        photos,
        with_run=True,
    ),
    Case(
        "jobs/features.py",
        "features runs/flowers/001 --out new",
        "VA-C005",
        "a split of a data set by --split",
        (Step("add", "--split", fill={"--split": "--split val"}),),
        with_run=True,
    ),
    Case(
        "jobs/features.py",
        "neighbors runs/flowers/001 photos --features new",
        "VA-D001",
        "visionattn features RUN --split train --out FOLDER",
        (run("visionattn features RUN --split train --out FOLDER", again=True, RUN="runs/flowers/001", FOLDER="new"),),
        photos,
        with_run=True,
    ),
    Case(
        "jobs/neighbors.py",
        "neighbors runs/flowers/001",
        "VA-C005",
        "give files, or --split",
        (Step("add", "--split", fill={"--split": "--split val"}),),
        with_run=True,
    ),
    Case(
        "jobs/predict.py",
        "predict runs/flowers/001 --source photos --out out",
        "VA-R007",
        "another --out FOLDER, or remove them",
        (add("--out FOLDER", FOLDER="new"),),
        results_in_out,
        with_run=True,
    ),
    Case(
        "jobs/predict.py",
        "predict runs/flowers/001 --source fotos",
        "VA-D001",
        "Did you mean photos?",
        (instead("fotos", "photos"),),
        photos,
        with_run=True,
    ),
    Case(
        "jobs/evaluate.py",
        "eval runs/flowers/001 --split tset",
        "VA-D002",
        "Did you mean test?",
        (instead("tset", "test"),),
        with_run=True,
    ),
    Case(
        "runs/folder.py",
        "train --dry-run --resume runs/flowers",
        "VA-R003",
        "Did you mean runs/flowers/001?",
        (instead("runs/flowers", "runs/flowers/001"),),
        with_run=True,
        exit_code=2,
    ),
    Case(
        "runs/folder.py",
        "predict eca_moblenetv2.own photos",
        "VA-R003",
        "Did you mean eca_mobilenetv2.own",
        (instead("eca_moblenetv2.own", "eca_mobilenetv2.own"),),
        imported("own.pth", words="--classes names.txt"),
        exit_code=2,
    ),
    Case(
        "runs/folder.py",
        "serve nothing",
        "VA-R003",
        "visionattn weights list",
        (run("visionattn weights list"),),
        exit_code=2,
    ),
    Case(
        "jobs/resume.py",
        "train --dry-run --resume runs/flowers/001 optim.lr=0.1",
        "VA-C010",
        "leave them out",
        (Step("instead", "leave them out", "optim.lr=0.1", {"leave them out": ""}),),
        with_run=True,
    ),
    Case(
        "jobs/resume.py",
        "train --resume runs/flowers/001 train.accum=2",
        "VA-C010",
        "train.batch_size=4",
        (add("train.batch_size=4"),),
        with_run=True,
    ),
    Case(
        "runs/checkpoint.py",
        "train --resume runs/flowers/001",
        "VA-W005",
        "use it (visionattn eval runs/flowers/001/checkpoints/best), or start a new run from it "
        "(model.weights=runs/flowers/001/checkpoints/best)",
        (
            run("visionattn eval runs/flowers/001/checkpoints/best"),
            Step(
                "instead",
                "model.weights=runs/flowers/001/checkpoints/best",
                "--resume runs/flowers/001",
                {"model.weights": f"--data flowers {DRY} model.weights"},
            ),
        ),
        only_the_best,
        with_run=True,
    ),
    Case(
        "runs/checkpoint.py",
        "eval runs/flowers/001",
        "VA-W006",
        "visionattn train --resume runs/flowers/001",
        (run("visionattn train --resume runs/flowers/001", "train.steps=1", again=True),),
        nothing_saved_yet,
        with_run=True,
    ),
    Case(
        "jobs/train.py",
        f"train --data flowers {TINY} train.steps=1 'output.dir=my runs'",
        "",
        "next:  visionattn eval 'my runs/flowers-eca_resnet18/001' --split test\n"
        "       visionattn predict 'my runs/flowers-eca_resnet18/001' --source FILE_OR_FOLDER",
        (
            run("visionattn eval 'my runs/flowers-eca_resnet18/001' --split test"),
            run("visionattn predict 'my runs/flowers-eca_resnet18/001' --source FILE_OR_FOLDER", FILE_OR_FOLDER="flowers/val"),
        ),
        lambda folder: flowers(folder, test=1),
    ),
    Case(
        "jobs/train.py",
        f"train --data flowers plugins=[mine_too.py] {TINY} train.steps=1",
        "",
        "next:  visionattn eval runs/flowers-eca_resnet18/001 'plugins=[\"HERE/mine_too.py\"]'\n",
        (run("visionattn eval runs/flowers-eca_resnet18/001 'plugins=[\"HERE/mine_too.py\"]'"),),
        lambda folder: (flowers(folder), (folder / "mine_too.py").write_text("")),
    ),
    Case(
        "cli/main.py",
        f"train --data flowers {TINY} train.steps=1 output.dir=taken",
        "VA-R007",
        "choose another folder: output.dir=FOLDER, --out FOLDER, or the environment variable VISIONATTN_CACHE",
        (add("output.dir=FOLDER", FOLDER="new"),),
        a_file_in_the_way,
    ),
    Case(
        "cli/main.py",
        "data preview flowers --count 1 --out taken/preview.png",
        "VA-R007",
        "choose another folder: output.dir=FOLDER, --out FOLDER",
        (add("--out FOLDER", FOLDER="new/preview.png"),),
        a_file_in_the_way,
    ),
    Case(
        "engine/diagnosis.py",
        f"train --data flowers {TINY} train.steps=1 train.batch_size=6",
        "VA-R001",
        "in this order: train.batch_size=3 train.accum=2 (same effective batch)",
        (add("train.batch_size=3 train.accum=2"),),
        flowers,
        patch=little_memory,
        exit_code=6,
    ),
    Case(
        "engine/diagnosis.py",
        "eval runs/flowers/001 --batch-size 6",
        "VA-R001",
        "in this order: --batch-size 3 (batch_size in Python)",
        (add("--batch-size 3"),),
        patch=little_memory,
        with_run=True,
        exit_code=6,
    ),
    Case(
        "engine/diagnosis.py",
        f"train --data flowers {DRY} train.batch_size=1",
        "VA-C011",
        "train.batch_size=2 or more",
        (add("train.batch_size=2"),),
        flowers,
    ),
    Case(
        "config/plugins.py",
        "config show plugins=[my_module]",
        "VA-C002",
        "give the path of the file (plugins=[my_module.py])",
        (add("plugins=[my_module.py]"),),
        module(""),
    ),
    Case(
        "config/plugins.py",
        "train --dry-run --resume runs/flowers/001",
        "VA-C006",
        "if you trust them, name them yourself: plugins=[their_code.py]",
        (add("plugins=[their_code.py]"),),
        with_a_plugin,
        with_run=True,
    ),
    Case(
        "tasks/segmentation/settings.py",
        "config show task=segment eval.best=dice",
        "VA-C002",
        "set eval.per_case=true, or use mdice or miou",
        (add("eval.per_case=true"), instead("dice", "mdice")),
    ),
    Case(
        "tasks/segmentation/settings.py",
        "config show task=segment eval.spacing=[1,1]",
        "VA-C002",
        "set eval.per_case=true",
        (add("eval.per_case=true"),),
    ),
    Case(
        "tasks/segmentation/settings.py",
        "config show task=segment eval.tile=64",
        "VA-C002",
        "windows need eval.mode=slide; eval.tile=null for the whole image",
        (add("eval.mode=slide"), add("eval.tile=null")),
    ),
    Case("config/schema.py", "config show train.shard=true train.ema=0.9", "VA-C002", "train.ema=null", (add("train.ema=null"),)),
    Case(
        "tasks/classification/model.py",
        f"train --data flowers {DRY} 'model.args={{width: -1}}'",
        "VA-M002",
        "visionattn models info eca_resnet18",
        (run("visionattn models info eca_resnet18"),),
        flowers,
    ),
    Case(
        "tasks/segmentation/model.py",
        f"train --data roads {DRY} train.batch_size=2 'model.args={{width: -1}}'",
        "VA-M002",
        "visionattn models info eca_resnet18",
        (run("visionattn models info eca_resnet18"),),
        roads,
    ),
    Case(
        "backbones/registry.py",
        "models info swin",
        "VA-M001",
        "List them: visionattn models list",
        (run("visionattn models list"),),
    ),
    Case(
        "files.py",
        "weights list swin_tiny",
        "VA-R007",
        "VISIONATTN_CACHE=FOLDER (an environment variable)",
        (Step("env", "VISIONATTN_CACHE=FOLDER", fill={"FOLDER": "cache"}),),
        patch=without_home,
    ),
    Case("cli/models.py", "models list swin_tiny", "", "`visionattn models info swin_tiny`", (run("visionattn models info swin_tiny"),)),
    Case(
        "models/weights/records.py",
        f"train --data flowers --model ela_mobilenetv2 model.weights=pretrained {SMALL} --dry-run",
        "VA-W001",
        "train from scratch (model.weights=none), or give a file of your own: model.weights=FILE, checkpoint_path=FILE",
        (add("model.weights=none"),),
        flowers,
    ),
    Case(
        "cli/weights.py",
        "weights import mine.pth --classes names.txt",
        "",
        "visionattn predict eca_mobilenetv2.mine --source FILE_OR_FOLDER\n"
        "    visionattn train --model eca_mobilenetv2 model.weights=mine --data FOLDER",
        (
            run("visionattn predict eca_mobilenetv2.mine --source FILE_OR_FOLDER", FILE_OR_FOLDER="photos"),
            run("visionattn train --model eca_mobilenetv2 model.weights=mine --data FOLDER", f"{SMALL} --dry-run", FOLDER="flowers"),
        ),
        mobile("mine.pth"),
    ),
    Case(
        "jobs/evaluate.py",
        "eval eca_mobilenetv2.mine",
        "VA-D001",
        "--data FOLDER",
        (add("--data FOLDER", FOLDER="flowers"),),
        imported("mine.pth", words="--classes names.txt"),
    ),
    Case(
        "tasks/classification/model.py",
        "predict eca_mobilenetv2.bare --source photos",
        "VA-M003",
        "train one: visionattn train --model eca_mobilenetv2 model.weights=bare --data FOLDER",
        (run("visionattn train --model eca_mobilenetv2 model.weights=bare --data FOLDER", f"{SMALL} --dry-run", FOLDER="flowers"),),
        imported("bare.pth", head=False),
    ),
    Case(
        "models/weights/download.py",
        f"train --data flowers --model eca_mobilenetv2 model.weights=in1k {SMALL} --dry-run",
        "VA-W001",
        "then run: visionattn weights import FILE\nor train without: model.weights=none",
        (run("visionattn weights import FILE", "--tag in1k", again=True, FILE="eca_mobilenetv2.pth"), add("model.weights=none")),
        mobile("eca_mobilenetv2.pth", 1000),
    ),
    Case(
        "models/weights/importing.py",
        "weights import mine.pth --tag in1k --classes names.txt",
        "VA-W007",
        "choose another --tag",
        (Step("add", "--tag", fill={"--tag": "--tag other"}),),
        mobile("mine.pth"),
    ),
    Case(
        "models/weights/importing.py",
        "weights import odd.pth",
        "VA-W003",
        "supported models: visionattn models list",
        (run("visionattn models list"),),
        lambda folder: torch.save({"weight": torch.zeros(3)}, folder / "odd.pth"),
    ),
]


# ---------------------------------------------------------------- annotations, optimizers, devices


def pets(folder: Path) -> None:
    coco(folder / "pets")


def pictures_elsewhere(folder: Path) -> None:
    pets(folder)
    (folder / "photos").mkdir()
    for split in ("train2017", "val2017"):
        (folder / "pets" / split).rename(folder / "photos" / split)


def pictures_twice(folder: Path) -> None:
    pets(folder)
    for copy in ("one", "two"):
        shutil.copytree(folder / "pets/val2017", folder / "pets" / copy)
    shutil.rmtree(folder / "pets/val2017")


def two_of_cvat(folder: Path) -> None:
    for name in ("first", "second"):
        cvat_masks(folder / "pets" / name)


def nnunet_of_regions(folder: Path) -> None:
    for number in range(5):
        photograph(folder / f"scans/imagesTr/case{number}_0000.png", number)
        labels(folder / f"scans/labelsTr/case{number}.png", (0, 1), number)
    regions = {"background": 0, "crack": [1, 2]}
    about = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": regions, "numTraining": 5, "file_ending": ".png"}
    (folder / "scans/dataset.json").write_text(json.dumps(about))


OTHERS = [
    Case(
        "cli/run.py", "train flowers", "VA-C001", "visionattn train --data flowers", (run("visionattn train --data flowers", DRY),), flowers
    ),
    Case(
        "cli/run.py",
        "predict runs/flowers/001",
        "VA-C005",
        "visionattn predict runs/flowers/001 --source FILE_OR_FOLDER",
        (run("visionattn predict runs/flowers/001 --source FILE_OR_FOLDER", FILE_OR_FOLDER="photos"),),
        photos,
        with_run=True,
    ),
    Case(
        "cli/unknown.py",
        f"train --data flowers --batch_size 2 {DRY}",
        "VA-C001",
        "visionattn train --data flowers --batch-size 2 ",
        (instead("--batch_size 2 ", "--batch-size 2 "),),
        flowers,
    ),
    Case(
        "config/schema.py",
        "config show data.fold=[1,5] data.val_fraction=0.2",
        "VA-C002",
        "data.val_fraction=null",
        (add("data.val_fraction=null"),),
    ),
    Case(
        "cli/data.py",
        "data masks from pets",
        "",
        "visionattn train --data HERE/pets-masks",
        (run("visionattn train --data HERE/pets-masks", f"{TINY} train.batch_size=2 --dry-run"),),
        pets,
    ),
    Case(
        "cli/data.py",
        "data masks from pets/annotations/instances_train2017.json --out new",
        "",
        "visionattn train --data HERE/new --val-fraction 0.2",
        (
            run(
                "visionattn train --data HERE/new --val-fraction 0.2",
                f"{TINY} model.img_size=64 model.head.name=fcn train.batch_size=1 --dry-run",
            ),
        ),
        pets,
    ),
    Case(
        "data/masks/annotations/find.py",
        "data masks from nothing",
        "VA-D001",
        "visionattn data masks from FOLDER_OR_FILE",
        (run("visionattn data masks from FOLDER_OR_FILE", FOLDER_OR_FILE="pets"),),
        pets,
    ),
    Case(
        "data/masks/annotations/find.py",
        "data check pets",
        "VA-D003",
        "visionattn data masks from pets",
        (run("visionattn data masks from pets"),),
        pets,
    ),
    Case(
        "data/masks/annotations/cvat.py",
        "data masks from pets",
        "VA-D002",
        "give one of them: visionattn data masks from FOLDER/labelmap.txt",
        (run("visionattn data masks from FOLDER/labelmap.txt", FOLDER="pets/second"),),
        two_of_cvat,
    ),
    Case(
        "data/masks/annotations/draw.py",
        "data masks from pets --out photos",
        "VA-R007",
        "--out with a new folder",
        (Step("add", "--out", fill={"--out": "--images photos --out new"}),),
        pictures_elsewhere,
    ),
    Case(
        "data/masks/annotations/draw.py",
        "data masks from pets",
        "VA-D001",
        "--images FOLDER",
        (add("--images FOLDER", FOLDER="photos"),),
        pictures_elsewhere,
    ),
    Case(
        "data/masks/nnunet.py",
        "data check scans data.val_fraction=0.4",
        "VA-D002",
        "data.classes=[background,...]",
        (Step("add", "data.classes=[background,...]", fill={"...": "crack"}),),
        nnunet_of_regions,
    ),
    Case(
        "data/masks/sets.py",
        "data check roads",
        "",
        "other names: data.classes=[NAME,NAME]",
        (Step("add", "data.classes=[NAME,NAME]", fill={"NAME,NAME": "road,crack"}),),
        masks_of(0, 1, classes=""),
    ),
    Case(
        "engine/devices.py",
        f"train --data flowers {TINY} train.device=cuda:63 --dry-run",
        "VA-C002",
        "train.device=auto",
        (add("train.device=auto"),),
        flowers,
    ),
    Case(
        "engine/optim.py",
        f"train --data flowers {DRY} optim.betas=[0.9,0.99,0.9]",
        "VA-C002",
        "optim.betas=null for its own",
        (add("optim.betas=null"),),
        flowers,
    ),
    Case(
        "engine/optim.py",
        f"train --data flowers {DRY} optim.momentum=0.9",
        "VA-C002",
        "optim.momentum=null",
        (add("optim.momentum=null"),),
        flowers,
    ),
    Case(
        "engine/optim.py",
        f"train --data flowers {DRY} optim.name=adahessian",
        "VA-C002",
        "optim.name=adamw",
        (add("optim.name=adamw"),),
        flowers,
    ),
    Case(
        "tasks/classification/settings.py",
        f"train --data flowers {DRY} model.classifier.queries=4",
        "VA-C002",
        "set model.classifier.name=ep",
        (add("model.classifier.name=ep"),),
        flowers,
    ),
    Case(
        "backbones/from_timm.py",
        f"train --data flowers model.name=timm:efficientformer_l1 model.weights=none {SMALL} --dry-run",
        "VA-M002",
        "model.img_size=224",
        (add("model.img_size=224"),),
        flowers,
    ),
    Case(
        "backbones/from_timm.py",
        f"train --data flowers --model timm:ghostnetv2_100 --weights none model.drop_path_rate=0.1 {SMALL} model.img_size=64 --dry-run",
        "VA-M002",
        "model.drop_path_rate=0",
        (add("model.drop_path_rate=0"),),
        flowers,
    ),
    Case(
        "backbones/from_timm.py",
        f"train --data flowers model.name=timm:dla46_c model.weights=none model.grad_checkpointing=true {SMALL} --dry-run",
        "VA-M002",
        "model.grad_checkpointing=false",
        (add("model.grad_checkpointing=false"),),
        flowers,
    ),
    Case(
        "heads/probe.py",
        f"train --data flowers {DRY} model.classifier.name=ep model.classifier.queries=7",
        "VA-M002",
        "model.classifier.queries=4 model.classifier.reduction=1",
        (add("model.classifier.queries=4 model.classifier.reduction=1"),),
        flowers,
    ),
    Case(
        "tasks/classification/settings.py",
        "config show data.multi_label=true data.sampler=balanced",
        "VA-C002",
        "loss.class_weights=balanced weights the loss",
        (instead("data.sampler=balanced", "loss.class_weights=balanced"),),
    ),
    Case(
        "tasks/classification/settings.py",
        "config show data.multi_label=true eval.kappa=linear",
        "VA-C002",
        "set eval.kappa=none",
        (instead("eval.kappa=linear", "eval.kappa=none"),),
    ),
    Case(
        "tasks/class_settings.py",
        "config show eval.best=kappa",
        "VA-C002",
        "set eval.kappa=quadratic",
        (add("eval.kappa=quadratic"),),
    ),
    Case(
        "data/masks/nnunet.py",
        "data check scans data.val_fraction=0.4 task=segment",
        "VA-D002",
        "task=volumes",
        (instead("task=segment", "task=volumes"),),
        decathlon,
    ),
    Case(
        "data/volumes/sets.py",
        "data check scans",
        "VA-D003",
        "visionattn train --val-fraction 0.2 ... (or data.val_fraction=0.2)",
        (run("visionattn train --val-fraction 0.2 ...", dots=f"--data scans {VOLUMES}"), add("data.val_fraction=0.2")),
        scans_without_val,
    ),
    Case(
        "data/volumes/sets.py",
        "data check scans data.spacing=[1,0,1]",
        "VA-C002",
        "data.spacing=auto",
        (add("data.spacing=auto"),),
        scans,
    ),
    Case(
        "data/volumes/sets.py",
        "data check scans data.intensity=[200,-100]",
        "VA-C002",
        "data.intensity=[-100,200]",
        (add("data.intensity=[-100,200]"),),
        scans,
    ),
    Case(
        "data/volumes/sets.py",
        "data check scans data.intensity=[200,200]",
        "VA-C002",
        "data.intensity=auto",
        (add("data.intensity=auto"),),
        scans,
    ),
    Case("tasks/volumes/data.py", "data check scans model.in_chans=2", "VA-C002", "model.in_chans=1", (add("model.in_chans=1"),), scans),
    Case(
        "tasks/volumes/settings.py",
        "data check scans train.channels_last=true",
        "VA-C002",
        "train.channels_last=auto",
        (add("train.channels_last=auto"),),
        scans,
    ),
    Case(
        "tasks/volumes/settings.py",
        "data check scans model.drop_path_rate=0.1",
        "VA-C002",
        "model.drop_path_rate=0",
        (add("model.drop_path_rate=0"),),
        scans,
    ),
    Case(
        "data/bags/sets.py",
        f"train --data slides {BAGS}",
        "VA-D002",
        "data.labels=slides/labels.csv",
        (add("data.labels=slides/labels.csv"),),
        lambda folder: (slides(folder / "slides") / "more.csv").write_text("slide_id,label\n"),
    ),
    Case(
        "data/bags/sets.py",
        f"train --data slides {BAGS}",
        "VA-D011",
        "data.on_error=skip",
        (add("data.on_error=skip"),),
        lambda folder: (slides(folder / "slides") / "slide_12.h5").write_bytes(b""),
    ),
    Case(
        "tasks/bags/model.py",
        f"train --data slides {BAGS} model.name=mha 'model.args={{heads: 7}}'",
        "VA-M002",
        "visionattn config show task=bags",
        (run("visionattn config show task=bags"),),
        lambda folder: slides(folder / "slides"),
    ),
    Case("config/schema.py", "config show train.batch_size=auto train.accum=2", "VA-C002", "train.accum=1", (add("train.accum=1"),)),
]


# ---------------------------------------------------------------- options and words of commands


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, whose processes end well."""
    monkeypatch.setattr("visionattn.cli.launch._gpus", lambda: 2)
    monkeypatch.setattr("visionattn.cli.launch.run_processes", lambda *given, **more: 0)


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    monkeypatch.setattr("visionattn.cli.launch._gpus", lambda: 0)


def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.report.trackers.find_spec", lambda name: None)


def within_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")


def without_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that pays no regard to data.fold."""
    whole = Classification().read_data(load_config(None, ["data.root=flowers"]))
    monkeypatch.setattr(Classification, "read_data", lambda task, config: whole)


def two_folds(folder: Path, numbered: bool = True) -> None:
    """Two copies of a run as those of --folds."""
    photos(folder)
    for number in (1, 2):
        run = folder / f"runs/two/fold{number}"
        shutil.copytree(folder / "runs/flowers/001", run)
        if numbered:
            RunFolder(run).write_config(run_config(run / "config.yaml", [f"data.fold=[{number},2]"]))


def two_folds_to_train(folder: Path) -> None:
    for number in (1, 2):
        (folder / "runs/two").mkdir(exist_ok=True)
        config = run_config(folder / "runs/flowers/001/config.yaml", [f"data.fold=[{number},2]"])
        RunFolder.create_fold(folder / "runs/two", number, config)


def a_config(folder: Path) -> None:
    flowers(folder)
    (folder / "my.yaml").write_text("data: {root: flowers}\n")


COMMANDS = [
    Case(
        "cli/run.py",
        "explain eval.crop_pct=1 --image rose.png",
        "VA-C005",
        "visionattn explain RUN --image FILE",
        (run("visionattn explain RUN --image FILE", "--steps 0 --method gradcam", RUN="runs/flowers/001", FILE="rose.png"),),
        wide,
        with_run=True,
    ),
    Case(
        "cli/explain.py",
        "explain runs/flowers/001 --steps 0 --method gradcam",
        "VA-C005",
        "give --image FILE",
        (Step("add", "--image FILE", fill={"FILE": "rose.png"}),),
        wide,
        with_run=True,
    ),
    Case(
        "cli/explain.py",
        "explain runs/flowers/001 --image rose.png --steps 0 --method gradcam --query 200",
        "VA-C002",
        "Example: --query 200,80",
        (instead("--query 200", "--query 200,80"),),
        wide,
        with_run=True,
    ),
    Case(
        "tasks/images.py",
        "explain runs/flowers/001 --image rose.png --steps 0 --method gradcam --query 400,80",
        "VA-C002",
        "--query 200,80",
        (instead("--query 400,80", "--query 200,80"),),
        wide,
        with_run=True,
    ),
    Case(
        "tasks/classification/explain.py",
        "explain runs/flowers/001 --image rose.png --steps 0 --method gradcam --query 3,80",
        "VA-C002",
        "--query 200,80",
        (instead("--query 3,80", "--query 200,80"),),
        wide,
        with_run=True,
    ),
    Case(
        "jobs/explain.py",
        "explain runs/flowers/001 --image rose.png --steps 0 --layer 1 --method routing",
        "VA-C002",
        "--method attention,gradcam,gradcam++,hirescam,layercam,xgradcam,eigencam,scorecam",
        (instead("--method routing", "--method attention,gradcam,gradcam++,hirescam,layercam,xgradcam,eigencam,scorecam"),),
        wide,
        with_run=True,
    ),
    Case(
        "jobs/explain.py",
        "explain runs/flowers/001 --image rose.png --steps 0 --method gradcam --layer 9",
        "VA-C002",
        "--layer 4",
        (instead("--layer 9", "--layer 4"),),
        wide,
        with_run=True,
    ),
    Case(
        "models/explain/cams.py",
        "explain runs/flowers/001 --image rose.png --layer 1 --method gradcam",
        "VA-R007",
        "--method attention",
        (instead("--method gradcam", "--method attention"),),
        wide,
        with_run=True,
        patch=without_grad_cam,
    ),
    Case(
        "cli/run.py",
        f"train my.yaml {DRY}",
        "VA-C001",
        "visionattn train --config my.yaml",
        (run("visionattn train --config my.yaml", DRY),),
        a_config,
    ),
    Case(
        "cli/run.py",
        "train runs/flowers/001",
        "VA-C001",
        "visionattn train --resume runs/flowers/001",
        (run("visionattn train --resume runs/flowers/001", "--dry-run"),),
        with_run=True,
    ),
    Case(
        "cli/run.py",
        f"train --data flowers optim.lr 0.1 {DRY}",
        "VA-C001",
        "visionattn train --data flowers optim.lr=0.1",
        (instead("optim.lr 0.1", "optim.lr=0.1"),),
        flowers,
    ),
    Case(
        "cli/run.py",
        f"train --data flowers --folds 2 --val-fraction 0.2 {DRY}",
        "VA-C002",
        "leave --val-fraction out",
        (Step("instead", "leave --val-fraction out", "--val-fraction 0.2", {"leave --val-fraction out": ""}),),
        flowers,
    ),
    Case(
        "cli/run.py",
        "train --folds 2 --resume runs/flowers/001",
        "VA-C002",
        "visionattn train --resume runs/flowers/001",
        (run("visionattn train --resume runs/flowers/001", "--dry-run"),),
        with_run=True,
    ),
    Case(
        "cli/run.py",
        "train --config quickstart --resume runs/two",
        "VA-C002",
        "visionattn train --resume runs/two",
        (run("visionattn train --resume runs/two", "--dry-run"),),
        two_folds_to_train,
        with_run=True,
    ),
    Case(
        "cli/run.py",
        "eval runs/flowers/001 flowers",
        "VA-C005",
        "visionattn eval runs/flowers/001 --data flowers",
        (run("visionattn eval runs/flowers/001 --data flowers"),),
        flowers,
        with_run=True,
    ),
    Case(
        "cli/run.py",
        "eval data.workers=0",
        "VA-C005",
        "visionattn eval RUN",
        (run("visionattn eval RUN", RUN="runs/flowers/001"),),
        with_run=True,
    ),
    Case(
        "cli/run.py",
        "predict data.workers=0 --source photos",
        "VA-C005",
        "visionattn predict RUN --source FILE_OR_FOLDER",
        (run("visionattn predict RUN --source FILE_OR_FOLDER", RUN="runs/flowers/001", FILE_OR_FOLDER="photos"),),
        photos,
        with_run=True,
    ),
    Case(
        "cli/run.py",
        "features data.workers=0 --out new",
        "VA-C005",
        "visionattn features RUN FILE_OR_FOLDER --out FOLDER",
        (
            run(
                "visionattn features RUN FILE_OR_FOLDER --out FOLDER",
                RUN="runs/flowers/001",
                FILE_OR_FOLDER="photos",
                FOLDER="new",
            ),
        ),
        photos,
        with_run=True,
    ),
    Case(
        "report/trackers.py",
        f"train --data flowers {DRY} log.to=comet_ml",
        "VA-R007",
        "pip install comet_ml\nor train without: log.to=[]",
        (add("log.to=[]"),),
        flowers,
        patch=nothing_installed,
    ),
    Case("config/schema.py", "config show log.to=none", "VA-C002", "none: log.to=[]", (add("log.to=[]"),)),
    Case(
        "cli/launch.py",
        f"train --data flowers --processes 2 {DRY}",
        "VA-C002",
        "leave --processes out, or start without torchrun and accelerate launch",
        (Step("instead", "leave --processes out", "--processes 2", {"leave --processes out": ""}),),
        flowers,
        patch=within_a_launch,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --processes 2 --device cuda:1",
        "VA-C002",
        "--device auto",
        (add("--device auto"),),
        flowers,
        patch=two_gpus,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --processes 2 --device mps",
        "VA-C002",
        "--device cpu",
        (add("--device cpu"),),
        flowers,
        patch=no_gpu,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --processes 3",
        "VA-C002",
        "--processes 2, or --device cpu",
        (instead("--processes 3", "--processes 2"), add("--device cpu")),
        flowers,
        patch=two_gpus,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --device cpu --devices 0,1",
        "VA-C002",
        "--processes 2 instead of --devices",
        (Step("instead", "--processes 2 instead of --devices", "--devices 0,1", {" instead of --devices": ""}),),
        flowers,
        patch=no_gpu,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --devices 0,1",
        "VA-C002",
        "--processes 2 instead of --devices",
        (Step("instead", "--processes 2 instead of --devices", "--devices 0,1", {" instead of --devices": ""}),),
        flowers,
        patch=no_gpu,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --devices 0,1 --processes 3",
        "VA-C002",
        "leave --processes out",
        (Step("instead", "leave --processes out", "--processes 3", {"leave --processes out": ""}),),
        flowers,
        patch=two_gpus,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --devices 1,2",
        "VA-C002",
        "--devices 0,1",
        (instead("--devices 1,2", "--devices 0,1"),),
        flowers,
        patch=two_gpus,
    ),
    Case(
        "cli/launch.py",
        "train --data flowers --devices all",
        "VA-C002",
        "--devices 0,1",
        (instead("--devices all", "--devices 0,1"),),
        flowers,
        patch=two_gpus,
    ),
    Case(
        "cli/unknown.py",
        "train --data-path flowers --arch eca_resnet18 --n-epochs 1 --learning-rate 0.01 --val-split 0.3 --checkpoint none --cpu --bs 4",
        "VA-C001",
        "visionattn train --data flowers --model eca_resnet18 --epochs 1 --lr 0.01 --val-fraction 0.3 --weights none --device cpu "
        "--batch-size 4",
        (
            run(
                "visionattn train --data flowers --model eca_resnet18 --epochs 1 --lr 0.01 --val-fraction 0.3 --weights none --device cpu "
                "--batch-size 4",
                DRY,
            ),
        ),
        flowers,
    ),
    Case(
        "cli/unknown.py",
        "train --data flowers --gpus 0,1 --nproc 2 --kfold 2",
        "VA-C001",
        "visionattn train --data flowers --devices 0,1 --processes 2 --folds 2",
        (run("visionattn train --data flowers --devices 0,1 --processes 2 --folds 2", "--dry-run"),),
        flowers,
        patch=two_gpus,
    ),
    Case(
        "cli/unknown.py",
        "predict --weights runs/flowers/001 --images photos --top-k 2 --conf 0.5 --save-dir new",
        "VA-C001",
        "visionattn predict runs/flowers/001 --source photos --topk 2 --threshold 0.5 --out new",
        (run("visionattn predict runs/flowers/001 --source photos --topk 2 --threshold 0.5 --out new"),),
        photos,
        with_run=True,
    ),
    Case(
        "cli/unknown.py",
        "explain --weights runs/flowers/001 --source rose.png --point 200,80 --target-class rose --stage 1 --output new --steps 0",
        "VA-C001",
        "visionattn explain runs/flowers/001 --image rose.png --query 200,80 --class rose --layer 1 --out new --steps 0",
        (run("visionattn explain runs/flowers/001 --image rose.png --query 200,80 --class rose --layer 1 --out new --steps 0"),),
        wide,
        with_run=True,
    ),
    Case(
        "cli/unknown.py",
        "config show --amp --bf16 --fp16 --cos-lr --cpu --gradient-checkpointing --model-ema --pretrained --wandb --mlflow",
        "VA-C001",
        "visionattn config show train.precision=auto train.precision=bf16 train.precision=fp16 schedule.name=cosine train.device=cpu "
        "model.grad_checkpointing=true train.ema=0.999 model.weights=pretrained log.to=wandb log.to=mlflow",
        (
            run(
                "visionattn config show train.precision=auto train.precision=bf16 train.precision=fp16 schedule.name=cosine "
                "train.device=cpu model.grad_checkpointing=true train.ema=0.999 model.weights=pretrained log.to=wandb log.to=mlflow"
            ),
        ),
    ),
    Case(
        "cli/unknown.py",
        "train --data flowers --foo 3",
        "VA-C001",
        "visionattn train --help\nvisionattn config show",
        (run("visionattn train --help"), run("visionattn config show")),
    ),
    Case(
        "jobs/folds.py",
        "train --resume runs/two",
        "",
        "visionattn predict runs/two --source FILE_OR_FOLDER",
        (run("visionattn predict runs/two --source FILE_OR_FOLDER", FILE_OR_FOLDER="photos"),),
        two_folds,
        with_run=True,
    ),
    Case(
        "jobs/folds.py",
        "train --resume runs/two",
        "VA-R003",
        "visionattn train --resume runs/two/fold1",
        (run("visionattn train --resume runs/two/fold1", "--dry-run"),),
        lambda folder: two_folds(folder, numbered=False),
        with_run=True,
        exit_code=2,
    ),
    Case(
        "jobs/folds.py",
        f"train --data flowers --folds 2 {TINY} train.steps=1",
        "VA-C002",
        "train without --folds",
        (Step("instead", "train without --folds", "--folds 2", {"train without --folds": ""}),),
        flowers,
        patch=without_folds,
    ),
]


# ---------------------------------------------------------------- export


def foreign_onnx(folder: Path) -> None:
    """A file of another program."""
    onnx = pytest.importorskip("onnx")
    flowers(folder)
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in ("image", "output")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["output"])], "relu", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), folder / "relu.onnx")


def exported_onnx(folder: Path) -> None:
    pytest.importorskip("onnx")
    flowers(folder)
    assert done("export", folder / "runs/flowers/001", "--out", folder / "flowers.onnx", "--verify", 1)


EXPORT = [
    Case(
        "runs/exported.py",
        "predict relu.onnx flowers",
        "VA-W003",
        "visionattn export RUN --format onnx",
        (run("visionattn export RUN --format onnx", RUN="runs/flowers/001"),),
        foreign_onnx,
        with_run=True,
    ),
    Case(
        "tasks/classification/__init__.py",
        "predict flowers.onnx flowers eval.scales=[1.5]",
        "VA-M004",
        "leave the size as it is: eval.scales=[]",
        (instead("eval.scales=[1.5]", "eval.scales=[]"),),
        exported_onnx,
        with_run=True,
    ),
    Case(
        "jobs/export.py",
        "export runs/flowers/001 --dynamic size --format safetensors",
        "VA-C002",
        "--dynamic batch for images of one size",
        (instead("--dynamic size", "--dynamic batch"),),
        with_run=True,
    ),
    Case(
        "jobs/export.py",
        "export runs/flowers/001 --verify 0 --format safetensors",
        "VA-C002",
        "--verify 1,3,8",
        (instead("--verify 0", "--verify 1,3,8"),),
        with_run=True,
    ),
    Case(
        "cli/export.py",
        "export runs/flowers/001 --verify one --format safetensors",
        "VA-C002",
        "--verify 1,3,8",
        (instead("--verify one", "--verify 1,3,8"),),
        with_run=True,
    ),
    Case(
        "jobs/export.py",
        "export runs/flowers/001 --format safetensors --out model.pt",
        "VA-C002",
        "--out model.safetensors",
        (instead("--out model.pt", "--out model.safetensors"),),
        with_run=True,
    ),
    Case(
        "jobs/export.py",
        "export runs/flowers/001 --format pt2",
        "VA-R007",
        "--format safetensors",
        (instead("--format pt2", "--format safetensors"),),
        with_run=True,
        patch=lambda monkeypatch: monkeypatch.setattr("visionattn.jobs.export.OLDEST_TORCH", "99"),
    ),
]


# ---------------------------------------------------------------- models to share


def strange_model(folder: Path) -> None:
    """A folder of the hub's layout with a model that is none of ours."""
    (folder / "odd").mkdir()
    save_file({"weight": torch.zeros(3)}, folder / "odd/model.safetensors")
    (folder / "odd/config.json").write_text('{"architecture": "odd"}')


SHARED = [
    Case(
        "cli/push.py",
        "push runs/flowers/001 ./shared",
        "",
        "visionattn predict ./shared --source FILE_OR_FOLDER",
        (run("visionattn predict ./shared --source FILE_OR_FOLDER", FILE_OR_FOLDER="flowers/val"),),
        flowers,
        with_run=True,
    ),
    Case(
        "jobs/push.py",
        "push runs/flowers/001 me/flowers",
        "VA-W008",
        "visionattn push RUN ./me/flowers",
        (run("visionattn push RUN ./me/flowers", RUN="runs/flowers/001"),),
        with_run=True,
    ),
    Case(
        "models/weights/hub.py",
        "predict local-dir:shared --source flowers/val",
        "VA-W006",
        "write one: visionattn push RUN FOLDER",
        (run("visionattn push RUN FOLDER", again=True, RUN="runs/flowers/001", FOLDER="./shared"),),
        flowers,
        with_run=True,
    ),
    Case(
        "models/weights/folders.py",
        "predict odd --source odd",
        "VA-W003",
        "supported models: visionattn models list",
        (run("visionattn models list"),),
        strange_model,
    ),
]


# ---------------------------------------------------------------- speed


def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured, which takes a process for each model."""
    monkeypatch.setattr(speed, "_peak_of_process", lambda candidate, workload: 0)


QUICK = "eca_mobilenetv2 --size 32 --batch 1 --rounds 1"
SPEED = [
    Case(
        "cli/unknown.py",
        "bench --model eca_mobilenetv2 --imgsz 32 --batch-size 1 --repeats 1 --dtype fp32",
        "VA-C001",
        "visionattn bench eca_mobilenetv2 --size 32 --batch 1 --rounds 1 --precision fp32",
        (run("visionattn bench eca_mobilenetv2 --size 32 --batch 1 --rounds 1 --precision fp32"),),
        patch=no_process,
    ),
    Case(
        "cli/bench.py",
        f"bench {QUICK} --precision fp8",
        "VA-C002",
        "--precision fp32",
        (instead("--precision fp8", "--precision fp32"),),
        patch=no_process,
    ),
    Case(
        "cli/bench.py",
        f"bench {QUICK} --device cpu --precision fp16",
        "VA-C002",
        "--precision bf16",
        (instead("--precision fp16", "--precision bf16"),),
        patch=no_process,
    ),
    Case(
        "models/speed.py",
        f"bench {QUICK} --device cuda:99",
        "VA-C002",
        "--device auto",
        (instead("--device cuda:99", "--device auto"),),
        patch=no_process,
    ),
    Case(
        "cli/models.py",
        f"models compare {QUICK} --plot models.jpg",
        "VA-C002",
        "--plot models.png",
        (instead("--plot models.jpg", "--plot models.png"),),
    ),
]


# ---------------------------------------------------------------- comparisons


def page_is_there(folder: Path) -> None:
    (folder / "page.html").write_text("mine")


COMPARED = [
    Case(
        "jobs/compare.py",
        "compare runs/flowers/001",
        "VA-C005",
        "visionattn compare RUN RUN",
        (run("visionattn compare RUN RUN", RUN="runs/flowers/001"),),
        with_run=True,
    ),
    Case(
        "jobs/compare.py",
        "compare runs/flowers/001 runs/flowers/001 --html page.html",
        "VA-R007",
        "another --html FILE, or remove it",
        (instead("--html page.html", "--html FILE"),),
        page_is_there,
        with_run=True,
    ),
]


CASES = [*FIRST, *DATA, *RUNS, *OTHERS, *COMMANDS, *EXPORT, *SHARED, *SPEED, *COMPARED]

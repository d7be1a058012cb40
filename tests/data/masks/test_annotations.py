"""Annotations of each format, drawn as masks: pixels, splits, what is reported, and that the result can be trained on."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.masks.annotated import (
    FORMATS,
    HEIGHT,
    OBJECTS,
    PIXELS,
    UNSPLIT,
    WIDTH,
    coco,
    coco_content,
    corners,
    cvat,
    flat,
    label_studio,
    labelme,
    photo,
    roboflow_masks,
    scene,
    yolo,
)
from visionattn.data.masks.annotations.draw import DrawnMasks, draw_masks
from visionattn.data.masks.annotations.find import find_annotations
from visionattn.data.masks.check import check_masks
from visionattn.data.masks.palettes import read_classes
from visionattn.data.masks.sets import load_mask_data
from visionattn.data.masks.settings import MaskDataConfig
from visionattn.errors import UserError


def drawn(root: Path, **values: Path) -> tuple[DrawnMasks, dict[str, np.ndarray]]:
    """The report and the masks by their place."""
    report = draw_masks(root, out=root.parent / "out", **values)
    folder = root.parent / "out" / "masks"
    return report, {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format(tmp_path: Path, name: str) -> None:
    make, kind = FORMATS[name]
    root = make(tmp_path / "pets")
    report, masks = drawn(root)
    assert report.format == kind
    assert len(masks) == 3
    assert all((mask == scene()).all() for mask in masks.values())
    classes = {item.name: item for item in report.classes}
    assert {key: item.pixels for key, item in classes.items() if key != "eel"} == {key: 3 * count for key, count in PIXELS.items()}
    assert (classes["cat"].objects, classes["dog"].objects, classes["dog"].images) == (3, 6, 3)
    assert report.at_border == 3 and report.without_pixels == 0 and report.without_image == []
    assert report.never_used == (["eel"] if name.startswith("coco") else [])
    finished = name in ("roboflow_masks", "cvat_masks")  # nothing is known of what lies below
    assert report.overlaps == ({} if finished else {"dog over cat": 120})
    assert classes["cat"].largest == (360 if finished else 400) and classes["dog"].smallest == 40 and classes["dog"].median == 70

    split = name not in UNSPLIT
    assert report.images == ({"train": 2, "val": 1} if split else {"all": 3})
    settings = MaskDataConfig(root=str(tmp_path / "out"), workers=1, val_fraction=None if split else 0.34)
    data = load_mask_data(settings, seed=0, in_chans=3)
    assert data.classes[:3] == ["background", "cat", "dog"] and [len(part) for part in data.sets] == [2, 1]
    checked = check_masks(data, settings, cache_dir=tmp_path / "cache")
    assert not [note for note in checked.notes if note.level == "error"]
    assert sum(checked.counts["train"].values()) == 2 * WIDTH * HEIGHT


def test_images_are_links_that_survive_the_source(tmp_path: Path) -> None:
    root = yolo(tmp_path / "pets")
    (root / "images/train/a.png").rename(tmp_path / "elsewhere.png")
    (root / "images/train/a.png").symlink_to("../../../elsewhere.png")
    report, _ = drawn(root)
    assert report.copied == 0
    new = tmp_path / "out/images/train/a.png"
    assert not new.is_symlink() and os.path.samefile(new, tmp_path / "elsewhere.png")


def test_images_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **values: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    report, masks = drawn(yolo(tmp_path / "pets"))
    assert report.copied == 3 and len(masks) == 3
    assert (tmp_path / "out/images/val/c.png").read_bytes() == (tmp_path / "pets/images/val/c.png").read_bytes()


def test_a_file_and_a_folder_of_images(tmp_path: Path) -> None:
    root = coco(tmp_path / "pets")
    report, masks = drawn(root / "annotations/instances_train2017.json")  # the images are found beside annotations/
    assert report.images == {"all": 2} and set(masks) == {"a.png", "b.png"}
    assert [Path(name).name for name in report.not_annotated] == ["c.png"]
    (tmp_path / "list.json").write_text(json.dumps(coco_content(("c.png",))))
    alone = draw_masks(tmp_path / "list.json", images=root / "val2017")
    assert alone.out == str(tmp_path / "list-masks") and alone.images == {"all": 1}


def test_which_object_is_on_top(tmp_path: Path) -> None:
    boxes = {"small": OBJECTS[1][1], "large": OBJECTS[0][1]}
    for order in (("small", "large"), ("large", "small")):  # whatever the order: the smaller one
        root = tmp_path / "-".join(order) / "pets"
        content = coco_content(("a.png",))
        content["annotations"] = [
            {"id": n, "image_id": 100, "category_id": 17 + (label == "small"), "segmentation": [flat(boxes[label])]}
            for n, label in enumerate(order)
        ]
        photo(root / "a.png")
        (root / "x.json").write_text(json.dumps(content))
        report, masks = drawn(root)
        assert (masks["a.png"] == 2).sum() == 40 and report.overlaps == {"dog over cat": 40} and "smaller" in report.rule
    shapes = [{"label": label, "points": corners(box), "shape_type": "polygon"} for label, box in boxes.items()]
    for step, expected in ((1, 0), (-1, 40)):  # the later one
        root = tmp_path / f"labelme{step}" / "pets"
        photo(root / "a.png")
        (root / "a.json").write_text(json.dumps({"shapes": shapes[::step], "imagePath": "a.png"}))
        report, masks = drawn(root)
        assert [item.name for item in report.classes] == ["background", "large", "small"]
        assert (masks["a.png"] == 2).sum() == expected and "later" in report.rule


def test_a_crowd_lies_below_its_members(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    photo(root / "a.png")
    content = coco_content(("a.png",))
    content["annotations"] = [
        {"id": 1, "image_id": 100, "category_id": 17, "segmentation": [flat((2, 2, 22, 22))], "iscrowd": 0},
        {"id": 2, "image_id": 100, "category_id": 18, "segmentation": [flat((10, 10, 20, 14))], "iscrowd": 1},
    ]
    (root / "x.json").write_text(json.dumps(content))
    report, masks = drawn(root)
    assert (masks["a.png"] == 1).sum() == 400 and report.overlaps == {"cat over dog": 40}


def test_shapes_that_are_not_polygons(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    photo(root / "a.png")
    shapes = [
        {"label": "disc", "points": [[20, 15], [20, 25]], "shape_type": "circle"},
        {"label": "_background_", "points": [[18, 13], [22, 17]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[0, 0], [4, 5]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[1, 1]], "shape_type": "point"},
    ]
    (root / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    report, masks = drawn(root)
    assert (masks["a.png"] == 255).sum() == 20 and (masks["a.png"] == 1).sum() == pytest.approx(np.pi * 100 - 16, abs=4)
    assert report.left_out == {"a point, which has no area": 1}
    assert (tmp_path / "out/classes.txt").read_text().splitlines()[-1].startswith("255 ignored ")
    text = '<annotations><meta/><image id="0" name="a.png" width="40" height="30">{}</image></annotations>'
    turned = '<box label="x" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/><ellipse label="y" cx="30" cy="15" rx="5" ry="3"/>'
    other = tmp_path / "cvat" / "pets"
    photo(other / "a.png")
    (other / "annotations.xml").write_text(text.format(turned))
    _, masks = drawn(other)
    rows, columns = np.nonzero(masks["a.png"] == 1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 16, 13, 16)
    assert (masks["a.png"] == 2).sum() == pytest.approx(np.pi * 15, abs=4)


def test_what_is_reported(tmp_path: Path) -> None:
    root = coco(tmp_path / "pets")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"] += [
        {"id": 1, "file_name": "gone.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT},
        {"id": 3, "file_name": "large.png", "width": 10**9, "height": 10**9},
    ]
    for name in ("empty", "large", "stranger"):
        photo(root / "train2017" / f"{name}.png")
    (root / "train2017/broken.png").write_bytes(b"not a picture")
    content["images"].append({"id": 4, "file_name": "broken.png", "width": WIDTH, "height": HEIGHT})
    content["annotations"] += [
        {"id": 1, "image_id": 2, "category_id": 17, "bbox": [1, 1, 2, 2]},
        {"id": 2, "image_id": 100, "category_id": 17, "segmentation": [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]},
        {"id": 3, "image_id": 77, "category_id": 17, "segmentation": [[1, 1, 2, 1, 2, 2]]},
    ]
    path.write_text(json.dumps(content))
    report, masks = drawn(root)
    assert report.images == {"train": 3, "val": 1} and (masks["train/empty.png"] == 0).all()
    assert report.without_image == ["gone.png"] and report.without_objects == ["empty.png"]
    assert report.not_annotated == ["train2017/stranger.png"] and report.unreadable[0].startswith("broken.png: ")
    assert report.other_size == [f"large.png: {WIDTH} x {HEIGHT}, annotated 1000000000 x 1000000000"]
    assert report.without_pixels == 1
    assert report.left_out == {"a box without a polygon": 1, "an object of an image that the file does not list": 1}
    remarks = "\n".join(report.remarks())
    for part in ("dog over cat: 120 pixels", "at the border", "points outside", "eel", "gone.png", "stranger.png", "large.png"):
        assert part in remarks
    assert json.loads((tmp_path / "out/report.json").read_text())["without_image"] == ["gone.png"]


def test_names_that_would_collide(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in ("x/a.png", "y/a.png", "x/b.png", "x/b.jpg"):
        photo(root / name)
    (root / "all.json").write_text(json.dumps(coco_content(("x/a.png", "y\\a.png", "x/b.png", "x/b.jpg"))))
    _, masks = drawn(root)
    assert set(masks) == {"x/a.png", "y/a.png", "x/b-png.png", "x/b-jpg.png"}
    (tmp_path / "list.json").write_text(json.dumps(coco_content(("a.png",))))
    with pytest.raises(UserError, match="fits 2 images"):
        draw_masks(tmp_path / "list.json", images=root)


def test_several_formats_are_asked_about(tmp_path: Path) -> None:
    root = coco(cvat(tmp_path / "pets"))
    with pytest.raises(UserError, match="several formats") as caught:
        draw_masks(root)
    for line in caught.value.fix.splitlines():
        assert find_annotations(Path(line.removeprefix("visionattn data masks from ")))
    assert not (tmp_path / "pets-masks").exists()


def test_finished_masks_with_unknown_values(tmp_path: Path) -> None:
    root = roboflow_masks(tmp_path / "pets")
    Image.fromarray(scene(dog=9)).save(root / "train/a_png.rf.0af3_mask.png")
    with pytest.raises(UserError, match="values without a class: 9"):
        draw_masks(root)
    for path in root.rglob("_classes.csv"):
        path.write_text("Pixel Value, Class\n3, cat\n0, dog\n7, background\n")
    for path in root.rglob("*_mask.png"):
        Image.fromarray(scene(7, 3, 0)).save(path)
    _, masks = drawn(root)
    assert all((mask == scene(0, 2, 1)).all() for mask in masks.values())


def test_yolo_without_names_and_without_labels(tmp_path: Path) -> None:
    root = yolo(tmp_path / "pets")
    (root / "data.yaml").unlink()
    (root / "labels/train/b.txt").unlink()  # no objects
    report, masks = drawn(root)
    assert [item.name for item in report.classes] == ["background", "class0", "class1"]
    assert report.without_objects == ["images/train/b.png"] and (masks["train/b.png"] == 0).all()
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / "labels/val/c.txt").unlink()
    with pytest.raises(UserError, match="contain no area") as caught:
        draw_masks(root)
    assert "1 object: a box without a polygon" in caught.value.why


# ---------------------------------------------------------------- files that are wrong, or meant to harm


def broken_coco(tmp_path: Path, **changes: object) -> Path:
    """A file whose first annotation is changed."""
    root = tmp_path / "pets"
    photo(root / "a.png")
    content = coco_content(("a.png",))
    content["annotations"][0] |= changes
    (root / "x.json").write_text(json.dumps(content))
    return root


def runs(counts: object, size: object = (HEIGHT, WIDTH)) -> dict[str, object]:
    return {"size": size, "counts": counts}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [[1, 2, float("nan"), 4, 5, 6]]}, "NaN"),
        ({"segmentation": [[1, 2, float("inf"), 4, 5, 6]]}, "infinite"),
        ({"segmentation": [[1, 2, 1e300, 4, 5, 6]]}, "ten million pixels"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "not pairs"),
        ({"segmentation": [["a", "b", "c", "d", "e", "f"]]}, "not numbers"),
        ({"segmentation": [[[1, 2], [3]]]}, "not numbers"),
        ({"segmentation": "all of it"}, "neither a list"),
        ({"segmentation": runs([HEIGHT * WIDTH - 1])}, "1,199 pixels in all"),
        ({"segmentation": runs([HEIGHT * WIDTH, 1])}, "1,201 pixels in all"),
        ({"segmentation": runs([-5, HEIGHT * WIDTH + 5])}, "not whole numbers"),
        ({"segmentation": runs([2**63, 1])}, "not whole numbers"),
        ({"segmentation": runs({"a": 1})}, "not whole numbers"),
        ({"segmentation": runs([10**18], [10**9, 10**9])}, "run lengths for a size"),
        ({"segmentation": runs("PP", None)}, "run lengths for a size"),
        ({"segmentation": runs("0" * 4)}, "0 pixels in all"),
        ({"segmentation": runs("P")}, "cut off"),
        ({"segmentation": runs("oooooooooooooooooooo0")}, "do not occur"),
        ({"segmentation": runs("\u00e4\u0000")}, "do not occur"),
        ({"category_id": 99}, "category_id"),
        ({"image_id": [1]}, "neither a number nor a text"),
    ],
    ids=str,
)
def test_annotations_that_cannot_be_drawn(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    root = broken_coco(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        draw_masks(root)
    assert caught.value.code == "VA-D002" and "x.json" in caught.value.where
    assert {path.name for path in tmp_path.iterdir()} == {"pets"}


def many_polygons(root: Path) -> None:
    content = coco_content(("a.png",))
    content["annotations"] = [{**content["annotations"][0], "id": number} for number in range(1001)]
    (root / "x.json").write_text(json.dumps(content))


def many_layers(root: Path) -> None:
    """Few objects that cover the picture very often."""
    Image.new("RGB", (2000, 2000)).save(root / "a.png")
    content = coco_content(("a.png",))
    content["images"][0] |= {"width": 2000, "height": 2000}
    whole = [0, 0, 2000, 0, 2000, 2000, 0, 2000] + [0, 0, 2000, 2000] * 100_000
    content["annotations"] = [{**content["annotations"][0], "segmentation": [whole]}]
    (root / "x.json").write_text(json.dumps(content))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "not JSON": (lambda root: (root / "x.json").write_text('{"images": [}'), "not JSON"),
    "too deep": (lambda root: (root / "x.json").write_text('{"images": ' + "[" * 200_000), "too deep"),
    "not text": (lambda root: (root / "x.json").write_bytes(b'{"images": [\xff\xfe'), "not JSON"),
    "a huge number": (lambda root: (root / "x.json").write_text('{"images": [' + "9" * 10_000 + "]}"), "not JSON"),
    "a list of numbers": (
        lambda root: (root / "x.json").write_text('{"images": [1], "annotations": [], "categories": []}'),
        "list of objects",
    ),
    "many polygons": (many_polygons, "1,001 objects"),
    "many points": (many_layers, "as many points"),
    "definitions": (
        lambda root: (root / "annotations.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>'),
        "definitions",
    ),
    "not XML": (lambda root: (root / "annotations.xml").write_text("<annotations><image"), "not XML"),
    "a video": (lambda root: (root / "annotations.xml").write_text('<annotations><track id="0"/></annotations>'), "tracks"),
    "an XML size": (
        lambda root: (root / "annotations.xml").write_text(
            '<annotations><image name="a.png" width="nan" height="1"><box label="x"/></image></annotations>'
        ),
        '"width" is nan',
    ),
    "a mask outside": (
        lambda root: (root / "annotations.xml").write_text(
            '<annotations><image name="a.png" width="40" height="30">'
            '<mask label="x" rle="1" left="0" top="0" width="1000000" height="1000000"/></image></annotations>'
        ),
        "reaches out",
    ),
    "YAML": (lambda root: (yolo(root) / "data.yaml").write_text("names: [a, b\n"), "not YAML"),
    "names": (lambda root: (yolo(root) / "data.yaml").write_text("names: {0: a, 999999999: b}\n"), "not numbers of classes"),
    "a class too many": (lambda root: (yolo(root) / "data.yaml").write_text("names: [cat]\n"), "labels of class 1"),
    "a YOLO line": (lambda root: (yolo(root) / "labels/train/a.txt").write_text("0 0.1 0.2 0.3 nan 0.5 0.6"), "NaN"),
    "a brush": (
        lambda root: (root / "x.json").write_text(
            json.dumps(
                [
                    {
                        "data": {"image": "a.png"},
                        "annotations": [
                            {"result": [{"type": "brushlabels", "value": {"format": "rle", "rle": [255] * 9, "brushlabels": ["x"]}}]}
                        ],
                    }
                ]
            )
        ),
        "a brush stroke of",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.data.masks.annotations.draw._MOST_OBJECTS", 1000)
    root = tmp_path / "pets"
    photo(root / "a.png")
    make, message = HOSTILE[name]
    make(root)
    with pytest.raises(UserError, match=message) as caught:
        draw_masks(root)
    assert caught.value.code == "VA-D002" and {path.name for path in tmp_path.iterdir()} == {"pets"}


WRONG = (None, True, -1, 1.5, 1e308, float("nan"), 2**70, "", "x\0", [], [[]], {}, {"a": 1}, ["x"], [1, 2, 3])


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values within one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*above, key)
        yield from places(item, (*above, key))


@pytest.mark.parametrize("name", ["coco", "coco_compressed", "roboflow", "labelme", "label_studio"])
def test_any_wrong_value_ends_in_a_mask_or_one_message(tmp_path: Path, name: str) -> None:
    root = FORMATS[name][0](tmp_path / "pets")
    path = sorted(root.rglob("*.json"))[-1]
    content = json.loads(path.read_text())
    known = list(places(content))
    generator = random.Random(0)
    refused = 0
    for _ in range(25):
        changed = json.loads(path.read_text())
        *above, last = generator.choice(known)
        holder = changed
        for key in above:
            holder = holder[key]
        holder[last] = generator.choice(WRONG)
        other = tmp_path / "changed" / path.name
        other.parent.mkdir(exist_ok=True)
        other.write_text(json.dumps(changed))
        try:
            draw_masks(other, images=root, out=tmp_path / "out")
        except UserError as error:
            refused += 1
            assert error.code[3] in "DC" and not (tmp_path / "out").exists()
        else:
            shutil.rmtree(tmp_path / "out")
    assert refused > 2


def test_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    photo(root / "a.png")
    photo(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "..\\secret.png"):
        (root / "x.json").write_text(json.dumps(coco_content((name,))))
        with pytest.raises(UserError, match="none of the 1 annotated image is in"):
            draw_masks(root)
    (root / "x.json").write_text(json.dumps(coco_content(("../../a.png",))))  # a name of an image that is there
    report, masks = drawn(root)
    assert set(masks) == {"a.png"} and report.images == {"all": 1}
    assert not (tmp_path / "masks").exists()


def test_folders_above_are_not_part_of_a_data_set(tmp_path: Path) -> None:
    root = tmp_path / "images" / "pets"
    yolo(root, "{}/images", "{}/labels")
    photo(root / "photos/d.png")
    (tmp_path / "labels/pets/photos").mkdir(parents=True)
    (tmp_path / "labels/pets/photos/d.txt").write_text("0 0 0 1 0 1 1\n")
    report, _ = drawn(root)
    assert report.images == {"train": 2, "val": 1} and report.not_annotated == ["photos/d.png"]


def test_long_beginnings_and_long_texts(tmp_path: Path) -> None:
    root = label_studio(tmp_path / "pets")
    (path,) = root.glob("*.json")
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"][1]["result"].insert(0, {"type": "choices", "value": {"text": "x" * 100_000}})
    path.write_text(json.dumps(tasks))
    report, _ = drawn(root)
    assert report.format == "Label Studio" and report.images == {"all": 3}
    for changes in ({"segmentation": runs([1], ["y" * 100_000])}, {"id": "z" * 100_000, "segmentation": 1}):
        other = broken_coco(tmp_path / "coco", **changes)
        with pytest.raises(UserError) as caught:
            draw_masks(other)
        assert len(str(caught.value)) < 2000


def test_links_in_circles(tmp_path: Path) -> None:
    root = labelme(tmp_path / "pets")
    (root / "again").symlink_to(root)
    (root / "itself").symlink_to("itself")
    os.mkfifo(root / "pipe.json")
    report, _ = drawn(root)
    assert report.images == {"all": 3}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="VA-D001"):
        draw_masks(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no annotations recognised"):
        draw_masks(tmp_path / "empty")
    os.mkfifo(tmp_path / "data.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        draw_masks(tmp_path / "data.yaml")
    root = yolo(tmp_path / "pets")
    with pytest.raises(UserError, match="is not a folder"):
        draw_masks(root, images=root / "nowhere")
    draw_masks(root)
    with pytest.raises(UserError, match="VA-R007"):
        draw_masks(root)


def test_names_of_classes(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    photo(root / "a.png")
    content = coco_content(("a.png",))
    names = ["12 3", "a,  b,", "x\ty", "Z\u00fc\u2028rich", "\x1b[1m\0", "Background"]
    content["categories"] = [{"id": 17 + number, "name": name} for number, name in enumerate(names)]
    (root / "x.json").write_text(json.dumps(content))
    drawn(root)
    expected = ["Background", "12 3", "a, b", "x y", "Z\u00fc rich", "\\x1b[1m\\x00"]
    assert [entry.name for entry in read_classes(tmp_path / "out/classes.txt")] == expected
    content["categories"][0]["name"] = " "
    (root / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="a class without a name"):
        draw_masks(root)


def test_too_many_classes(tmp_path: Path) -> None:
    root = yolo(tmp_path / "pets")
    (root / "data.yaml").write_text(f"names: {[f'c{number}' for number in range(300)]}\n")
    with pytest.raises(UserError, match="300 classes, at most 252"):
        draw_masks(root)

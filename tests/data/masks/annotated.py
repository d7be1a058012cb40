"""The same three pictures annotated in each format: a cat of 20 x 20 pixels, a dog of 10 x 4 on it, and one cut at the border."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
# left, top, right, bottom; the last one reaches out of the picture
OBJECTS = (("cat", (2, 2, 22, 22)), ("dog", (10, 10, 20, 14)), ("dog", (30, 20, 50, 40)))
PIXELS = {"background": 700, "cat": 360, "dog": 140}
SPLITS = {"train": ("a", "b"), "val": ("c",)}


def scene(background: int = 0, cat: int = 1, dog: int = 2) -> np.ndarray:
    """The mask that all formats describe."""
    mask = np.full((HEIGHT, WIDTH), background, np.uint8)
    for name, (left, top, right, bottom) in OBJECTS:
        mask[top:bottom, left:right] = cat if name == "cat" else dog
    return mask


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.stem.encode())).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def corners(box: tuple[int, int, int, int]) -> list[list[float]]:
    left, top, right, bottom = (float(value) for value in box)
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def flat(box: tuple[int, int, int, int]) -> list[float]:
    """The corners of a box as a polygon of COCO."""
    return [value for point in corners(box) for value in point]


def inside(box: tuple[int, int, int, int]) -> np.ndarray:
    """The mask of one object."""
    left, top, right, bottom = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def run_lengths(flat: np.ndarray) -> list[int]:
    """Lengths of runs of zeros and ones, by the definition."""
    counts, value = [0], 0
    for pixel in flat.tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def png(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------- COCO and Roboflow


def coco_content(names: tuple[str, ...], kind: str = "polygons") -> dict[str, Any]:
    images, annotations = [], []
    for image_id, name in enumerate(names, 100):
        images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for number, (label, box) in enumerate(OBJECTS):
            area: Any = [flat(box)]
            if kind == "runs":
                area = {"size": [HEIGHT, WIDTH], "counts": run_lengths(inside(box).T.ravel())}
            annotation = {"id": 10 * image_id + number, "image_id": image_id, "category_id": 17 if label == "cat" else 18, "iscrowd": 0}
            annotations.append({**annotation, "bbox": list(box), "area": int(inside(box).sum()), "segmentation": area})
    # Roboflow lists the project before its classes, COCO a class that no picture shows
    categories = [{"id": 17, "name": "cat", "supercategory": "pets"}, {"id": 18, "name": "dog", "supercategory": "pets"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def coco(root: Path, kind: str = "polygons") -> Path:
    for split, names in SPLITS.items():
        for name in names:
            photo(root / f"{split}2017" / f"{name}.png")
        content = coco_content(tuple(f"{name}.png" for name in names), kind)
        content["categories"].append({"id": 19, "name": "eel", "supercategory": "fish"})
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    return root


def coco_runs(root: Path) -> Path:
    return coco(root, "runs")


def coco_compressed(root: Path) -> Path:
    from pycocotools import mask as library

    coco(root, "runs")
    for path in (root / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            packed = library.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
            annotation["segmentation"] = {"size": packed["size"], "counts": packed["counts"].decode()}
        path.write_text(json.dumps(content))
    return root


def roboflow(root: Path) -> Path:
    for split, names in {"train": SPLITS["train"], "valid": SPLITS["val"]}.items():
        for name in names:
            photo(root / split / f"{name}_png.rf.0af3.jpg")
        content = coco_content(tuple(f"{name}_png.rf.0af3.jpg" for name in names))
        content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    (root / "README.roboflow.txt").write_text("pets\n")
    return root


def roboflow_masks(root: Path) -> Path:
    for split, names in {"train": SPLITS["train"], "valid": SPLITS["val"]}.items():
        for name in names:
            photo(root / split / f"{name}_png.rf.0af3.jpg")
            Image.fromarray(scene()).save(root / split / f"{name}_png.rf.0af3_mask.png")
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    return root


# ---------------------------------------------------------------- YOLO


def yolo(root: Path, images: str = "images/{}", labels: str = "labels/{}") -> Path:
    for split, names in SPLITS.items():
        for name in names:
            photo(root / images.format(split) / f"{name}.png")
            lines = []
            for label, box in OBJECTS:
                shares = [f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners(box)]
                lines.append(f"{0 if label == 'cat' else 1} {' '.join(shares)}")
            path = root / labels.format(split) / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames:\n  0: cat\n  1: dog\n")
    return root


def yolo_by_split(root: Path) -> Path:
    return yolo(root, "{}/images", "{}/labels")


# ---------------------------------------------------------------- LabelMe


def labelme(root: Path) -> Path:
    shapes: list[dict[str, Any]] = [
        {"label": "cat", "points": corners(OBJECTS[0][1]), "shape_type": "polygon", "group_id": None, "flags": {}},
        {
            "label": "dog",
            "points": [[10, 10], [19, 13]],
            "shape_type": "mask",
            "mask": base64.b64encode(png(np.full((4, 10), True))).decode(),
        },
        {"label": "dog", "points": [[50, 40], [30, 20]], "shape_type": "rectangle", "flags": {}},
        {"label": "dog", "points": [[1, 1], [5, 5]], "shape_type": "line", "flags": {}},
    ]
    for name in "abc":
        photo(root / f"{name}.png")
        content = {"version": "5.5.0", "shapes": shapes, "imagePath": f"..\\old\\{name}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / f"{name}.json").write_text(json.dumps({**content, "imageData": None}))
    return root


# ---------------------------------------------------------------- CVAT


def cvat(root: Path) -> Path:
    labels = "".join(f"<label><name>{name}</name><color>#c06060</color></label>" for name in ("cat", "dog"))
    images = []
    for number, (split, name) in enumerate((split, name) for split, names in SPLITS.items() for name in names):
        photo(root / "images" / split / f"{name}.png")
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in corners(OBJECTS[0][1]))
        shapes = [
            '<box label="dog" xtl="10" ytl="10" xbr="20" ybr="14" occluded="0" z_order="1"/>',
            f'<polygon label="cat" points="{points}" occluded="0" z_order="0"/>',
            '<mask label="dog" rle="0, 100" left="30" top="20" width="10" height="10" occluded="0" z_order="0"/>',
            '<points label="cat" points="3.0,3.0" z_order="0"/>',
        ]
        size = f'width="{WIDTH}" height="{HEIGHT}"'
        images.append(f'<image id="{number}" name="{split}/{name}.png" subset="{split.title()}" {size}>{"".join(shapes)}</image>')
    meta = f"<meta><task><name>pets</name><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{"".join(images)}</annotations>'
    (root / "annotations.xml").write_text(text)
    return root


def cvat_masks(root: Path) -> Path:
    colours = np.array([[0, 0, 0], [250, 50, 83], [102, 255, 102]], np.uint8)
    for split, names in SPLITS.items():
        for name in names:
            photo(root / "JPEGImages" / f"{name}.jpg")
            for folder in ("SegmentationClass", "SegmentationObject"):
                (root / folder).mkdir(exist_ok=True)
                Image.fromarray(colours[scene()]).save(root / folder / f"{name}.png")
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:250,50,83::", "dog:102,255,102::"]
    (root / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return root


# ---------------------------------------------------------------- Label Studio


def brush(mask: np.ndarray) -> list[int]:
    """A mask as Label Studio's brush packs it: each pixel four equal bytes, runs of equal ones, and one run of different ones."""
    values = np.repeat(mask.ravel() * 255, 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 5, 8, 16))
    start = 0
    bits += "0" + "01" + f"{7:05b}" + "".join(f"{value:08b}" for value in values[:8])
    start = 8
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] and end - start < 2**16:
            end += 1
        bits += "1" + "11" + f"{end - start - 1:016b}" + f"{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def label_studio(root: Path) -> Path:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "from_name": "label", "to_name": "image"}
    cat = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(OBJECTS[0][1])]
    box = {"x": 25, "y": 100 / 3, "width": 25, "height": 40 / 3, "rotation": 0, "rectanglelabels": ["dog"]}
    stroke = {"format": "rle", "rle": brush(inside(OBJECTS[2][1])), "brushlabels": ["dog"]}
    result = [
        {**size, "id": "r1", "type": "polygonlabels", "value": {"points": cat, "closed": True, "polygonlabels": ["cat"]}},
        {**size, "id": "r2", "type": "rectanglelabels", "value": box},
        {
            **size,
            "id": "r3",
            "type": "brushlabels",
            "value": stroke,
        },
        {**size, "id": "r4", "type": "choices", "value": {"choices": ["indoors"]}},
    ]
    cancelled = {"id": 8, "was_cancelled": True, "result": []}
    paths = {
        "a": "/data/upload/1/0a1b2c3d-a.png",
        "b": "/data/local-files/?d=pets/b.png",
        "c": "https://example.org/pets/c.png?signature=1",
        "d": "s3://pets/d.png",
    }
    tasks: list[dict[str, Any]] = []
    for number, (name, path) in enumerate(paths.items(), 1):
        photo(root / "pets" / f"{name}.png")
        made = [cancelled, {"id": number, "was_cancelled": False, "result": result}] if name != "d" else [cancelled]
        tasks.append({"id": number, "annotations": made, "predictions": [], "data": {"note": "hello", "image": path}})
    (root / "project-1-at-2026-01-01.json").write_text(json.dumps(tasks))
    return root


FORMATS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "coco": (coco, "COCO"),
    "coco_runs": (coco_runs, "COCO"),
    "coco_compressed": (coco_compressed, "COCO"),
    "roboflow": (roboflow, "Roboflow (COCO)"),
    "roboflow_masks": (roboflow_masks, "Roboflow (masks)"),
    "yolo": (yolo, "YOLO polygons"),
    "yolo_by_split": (yolo_by_split, "YOLO polygons"),
    "labelme": (labelme, "LabelMe"),
    "cvat": (cvat, "CVAT (XML)"),
    "cvat_masks": (cvat_masks, "CVAT (segmentation mask)"),
    "label_studio": (label_studio, "Label Studio"),
}
UNSPLIT = {"labelme", "label_studio"}

"""A segmentation run of few steps, and photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import visionattn as va
from tests.tasks.segmentation.garden import CLASSES, PALETTE, picture
from visionattn.console import Console
from visionattn.data.masks.settings import IGNORE
from visionattn.tasks import load_config


@pytest.fixture(scope="session")
def garden_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of few steps."""
    root = tmp_path_factory.mktemp("view") / "garden"
    for split, count in (("train", 8), ("val", 5)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            image, label = picture(number + 100 * (split == "val"))
            if number == 0:
                label[-4:] = IGNORE
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
            Image.fromarray(label).save(root / "masks" / split / f"{number}.png")
    lines = [f"{number} {name} {' '.join(map(str, PALETTE[number]))}" for number, name in enumerate(CLASSES)]
    (root / "classes.txt").write_text("\n".join(lines))
    config = load_config(
        None,
        [
            "task=segment",
            "model.name=eca_resnet18",
            "model.args={width: 8, depths: [1, 1, 1, 1]}",
            "model.img_size=32",
            "model.head.name=unet",
            "model.head.args={max_channels: 16}",
            f"data.root={root}",
            "data.workers=0",
            "data.ignore_index=255",
            "train.steps=4",
            "eval.every=2",
            "log.images=4",
            "train.batch_size=4",
            "train.precision=fp32",
            "optim.lr=0.01",
            "eval.per_case=true",
            f"output.dir={root.parent / 'runs'}",
        ],
    )
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(root.parent / "cache"))
        result = va.train(config, console=Console(quiet=True))
    assert result is not None
    return result.run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An odd size, a grey image, one of 16 bits, and one that its tag turns upright."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    image, _ = picture(7, (50, 71))
    Image.fromarray(image).save(folder / "odd.png")
    Image.fromarray(image).convert("L").save(folder / "deep" / "grey.png")
    cv2.imwrite(str(folder / "deep" / "sixteen.tiff"), image[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif, quality=95)
    return folder

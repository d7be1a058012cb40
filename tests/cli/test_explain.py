"""`visionattn explain`."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import Trained, done, only_run, refused, settings, va
from visionattn.jobs.explain import METHODS
from visionattn.models.explain import cams
from visionattn.models.explain.cams import class_activation
from visionattn.models.explain.faithfulness import faithfulness, random_maps
from visionattn.runs.load import load_model
from visionattn.tasks.base import Question

COLOURS = {"blue": (40, 60, 250), "green": (40, 230, 60), "red": (250, 50, 40)}


def spotted(path: Path, colour: tuple[int, int, int], seed: int) -> tuple[int, int]:
    """Grey noise with a spot of a colour somewhere; returns its middle, column and row."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 180, (64, 64, 1), dtype=np.uint8).repeat(3, 2)
    row, column = rng.integers(0, 46, 2)
    pixels[row : row + 18, column : column + 18] = np.clip(np.array(colour) + rng.integers(-30, 30, (18, 18, 1)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return int(column) + 9, int(row) + 9


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that tells the colour of a spot, so that what matters has a place."""
    folder = tmp_path_factory.mktemp("spots")
    for split, count, start in (("train", 12, 0), ("val", 3, 500)):
        for index, (name, colour) in enumerate(COLOURS.items()):
            for number in range(count):
                spotted(folder / "data" / split / name / f"{number}.png", colour, start + 50 * index + number)
    given = ("train.epochs=12", "train.batch_size=12", "model.img_size=64", "eval.crop_pct=1", "eval.every=12", "optim.lr=0.01")
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(folder / "cache"))
        plain = ("augment.random_resized_crop=null", "augment.hflip=0")
        result = done("train", "--data", folder / "data", *settings(folder, *given, *plain), "--json")
    return Trained(only_run(folder), folder / "data", result)


def test_maps_of_a_trained_run_beat_random_ones(spots: Trained) -> None:
    """Deleting the pixels that Grad-CAM names costs more probability than with random maps as coarse; the spot is where it points.

    Not insertion: the blurred image that it starts from still has the colour of the spot.
    """
    assert json.loads(spots.result.stdout)["metrics"]["top1"] == 1
    loaded = load_model(spots.run)
    model = loaded.model.requires_grad_(False)
    own, chance, near = [], [], []
    for index, colour in enumerate(COLOURS.values()):
        for number in range(2):
            path = spots.run.parent / "new.png"
            column, row = spotted(path, colour, 900 + 10 * index + number)
            subject = loaded.task.subject(loaded.config, loaded.target, model, Question(path), torch.device("cpu"))
            assert subject.class_name == list(COLOURS)[index]
            found = class_activation("gradcam", model, subject.image, subject.logit, 2)
            own.append(faithfulness(model, subject.image, found, subject.probability, steps=16))
            for values in random_maps((64, 64), (4, 4), 4, seed=number):
                chance.append(faithfulness(model, subject.image, values, subject.probability, steps=16))
            inside = found[max(row - 9, 0) : row + 9, max(column - 9, 0) : column + 9].mean()
            near.append(float(inside) > 1.5 * float(found.mean()))
    assert np.mean([one.deletion for one in own]) < np.mean([one.deletion for one in chance]) - 0.05
    assert sum(near) >= 5


def test_files_and_page(spots: Trained, tmp_path: Path) -> None:
    image = tmp_path / "<b>spot</b> & 'x'.png".replace("/", "-")
    spotted(image, COLOURS["green"], 77)
    result = done("explain", spots.run, "--image", image, "--query", "10,50", "--steps", 4, "--out", tmp_path / "out", "--json")
    answer = json.loads(result.stdout)
    names = {"attention.png", "channels.png", "maps.png", "scores.png", "explain.html", "explain.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert answer == json.loads((tmp_path / "out/explain.json").read_text())
    assert answer["class"] == "green" and answer["point"] == "column 10, row 50 of the input"
    assert set(answer["scores"]) == {"gradcam", "random maps"}
    for name in names - {"explain.html", "explain.json"}:
        assert min(Image.open(tmp_path / "out" / name).size) > 100
    page = (tmp_path / "out/explain.html").read_text()
    assert "<b>spot" not in page and "&lt;b&gt;spot" in page and str(image) in html.unescape(page)
    assert [page.count(f"data:image/{kind};base64,") for kind in ("png", "webp")] == [2, 11] and not re.search(
        r"(?:src|href)=\"(?!data:)", page
    )
    assert all(f"{caption}</figcaption>" in page for caption in ("image", "stage 4, block 2<br>gates: similar places"))
    assert "class" in result.stderr and "gradcam" in result.stderr


def test_a_stage_head_by_head_in_the_run_folder(spots: Trained, tmp_path: Path) -> None:
    run = spots.copy(tmp_path)
    image = next((spots.data / "val/red").iterdir())
    result = done("explain", run, "--image", image, "--layer", 3, "--class", "blue", "--method", "attention,layercam", "--steps", 0)
    folder = run / f"explain/{image.stem}"
    assert {path.name for path in folder.iterdir()} == {"attention.png", "channels.png", "maps.png", "explain.html", "explain.json"}
    assert "blue, probability" in result.stdout and json.loads((folder / "explain.json").read_text())["scores"] == {}
    text = refused(run, "VA-R007", 7, "explain", run, "--image", image)
    assert "exists already" in text


def test_mistakes(trained: Trained, tmp_path: Path) -> None:
    image = next((trained.data / "val/rose").iterdir())  # 48 x 40
    given = ("explain", trained.run, "--image", image, "--out", tmp_path / "out")

    def told(code: str, exit_code: int, *more: object) -> str:
        return refused(tmp_path, code, exit_code, *given, *more)

    assert "--image FILE" in refused(tmp_path, "VA-C005", 2, "explain", trained.run)
    assert "is not a file" in refused(tmp_path, "VA-D001", 3, "explain", trained.run, "--image", trained.data)
    assert "X,Y" in told("VA-C002", 2, "--query", "5")
    assert "48 x 40 pixels" in told("VA-C002", 2, "--query", "5,40")
    assert "outside of what the network sees" in told("VA-C002", 2, "--query", "0,20")
    assert 'no class "ruse"' in (text := told("VA-C002", 2, "--class", "ruse")) and "rose" in text
    assert "gradcam" in told("VA-C002", 2, "--method", "grad-cam")
    assert "ECAResNet" in told("VA-C002", 2, "--method", "relevance")
    assert "--layer 4" in told("VA-C002", 2, "--layer", 5)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = ("explain", trained.run, "--image", tmp_path / "broken.png", "--out", tmp_path / "out")
    assert "broken.png" in refused(tmp_path, "VA-D010", 3, *broken)
    assert "explanations are of one model" in refused(tmp_path, "VA-M004", 2, "explain", trained.run, trained.run, "--image", image)


def test_without_the_package(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cams, "PACKAGE", "no_such_package")
    image = next((trained.data / "val/rose").iterdir())
    given = ("explain", trained.run, "--image", image, "--out", tmp_path / "out")
    assert 'pip install "visionattn[explain]"' in refused(tmp_path, "VA-R007", 7, *given, "--method", "gradcam")
    result = done(*given)
    assert 'pip install "visionattn[explain]"' in result.stdout and (tmp_path / "out/attention.png").is_file()
    assert not (tmp_path / "out/maps.png").exists()


def test_help_names_every_method() -> None:
    text = va("explain", "--help").stdout
    assert all(name in text for name in METHODS)

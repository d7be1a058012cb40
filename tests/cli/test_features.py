"""`visionattn features` and `neighbors`."""

from __future__ import annotations

import csv
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visionattn as va
from tests.commands import Trained, done, picture, refused, tree
from visionattn import spill
from visionattn.data.readers import read_image
from visionattn.data.sources import KeptImages
from visionattn.runs.load import load_model
from visionattn.tasks.classification.data import preprocessing
from visionattn.tasks.classification.output import RankedClasses


def expected(run: Path, path: Path) -> np.ndarray:
    """Return the input of the classifier's linear layer."""
    loaded: Any = load_model(run)
    seen: list[torch.Tensor] = []
    loaded.model.head.fc.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    with torch.inference_mode():
        loaded.model(preprocessing(loaded.config, loaded.model)(read_image(path, settings=loaded.config.data, in_chans=3))[None])
    return seen[0].flatten().numpy()


def test_features_of_files(trained: Trained, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    result = done("features", trained.run, trained.data / "test", broken, "--out", out, "train.precision=fp32")
    assert f"{out / 'features.npy'}: 6 x 64, float32" in result.stdout and "unreadable" in result.stdout
    values = np.load(out / "features.npy", allow_pickle=False)
    rows = list(csv.DictReader((out / "features.csv").open()))
    assert values.dtype == np.float32 and values.shape == (6, 64) and list(rows[0]) == ["id", "path"]
    for row, found in zip(rows, values, strict=True):
        np.testing.assert_allclose(found, expected(trained.run, Path(row["path"])), atol=1e-4)
    assert [row["id"] for row in rows] == [str(path) for path in sorted((trained.data / "test").rglob("*.png"))]
    refused(tmp_path, "VA-R007", 7, "features", trained.run, trained.data / "test", "--out", out)


def test_folders_of_patches_become_bags(trained: Trained, tmp_path: Path) -> None:
    """A file per slide, in the folder of its class, which task=bags trains on."""
    for kind in ("normal", "tumour"):
        for slide in range(3):
            for place in range(2):
                picture(tmp_path / "patches" / kind / f"slide_{kind}{slide}" / f"{place * 256}_512.png", kind == "tumour", slide)
    out = tmp_path / "slides"
    done("features", trained.run, tmp_path / "patches", "--out", out, "--bags", "train.precision=fp32")
    names = [f"{kind}/slide_{kind}{slide}.npz" for kind in ("normal", "tumour") for slide in range(3)]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.npz")) == names
    with np.load(out / names[0]) as bag:
        assert bag["features"].shape == (2, 64) and bag["coords"].tolist() == [[0, 512], [256, 512]]
        patch = tmp_path / "patches/normal/slide_normal0/256_512.png"
        np.testing.assert_allclose(bag["features"][1], expected(trained.run, patch), atol=1e-4)
    assert "2 classes, 64 features" in done("data", "check", out, "data.val_fraction=0.34").stdout
    refused(tmp_path, "VA-R007", 7, "features", trained.run, tmp_path / "patches", "--out", out, "--bags")
    more = ("features", trained.run, tmp_path / "patches/tumour/slide_tumour0", "--out", tmp_path / "new", "--bags")
    assert "SLIDE/1024_2048.png" in refused(tmp_path, "VA-D002", 3, *more)
    refused(tmp_path, "VA-C005", 2, "features", trained.run, "--split", "val", "--out", tmp_path / "new", "--bags")


def test_features_of_a_split_have_labels(trained: Trained, tmp_path: Path) -> None:
    answer = json.loads(done("features", trained.run, "--split", "val", "--out", tmp_path / "val.npy", "--json").stdout)
    assert answer["shape"] == [12, 64] and set(tree(tmp_path)) == {"val.npy", "val.csv", "val.json"}
    rows = list(csv.DictReader((tmp_path / "val.csv").open()))
    assert [(row["id"], row["label"]) for row in rows[:5]] == [
        *((f"val/daisy/{n}.png", "daisy") for n in range(4)),
        ("val/rose/0.png", "rose"),
    ]
    assert rows[0]["path"] == str(trained.data / "val/daisy/0.png")
    for number in range(2):  # a class that the model does not have
        picture(tmp_path / "more" / "train" / "=lily" / f"{number}.png", 1, number)
    found = va.extract_features(trained.run, tmp_path / "more", split="train", out=tmp_path / "lily")
    assert found.labels == ["=lily"] * 2 and "'=lily" in (tmp_path / "lily/features.csv").read_text()
    same = va.find_neighbors(trained.run, data=tmp_path / "more", features=tmp_path / "lily", split="train", k=1)
    assert same.metrics == {"nearest_top1": 1.0, "knn_top1": 1.0} and same.rows.tolist() == [[1], [0]]


def test_neighbors_of_files(trained: Trained, tmp_path: Path) -> None:
    query, out = trained.data / "train/rose/3.png", tmp_path / "out"
    result = done("neighbors", trained.run, query, trained.data / "test/daisy", "--k", 3, "--out", out)
    rows = list(csv.DictReader((out / "neighbors.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 3 and "train/rose/3.png" in result.stdout
    first = next(row for row in rows if row["query"] == str(query))
    assert (first["neighbor"], first["label"]) == ("train/rose/3.png", "rose") and float(first["similarity"]) > 0.999
    with Image.open(out / "neighbors.png") as sheet:
        assert sheet.width > sheet.height > 300
    answer = json.loads(done("neighbors", trained.run, query, "--json").stdout)
    assert answer["k"] == 5 and answer["neighbors"][0]["neighbor"] == "train/rose/3.png" and answer["metrics"] == {}
    other = json.loads(done("neighbors", trained.run, query, "--data", trained.data, "--json").stdout)
    assert other == answer


def test_accuracy_of_neighbors(trained: Trained, tmp_path: Path) -> None:
    found = va.find_neighbors(trained.run, split="val", k=3)
    labels = np.array(found.references.labels)[found.rows]
    truth = np.array(found.queries.labels)
    assert found.metrics["nearest_top1"] == (labels[:, 0] == truth).mean()
    most = [max(row.tolist(), key=row.tolist().count) for row in labels]
    assert found.metrics["knn_top1"] == np.mean([one == other for one, other in zip(most, truth, strict=True)])
    text = f"nearest {100 * found.metrics['nearest_top1']:.2f} %  most of 3 {100 * found.metrics['knn_top1']:.2f} %"
    done("features", trained.run, "--split", "train", "--out", tmp_path / "train")
    again = done("neighbors", trained.run, "--split", "val", "--k", 3, "--features", tmp_path / "train")
    assert f"12 images with the label of their neighbours: {text}" in again.stdout


def test_what_is_refused(trained: Trained, tmp_path: Path) -> None:
    files = trained.data / "test"
    for command in ("features", "neighbors"):
        assert "needs a run" in refused(tmp_path, "VA-C005", 2, command, "eval.crop_pct=1.0")
        assert "of one model" in refused(tmp_path, "VA-M004", 2, command, trained.run, trained.run, "--out", tmp_path / "x")
    assert "--out" in refused(tmp_path, "VA-C005", 2, "features", trained.run, files)
    assert "--split" in refused(tmp_path, "VA-C005", 2, "features", trained.run, "--out", tmp_path / "x")
    refused(tmp_path, "VA-C005", 2, "neighbors", trained.run)
    refused(tmp_path, "VA-C002", 2, "neighbors", trained.run, files, "--split", "val")
    assert "Did you mean val?" in refused(tmp_path, "VA-D002", 3, "features", trained.run, "--split", "vla", "--out", tmp_path / "x")
    refused(tmp_path, "VA-C002", 2, "features", trained.run, files, files, "--split", "val", "--out", tmp_path / "x")
    refused(tmp_path, "VA-D001", 3, "neighbors", trained.run, files, "--features", tmp_path / "nothing")
    done("features", trained.run, "--split", "val", "--out", tmp_path / "own")
    search = ("neighbors", trained.run, files, "--features", tmp_path / "own")
    facts = tmp_path / "own/features.json"
    content = facts.read_text()
    facts.write_text(json.dumps({**json.loads(content), "fingerprint": "0" * 32}))
    assert "another model" in refused(tmp_path, "VA-M004", 2, *search)
    facts.write_text(content)
    table = tmp_path / "own/features.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    assert "do not fit together" in refused(tmp_path, "VA-D010", 3, *search)


def test_no_image_is_kept(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all images at most two batches are in memory; what is kept of them lies on the disk."""
    for number in range(40):
        picture(tmp_path / "many" / f"{number}.png", number % 3, number)
    monkeypatch.setattr(KeptImages, "keep", lambda *given: pytest.fail("an image is kept"))
    monkeypatch.setattr(spill, "HELD_BYTES", 2**10)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = [0]
    model = type(load_model(trained.run).model)
    true_features = model.forward_features
    true_forward = model.forward

    def counted(true: Any) -> Any:
        def call(self: Any, image: torch.Tensor) -> Any:
            alive.append(weakref.ref(image))
            most[0] = max(most[0], sum(one() is not None for one in alive))
            return true(self, image)

        return call

    monkeypatch.setattr(model, "forward_features", counted(true_features))
    monkeypatch.setattr(model, "forward", counted(true_forward))
    writers: list[RankedClasses] = []
    monkeypatch.setattr(RankedClasses, "finish", lambda self, true=RankedClasses.finish: (writers.append(self), true(self))[1])
    more: dict[str, Any] = {"batch_size": 4, "settings": ["data.cache=ram", "data.workers=0"]}
    features = va.extract_features(trained.run, tmp_path / "many", out=tmp_path / "features", **more)
    assert isinstance(features.values, np.memmap) and (len(alive), most[0]) == (10, 1)
    found, _ = va.predict(trained.run, tmp_path / "many", out=tmp_path / "out", save=["probs"], **more)
    assert len(found) == 40 and isinstance(writers[0].found.array(), np.ndarray) and (len(alive), most[0]) == (20, 1)
    assert len((tmp_path / "out/probabilities.csv").read_text().splitlines()) == 41
    saved = np.load(tmp_path / "features/features.npy", allow_pickle=False)
    np.testing.assert_array_equal(saved, features.values)


@pytest.mark.parametrize("command", ["predict RUN IMAGE", "features RUN IMAGE", "neighbors RUN IMAGE", "data preview DATA --count 1"])
def test_a_home_that_no_shell_expanded(command: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = {"RUN": trained.run, "IMAGE": trained.data / "test/rose", "DATA": trained.data}
    done(*(given.get(word, word) for word in command.split()), "--out=~/found.png")
    assert (tmp_path / "found.png").exists() and not (tmp_path / "~").exists()

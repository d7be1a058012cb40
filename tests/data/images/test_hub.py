"""Hugging Face data sets: folders of save_to_disk, parquet files, and what the hub downloads."""

from __future__ import annotations

import pickle
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.images.folders import load
from tests.data.images.shards import png
from visionattn.data.check import check_images
from visionattn.data.images.hub import HubImages, read_split
from visionattn.data.images.labels import load_split
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.readers import UnreadableFile
from visionattn.errors import UserError

NAMES = ["tulip", "rose"]


@pytest.fixture(scope="session")
def hf() -> Any:
    return pytest.importorskip("datasets")


def rows(hf: Any, labels: list[Any], first: int = 0, **columns: list[Any]) -> Any:
    """A split with the columns `picture` and `flower`."""
    pictures = [{"bytes": png(number), "path": None} for number in range(first, first + len(labels))]
    features = {"picture": hf.Image(), "flower": hf.ClassLabel(names=NAMES)}
    features |= {name: hf.Value("string" if isinstance(values[0], str) else "int64") for name, values in columns.items()}
    return hf.Dataset.from_dict({"picture": pictures, "flower": labels, **columns}, features=hf.Features(features))


def saved(hf: Any, root: Path, **splits: Any) -> Path:
    hf.DatasetDict(splits).save_to_disk(str(root))
    return root


def refused(code: str, root: Path | str, **settings: object) -> UserError:
    with pytest.raises(UserError) as caught:
        load(root, **settings)
    assert caught.value.code == code
    return caught.value


def test_a_folder_of_save_to_disk(hf: Any, tmp_path: Path) -> None:
    root = saved(hf, tmp_path / "flowers", train=rows(hf, [0, 1, 1]), validation=rows(hf, [1, 0], 3), test=rows(hf, [-1, -1], 5))
    data = load(root)
    assert data.name == "flowers" and data.classes == NAMES and data.test is None
    assert [note.text for note in data.notes] == ["test has no labels: left out"]
    assert data.train.labels.tolist() == [0, 1, 1] and data.val.labels.tolist() == [1, 0]
    assert data.val.ids == ["val[0]", "val[1]"] and data.val.images.content(1) == png(4) and data.val.images.size(1) == len(png(4))
    again = pickle.loads(pickle.dumps(data.train.take([2, 0])))
    assert len(pickle.dumps(data.train.images)) < 5000
    np.testing.assert_array_equal(again.images.read(0), np.asarray(Image.open(BytesIO(png(2)))))
    assert load_split(LabelDataConfig(root=str(root)), "val", ["rose", "tulip"], 3).labels.tolist() == [0, 1]


def test_one_split_with_groups_and_text(hf: Any, tmp_path: Path) -> None:
    plants = [str(number // 2) for number in range(20)]
    rows(hf, [0, 1] * 10, plant=plants, kind=["007", "yes"] * 10).save_to_disk(str(tmp_path))
    data = load(tmp_path, val_fraction=0.2, group_by="plant", label_column="kind")
    assert data.classes == ["007", "yes"] and len(data.train) + len(data.val) == 20
    assert data.train.groups is not None and data.val.groups is not None and set(data.train.groups).isdisjoint(data.val.groups)
    assert "plant" in refused("VA-C002", tmp_path, val_fraction=0.2, group_by="plnt").fix
    refused("VA-D003", tmp_path)
    refused("VA-C002", tmp_path, val_fraction=0.2, multi_label=True)


@pytest.mark.parametrize(
    "names", [("data/train-00000-of-00002", "data/train-00001-of-00002", "data/validation-00000-of-00001"), ("train/0", "train/1", "val/0")]
)
def test_parquet_files(hf: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    root = tmp_path / "a [v1] {x}"
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        rows(hf, [0, 1], 2 * number).to_parquet(str(root / f"{name}.parquet"))
    data = load(root)
    assert data.classes == NAMES and [len(part) for part in data.sets] == [4, 2]
    assert [data.train.images.content(index) for index in range(4)] == [png(number) for number in range(4)]
    assert data.val.images.content(1) == png(5)
    rows(hf, [1, 1], 9).to_parquet(str(root / f"{names[2]}.parquet"))
    assert load(root).val.images.content(1) == png(10)


def test_plain_columns_are_named(hf: Any, tmp_path: Path) -> None:
    for split in ("train", "val"):
        columns = {"jpg": [png(0), png(1)], "number": [2, 0], "score": [0.5, 1.5]}
        hf.Dataset.from_dict(columns).to_parquet(str(tmp_path / f"{split}.parquet"))
    assert "data.image_column" in refused("VA-D002", tmp_path).fix and "jpg: Value" in refused("VA-D002", tmp_path).where
    assert "data.label_column" in refused("VA-D002", tmp_path, image_column="jpg").fix
    data = load(tmp_path, image_column="jpg", label_column="number")
    assert data.classes == ["0", "2"] and data.train.images.read(1).shape == (8, 10, 3)
    data = load(tmp_path, image_column="jpg", label_column="number", classes=["a", "b", "c"])
    assert data.train.labels.tolist() == [2, 0]
    assert "Did you mean jpg" in refused("VA-C002", tmp_path, image_column="jpeg").fix
    assert "float" in refused("VA-D002", tmp_path, image_column="jpg", label_column="score").what
    assert "no images" in refused("VA-D002", tmp_path, image_column="number", label_column="number").what


def test_rows_without_an_image_or_a_label(hf: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(0))
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=NAMES)})
    pictures = [{"bytes": png(0), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}, None]
    source = hf.Dataset.from_dict({"image": pictures, "label": [0, 1, 1]}, features=features)
    images = read_split(source, LabelDataConfig(), 3).images
    assert images.content(0) == png(0)
    for index, reason in ((1, "no image, but a path"), (2, "no image")):
        with pytest.raises(UnreadableFile, match=reason):
            images.read(index)
    root = saved(hf, tmp_path / "x", train=rows(hf, [0, 1, -1]), validation=rows(hf, [0, 1]))
    assert refused("VA-D012", root).what == "labels outside the classes in train: {(empty): 1 image}"


def test_check_decodes_once(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = saved(hf, tmp_path / "x", train=rows(hf, [0, 1]), validation=rows(hf, [0, 1], 2))
    first = check_images(load(root), LabelDataConfig(), in_chans=3, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(HubImages, "content", lambda self, index: pytest.fail("the image was read again"))
    assert check_images(load(root), LabelDataConfig(), in_chans=3, cache_dir=tmp_path / "cache") == first


def test_damaged_files(hf: Any, tmp_path: Path) -> None:
    root = saved(hf, tmp_path / "x", train=rows(hf, [0, 1]), validation=rows(hf, [0, 1], 2))
    (arrow,) = (root / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    refused("VA-D002", root)
    for split in ("train", "val"):
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1")
    refused("VA-D002", tmp_path)


def test_from_the_hub(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repo: str, **arguments: Any) -> str:
        asked.update(repo=repo, **arguments)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "refs/convert/parquet" in refused("VA-D002", "", format="hf", dataset="user/flowers").fix
    for split, labels in (("train", [0, 1]), ("test", [1])):
        (tmp_path / "plain").mkdir(exist_ok=True)
        rows(hf, labels).to_parquet(str(tmp_path / f"plain/{split}-00000-of-00001.parquet"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    data = load("", format="hf", dataset="user/flowers@v2", val="test")
    assert data.name == "flowers" and [len(part) for part in data.sets] == [2, 1, 1]
    assert asked == {
        "repo": "user/flowers",
        "repo_type": "dataset",
        "revision": "v2",
        "allow_patterns": "*.parquet",
        "local_files_only": False,
    }
    monkeypatch.setenv("VISIONATTN_OFFLINE", "1")
    load("", format="hf", dataset="user/flowers", val="test")
    assert asked["local_files_only"] and asked["revision"] is None
    refused("VA-D002", "", format="hf", dataset="user/flowers", train="fit")
    refused("VA-C002", tmp_path, format="hf", dataset="user/flowers")


def test_d001_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = refused("VA-D001", "", format="hf", dataset="user/flowers")
    assert error.why == "HF_HUB_OFFLINE is set, and it is not in the cache" and "hf download user/flowers --repo-type dataset" in error.fix
    assert refused("VA-D001", "", format="hf", dataset="../x").exit_code == 3


def test_r007_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    error = refused("VA-R007", tmp_path)
    assert error.fix == 'pip install "visionattn[hf]"' and error.exit_code == 7

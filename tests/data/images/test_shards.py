"""WebDataset shards: what is read of them, from where, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images.folders import load, save
from tests.data.images.shards import Member, flower_shards, png, samples, write_tar
from visionattn.data.check import check_images
from visionattn.data.images import shards
from visionattn.data.images.labels import load_split
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.images.shards import ShardImages, find_shards
from visionattn.data.readers import UnreadableFile
from visionattn.data.splits import image_manifest
from visionattn.errors import UserError


def refused(code: str, root: Path, **settings: object) -> UserError:
    with pytest.raises(UserError) as caught:
        load(root, **settings)
    assert (caught.value.code, caught.value.exit_code) == (code, 3 if code[3] == "D" else 2)
    return caught.value


def member(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


# ---------------------------------------------------------------- reading


def test_shards_of_two_splits(tmp_path: Path) -> None:
    data = load(flower_shards(tmp_path / "flowers"))
    assert data.name == "flowers" and data.classes == ["rose", "tulip"] and data.notes == [] and data.test is None
    assert data.train.labels.tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 0, 0] and data.val.labels.tolist() == [0, 1, 1, 0, 1]
    assert data.train.ids[4:6] == ["train-000000.tar/000004", "train-000001.tar/000005"]
    for index in (0, 4, 5, 9):
        np.testing.assert_array_equal(data.train.images.read(index), np.asarray(Image.open(BytesIO(png(index)))))
        assert data.train.images.content(index) == png(index) and data.train.images.size(index) == len(png(index))
    assert (data.val.images.facts(0).width, data.val.images.facts(0).height) == (10, 8)
    assert load(tmp_path / "flowers", in_chans=1).train.images.read(0).shape == (8, 10, 1)
    again = pickle.loads(pickle.dumps(data.train.take([9, 2])))
    assert again.ids == ["train-000001.tar/000009", "train-000000.tar/000002"] and again.images.content(0) == png(9)
    assert load_split(LabelDataConfig(root=str(tmp_path / "flowers")), "val", ["tulip", "rose"], 3).labels.tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (("train/a.tar", "train/b.tar", "val/a.tar"), {}),
        (("train.tar", "validation.tar"), {}),
        (("data/train-00.tar", "data/train-01.tar", "data/val-00.tar"), {}),
        (("x-train-7.tar", "x-train-8.tar", "x-val-1.tar"), {"train": "x-train-*.tar", "val": "x-val-*.tar", "format": "webdataset"}),
        (("p09.tar", "p10.tar", "p11.tar", "p12.tar"), {"train": "p{09..11}.tar", "val": "p{12..12}.tar"}),
    ],
)
def test_names_of_shards(files: tuple[str, ...], settings: dict[str, object], tmp_path: Path) -> None:
    for number, name in enumerate(files):
        write_tar(tmp_path / name, samples(["a", "b"], 2 * number))
    data = load(tmp_path, **settings)
    assert [name.rpartition("/")[0] for name in (*data.train.ids[::2], *data.val.ids[::2])] == list(files)


def test_a_range_is_complete_and_bounded(tmp_path: Path) -> None:
    flower_shards(tmp_path)
    error = refused("VA-D001", tmp_path, train="train-{000000..000003}.tar")
    assert error.what == '2 of 4 shards "train-{000000..000003}.tar" do not exist' and "train-000002.tar" in error.where
    refused("VA-C002", tmp_path, train="train-{0..999999999}.tar")
    refused("VA-C002", tmp_path, train="train-{2..1}.tar")
    assert find_shards(tmp_path, "*", (".tar",)) == sorted(tmp_path.glob("*.tar"))


def test_archives_beside_class_folders_are_not_shards(tmp_path: Path) -> None:
    save(tmp_path / "train/a/0.png")
    save(tmp_path / "val/a/1.png")
    write_tar(tmp_path / "train.tar", samples(["b"]))
    write_tar(tmp_path / "train/images.tar", samples(["b"]))
    assert load(tmp_path).classes == ["a"]


def test_without_validation_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(["a", "b"] * 10))
    refused("VA-D003", tmp_path)
    data = load(tmp_path, val_fraction=0.2, group_by=r"(\d)$")
    assert len(data.train) + len(data.val) == 20
    assert {name[-1] for name in data.train.ids}.isdisjoint({name[-1] for name in data.val.ids})
    refused("VA-C002", tmp_path, val_fraction=0.2, multi_label=True)
    refused("VA-C002", tmp_path, val_fraction=0.2, cache="ram")


def test_numbers_are_positions_in_classes_txt(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", samples([2, "1\n", "oak", 0]))
    assert load(tmp_path, classes=["elm", "ash", "oak"]).train.labels.tolist() == [2, 1, 2, 0]
    (tmp_path / "classes.txt").write_text("oak\nash\nelm\n")
    assert load(tmp_path).train.labels.tolist() == [2, 1, 0, 0]
    assert load_split(LabelDataConfig(root=str(tmp_path)), "val", ["elm", "oak", "ash"], 3).labels.tolist() == [0, 2, 1, 1]
    write_tar(tmp_path / "val.tar", samples([3, "02", 0]))
    assert refused("VA-D012", tmp_path).what == "labels outside the classes in val: {3: 1 image, 02: 1 image}"
    (tmp_path / "classes.txt").unlink()
    write_tar(tmp_path / "train.tar", samples([10, 9, 10]))
    write_tar(tmp_path / "val.tar", samples([9, 10]))
    assert load(tmp_path).classes == ["9", "10"]


def test_labels_in_json(tmp_path: Path) -> None:
    values: list[object] = [{"label": 7}, {"class": "x"}, {"label": None, "class": "x"}, {"label": "x", "class": "y"}, {"width": 1}]
    members: list[Member] = []
    for number, value in enumerate(values):
        members += [(f"{number}.json", json.dumps(value).encode()), (f"{number}.JPG", png(number))]
    write_tar(tmp_path / "train.tar", [*members, ("4.cls", b"x"), ("3.cls", b"")])
    write_tar(tmp_path / "val.tar", samples(["x", 7]))
    data = load(tmp_path)
    assert [data.classes[number] for number in data.train.labels] == ["7", "x", "x", "x", "x"]


def test_other_members_are_left_out_and_counted(tmp_path: Path) -> None:
    flower_shards(tmp_path)
    more: list[Member] = [("README", b"x"), ("meta.json", b"{}"), ("000000.txt", b"x"), ("__MACOSX/000000.png", b"x"), ("a", b"")]
    write_tar(tmp_path / "train-000000.tar", [*more, member("folder", tarfile.DIRTYPE), *samples(["rose", "tulip"]), ("000001.txt", b"")])
    for _ in ("scanned", "from the cache"):
        data = load(tmp_path)
        assert len(data.train) == 7
        assert [note.text for note in data.notes] == ["6 members of other types left out (.txt, README, 000000.png, a)"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_letters(format: int, tmp_path: Path) -> None:
    folder = f"./{'f' * 60}/{'g' * 60}" if format == tarfile.USTAR_FORMAT else f"./{'f' * 90}/{'g' * 90}/{'h' * 90}"
    members: list[Member] = [(f"{folder}/ä.v.png", b""), (f"{folder}/é.png", png(1)), (f"{folder}/é.cls", b"x")]
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", members, format=format)
    data = load(tmp_path)
    assert data.train.ids == [f"train.tar/{folder[2:]}/é"] and data.train.images.content(0) == png(1)


# ---------------------------------------------------------------- the index


def test_the_index_is_cached_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(flower_shards(tmp_path))
    scan, scanned = shards._scan, list[str]()
    monkeypatch.setattr(shards, "_scan", lambda file, shard, exclude: scanned.append(Path(shard.path).name) or scan(file, shard, exclude))
    again = load(tmp_path)
    assert scanned == [] and again.train.ids == first.train.ids and again.train.images.content(7) == png(7)
    write_tar(tmp_path / "train-000001.tar", samples(["rose", "tulip"], 30))
    assert load(tmp_path).train.ids[5:] == ["train-000001.tar/000030", "train-000001.tar/000031"] and scanned == ["train-000001.tar"]
    with pytest.raises(UnreadableFile, match="changed since it was indexed"):
        first.train.images.read(7)
    for path in Path(os.environ["VISIONATTN_CACHE"], "shards").iterdir():
        path.write_text("[]")
    load(tmp_path, exclude=["x"])
    assert len(scanned) == 4


def test_images_are_read_side_by_side_without_open_files(tmp_path: Path) -> None:
    images = load(flower_shards(tmp_path)).train.images
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(images.content, [*range(10)] * 20))
    assert found == [png(number) for number in range(10)] * 20
    assert not before or len(os.listdir("/proc/self/fd")) <= before


def test_a_million_images_need_twenty_megabytes(tmp_path: Path) -> None:
    images = load(flower_shards(tmp_path)).train.images
    assert isinstance(images, ShardImages)
    many = images.take(np.arange(10_000) % len(images))  # type: ignore[arg-type]
    assert len(pickle.dumps(many)) / 10_000 < 21


def test_check_decodes_once_and_the_manifest_needs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flower_shards(tmp_path / "flowers")
    write_tar(tmp_path / "flowers/val-000000.tar", [*samples(["rose", "tulip"], 10), ("x.png", png(1)[:99]), ("x.cls", b"rose")])
    data = load(tmp_path / "flowers")
    settings = LabelDataConfig()
    first = check_images(data, settings, in_chans=3, cache_dir=tmp_path / "cache")
    assert list(first.unreadable) == ["val-000000.tar/x"]
    monkeypatch.setattr(ShardImages, "content", lambda self, index: pytest.fail("the image was read again"))
    assert check_images(data, settings, in_chans=3, cache_dir=tmp_path / "cache") == first
    rows = image_manifest(data, first.hashes)
    assert (rows[3].path, rows[3].label, rows[3].bytes) == ("train-000000.tar/000003", "rose", len(png(3)))


# ---------------------------------------------------------------- refused


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None  # type: ignore[func-returns-value]


def holding(*members: Member, mode: str = "w") -> Callable[[Path], None]:
    return lambda path: write_tar(path, [*samples(["a"]), *members], mode=mode) and None  # type: ignore[func-returns-value]


def negative_size(content: bytes) -> bytes:
    """The first header with a size below zero, which would lead a reader back to where it was."""
    info = tarfile.TarInfo.frombuf(content[:512], "utf-8", "strict")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + content[512:]


def header(kind: bytes, content: bytes, count: int = 1) -> Callable[[bytes], bytes]:
    """The tar behind headers that only describe what follows."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    block = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return lambda rest: block * count + rest


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (holding(member("x.png", tarfile.SYMTYPE)), "x.png is a symbolic link: expected regular files"),
        (holding(member("x.png", tarfile.LNKTYPE)), "x.png is a hard link"),
        (holding(member("x.png", tarfile.CHRTYPE)), "x.png is a device"),
        (holding(member("x.png", tarfile.FIFOTYPE)), "x.png is a named pipe"),
        (holding(member("x.png", tarfile.GNUTYPE_SPARSE)), "x.png is a sparse file"),
        (damaged(header(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n")), "is a sparse file"),
        (holding(member("x.png", b"Z")), "x.png is of type b'Z'"),
        (holding(("/etc/x.png", b"")), "/etc/x.png is a path out of the shard"),
        (holding(("a/../../x.png", b"")), "a/../../x.png is a path out of the shard"),
        (holding(mode="w:gz"), "compressed with gzip, without random access: decompress it to .tar"),
        (holding(mode="w:xz"), "compressed with xz"),
        (damaged(lambda content: content[:700]), "cut off: 000000.png ends at byte"),
        (damaged(lambda content: content[: content.rindex(b"ustar") - 257]), "cut off: no end mark within"),
        (damaged(lambda content: content[:100]), "cut off: no end mark within 100 bytes"),
        (damaged(lambda content: content + content), "data behind the end mark"),
        (damaged(lambda content: b""), "empty file (0 bytes)"),
        (damaged(lambda content: b"x" * 2000), "not a tar file: invalid header at byte 0"),
        (damaged(lambda content: content.replace(b"000000.cls", b"900000.cls")), "not a tar file: bad checksum at byte 1,024"),
        (damaged(negative_size), "cut off: 000000.png ends at byte -512 of"),
        (damaged(header(tarfile.XHDTYPE, b"8 path=a\n")), "damaged pax header"),
        (damaged(header(tarfile.XHDTYPE, b"12 size=-77\n")), "damaged pax header"),
        (damaged(header(tarfile.XHDTYPE, b"x" * 600)), "damaged pax header"),
        (damaged(header(tarfile.XHDTYPE, b"26 size=99999999999999999\n")), "cut off: 000000.png ends at byte 100,000,"),
        (damaged(header(tarfile.GNUTYPE_LONGNAME, b"x" * 70_000)), "a name of 70,000 bytes"),
    ],
)
def test_d010_shards_that_cannot_be_used(spoil: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}-0.tar", samples(["a"]))
    write_tar(tmp_path / "train-1.tar", samples(["a"]))
    spoil(tmp_path / "train-1.tar")
    error = refused("VA-D010", tmp_path)
    assert error.what == "1 of 2 shards cannot be used" and error.where.startswith("train-1.tar: ") and reason in error.where


def test_thousands_of_nested_headers_are_read_in_a_row(tmp_path: Path) -> None:
    for split in ("train", "val"):
        damaged(header(tarfile.XHDTYPE, b"11 path=ab\n", 3000))(write_tar(tmp_path / f"{split}.tar", [("1.png", b""), *samples(["a"])]))
    assert load(tmp_path).train.ids == ["train.tar/000000"]


def test_d002_shards_without_samples(tmp_path: Path) -> None:
    write_tar(flower_shards(tmp_path) / "val-000000.tar", [("README", b"")])
    assert "no images in the shards of val" in refused("VA-D002", tmp_path).what


def test_compressed_shards_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar.gz", samples(["a"]), mode="w:gz")
    assert "decompress it to .tar" in refused("VA-D010", tmp_path).where


def test_d021_and_d002_incomplete_and_repeated_samples(tmp_path: Path) -> None:
    flower_shards(tmp_path)
    bare: list[Member] = [(f"{number}.png", png(0)) for number in range(7)]
    write_tar(tmp_path / "train-000000.tar", [*bare, ("0.cls", b"rose"), ("1.cls", b" "), ("2.json", b"[" * 100_000), ("3.cls", b"\xff")])
    error = refused("VA-D021", tmp_path)
    assert error.what == "6 samples without a label" and "train-000000.tar/1" in error.where and "KEY.cls" in error.why
    write_tar(tmp_path / "train-000000.tar", [*samples(["rose"]), ("x.cls", b"rose"), ("x.json", b'{"label": 1}')])
    error = refused("VA-D021", tmp_path)
    assert error.what == "1 sample without an image" and error.where == "train-000000.tar/x"
    write_tar(tmp_path / "train-000000.tar", [*samples(["rose", "tulip"]), *samples(["rose"]), ("000001.jpg", png(0))])
    error = refused("VA-D002", tmp_path)
    assert error.what == "3 members with the key of another" and "000001.jpg" in error.where
    assert not any("train-000000" in path.read_text() for path in Path(os.environ["VISIONATTN_CACHE"], "shards").iterdir())

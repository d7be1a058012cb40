import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from visionattn.data.check import CheckReport, check_images, exclude_unreadable, too_many_unreadable
from visionattn.data.images.labels import load_data
from visionattn.data.images.sets import LabelledData
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.readers import header_facts, image_facts
from visionattn.data.sources import FileImages
from visionattn.data.splits import image_manifest
from visionattn.errors import UserError
from visionattn.tasks.classification.data import require_classes


def picture(value: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    value = 0
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for name in ("rose", "tulip"):
            folder = tmp_path / "flowers" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(value := value + 1).save(folder / f"{index}.png")
    return tmp_path / "flowers"


def look(root: Path, *, in_chans: int = 3, **settings: object) -> tuple[LabelledData, CheckReport, LabelDataConfig]:
    config = LabelDataConfig(root=str(root), **settings)  # type: ignore[arg-type]
    data = load_data(config, seed=0, in_chans=in_chans)
    return data, check_images(data, config, in_chans=in_chans, cache_dir=root.parent / "cache"), config


def notes(report: CheckReport, code: str) -> list[str]:
    return [f"{note.level}: {note.text}" for note in report.notes if note.code == code]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_clean_data(root: Path) -> None:
    before = sorted(root.rglob("*"))
    data, report, settings = look(root)
    assert report.notes == [] and report.unreadable == {} and report.too_large == {}
    assert report.counts == {"train": {"rose": 6, "tulip": 6}, "val": {"rose": 3, "tulip": 3}, "test": {"rose": 2, "tulip": 2}}
    assert set(report.hashes) == {name for part in data.sets for name in part.ids} and all(len(h) == 16 for h in report.hashes.values())
    assert exclude_unreadable(data, report, settings) is data
    assert json.loads(json.dumps(report.as_dict()))["counts"]["val"]["rose"] == 3
    assert sorted(root.rglob("*")) == before


def test_progress(root: Path) -> None:
    settings = LabelDataConfig(root=str(root))
    seen: list[int] = []
    check_images(load_data(settings, seed=0, in_chans=3), settings, in_chans=3, cache_dir=root.parent / "c", progress=seen.append)
    assert seen == list(range(1, 23))


def test_results_are_kept_per_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(root / "val/rose/0.png")
    _, first, _ = look(root)
    (stored,) = (root.parent / "cache").iterdir()
    decoded: list[str] = []
    original = FileImages.facts
    monkeypatch.setattr(FileImages, "facts", lambda self, index: decoded.append(self.paths[index]) or original(self, index))
    _, again, _ = look(root)
    assert decoded == [] and again == first
    changed = root / "train/rose/1.png"
    picture(777).save(changed)
    os.utime(changed, ns=(1, 1))
    _, third, _ = look(root)
    assert decoded == [str(changed)] and third.hashes["train/rose/1.png"] != first.hashes["train/rose/1.png"]
    decoded.clear()
    stored.write_text('{"version": 1, "fil')
    _, fourth, _ = look(root)
    assert len(decoded) == 22 and fourth == third
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]  # no temporary file left


def test_d006_same_picture_in_two_splits(root: Path) -> None:
    for index in range(3):
        shutil.copy(root / f"train/rose/{index}.png", root / f"val/rose/{index}.png")
    shutil.copy(root / "train/tulip/0.png", root / "test/tulip/0.png")
    for split in ("train", "val"):  # empty files are no pictures
        (root / split / "rose/empty.png").write_bytes(b"")
    _, report, _ = look(root)
    first, second = notes(report, "VA-D006")
    assert first.startswith("warning: 3 images appear in both train and val: train/rose/0.png = val/rose/0.png")
    assert second.startswith("warning: 1 image appears in both train and test")


def test_d010_and_d011(root: Path) -> None:
    cut(root / "train/rose/0.png")
    (root / "train/tulip/0.png").write_bytes(b"")
    (root / "val/rose/0.png").write_text("not a picture")
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    data, report, settings = look(root)
    (broken,) = notes(report, "VA-D010")
    assert broken.startswith("warning: train/rose/0.png cannot be decoded: ") and len(broken) > 50
    assert notes(report, "VA-D011") == [
        "warning: train/tulip/0.png is not an image: empty file (0 bytes)",
        "warning: val/rose/0.png is not an image: not an image: no known format starts like this",
    ]
    assert set(report.unreadable) == {"train/rose/0.png", "train/tulip/0.png", "val/rose/0.png"}
    remaining = exclude_unreadable(data, report, settings)
    assert [len(part) for part in remaining.sets] == [10, 5, 4] and not set(remaining.train.ids) & set(report.unreadable)
    np.testing.assert_array_equal(remaining.train.images.read(0), data.train.images.read(1))
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


def test_too_many_unreadable() -> None:
    assert not too_many_unreadable(3, 10, "stop") and too_many_unreadable(4, 10, "stop")
    assert not too_many_unreadable(10, 10_000, "stop") and too_many_unreadable(11, 10_000, "stop")
    assert not too_many_unreadable(10, 10, "skip")


def test_stop_and_skip(root: Path) -> None:
    for name in ("train/rose/0", "train/rose/1", "train/rose/2", "train/tulip/1", "val/rose/1", "val/rose/2"):
        cut(root / f"{name}.png")
    data, report, settings = look(root)
    with pytest.raises(UserError) as caught:
        exclude_unreadable(data, report, settings)
    error = caught.value
    assert (error.code, error.exit_code) == ("VA-D010", 3) and "6 of 22" in error.what and "data.on_error=skip" in error.fix
    assert len(error.where.splitlines()) == 5 and error.where.startswith("train/rose/0.png: ")
    skipping = LabelDataConfig(root=str(root), on_error="skip")
    assert [len(part) for part in exclude_unreadable(data, report, skipping).sets] == [8, 4, 4]


def test_a_class_or_split_without_readable_images(root: Path) -> None:
    for index in range(6):
        cut(root / f"train/tulip/{index}.png")
    data, report, settings = look(root, on_error="skip")
    with pytest.raises(UserError, match="tulip") as caught:
        require_classes(data, exclude_unreadable(data, report, settings), report)
    assert (caught.value.code, caught.value.exit_code) == ("VA-D005", 3)
    for name in ("rose", "tulip"):
        for index in range(6):
            picture(index).save(root / f"train/{name}/{index}.png")
        for index in range(3):
            cut(root / f"val/{name}/{index}.png")
    data, report, settings = look(root, on_error="skip")
    with pytest.raises(UserError, match="val has no readable image"):
        exclude_unreadable(data, report, settings)


def test_d015_d016_d018_and_information(root: Path) -> None:
    Image.fromarray(np.arange(100, 4196, dtype=np.uint16).reshape(64, 64)).save(root / "train/rose/0.png")
    picture(1).convert("RGBA").save(root / "train/rose/1.png")
    picture(2).convert("CMYK").save(root / "train/rose/c.jpg")
    picture(3).save(root / "train/rose/g.gif", save_all=True, append_images=[picture(4)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(5).save(root / "val/rose/r.jpg", exif=exif)
    picture(6).convert("L").save(root / "val/rose/l.png")
    _, report, _ = look(root)
    assert notes(report, "VA-D015") == [
        "info: 1 of 26 images are 16-bit: scaled by the maximum of their type (data.range); measured values 100 to 4195"
    ]
    assert notes(report, "VA-D016") == ["info: 1 of 26 images have transparency: composited on black (data.alpha_background)"]
    cmyk, frames = notes(report, "VA-D018")
    assert cmyk.startswith("warning: 1 of 26 images are CMYK") and frames.startswith("warning: 1 of 26 images are animated")
    rotated, grey = notes(report, "")
    assert "EXIF" in rotated and grey.startswith("info: 2 of 26 images are grey") and "model.in_chans=1" in grey
    _, report, _ = look(root, in_chans=1, alpha_background="white", range=(0.0, 4095.0))
    assert "white" in notes(report, "VA-D016")[0] and "(0.0, 4095.0)" in notes(report, "VA-D015")[0]
    assert any("reduced to luminance" in text for text in notes(report, ""))


def test_d020_too_large(root: Path) -> None:
    picture(0, (100, 80)).save(root / "val/tulip/9.png")
    _, fine, _ = look(root)
    assert fine.too_large == {}
    _, report, _ = look(root, max_bytes=47_999, on_error="skip")  # also where the cache knows the file
    assert list(report.too_large) == ["val/tulip/9.png"] and report.unreadable == {}
    (note,) = notes(report, "VA-D020")
    assert note.startswith("error: val/tulip/9.png") and "47,999" in note and "data.max_bytes=48000" in note
    assert look(root)[1].too_large == {}


def test_notes_of_loading_come_first(root: Path) -> None:
    shutil.rmtree(root / "val/tulip")
    cut(root / "train/rose/0.png")
    _, report, _ = look(root)
    assert [note.code for note in report.notes] == ["VA-D004", "VA-D010"]


def test_arrays_are_checked_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 4096, (8, 6, 5)).astype(np.uint16)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(8) % 2, val_images=images[:2], val_labels=np.arange(2))
    _, report, _ = look(tmp_path / "x.npz")
    assert "2 images appear in both train and val" in notes(report, "VA-D006")[0]
    assert f"measured values {images.min()} to {images.max()}" in notes(report, "VA-D015")[0]
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_only_said(root: Path) -> None:
    (root.parent / "cache").write_text("a file where the folder should be")
    data, report, settings = look(root)
    (note,) = report.notes
    assert note.level == "info" and note.text.startswith("results of the check are not kept") and str(root.parent / "cache") in note.text
    assert exclude_unreadable(data, report, settings) is data


def test_fifos_and_devices_are_not_read(root: Path) -> None:
    os.mkfifo(root / "train/rose/pipe.png")
    (root / "train/rose/zero.png").symlink_to("/dev/zero")
    (root / "train/rose/lost.png").symlink_to("nowhere")
    _, report, _ = look(root)
    assert report.unreadable == {"train/rose/lost.png": "No such file or directory"}
    assert any(note.text.startswith("2 left out because they are not regular files") for note in report.notes)


def test_a_spare_band_is_said(root: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 9, 4), dtype=np.uint16)
    (root / "train/rose/n.tif").write_bytes(cv2.imencode(".tif", values)[1].tobytes())
    _, report, _ = look(root)
    assert notes(report, "VA-D016")[0].startswith("warning: 1 of 23 images have a fourth band that is not marked as transparency")


def test_headers_are_opened_but_not_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(root / "train/rose/0.png")
    (root / "train/rose/1.png").write_text("not an image")
    (root / "val/rose/0.png").write_bytes(b"")
    picture(99, size=(60, 40)).save(root / "val/rose/1.png")
    shutil.copy(root / "train/rose/2.png", root / "val/rose/2.png")
    monkeypatch.setattr(FileImages, "facts", None)
    monkeypatch.setattr(FileImages, "content", None)
    data, report, _ = look(root, check="headers", max_bytes=10_000)
    assert set(report.unreadable) == {"train/rose/1.png", "val/rose/0.png"} and set(report.too_large) == {"val/rose/1.png"}
    assert "empty file (0 bytes)" in report.unreadable["val/rose/0.png"] and report.hashes is None
    assert notes(report, "VA-D006") == [] and notes(report, "VA-D010") == [], "what a header does not tell"
    assert any("data.check=headers opens files without decoding them" in text for text in notes(report, ""))
    assert not (root.parent / "cache").exists(), "the next full check decodes all files"
    rows = image_manifest(data, report.hashes)
    assert {row.hash16 for row in rows} == {""} and rows[0].bytes > 0
    monkeypatch.setattr(FileImages, "header", None)
    _, listed, _ = look(root, check="none")
    assert (
        listed.unreadable == {}
        and listed.counts == report.counts
        and any("data.check=none lists files" in text for text in notes(listed, ""))
    )


def test_a_full_check_does_not_change_what_one_of_headers_finds(root: Path) -> None:
    cut(root / "train/rose/0.png")
    _data, before, _ = look(root, check="headers")
    _, full, _ = look(root)
    stored = {path: path.read_bytes() for path in (root.parent / "cache").iterdir()}
    _, after, _ = look(root, check="headers")
    assert after == before and full.unreadable and not after.unreadable, "a run that started before resumes after it"
    assert {path: path.read_bytes() for path in stored} == stored


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "clear.png", "turned.jpg", "palette.gif", "print.jpg"])
def test_a_header_tells_what_decoding_does(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "grey.png": Image.fromarray(noise[:, :, 0]),
        "deep.png": Image.fromarray(noise[:, :, 0].astype(np.uint16) * 256),
        "clear.png": Image.fromarray(noise, "RGBA"),
        "turned.jpg": Image.fromarray(noise[:, :, :3]),
        "palette.gif": Image.fromarray(noise[:, :, :3]).convert("P"),
        "print.jpg": Image.fromarray(noise, "CMYK"),
    }
    path = tmp_path / name
    images[name].save(path, **({"exif": turned} if name == "turned.jpg" else {}))
    known = image_facts(path, max_bytes=2**20)
    for source in (path, path.read_bytes()):
        assert header_facts(source, max_bytes=2**20) == replace(known, low=None, high=None)

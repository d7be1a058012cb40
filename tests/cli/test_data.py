"""`visionattn data`, and what is wrong with data before training."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import CLASSES, TINY, done, only_run, picture, refused, save_npz, settings, tree, truncate
from tests.data.masks.annotated import coco


def test_data_check_and_preview(flowers: Path, tmp_path: Path) -> None:
    before = tree(flowers)
    answer = json.loads(done("data", "check", flowers, "--json").stdout)
    assert answer["notes"] == [] and answer["counts"]["train"] == dict.fromkeys(CLASSES, 8) and len(answer["hashes"]) == 42
    assert "train 24 images, val 12, test 6   check: 0 warnings" in done("data", "check", flowers).stdout
    out = tmp_path / "new" / "grid.png"
    done("data", "preview", flowers, *TINY, "--out", out, "--count", 4)
    assert Image.open(out).width < 2 * 32 + 40 and tree(flowers) == before


def test_d001_folder_missing(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(tmp_path, "VA-D001", 3, "train", "--data", "flowrs", *settings(tmp_path))
    assert 'data.root "flowrs" not found' in text and 'Did you mean "flowers" (in this folder)?' in text
    refused(tmp_path, "VA-D001", 3, "data", "check", "flowrs")
    assert "data.root is empty" in refused(tmp_path, "VA-D001", 3, "train", *settings(tmp_path))


def test_d002_wrong_layout(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "one.png", 0, 1)
    (tmp_path / "photos" / "notes").mkdir()
    text = refused(tmp_path, "VA-D002", 3, "train", "--data", tmp_path / "photos", *settings(tmp_path))
    assert "photos/" in text and "one.png" in text and "notes/ (0 folders, 0 images)" in text
    for layout in ("ROOT/train/<class>", "ROOT/<class>/*.jpg, with data.val_fraction", "train.csv", ".npz"):
        assert layout in text


def test_d003_no_validation_split(flowers: Path, tmp_path: Path) -> None:
    shutil.rmtree(flowers / "val")
    text = refused(tmp_path, "VA-D003", 3, "train", "--data", flowers, *settings(tmp_path))
    assert "--val-fraction 0.2" in text
    refused(tmp_path, "VA-D003", 3, "data", "check", flowers)


def test_val_fraction_is_seeded_stratified_and_written_down(flowers: Path, tmp_path: Path) -> None:
    shutil.rmtree(flowers / "val")

    def held_out(name: str, *more: str) -> tuple[Path, set[str]]:
        done("train", "--data", flowers, "--val-fraction", 0.25, *settings(tmp_path / name, *more))
        run = only_run(tmp_path / name)
        rows = list(csv.DictReader((run / "data/manifest.csv").open()))
        assert Counter((row["split"], row["label"]) for row in rows if row["split"] != "test") == Counter(
            {("train", name): 6 for name in CLASSES} | {("val", name): 2 for name in CLASSES}
        )
        return run, {row["path"] for row in rows if row["split"] == "val"}

    run, first = held_out("one")
    assert first != held_out("two", "seed=1")[1]
    done("train", "--resume", run)  # the same images are held out again, else it would refuse
    assert json.loads(done("eval", run, "--json").stdout)["count"] == 6


def test_d004_class_missing_in_a_split(flowers: Path, tmp_path: Path) -> None:
    shutil.rmtree(flowers / "val" / "tulip")
    result = done("data", "check", flowers)
    assert '! VA-D004 val has no images of class "tulip" (8 in train): its recall will be "n/a"' in result.stdout
    picture(flowers / "val" / "lily" / "0.png", 0, 1)
    text = refused(tmp_path, "VA-D004", 3, "train", "--data", flowers, *settings(tmp_path))
    assert "lily: 1 image" in text and "classes.txt" in text


def test_d005_empty_class_folder(flowers: Path, tmp_path: Path) -> None:
    for name in ("0", "1", "2", "3"):
        (flowers / "val" / "rose" / f"{name}.png").unlink()
    assert '! VA-D005 val has an empty folder for class "rose"' in done("data", "check", flowers).stdout
    (flowers / "train" / "lily").mkdir()
    assert "lily" in refused(tmp_path, "VA-D005", 3, "train", "--data", flowers, *settings(tmp_path))


def test_d006_the_same_picture_in_train_and_val(flowers: Path, tmp_path: Path) -> None:
    shutil.copy(flowers / "train/rose/0.png", flowers / "val/rose/other name.png")
    shown = done("data", "check", flowers).stdout
    assert "1 warning" in shown and "! VA-D006 1 image appears in both train and val: train/rose/0.png = val/rose/other name.png" in shown
    refused(tmp_path, "VA-D006", 3, "data", "check", flowers, "--strict")
    refused(tmp_path, "VA-D006", 3, "train", "--data", flowers, *settings(tmp_path), "--strict")


def test_hidden_and_system_files_are_skipped(flowers: Path) -> None:
    for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (flowers / "train" / name).mkdir()
    (flowers / "train" / "rose" / "Thumbs.db").write_bytes(b"x")
    shutil.copy(flowers / "train/rose/0.png", flowers / "train/rose/._0.png")
    shown = done("data", "check", flowers).stdout
    (line,) = (line for line in shown.splitlines() if "hidden or system" in line)
    assert "5 hidden or system files and folders skipped" in line and "train 24 images" in shown and "0 warnings" in shown


def test_d010_d011_a_few_broken_images_are_left_out(flowers: Path, tmp_path: Path) -> None:
    truncate(flowers / "train/rose/0.png")
    (flowers / "train/tulip/0.png").write_bytes(b"")
    (flowers / "val/daisy/0.png").write_text("this is not an image")
    before = tree(flowers)
    result = done("train", "--data", flowers, *settings(tmp_path))
    assert "! VA-D010 train/rose/0.png cannot be decoded: " in result.stdout and "truncated" in result.stdout
    assert "! VA-D011 train/tulip/0.png is not an image: empty file (0 bytes)" in result.stdout
    assert "! VA-D011 val/daisy/0.png is not an image: not an image: no known format starts like this" in result.stdout
    assert "train 22 images, val 11" in result.stdout
    run = only_run(tmp_path)
    assert set(json.loads((run / "data/check.json").read_text())["unreadable"]) == {
        "train/rose/0.png",
        "train/tulip/0.png",
        "val/daisy/0.png",
    }
    assert not {"train/rose/0.png", "val/daisy/0.png"} & {row["path"] for row in csv.DictReader((run / "data/manifest.csv").open())}
    assert tree(flowers) == before


def test_d010_more_broken_images_stop_unless_skipped(flowers: Path, tmp_path: Path) -> None:
    for number in range(4):
        truncate(flowers / "train/rose" / f"{number}.png")
    text = refused(tmp_path, "VA-D010", 3, "train", "--data", flowers, *settings(tmp_path))
    assert "4 of 42 images cannot be decoded" in text and "train/rose/0.png: " in text and "data.on_error=skip" in text
    result = done("train", "--data", flowers, *settings(tmp_path, "data.on_error=skip"), "--dry-run")
    assert "train 20 images" in result.stdout


def test_d012_labels_out_of_range(flowers: Path, tmp_path: Path) -> None:
    for split, label in (("train", "rose"), ("val", "tulpi")):
        rows = [("path", "label"), *((f"{split}/rose/{number}.png", "rose") for number in range(3)), (f"{split}/tulip/0.png", label)]
        csv.writer((flowers / f"{split}.csv").open("w", newline="")).writerows(rows)
    (flowers / "classes.txt").write_text("rose\ntulip\n")
    text = refused(tmp_path, "VA-D012", 3, "train", "--data", flowers, *settings(tmp_path, "data.format=csv"))
    assert "tulpi: 1 image" in text and "rose, tulip" in text
    path = save_npz(tmp_path / "blood.npz", lambda count: np.arange(count) % 3 * 2)
    assert "4: " in refused(tmp_path, "VA-D012", 3, "train", "--data", path, *settings(tmp_path))


def test_d020_an_image_above_the_limit(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(flowers / "train/rose/big.png", 0, 1, (80, 60))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where the list of findings is written
    text = refused(flowers, "VA-D020", 3, "train", "--data", flowers, *settings(tmp_path, "data.max_bytes=24000"))
    assert (
        "train/rose/big.png: image of 80 x 60 pixels, 28,800 bytes decoded: the limit is 24,000" in text and "data.max_bytes=28800" in text
    )
    assert set(tree(tmp_path / "here")) == {"flowers-check.json"} and not (tmp_path / "runs").exists()
    notes = json.loads(Path("flowers-check.json").read_text())["notes"]
    assert [note["code"] for note in notes if note["level"] == "error"] == ["VA-D020"]
    refused(tmp_path, "VA-D020", 3, "train", "--data", flowers, *settings(tmp_path, "data.max_bytes=24000"), "--dry-run")


def test_kinds_of_images_are_told_once(flowers: Path) -> None:
    noise = np.random.default_rng(1)
    folder = flowers / "train" / "rose"
    Image.fromarray(noise.integers(0, 5000, (32, 32), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise.integers(0, 256, (32, 32, 4), dtype=np.uint8), "RGBA").save(folder / "clear.png")
    Image.fromarray(noise.integers(0, 256, (32, 32, 4), dtype=np.uint8), "CMYK").save(folder / "print.jpg")
    pages = [Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    for number in range(2):
        Image.fromarray(noise.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"grey{number}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    pages[1].save(folder / "turned.jpg", exif=turned)
    shown = done("data", "check", flowers).stdout
    for text in (
        "1 of 49 images are 16-bit: scaled by the maximum of their type (data.range); measured values ",
        "1 of 49 images have transparency: composited on black (data.alpha_background)",
        "! VA-D018 1 of 49 images are CMYK",
        "! VA-D018 1 of 49 images are animated or have several pages: the first is used",
        "3 of 49 images are grey: copied to 3 channels (model.in_chans=1 trains on grey)",
        "1 of 49 images are rotated upright by their EXIF orientation",
    ):
        assert shown.count(text) == 1, text
    answer = json.loads(done("data", "check", flowers, "--json", "data.alpha_background=white").stdout)
    texts = {(note["level"], note["code"]): note["text"] for note in answer["notes"]}
    assert "composited on white" in texts["info", "VA-D016"] and ("info", "VA-D015") in texts and ("warning", "VA-D018") in texts


def test_masks_from_annotations(tmp_path: Path) -> None:
    root = coco(tmp_path / "pets")
    before = tree(root)
    text = done("data", "masks", "from", root).stdout
    assert "recognised  COCO: 2 files" in text and f"3 images with masks in {root}-masks: train 2, val 1" in text
    assert "dog over cat: 120 pixels" in text and "classes without an object: eel" in text
    assert f"next        visionattn train --data {root}-masks\n" in text and tree(root) == before
    assert "check: 1 warning" not in done("data", "check", f"{root}-masks").stdout
    refused(tmp_path, "VA-R007", 7, "data", "masks", "from", root)
    val = root / "annotations/instances_val2017.json"
    answer = json.loads(done("data", "masks", "from", val, "--out", tmp_path / "x", "--json").stdout)
    assert answer["images"] == {"all": 1} and [item["pixels"] for item in answer["classes"]] == [700, 360, 140, 0]
    done("train", "--data", f"{root}-masks", *settings(tmp_path, "train.batch_size=2"))
    (tmp_path / "broken.json").write_text('{"images": [')
    assert "not JSON" in refused(tmp_path, "VA-D002", 3, "data", "masks", "from", tmp_path / "broken.json")
    assert "accepted annotations" in refused(tmp_path, "VA-D002", 3, "data", "masks", "from", root / "train2017")
    refused(tmp_path, "VA-D001", 3, "data", "masks", "from", tmp_path / "nothing")


def test_a_run_without_a_full_check_resumes_and_finds_damage_as_it_trains(flowers: Path, tmp_path: Path) -> None:
    truncate(flowers / "train/rose/0.png")
    first = done("train", "--data", flowers, *settings(tmp_path, "data.check=headers", "train.epochs=2", "train.steps=2")).stdout
    run = only_run(tmp_path)
    assert {row["hash16"] for row in csv.DictReader((run / "data/manifest.csv").open())} == {""}
    resumed = done("train", "--resume", run, "train.steps=4").stdout
    assert "data.check=headers " in first and "data.check=headers " in resumed
    assert "unreadable, left out: train/rose/0.png" in first + resumed
    shutil.copy(flowers / "train/rose/1.png", flowers / "train/rose/9.png")
    assert "+ train/rose/9.png" in refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "train.steps=6")

import csv
import json
import random
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from visionattn.data.mask_check import check_masks, exclude_unreadable_masks, preview_masks, stop_at_errors
from visionattn.data.mask_convert import convert_masks, parse_map
from visionattn.data.mask_transforms import distort, mask_eval_transform, mask_train_transform, resized_shape
from visionattn.data.palettes import default_palette, mask_png, overlay, read_classes
from visionattn.data.segmentation import MaskData, MaskDataset, load_mask_data, load_mask_split, mask_manifest
from visionattn.data.sets import collate

from visionattn.cli import app
from visionattn.config import IGNORE, MaskAugmentConfig, MaskDataConfig
from visionattn.data.check import CheckReport
from visionattn.data.images import read_mask
from visionattn.errors import UserError

NAMES = ["background", "crack", "spall"]
CAMVID = Path(__file__).parents[3] / "shared/data/camvid/camvid.zip"


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def mask(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16), values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).choice(np.array(values, np.uint8), (size[1], size[0]))
    Image.fromarray(array).save(path)
    return array


def pairs(root: Path, images: str = "images/{}", masks: str = "masks/{}", splits: tuple[str, ...] = ("train", "val")) -> Path:
    seed = 0
    for split, count in zip(splits, (4, 2, 1), strict=False):
        for number in range(count):
            seed += 1
            picture(root / images.format(split) / f"{split}{number}.png", seed)
            mask(root / masks.format(split) / f"{split}{number}.png", seed)
    return root


def settings(root: Path, **values: object) -> MaskDataConfig:
    return MaskDataConfig(**{"root": str(root), "classes": NAMES, "workers": 1, **values})


def load(root: Path, **values: object) -> MaskData:
    return load_mask_data(settings(root, **values), seed=0, in_chans=3)


def look(root: Path, **values: object) -> tuple[MaskData, CheckReport]:
    data = load(root, **values)
    return data, check_masks(data, settings(root, **values), cache_dir=root.parent / "cache")


def notes(report: CheckReport, code: str) -> list[str]:
    return [f"{note.level}: {note.text}" for note in report.notes if note.code == code]


def refused(report: CheckReport, code: str) -> str:
    with pytest.raises(UserError) as caught:
        stop_at_errors(report)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    return caught.value.where


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images/{}", "masks/{}"), ("{}/images", "{}/masks"), ("images/{}", "annotations/{}"), ("in/images/{}", "in/masks/{}")],
)
def test_pairs_in_folders(tmp_path: Path, images: str, masks: str) -> None:
    data = load(pairs(tmp_path / "d", images, masks, ("train", "val", "test")))
    assert [len(part) for part in data.sets] == [4, 2, 1] and data.classes == NAMES and data.without_mask == []
    for part in data.sets:
        for index, path in enumerate(part.mask_paths):
            np.testing.assert_array_equal(part.label(index, (16, 20)), np.asarray(Image.open(path)))
            assert Path(path).stem == Path(part.ids[index]).stem


def test_other_folders_and_suffix(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "d/photos" / split / "a/x.jpg", 1)
        mask(tmp_path / "d/truth" / split / "a/x_mask.png")
    data = load(tmp_path / "d", images="photos/{split}", masks="truth/{split}", mask_suffix="_mask.png")
    assert data.train.mask_ids == ["truth/train/a/x_mask.png"]
    with pytest.raises(UserError, match=r"data.mask_suffix=_mask.png") as caught:
        load(tmp_path / "d", images="photos/{split}", masks="truth/{split}")
    assert caught.value.code == "VA-D021"


def test_flat_folders(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", "images", "masks")
    with pytest.raises(UserError) as caught:
        load(root)
    assert caught.value.code == "VA-D003"
    data = load(root, val_fraction=0.34)
    assert sorted(data.train.ids + data.val.ids) == sorted(f"images/{p.name}" for p in (root / "images").iterdir()) and len(data.val) == 2
    assert load(root, val_fraction=0.34).val.ids == data.val.ids
    assert load_mask_split(settings(root, val_fraction=0.34), "val", NAMES, 3).ids == data.val.ids
    (root / "split.csv").write_text("image,split\n" + "".join(f"{p.name},{p.name[:-5]}\n" for p in (root / "images").iterdir()))
    assert [len(part) for part in load(root).sets] == [4, 2]


@pytest.mark.parametrize("files", [1, 2])
def test_csv(tmp_path: Path, files: int) -> None:
    root = pairs(tmp_path / "d", "x/{}", "y/{}")
    rows = [[f"x/{s}/{s}{i}.png", f"y/{s}/{s}{i}.png", s] for s, n in (("train", 4), ("val", 2)) for i in range(n)]
    if files == 1:
        csv.writer((root / "all.csv").open("w", newline="")).writerows([["image", "mask", "split"], *rows])
        data = load(root / "all.csv")
    else:
        for split in ("train", "val"):
            listed = [["image", "mask"], *(row[:2] for row in rows if row[2] == split)]
            csv.writer((root / f"{split}.csv").open("w", newline="")).writerows(listed)
        data = load(root)
    assert [len(part) for part in data.sets] == [4, 2] and data.train.mask_ids[1] == "y/train/train1.png"


def test_ade20k(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        picture(tmp_path / "ade/images" / split / "1.jpg", 0)
        mask(tmp_path / "ade/annotations" / split / "1.png", values=(0, 1, 150))
    data = load(tmp_path / "ade", classes="auto")
    assert len(data.classes) == 150 and data.classes[0] == "wall" and data.palette[0] == (120, 120, 120)
    assert set(np.unique(data.train.label(0, (16, 20)))) == {0, 149, IGNORE}


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, ending: str) -> None:
    stored = (7, 33, 0, 8) if ending == "labelIds" else (0, 18, 255, 1)
    for split in ("train", "val"):
        picture(tmp_path / "city/leftImg8bit" / split / "ulm/u_1_leftImg8bit.png", 0)
        mask(tmp_path / "city/gtFine" / split / f"ulm/u_1_gtFine_{ending}.png", values=stored)
        mask(tmp_path / "city/gtFine" / split / "ulm/u_1_gtFine_instanceIds.png", values=(9,))
    data = load(tmp_path / "city", classes="auto")
    assert len(data.classes) == 19 and (data.classes[0], data.classes[18]) == ("road", "bicycle")
    label = data.train.label(0, (16, 20))
    raw = read_mask(Path(data.train.mask_paths[0]), max_pixels=10**6).values
    for value, expected in zip(stored, (0, 18, IGNORE, 1), strict=True):
        assert (label[raw == value] == expected).all()


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    for number in range(3):
        picture(root / f"JPEGImages/{number}.jpg", number)
    for number in range(2):
        array = mask(root / f"SegmentationClass/{number}.png", values=(0, 20, 255))
        (root / f"SegmentationClass/{number}.png").write_bytes(mask_png(array, default_palette(21)))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("1\n")
    data = load(tmp_path / "VOCdevkit", classes="auto")
    assert [len(part) for part in data.sets] == [1, 1] and data.classes[20] == "tvmonitor" and data.palette == default_palette(21)
    assert set(np.unique(data.train.label(0, (16, 20)))) == {0, 20, IGNORE}


def test_camvid_of_segnet(tmp_path: Path) -> None:
    data = load(pairs(tmp_path / "CamVid", "{}", "{}annot"), classes="auto")
    assert len(data.classes) == 11 and [len(part) for part in data.sets] == [4, 2]


@pytest.mark.skipif(not CAMVID.is_file(), reason="the CamVid archive is not there")
def test_the_camvid_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(CAMVID) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        chosen = [name for split in ("train", "val", "test") for name in sorted(n for n in names if f"masks/{split}/" in n)[:3]]
        stems = {Path(name).stem for name in chosen}
        archive.extractall(tmp_path, [name for name in names if Path(name).stem in stems or name.endswith(".txt")])
    data, report = look(tmp_path, classes="auto")
    assert len(data.classes) == 11 and data.classes[3] == "Road" and data.palette[3] == (128, 64, 128)
    assert [len(part) for part in data.sets] == [3, 3, 3] and not [note for note in report.notes if note.level == "error"]
    label = data.train.label(0, (360, 480))
    stored = np.asarray(Image.open(data.train.mask_paths[0]))
    np.testing.assert_array_equal(label, np.where(stored == 11, IGNORE, stored))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path / "nothing")
    assert caught.value.code == "VA-D001"
    picture(tmp_path / "d/cats/1.png", 0)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "d")
    assert caught.value.code == "VA-D002" and "ROOT/images/train" in caught.value.why


# ---------------------------------------------------------------- classes and reading


def test_classes(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    assert load(root, classes=3).classes == ["0", "1", "2"]
    with pytest.raises(UserError, match="values 0, 1, 2"):
        load(root, classes="auto")
    (root / "classes.txt").write_text("0 the ground 1 2 3\n1 void 0 0 0\n2 deep crack 9 8 7\n")
    data = load(root, classes="auto")
    assert data.classes == ["the ground", "deep crack"] and data.palette == [(1, 2, 3), (9, 8, 7)]
    assert dict(data.train.rule.numbers) == {0: 0, 1: IGNORE, 2: 1}
    assert load(root, classes="auto", ignore_index="none").classes == ["the ground", "void", "deep crack"]
    (root / "classes.txt").write_text("ground\ndeep crack\nspall\n")
    assert load(root, classes="auto").classes == ["ground", "deep crack", "spall"]
    assert [entry.name for entry in read_classes("voc")][:2] == ["background", "aeroplane"]
    with pytest.raises(UserError, match="no class"):
        load(root, map={7: 9})


def test_values_become_labels(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    path = root / "masks/train/train0.png"
    mask(path, values=(0, 1, 2, 128, 255))
    raw = np.asarray(Image.open(path))
    label = load(root, ignore_index=255, map={128: 1}).train.label(0, (16, 20))
    np.testing.assert_array_equal(label, np.where(raw == 128, 1, raw))
    mask(path, values=(0, 1, 2, 3))
    raw = np.asarray(Image.open(path))
    label = load(root, classes=["a", "b", "c"], reduce_zero_label=True).train.label(0, (16, 20))
    np.testing.assert_array_equal(label, np.where(raw == 0, IGNORE, raw - 1))
    with pytest.raises(UserError, match="background"):
        load(root, reduce_zero_label=True)


def test_forms_of_masks(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).integers(0, 3, (16, 20)).astype(np.uint8)
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]

    def read(name: str) -> np.ndarray:
        return read_mask(tmp_path / name, max_pixels=10**6).values

    (tmp_path / "p.png").write_bytes(mask_png(wanted, palette))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png").convert("RGB")), np.array(palette, np.uint8)[wanted])
    few = Image.fromarray(wanted)
    few.putpalette([part for colour in palette for part in colour])
    few.save(tmp_path / "p2.png")  # two bits per pixel
    Image.fromarray(wanted).save(tmp_path / "l.png")
    Image.fromarray(wanted).save(tmp_path / "l.tif")
    Image.fromarray(wanted.astype(np.uint16)).save(tmp_path / "i.png")
    Image.fromarray(wanted.astype(np.int32)).save(tmp_path / "i.tif")
    Image.fromarray(wanted.astype(np.float32)).save(tmp_path / "f.tif")
    for name in ("p.png", "p2.png", "l.png", "l.tif", "i.png", "i.tif", "f.tif"):
        np.testing.assert_array_equal(read(name), wanted, err_msg=name)
    Image.fromarray(wanted > 0).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read("1.png"), wanted > 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wanted).save(tmp_path / "r.png", exif=exif)
    np.testing.assert_array_equal(read("r.png"), np.rot90(wanted, -1))
    large = wanted.astype(np.int32) * 300
    (tmp_path / "16.png").write_bytes(mask_png(large, palette))
    np.testing.assert_array_equal(read("16.png"), large)


def test_grey_values_of_four_bits_are_not_spread(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes([0x01, 0x23]) for _ in range(2))  # 4 x 2 pixels: 0 1 2 3
    header = struct.pack(">IIBBBBB", 4, 2, 4, 0, 0, 0, 0)
    (tmp_path / "4.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert read_mask(tmp_path / "4.png", max_pixels=100).values.tolist() == [[0, 1, 2, 3]] * 2


# ---------------------------------------------------------------- samples


def test_samples(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "images/train/train3.png").write_bytes(b"")
    data = load(root)
    transform = mask_train_transform(MaskAugmentConfig(), (32, 24), (0.5,) * 3, (0.25,) * 3)
    dataset = MaskDataset(data.train, transform, seed=3)
    batch = collate([dataset[(1, index)] for index in range(4)])
    assert batch["image"].shape == (3, 3, 32, 24) and batch["label"].shape == (3, 32, 24) and batch["label"].dtype == torch.int64
    assert batch["index"].tolist() == [0, 1, 2] and [index for index, _ in batch["unreadable"]] == [3]
    assert torch.equal(batch["image"][1], dataset[(1, 1)]["image"]) and not torch.equal(batch["image"][1], dataset[(2, 1)]["image"])
    evaluation = MaskDataset(data.val, mask_eval_transform(MaskAugmentConfig(resize=32), (32, 32), (0.5,) * 3, (0.25,) * 3))
    batch = collate([evaluation[0]])
    assert batch["image"].shape == (1, 3, 32, 40) and batch["label"].shape == (1, 16, 20)
    np.testing.assert_array_equal(batch["label"][0], np.asarray(Image.open(data.val.mask_paths[0])))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_image_and_mask_stay_together(channels: int, kind: type) -> None:
    label = np.zeros((60, 80), np.uint8)
    label[10:40, 20:70] = 1
    image = np.repeat(label[:, :, None] * 200, channels, axis=2).astype(np.uint8)
    if kind is np.float32:
        image = (image / 255).astype(np.float32)
    augment = MaskAugmentConfig(vflip=0.5, rotate90=0.5, rotate=25, elastic=0.5, photometric=False, cat_max_ratio=1)
    transform = mask_train_transform(augment, (64, 64), (0.1,) * channels, (1.0,) * channels)
    random.seed(0), np.random.seed(0)
    seen, uncovered = set(), 0
    for seed in range(30):
        before = image.copy()
        tensor, mapped = transform(image, label, seed)
        np.testing.assert_array_equal(image, before)
        again, mapped_again = transform(image, label, seed)
        assert torch.equal(tensor, again) and np.array_equal(mapped, mapped_again)
        assert tensor.shape == (channels, 64, 64) and mapped.shape == (64, 64) and mapped.dtype == np.uint8
        values = tensor[0].numpy() + 0.1
        known = mapped != IGNORE
        assert ((values > 0.4) == (mapped == 1))[known].mean() > 0.97  # bilinear and nearest differ at borders only
        outside = cv2.erode((~known).astype(np.uint8), np.ones((5, 5), np.uint8)) == 1  # not at the edge, which is interpolated
        assert not outside.any() or np.abs(values[outside] - 0.1).max() < 0.01
        uncovered += int(outside.sum())
        seen.add(float(values.sum()))
    assert len(seen) > 25 and uncovered > 1000


def test_scaling_crop_and_sizes() -> None:
    assert resized_shape((512, 683), (2048, 512), (1, 1)) == (512, 683) and resized_shape((1000, 4000), (2048, 512), (1, 1)) == (512, 2048)
    assert resized_shape((100, 200), 50, (1, 1)) == (50, 100) and resized_shape((100, 200), "fixed", (7, 9)) == (7, 9)
    label = np.zeros((64, 64), np.uint8)
    label[:, 56:] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    still = MaskAugmentConfig(scale=(1.0, 1.0), hflip=0, photometric=False)
    mixed = [mask_train_transform(still, (16, 16), (0.5,) * 3, (0.5,) * 3)(image, label, seed)[1] for seed in range(60)]
    share = np.mean([(part == 1).any() for part in mixed])
    anywhere = still.model_copy(update={"cat_max_ratio": 1.0})
    plain = [mask_train_transform(anywhere, (16, 16), (0.5,) * 3, (0.5,) * 3)(image, label, seed)[1] for seed in range(60)]
    assert share > 0.45 and np.mean([(part == 1).any() for part in plain]) < 0.35
    tensor, padded = mask_train_transform(still, (80, 72), (0.5,) * 3, (0.5,) * 3)(image, label, 0)
    np.testing.assert_array_equal(padded[:64, :64], label)
    assert (padded[64:] == IGNORE).all() and (padded[:, 64:] == IGNORE).all() and tensor[:, 64:].abs().max() < 0.01
    with pytest.raises(UserError, match="square"):
        mask_train_transform(MaskAugmentConfig(rotate90=0.5), (32, 24), (0.5,) * 3, (0.5,) * 3)


def test_distortion() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    results = [distort(image, random.Random(seed)) for seed in range(50)]
    assert any(np.array_equal(result, image) for result in results) and len({result.tobytes() for result in results}) > 30
    as_float = (image / 255).astype(np.float32)
    for seed, result in enumerate(results):
        difference = np.abs(distort(as_float, random.Random(seed)) * 255 - result)
        assert difference.mean() < 2  # 8 bits round and clip between the steps
    grey = image[:, :, :1]
    assert distort(grey, random.Random(1)).shape == grey.shape


# ---------------------------------------------------------------- check


def test_clean_data(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d", splits=("train", "val", "test"))
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    data, report = look(root)
    assert [note.text for note in report.notes] == ["images 7   masks 7   pairs ok 7"]
    stored = np.concatenate([np.asarray(Image.open(path)).ravel() for path in data.train.mask_paths])
    assert report.counts["train"] == dict(zip(NAMES, np.bincount(stored).tolist(), strict=True))
    assert set(report.hashes) == {name for part in data.sets for name in (*part.ids, *part.mask_ids)}
    stop_at_errors(report, strict=True)
    assert exclude_unreadable_masks(data, report, settings(root)) is data
    rows = mask_manifest(data, report.hashes)
    assert rows == mask_manifest(data, {}) and rows[0].label == "masks/train/train0.png"
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before and json.dumps(report.as_dict())


def test_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pairs(tmp_path / "d")
    _, first = look(root)
    monkeypatch.setattr("visionattn.data.mask_check.read_mask", None)
    _, second = look(root)
    assert second == first
    _, other = look(root, classes=["a", "b"])  # settings apply to what was kept
    assert "values outside 0..1: {2: 6 files}" in notes(other, "VA-D012")[0]


def test_all_faults_at_once(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "masks/train/train0.png").unlink()
    mask(root / "masks/train/train1.png", 1, values=(0, 1, 128, 255))
    mask(root / "masks/train/train2.png", 1, size=(10, 8))
    Image.open(root / "images/train/train3.png").save(root / "masks/val/val1.png")
    mask(root / "masks/train/lonely.png")
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    _, report = look(root)
    assert "images 6   masks 5   pairs ok 4" in report.notes[0].text
    where = refused(report, "VA-D021")
    assert where.index("VA-D021") < where.index("VA-D013") < where.index("VA-D014") < where.index("VA-D012")
    assert "1 image has no mask: images/train/train0.png" in where
    assert "image 20x16, mask 10x8 (ratio 2)" in where and "data.mask_resize=nearest" in where
    assert "values outside 0..2: {128: 1 file, 255: 1 file}" in where
    assert "255 in 1 file looks like an ignore label  -> data.ignore_index=255" in where
    assert "128 in 1 file has no class" in where and f"visionattn data masks convert {root} --map 128:" in where
    assert notes(report, "VA-D021")[1].startswith("warning: 1 masks have no image")
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


def test_d012_of_binary_masks_and_of_classes_from_one(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    for path in (root / "masks").rglob("*.png"):
        mask(path, values=(0, 255))
    _, report = look(root, classes=["background", "crack"])
    assert '255 in 6 files has no class (perhaps "crack")' in notes(report, "VA-D012")[0] and "--map 255:1" in notes(report, "VA-D012")[0]
    refused(report, "VA-D012")
    _, report = look(root, classes=["background", "crack"], map={255: 1})
    assert notes(report, "VA-D012") == []
    for path in (root / "masks").rglob("*.png"):
        mask(path, values=(1, 2, 3))
    _, report = look(root)
    assert "data.reduce_zero_label=true" in notes(report, "VA-D012")[0]


def test_d013_nearest_and_exif(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    small = mask(root / "masks/train/train0.png", size=(10, 8))
    data, report = look(root, mask_resize="nearest")
    stop_at_errors(report)
    assert notes(report, "VA-D013")[0].startswith("info: 1 mask of another size")
    np.testing.assert_array_equal(data.train.label(0, (16, 20)), small.repeat(2, 0).repeat(2, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/train/train1.png").save(root / "images/train/train1.png", exif=exif)
    _, report = look(root, mask_resize="error")
    assert "match before the rotation that EXIF asks" in notes(report, "VA-D013")[0]
    Image.open(root / "masks/train/train1.png").save(root / "masks/train/train1.png", exif=exif)
    _, report = look(root, mask_resize="nearest")
    assert notes(report, "VA-D013")[0].startswith("info: 1 mask") and any("turned upright" in text for text in notes(report, ""))


def test_d014_rgb_with_and_without_palette(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(np.array(palette, np.uint8)[np.asarray(Image.open(path))]).save(path)
    _, report = look(root)
    text = refused(report, "VA-D014")
    assert "6 masks in RGB" in text and "data.palette=[" in text and "[255,0,0]" in text
    data, report = look(root, palette=palette)
    stop_at_errors(report)
    expected = np.asarray(Image.open(data.train.mask_paths[0]))
    np.testing.assert_array_equal(np.array(palette, np.uint8)[data.train.label(0, (16, 20))], expected)
    assert data.palette == palette
    _, report = look(root, palette=palette[:2])
    assert "(0, 0, 255) in 6 files is not in the palette" in notes(report, "VA-D012")[0]
    done = convert_masks(root, palette=palette)
    assert (
        load(root, images="images/{split}", masks=f"{done.out}/masks/{{split}}").train.label(0, (16, 20)).tolist()
        == data.train.label(0, (16, 20)).tolist()
    )


def test_d017_jpeg_masks(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    array = np.asarray(Image.open(root / "masks/train/train0.png")) * 127
    (root / "masks/train/train0.png").unlink()
    Image.fromarray(array).save(root / "masks/train/train0.jpg")
    _, report = look(root)
    text = refused(report, "VA-D017")
    assert "1 mask JPEG" in text and "distinct values in one" in text and notes(report, "VA-D012") == []
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(root / "masks/train/train0.jpg")
    _, report = look(root)
    assert notes(report, "VA-D017")[0].startswith("warning: ")
    stop_at_errors(report)


def test_d004_d006_d019_and_images(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    for path in (root / "masks/train").iterdir():
        array = np.zeros((16, 20), np.uint8)
        array[0, 0] = 1
        Image.fromarray(array).save(path)
    mask(root / "masks/val/val0.png", values=(0, 2))
    mask(root / "masks/val/val1.png", values=(0, 2))
    (root / "images/val/val0.png").write_bytes((root / "images/train/train0.png").read_bytes())
    Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20)).save(root / "images/train/train1.png")
    _, report = look(root)
    assert notes(report, "VA-D004") == [
        "warning: train has no pixels of 1 class (spall): it cannot be learned",
        'warning: val has no pixels of 1 class (crack): its IoU will be "n/a"',
    ]
    assert notes(report, "VA-D019")[0].startswith("warning: 1 class below 0.5 % of the pixels in train: crack 0.31 %")
    assert "1 image appears in both train and val" in notes(report, "VA-D006")[0]
    assert notes(report, "VA-D015") and any("1 of 6 images are grey" in text for text in notes(report, ""))
    stop_at_errors(report)
    with pytest.raises(UserError):
        stop_at_errors(report, strict=True)


def test_damaged_files_are_left_out(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "masks/train/train0.png").write_bytes((root / "masks/train/train0.png").read_bytes()[:60])
    (root / "images/train/train1.png").write_bytes(b"")
    data, report = look(root)
    assert set(report.unreadable) == {"images/train/train0.png", "images/train/train1.png"}
    assert notes(report, "VA-D010")[0].startswith("warning: masks/train/train0.png cannot be decoded")
    assert exclude_unreadable_masks(data, report, settings(root)).train.ids == ["images/train/train2.png", "images/train/train3.png"]
    _, report = look(root, max_pixels=100)
    with pytest.raises(UserError) as caught:
        exclude_unreadable_masks(data, report, settings(root, max_pixels=100))
    assert (caught.value.code, caught.value.exit_code) == ("VA-D020", 3)


# ---------------------------------------------------------------- conversion and pictures


def test_convert(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    array = mask(root / "masks/train/train0.png", values=(0, 1, 128))
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    result = CliRunner().invoke(app, ["data", "masks", "convert", str(root), "--map", "128:2", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["files"] == 6 and answer["changed"] == {"128 -> 2": int((array == 128).sum())}
    written = read_mask(tmp_path / "d-masks/masks/train/train0.png", max_pixels=10**6).values
    np.testing.assert_array_equal(written, np.where(array == 128, 2, array))
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before
    with pytest.raises(UserError, match="exists already"):
        convert_masks(root, map={1: 0})
    convert_masks(root / "masks", map={128: 2}, in_place=True)
    np.testing.assert_array_equal(read_mask(root / "masks/train/train0.png", max_pixels=10**6).values, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d-masks"] and len(list((root / "masks").rglob("*"))) == 8


def test_convert_stops_before_it_writes(tmp_path: Path) -> None:
    root = pairs(tmp_path / "d")
    (root / "masks/val/val1.png").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        convert_masks(root, map={1: 0})
    assert caught.value.code == "VA-D010" and [path.name for path in tmp_path.iterdir()] == ["d"]
    picture(root / "masks/val/val1.png", 0)
    with pytest.raises(UserError) as caught:
        convert_masks(root, palette=[(0, 0, 0)])
    assert caught.value.code == "VA-D014" and [path.name for path in tmp_path.iterdir()] == ["d"]
    assert parse_map(["128:1,3:0", "5-7:2"]) == {128: 1, 3: 0, 5: 2, 6: 2, 7: 2}
    with pytest.raises(UserError):
        parse_map(["128=1"])


def test_overlay_and_preview(tmp_path: Path) -> None:
    image = np.full((2, 3, 1), 100, np.uint8)
    shown = overlay(image, np.array([[0, 1, IGNORE]] * 2), [(0, 0, 0), (200, 0, 0)])
    assert shown[0].tolist() == [[100, 100, 100], [150, 50, 50], [100, 100, 100]]
    data = load(pairs(tmp_path / "d"))
    transform = mask_train_transform(MaskAugmentConfig(), (32, 48), (0.5,) * 3, (0.5,) * 3)
    preview_masks(data.train, data.classes, data.palette, transform, 4, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (6 + 2 * (48 + 6), 6 + 2 * (32 + 16 + 6))
    whole = mask_eval_transform(MaskAugmentConfig(), (32, 48), (0.5,) * 3, (0.5,) * 3)
    preview_masks(data.val, data.classes, data.palette, whole, 4, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (6 + 20 + 6, 6 + 2 * (16 + 16 + 6))

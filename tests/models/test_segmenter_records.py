"""Published segmentation models: their records, the recipes that train them, and weights by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import visionattn as va
from visionattn.backbones import registry
from visionattn.backbones.registry import Variant, get_variant
from visionattn.cli import app
from visionattn.config.read import find_config, shipped_names
from visionattn.data.masks.palettes import read_classes
from visionattn.errors import UserError
from visionattn.heads import HEADS
from visionattn.models import segmenter_from_file
from visionattn.models.weights.importing import import_file
from visionattn.models.weights.records import SegmenterRecord, find_weights, list_segmenters, records, segmenter_records
from visionattn.tasks import load_config
from visionattn.tasks.segmentation.model import build_segmenter
from visionattn.tasks.segmentation.predictor import build_predictor
from visionattn.tasks.segmentation.settings import SegmentConfig

RECORDS = segmenter_records()
RECIPES = [name for name in shipped_names() if name.startswith("segmentation/") and name.endswith("_ade20k")]
# One of each family and head is built in every run of the tests.
BUILT = tuple(
    f"segmentation/{name}_"
    for name in ("swin_tiny", "nat_mini", "dinat_mini", "dinat_s_tiny", "transnext_tiny", "biformer_small", "davit_tiny", "van_b0")
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a registered model narrow; its depths stay."""

    def narrow(name: str, **args: Any) -> None:
        variant = get_variant(name)
        monkeypatch.setitem(registry._VARIANTS, name, Variant(name, variant.cls, {**variant.args, **args}, variant.cfg))

    return narrow


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_is_consistent(record: SegmenterRecord) -> None:
    assert record.model in va.list_models() and record.head in HEADS
    assert record.tag.endswith(f"{record.head}_ade20k") and record.tag.startswith("mm_") == any(
        source.publisher == "openmmlab" for source in record.sources
    )
    assert sum(not entry.ignored for entry in read_classes(record.classes)) == record.num_classes
    scores = [score for score in (record.miou, record.miou_ms) if score is not None]
    assert scores and all(35 < score < 56 for score in scores) and scores == sorted(scores)
    for source in record.sources:
        assert source.fetchable == ("drive.google" not in source.url and "sharepoint" not in source.url)
        assert source.sha256_prefix is None or source.sha256_prefix in source.url
    depths = get_variant(record.model).args.get("depths")
    if "dilations" in record.args:
        assert [len(stage) for stage in record.args["dilations"]] == list(depths)
    else:
        assert "dinat" not in record.model


def test_names_and_addresses_differ() -> None:
    assert len(RECORDS) == 44 and len(list_segmenters()) == 36
    for values in (
        [record.name for record in (*RECORDS, *records())],
        [source.url for record in RECORDS for source in record.sources],
    ):
        assert max(Counter(values).values()) == 1


def test_every_recipe_has_its_record_and_back() -> None:
    assert {record.recipe for record in RECORDS} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_its_record(name: str) -> None:
    config = load_config(name)
    assert isinstance(config, SegmentConfig)
    record = next(record for record in RECORDS if record.recipe == name and (record.sources or not record.tag.startswith("mm_")))
    model, head = config.model, find_config(name).read_text(encoding="utf-8").partition("\nbase:")[0]
    assert (model.name, model.head.name, model.size, config.train.steps) == (record.model, record.head, (record.crop,) * 2, record.steps)
    assert record.drop_path_rate in (model.drop_path_rate, None)
    assert (record.drop_path_rate is None) == ("Stochastic depth is not stated" in head)
    assert {key: model.args[key] for key in record.args} == record.args
    if model.weights != "none":
        assert find_weights(model.name, model.weights).tag == ("in22k" if "in22k" in name else "in1k")
    for score in (record.miou, record.miou_ms):
        assert score is None or str(score) in head
    if record.sources:
        assert f"weights download {record.name} " in head and record.sources[0].url.partition("?e=")[0] in head


# The authors give 117 M for VAN-B5; its backbone has 89.5 M and the head of the others, which fits in their counts, 32.4 M over its maps.
MISCOUNTED = ("segmentation/van_b5_in22k_upernet_ade20k",)


@pytest.mark.parametrize("name", [name if name.startswith(BUILT) else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
def test_a_recipe_builds_its_model(name: str) -> None:
    config = load_config(name)
    assert isinstance(config, SegmentConfig)
    with torch.device("meta"):
        model = build_segmenter(config, 150)
    width = {"upernet": 512, "semantic_fpn": 128}[config.model.head.name]
    assert model.decode_head.conv_seg.weight.shape == (150, width, 1, 1) and (model.auxiliary_head is None) == (width == 128)
    published = next(record.params_m for record in RECORDS if record.recipe == name)
    if published is not None and name not in MISCOUNTED:
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(published, abs=2)
    predictor = build_predictor(config, 150, model, torch.device("meta"))
    assert (predictor.window or {}).get("stride") == ((341, 341) if name.startswith("segmentation/transnext") else None)


def test_a_published_model_by_name(tmp_path: Path, small: Callable[..., None]) -> None:
    small("dinat_mini", embed_dim=8, num_heads=(1, 1, 2, 2))
    torch.manual_seed(0)
    name, args = "dinat_mini.upernet_ade20k", find_weights("dinat_mini.upernet_ade20k").args
    model = va.create_segmenter("dinat_mini", "upernet", 150, backbone_args=args, width=8).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "upernet_dinat_mini.pth")
    done = import_file(tmp_path / "upernet_dinat_mini.pth", say=lambda text: None)
    assert done.record == find_weights(name) and done.report.skipped == []
    (tmp_path / "upernet_dinat_mini.pth").unlink()

    image = torch.randn(1, 3, 512, 64)  # the largest dilation of the first stage shows at 7 * 16 positions
    with torch.no_grad():
        wanted = model(image)
        assert torch.equal(segmenter_from_file(name, say=None).model.eval()(image), wanted)
        assert torch.equal(segmenter_from_file(done.file.path).model.eval()(image), wanted)
        assert torch.equal(va.create_segmenter("dinat_mini", "upernet", 150, checkpoint_path=name, width=8).eval()(image), wanted)
        near = segmenter_from_file(name, backbone_args={"dilations": get_variant("dinat_mini").args["dilations"]}, say=None).model.eval()
        assert not torch.equal(near(image), wanted)
    (shown,) = json.loads(CliRunner().invoke(app, ["weights", "list", name, "--json"]).stdout)
    assert shown["miou"] == 45.8 and shown["path"] == str(done.file.path)
    (checked,) = json.loads(CliRunner().invoke(app, ["weights", "verify", "--json"]).stdout)["files"]
    assert (checked["name"], checked["result"]) == (name, "as on first use")


def test_weights_that_are_not_there_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONATTN_OFFLINE", "1")
    for call in (
        lambda: segmenter_from_file("van_b2.semantic_fpn_ade20k"),
        lambda: va.create_segmenter("van_b0", "semantic_fpn", 150, checkpoint_path="van_b0.semantic_fpn_ade20k"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.code == "VA-W001" and "drive.google.com" in caught.value.fix and "weights import FILE" in caught.value.fix
    result = CliRunner().invoke(app, ["weights", "download", "swin_tiny.upernet_ade20k"])
    assert result.exit_code == 4 or isinstance(result.exception, UserError)


def test_files_without_a_known_name(tmp_path: Path, small: Callable[..., None]) -> None:
    small("van_b4", embed_dims=(8, 8, 16, 16), depths=(1, 1, 2, 1))
    torch.save(va.create_segmenter("van_b4", "upernet", 150, width=8).state_dict(), tmp_path / "download.pth")
    with pytest.raises(UserError, match=r"may be van_b4\.upernet_ade20k or van_b4\.in22k_upernet_ade20k"):
        import_file(tmp_path / "download.pth")
    done = import_file(tmp_path / "download.pth", tag="in22k_upernet_ade20k", say=lambda text: None)
    assert done.record.name == "van_b4.in22k_upernet_ade20k"
    torch.save(va.create_segmenter("van_b4", "upernet", 5, width=8).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(UserError, match=r"none that was published(.|\n)*model.weights="):
        import_file(tmp_path / "mine.pth")


def test_the_list_shows_segmentation_models() -> None:
    shown = CliRunner().invoke(app, ["weights", "list", "van_b2*"]).stdout
    assert "van_b2.in1k" in shown and "mIoU 46.7" in shown and "by hand" in shown
    assert [record.name for record in list_segmenters("transnext*", license="apache-2.0")] == [
        f"transnext_{size}.upernet_ade20k" for size in ("tiny", "small", "base")
    ]
    assert list_segmenters("swin_tiny.upernet*", license="mit") == []

"""The records of published weights: complete, consistent, and what is listed from them."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import visionattn as va
from visionattn.backbones import list_models as registered
from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError
from visionattn.models.weights.records import (
    Record,
    find_record,
    list_segmenters,
    parse_records,
    records,
    records_of,
    shipped_facts,
    split_name,
)

RECORDS = records()
MODELS = list(dict.fromkeys(record.model for record in RECORDS))
FEATURES = ("init", "idrcell100k")  # starts of a training, of which no classes are known
TAGS = ("in1k", "in22k_ft_in1k", "in22k", "tv_in1k", "mm_in1k", *FEATURES)
FAMILIES = {"swin", "swinv2", "nat", "dinat_s", "nat_isotropic", "biformer", "davit", "van", "transnext", "eca", "medvit", "chada_vit"}
FAMILIES |= {"agent_attention", "casvit", "crossformer", "inline", "litv2", "overlock", "ravlt", "resnet", "rmt", "sgformer"}
UNLICENSED = ("agent_", "inline_", "ravlt_", "rmt_", "sgformer_")  # repositories without a licence
# Authors who do not state all figures where they list the files.
UNSTATED = ("agent_", "casvit_", "crossformer_pp_small", "inline_", "litv2_", "overlock_", "ravlt_", "sgformer_")


def test_every_family_has_its_file() -> None:
    folder = files("visionattn") / "models" / "weights" / "records"
    assert {path.name for path in folder.iterdir()} - {"facts.json", "segmentation.yaml"} == {f"{family}.yaml" for family in FAMILIES}
    assert len(RECORDS) == 147


def test_names_are_unique_and_in_order() -> None:
    assert max(Counter(record.name for record in RECORDS).values()) == 1
    for model in MODELS:
        tags = [record.tag for record in records_of(model)]
        assert tags == sorted(tags, key=TAGS.index), "the first is the default: a classifier of ImageNet-1k where there is one"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_is_consistent(record: Record) -> None:
    assert record.sources and (record.code_license or record.model.startswith(UNLICENSED))
    assert (record.label_set is None) == (record.tag in FEATURES), "and of files of the user"
    channels, height, width = record.input_size
    assert channels == 3 and height == width and 192 <= height <= 384
    assert min(record.mean + record.std) > 0.2 and max(record.mean + record.std) <= 0.5
    assert 0.8 < record.crop_pct <= 1
    if record.label_set == "imagenet-1k":
        assert record.num_classes == 1000
        stated = not record.model.startswith(UNSTATED)
        assert 69 < record.top1 < 90 if record.top1 is not None else not stated
        assert record.gflops is not None or not stated
    elif record.label_set is None:
        assert record.num_classes is None and record.top1 is None
    else:
        assert record.tag == "in22k" and record.num_classes in (21841, None) and record.top1 is None
    assert record.code_license in (None, "MIT", "Apache-2.0", "BSD-3-Clause")
    assert record.weights_license or record.license_note
    for source in record.sources:
        if source.fetchable:
            assert source.url.startswith("https://") and (source.name or source.url.endswith("?dl=1"))
        assert source.sha256_prefix is None or source.sha256_prefix in source.url, "hashes are those in the names of the files"
        assert source.name == "" or source.name.endswith((".pth", ".pth.tar", ".bin", ".safetensors"))


def test_a_hash_is_claimed_only_where_one_is_published() -> None:
    for record in (*RECORDS, *list_segmenters()):
        sources = [source for source in record.sources if source.fetchable] or record.sources
        digits = {len(source.digits) for source in sources}
        assert {0: "first use", 8: "first 8 digits", 64: "sha256"}[max(digits)] in record.hash_check
        assert ("first use" in record.hash_check) == (0 in digits) and ("sha256" in record.hash_check) == (64 in digits)
    full = RECORDS[0].sources[0].model_copy(update={"sha256": "0" * 64, "status": "ok"})
    assert RECORDS[0].model_copy(update={"sources": (full,)}).hash_check == "sha256"
    assert RECORDS[0].model_copy(update={"sources": ()}).hash_check == "first use", "a file of the user's"


def test_the_addresses_differ() -> None:
    urls = Counter(source.url for record in RECORDS for source in record.sources)
    shared = {  # folders of several files, and one that its authors give for two of them
        "https://cloud.tsinghua.edu.cn/d/0100f0cea37d41ba8d08/",
        "https://drive.google.com/drive/folders/1ZJDEwxDffqqqzBC2SzhOkpWpGRweDsE4",
        "https://pan.baidu.com/s/1xtPh-ndcOxRM7fPYYxIIRg?pwd=crsf",
    }
    assert {url for url, count in urls.items() if count > 1} == shared


@pytest.mark.parametrize("model", MODELS)
def test_the_model_of_a_record_is_registered(model: str) -> None:
    assert model in registered()


@pytest.mark.parametrize("model", sorted(set(MODELS) & set(registered())))
def test_the_default_record_has_the_registered_preprocessing(model: str) -> None:
    cfg, record = get_variant(model).cfg, records_of(model)[0]
    facts = record.model_dump(include={"input_size", "mean", "std", "interpolation", "crop_pct"})
    assert {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in cfg.items() if key in facts} == facts


@pytest.mark.parametrize("model", sorted(set(MODELS) & set(registered())))
def test_parameters(model: str) -> None:
    """Those of the facts, which tests/models/test_zoo.py compares with the models."""
    counts = {record.params for record in records_of(model)} - {None}
    assert counts <= {shipped_facts()[model]["params"]}


def test_torchvision_resizes_as_its_records_say() -> None:
    from torchvision import models

    weights = {item.value.url: item.value for name in models.list_models(include="swin_*") for item in models.get_model_weights(name)}
    found = [record for record in RECORDS if record.tag == "tv_in1k"]
    assert {record.sources[0].url for record in found} == set(weights)
    for record in found:
        value = weights[record.sources[0].url]
        transform, size = value.transforms(), record.input_size[1]
        assert transform.crop_size == [size] and transform.resize_size == [int(size / record.crop_pct)]
        assert (tuple(transform.mean), tuple(transform.std)) == (record.mean, record.std)
        assert transform.interpolation.value == record.interpolation
        assert value.meta["_metrics"]["ImageNet-1K"]["acc@1"] == record.top1 and value.meta["_ops"] == record.gflops


@pytest.mark.parametrize(
    "change",
    [
        {"tag": "IN1K"},
        {"in_chans": 0},
        {"crop_pct": 1.5},
        {"interpolation": "cubic"},
        {"licence": "MIT"},
        {"top1": 0},
        {"sources": [{"url": "ftp://host/file.pth", "publisher": "author", "status": "ok"}]},
        {"sources": [{"url": "https://host/file.pth", "publisher": "author", "status": "ok", "sha256": "12"}]},
        {"sources": [{"url": "https://host/file.pth", "publisher": "somebody", "status": "ok"}]},
    ],
)
def test_faults_are_found(change: dict[str, Any]) -> None:
    content = yaml.safe_load((files("visionattn") / "models" / "weights" / "records" / "van.yaml").read_text())
    assert len(parse_records(content)) == 7
    content["records"][0] |= change
    with pytest.raises(ValidationError):
        parse_records(content)


def test_names_with_and_without_tags() -> None:
    assert split_name("swin_tiny.in22k") == ("swin_tiny", "in22k") and split_name("swin_tiny") == ("swin_tiny", None)
    assert find_record("swin_tiny").name == "swin_tiny.in1k" and find_record("swin_large").name == "swin_large.in22k_ft_in1k"
    assert find_record("swin_tiny.in22k") == find_record("swin_tiny", "in22k") == find_record("swin_tiny.in22k", "in22k")
    for args, code in (
        (("swin_tinny",), "VA-M001"),
        (("swin_tinny.in1k",), "VA-M001"),
        (("swin_tiny.in2k",), "VA-W007"),
        (("swin_tiny", "x"), "VA-W007"),
        (("swin_tiny.in1k", "in22k"), "VA-W007"),
    ):
        with pytest.raises(UserError) as caught:
            find_record(*args)
        assert caught.value.code == code


def test_listing_models_with_weights() -> None:
    assert va.list_models("swin_tiny", pretrained=True) == [f"swin_tiny.{tag}" for tag in ("in1k", "in22k_ft_in1k", "in22k", "tv_in1k")]
    assert va.list_models("swin_*.in22k", pretrained=True, license="mit")[:2] == ["swin_base.in22k", "swin_base_384.in22k"]
    assert va.list_models("swin_*") == registered("swin_*")
    assert "swin_tiny.tv_in1k" not in va.list_models(pretrained=True, license="MIT")
    assert "swin_tiny" in va.list_models(license="MIT") and "eca_resnet18" not in va.list_models(license="MIT")
    assert va.list_models(family="eca", license="MIT") == []
    assert all(name.startswith("eca_") for name in va.list_models(family="eca", pretrained=True))
    assert set(va.list_models(pretrained=True)) == {record.name for record in RECORDS if record.model in registered()}
    assert va.model_info("swin_large")["weights"] == ["swin_large.in22k_ft_in1k", "swin_large.in22k"]

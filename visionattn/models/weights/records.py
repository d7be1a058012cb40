"""Published weights as data: one record per checkpoint, in `records/<family>.yaml` and `records/segmentation.yaml`.

A record is named `model.tag`, for example `swin_tiny.in22k` or `swin_tiny.upernet_ade20k`; the first classifier
of a model is its default. Unpublished facts are omitted, not guessed: where a source has no full sha256, the
downloader pins the hash of the first download.

Reading records loads no torch; only what asks the registry of models does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field

from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write, cache_folder, locked

# In the same folder as the classifiers' files, one per family.
SEGMENTERS = "segmentation.yaml"

Side = Annotated[int, Field(ge=1)]
Channels = tuple[float, float, float]


class Fact(BaseModel):
    """A mapping in a records file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Fact):
    """A location of a checkpoint file."""

    url: str = Field(pattern=r"^https?://[^/\s@]+/\S*$", description="Without a password: addresses are shown and stored.")
    publisher: Literal["author", "timm", "torchvision", "openmmlab"]
    layout: Literal["author", "timm", "torchvision", "mmpretrain", "transformers"] = Field(
        "author", description="Naming scheme of the tensors."
    )
    status: Literal["ok", "unverified", "reported_broken", "page_only"] = Field(
        description="unverified: never downloaded by us; page_only: a web page, not the file."
    )
    file_name: str | None = Field(None, description="Name of the file, if the URL does not end in it.")
    bytes: int | None = Field(None, ge=1)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    sha256_prefix: str | None = Field(None, pattern=r"^[0-9a-f]{8,63}$", description="First digits of the sha256, from the file's name.")

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def fetchable(self) -> bool:
        """Whether the file can be downloaded directly; other sources need a browser."""
        return self.status in ("ok", "unverified")

    @property
    def name(self) -> str:
        """Name of the file at its host; empty if unknown."""
        last = PurePosixPath(urlsplit(self.url).path).name
        return self.file_name or (last if "." in last else "")

    @property
    def suffix(self) -> str:
        """Suffix in the cache: .safetensors, or .pth for anything saved by torch."""
        return ".safetensors" if self.name.endswith(".safetensors") else ".pth"

    @property
    def digits(self) -> str:
        """The published sha256 or its first digits; empty if there is none."""
        return self.sha256 or self.sha256_prefix or ""

    @property
    def hash_check(self) -> str:
        """What a download is compared with: the full sha256, its first digits, or the hash of the first use."""
        return "sha256" if self.sha256 else f"first {len(self.sha256_prefix)} digits" if self.sha256_prefix else "first use"


class Weights(Fact):
    """A published checkpoint of a registered model."""

    model: str
    tag: str = Field(
        pattern=r"^[a-z0-9_]+$", description="Data and training: in1k, in22k_ft_in1k, tv_in1k (torchvision's), upernet_ade20k ..."
    )
    sources: tuple[Source, ...] = Field((), description="In order of preference, all with the same weights.")
    args: dict[str, Any] = Field({}, description="Arguments of the family's class that differ from the model's.")
    code_license: str | None = None
    weights_license: str | None = Field(None, description="SPDX name; none if not stated.")
    license_note: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"

    @property
    def file_stem(self) -> str:
        """Name of its file in the cache, without the suffix; file systems may not take the colon of `timm:`."""
        return self.name.replace(":", "-")

    @property
    def hash_check(self) -> str:
        """What the file is compared with, by the source it comes from; a file of the user's with the hash of the import."""
        sources = [source for source in self.sources if source.fetchable] or self.sources
        return ", ".join(dict.fromkeys(source.hash_check for source in sources)) or "first use"

    @property
    def display_licenses(self) -> str:
        """Column of a table: licence of the weights, then of the code."""
        return f"{self.weights_license or 'not stated'}, {self.code_license or 'not stated'}"

    @property
    def display_figures(self) -> tuple[int, str]:
        """Columns of a table: pixels per side (of a training crop in segmentation) and the publisher's metric."""
        raise NotImplementedError


class Record(Weights):
    """A classifier or a backbone; without sources it is a file imported by the user."""

    in_chans: int = Field(3, ge=1)
    input_size: tuple[Side, Side, Side]
    mean: Channels
    std: Channels
    interpolation: Literal["bicubic", "bilinear"]
    crop_pct: float = Field(gt=0, le=1)
    num_classes: int | None = Field(None, ge=1)
    label_set: Literal["imagenet-1k", "imagenet-22k"] | None = None
    class_names: tuple[str, ...] = Field((), description="Names of the outputs, if there is no label set.")
    top1: float | None = Field(None, gt=0, lt=100, description="Percent on ImageNet-1k, as its publisher reports it.")
    gflops: float | None = Field(None, gt=0, description="At input_size, as published.")
    params: int | None = Field(None, ge=1)

    @property
    def display_figures(self) -> tuple[int, str]:
        return self.input_size[1], f"{self.top1}" if self.top1 is not None else "-"


class SegmenterRecord(Weights):
    """A segmentation model with published metrics; without sources its weights are not published."""

    head: str = Field(description="Name of the head in visionattn.heads.HEADS.")
    num_classes: int = Field(ge=2)
    classes: Literal["ade20k"] = Field(description="Class list of the data it was trained on.")
    crop: int = Field(ge=32, description="Side of its training crops in pixels.")
    steps: int = Field(ge=1, description="Optimizer steps of its training.")
    drop_path_rate: float | None = Field(None, ge=0, lt=1, description="Stochastic depth; none if not stated.")
    miou: float | None = Field(None, gt=0, lt=100, description="Percent on the validation set at one scale, as its publisher reports it.")
    miou_ms: float | None = Field(None, gt=0, lt=100, description="The same with several scales and flips.")
    params_m: float | None = Field(None, gt=0, description="Millions of parameters, as published.")

    @property
    def recipe(self) -> str:
        """Name of the shipped config that trains it; a reproduction by OpenMMLab shares the config of the authors' model."""
        return f"segmentation/{self.model}_{self.tag.removeprefix('mm_')}"

    @property
    def display_figures(self) -> tuple[int, str]:
        return self.crop, f"mIoU {self.miou}" if self.miou is not None else f"mIoU {self.miou_ms} (multi-scale)"


@lru_cache
def records() -> tuple[Record, ...]:
    """Return all records, by family, in the order of the files."""
    folder = files("visionattn") / "models" / "weights" / "records"
    names = (path.name for path in folder.iterdir() if path.name.endswith(".yaml"))
    paths = [folder / name for name in sorted(names) if name != SEGMENTERS]
    return tuple(record for path in paths for record in parse_records(yaml.safe_load(path.read_text(encoding="utf-8"))))


def parse_records(content: Mapping[str, Any]) -> list[Record]:
    """Parse the records of one file; each entry of `records` overrides `common`."""
    return [Record.model_validate({**content["common"], **entry}) for entry in content["records"]]


@lru_cache
def segmenter_records() -> tuple[SegmenterRecord, ...]:
    """Return all segmentation models with published metrics, by family."""
    path = files("visionattn") / "models" / "weights" / "records" / SEGMENTERS
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(SegmenterRecord.model_validate({**group["common"], **entry}) for group in groups for entry in group["records"])


def local_records() -> tuple[Record, ...]:
    """Return the records of unpublished files that the user imported; they are stored in the cache folder."""
    path = _local_file()
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return tuple(Record.model_validate(entry) for entry in entries)


def add_local_record(record: Record) -> None:
    """Store a record of an imported file, replacing one of the same name."""
    path = _local_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(".local.lock")):
        kept = [other for other in local_records() if other.name != record.name] + [record]
        content = [item.model_dump(mode="json", exclude_defaults=True) for item in kept]
        atomic_write(path, json.dumps(content, indent=1) + "\n")


def _local_file() -> Path:
    return cache_folder() / "weights" / "local.json"


def records_of(model: str) -> list[Record]:
    """Return the records of a model: published ones, the default first, then imported ones."""
    published = timm_records(model) if model.startswith("timm:") else records()
    return [record for record in (*published, *local_records()) if record.model == model]


@lru_cache(maxsize=64)
def timm_records(model: str) -> tuple[Record, ...]:
    """Return what timm says of the weights of `timm:NAME`, its default first; weights in a layout of others are left out.

    Raises:
        UserError: VA-M001 unknown model.
    """
    import timm
    from timm.models import get_arch_pretrained_cfgs

    from visionattn.backbones.from_timm import preprocessing
    from visionattn.backbones.registry import get_variant

    name = get_variant(model).args["name"]
    first = getattr(timm.get_pretrained_cfg(name), "tag", None)
    cfgs = sorted(get_arch_pretrained_cfgs(name).values(), key=lambda cfg: cfg.tag != first)
    found = []
    for cfg in cfgs:
        hub = cfg.hf_hub_id and not cfg.hf_hub_filename
        urls = [f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors"] if hub else []
        urls += [cfg.url] if cfg.url else []
        about, tag = preprocessing(cfg), cfg.tag or "default"
        if not urls or about["input_size"][0] != 3 or not re.fullmatch(r"[a-z0-9_]+", tag):
            continue
        sources = [{"url": url, "publisher": "timm", "layout": "timm", "status": "unverified", **_digits(url)} for url in urls]
        facts = {key: about[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
        facts |= {"model": model, "tag": tag, "sources": sources, "code_license": "Apache-2.0", "weights_license": cfg.license}
        facts |= {"num_classes": about["num_classes"] or None}
        if about["num_classes"] == 1000 and tag.endswith("in1k"):
            facts["label_set"] = "imagenet-1k"
        found.append(Record.model_validate(facts))
    return tuple(found)


def _digits(url: str) -> dict[str, str]:
    """The first digits of the sha256 in the name of a file, where torch's tools put them."""
    match = re.search(r"-([0-9a-f]{8})\.pth(?:\.tar)?$", url)
    return {"sha256_prefix": match[1]} if match else {}


def named_weights(model: str, tag: str) -> Record | None:
    """Return the record of a model with this tag, or its default for `pretrained`; None for anything else."""
    found = records_of(model)
    return next((record for record in found if tag in (record.tag, "pretrained")), None)


def split_name(name: str) -> tuple[str, str | None]:
    """Split `swin_tiny.in1k` into model and tag; the tag of a bare model name is None."""
    from visionattn.backbones import list_models as registered_models

    model, _, tag = name.partition(".")
    return (name, None) if name in registered_models() else (model, tag or None)


def find_record(name: str, tag: str | None = None) -> Record:
    """Find the record of `model` with a tag, of `model.tag`, or the default of `model`.

    Raises:
        UserError: VA-M001 unknown model, VA-W001 no published weights, VA-W007 unknown tag.
    """
    from visionattn.backbones.registry import get_variant

    model, own = split_name(name)
    get_variant(model)
    if tag is not None and own is not None and tag != own:
        raise UserError("VA-W007", f'conflicting tags: "{name}" and "{tag}"')
    found = {record.tag: record for record in records_of(model)}
    if not found:
        raise UserError(
            "VA-W001",
            f"no published weights of {model} are known",
            fix="train from scratch (model.weights=none), or give a file of your own: model.weights=FILE, checkpoint_path=FILE",
        )
    wanted = tag or own or next(iter(found))
    if wanted not in found:
        fix = f"{did_you_mean(wanted, found)} There are: {', '.join(found)}".strip()
        raise UserError("VA-W007", f'{model} has no weights "{wanted}"', fix=fix)
    return found[wanted]


def find_weights(name: str, tag: str | None = None) -> Weights:
    """Find the record of a segmentation model or a classifier, by `model.tag` or by model and tag.

    Raises:
        UserError: as `find_record`.
    """
    return find_segmenter(name if tag is None else f"{split_name(name)[0]}.{tag}") or find_record(name, tag)


def find_segmenter(name: str) -> SegmenterRecord | None:
    """Find a segmentation model with published weights by name (`swin_tiny.upernet_ade20k`); None if there is none."""
    return next((record for record in segmenter_records() if record.name == name and record.sources), None)


def list_segmenters(pattern: str = "*", *, license: str | None = None) -> list[SegmenterRecord]:
    """List segmentation models with published weights; `pattern` and `license` as in `list_models`."""
    return [record for record in segmenter_records() if record.sources and _chosen(record, pattern, license)]


def list_models(pattern: str = "*", *, family: str | None = None, pretrained: bool = False, license: str | None = None) -> list[str]:
    """List the names of models, sorted.

    Args:
        pattern: glob on the name.
        family: only models of one module, for example `swin`.
        pretrained: list `model.tag` for all published weights instead, a model's default first.
        license: only weights under this licence (SPDX, any case), or without `pretrained` the models with such weights.
    """
    from visionattn.backbones import list_models as registered_models

    models = registered_models(family=family)
    if not pretrained and license is None:
        return registered_models(pattern, family=family)
    chosen = [record for record in list_records(pattern, license=license) if record.model in models]
    return list(dict.fromkeys(record.name if pretrained else record.model for record in chosen))


def published_names() -> list[str]:
    """The names of all published models that can be used as they are: classifiers (`swin_tiny.in1k`) and segmentation models."""
    classifiers = [record for record in list_records() if record.num_classes is not None]
    return [record.name for record in (*classifiers, *list_segmenters())]


def list_records(pattern: str = "*", *, license: str | None = None) -> list[Record]:
    """Classifiers and backbones with published or imported weights, sorted by model; `pattern` and `license` as in `list_models`."""
    chosen = [record for record in (*records(), *local_records()) if _chosen(record, pattern, license)]
    return sorted(chosen, key=lambda record: record.model)


@lru_cache
def shipped_facts() -> dict[str, dict[str, Any]]:
    """`computed_facts` (models/factory.py) of every model of the package, made beforehand: computing them takes a minute and torch."""
    path = files("visionattn") / "models" / "weights" / "records" / "facts.json"
    facts: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _chosen(record: Weights, pattern: str, license: str | None) -> bool:
    named = fnmatch(record.model, pattern) or fnmatch(record.name, pattern)
    return named and (license is None or (record.weights_license or "").lower() == license.lower())

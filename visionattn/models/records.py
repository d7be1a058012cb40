"""Published weights as data: one record per checkpoint, in `records/<family>.yaml`.

A record is called `model.tag`, for example `swin_tiny.in22k`; the first record of a model is its
default. What nobody published is left out rather than guessed: no host gave a full sha256, so the
downloader pins the one it sees first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field

from visionattn.backbones import list_models as registered_models
from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError, did_you_mean
from visionattn.files import atomic_write, cache_folder, locked

Side = Annotated[int, Field(ge=1)]
Channels = tuple[float, float, float]


class Fact(BaseModel):
    """A mapping of a records file; keys it does not know are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Fact):
    """A place a checkpoint can be had from."""

    url: str = Field(pattern=r"^https?://[^/\s]+/\S*$")
    publisher: Literal["author", "timm", "torchvision", "openmmlab"]
    layout: Literal["author", "timm", "torchvision", "mmpretrain", "transformers"] = Field(
        "author", description="Whose names the tensors have."
    )
    status: Literal["ok", "unverified", "reported_broken", "page_only"] = Field(
        description="unverified: never opened by us; page_only: a page for people, not the file."
    )
    file_name: str | None = Field(None, description="Name of the file, where the address does not end in it.")
    bytes: int | None = Field(None, ge=1)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    sha256_prefix: str | None = Field(None, pattern=r"^[0-9a-f]{8,63}$", description="First digits of the sha256, from the file's name.")

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def fetchable(self) -> bool:
        """Whether a program can try; the other sources are for a person with a browser."""
        return self.status in ("ok", "unverified")

    @property
    def name(self) -> str:
        """Name of the file at its host; empty if unknown."""
        last = PurePosixPath(urlsplit(self.url).path).name
        return self.file_name or (last if "." in last else "")

    @property
    def suffix(self) -> str:
        """How the file is read: .safetensors, or .pth for all that torch saved."""
        return ".safetensors" if self.name.endswith(".safetensors") else ".pth"

    @property
    def digits(self) -> str:
        """The published sha256 or its first digits; empty if there is none."""
        return self.sha256 or self.sha256_prefix or ""


class Record(Fact):
    """A published checkpoint of a registered model."""

    model: str
    tag: str = Field(pattern=r"^[a-z0-9_]+$", description="Data and training: in1k, in22k, in22k_ft_in1k, tv_in1k (torchvision's), ...")
    sources: tuple[Source, ...] = Field((), description="In order of preference, all with the same weights; none for a file of the user's.")
    args: dict[str, Any] = Field({}, description="Arguments of the family's class that differ from the model's.")
    in_chans: int = Field(3, ge=1)
    code_license: str | None = None
    weights_license: str | None = Field(None, description="SPDX name; none where nobody states one.")
    license_note: str | None = None
    input_size: tuple[Side, Side, Side]
    mean: Channels
    std: Channels
    interpolation: Literal["bicubic", "bilinear"]
    crop_pct: float = Field(gt=0, le=1)
    num_classes: int | None = Field(None, ge=1)
    label_set: Literal["imagenet-1k", "imagenet-22k"] | None = None
    class_names: tuple[str, ...] = Field((), description="What the outputs stand for, where there is no label set.")
    top1: float | None = Field(None, gt=0, lt=100, description="Percent on ImageNet-1k, as its publisher reports it.")
    gflops: float | None = Field(None, gt=0, description="At input_size, as published.")
    params: int | None = Field(None, ge=1)
    note: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"


@lru_cache
def records() -> tuple[Record, ...]:
    """All records, family by family, as the files list them."""
    folder = files("visionattn") / "models" / "records"
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda path: path.name)
    return tuple(record for path in paths for record in parse_records(yaml.safe_load(path.read_text(encoding="utf-8"))))


def parse_records(content: Mapping[str, Any]) -> list[Record]:
    """The records of one file: `common` holds for each of `records` that does not say otherwise."""
    return [Record.model_validate({**content["common"], **entry}) for entry in content["records"]]


def local_records() -> tuple[Record, ...]:
    """Records of files that the user imported and nobody published; they are kept in the cache folder."""
    path = _local_file()
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return tuple(Record.model_validate(entry) for entry in entries)


def add_local_record(record: Record) -> None:
    """Keep a record of the user's; one of the same name is replaced."""
    path = _local_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(".local.lock")):
        kept = [other for other in local_records() if other.name != record.name] + [record]
        content = [item.model_dump(mode="json", exclude_defaults=True) for item in kept]
        atomic_write(path, json.dumps(content, indent=1) + "\n")


def _local_file() -> Path:
    return cache_folder() / "weights" / "local.json"


def records_of(model: str) -> list[Record]:
    """The records of a model: the published ones, its default first, then the user's own."""
    return [record for record in (*records(), *local_records()) if record.model == model]


def split_name(name: str) -> tuple[str, str | None]:
    """`swin_tiny.in1k` as model and tag; the tag is None in a model's own name."""
    model, _, tag = name.partition(".")
    return (name, None) if name in registered_models() else (model, tag or None)


def find_record(name: str, tag: str | None = None) -> Record:
    """The record of `model` with a tag, of `model.tag`, or the default one of `model`.

    Raises:
        UserError: VA-M001 unknown model, VA-W001 nothing was published for it, VA-W007 unknown tag.
    """
    model, own = split_name(name)
    get_variant(model)
    if tag is not None and own is not None and tag != own:
        raise UserError("VA-W007", f'two tags are asked for: "{name}" and "{tag}"')
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


def list_models(pattern: str = "*", *, family: str | None = None, pretrained: bool = False, license: str | None = None) -> list[str]:
    """Names of models, sorted.

    Args:
        pattern: glob on the name.
        family: only those of one module, for example `swin`.
        pretrained: list `model.tag` for all published weights instead, a model's default first.
        license: only weights under this licence (SPDX, any case); without `pretrained` the models that have such.
    """
    models = registered_models(family=family)
    if not pretrained and license is None:
        return registered_models(pattern, family=family)
    chosen = [
        record
        for record in (*records(), *local_records())
        if record.model in models
        and (fnmatch(record.model, pattern) or fnmatch(record.name, pattern))
        and (license is None or (record.weights_license or "").lower() == license.lower())
    ]
    chosen.sort(key=lambda record: record.model)
    return list(dict.fromkeys(record.name if pretrained else record.model for record in chosen))

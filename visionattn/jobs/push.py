"""Share the model of a run: a folder with `config.json`, `model.safetensors` and a model card, here or on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from safetensors.torch import save_file

from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.files import atomic_folder, require_space, sha256_of
from visionattn.models.weights.download import offline
from visionattn.models.weights.hub import CARD, CONFIG, HUB, RUN, WEIGHTS, endpoint, is_model_id, is_run_folder
from visionattn.models.weights.records import Weights
from visionattn.names import shown
from visionattn.report.card import CardFacts, model_card
from visionattn.report.summary import RunSummary
from visionattn.runs.checkpoint import read_meta
from visionattn.runs.folder import RunFolder
from visionattn.runs.load import LoadedModel, best_checkpoint, best_weights, load_model
from visionattn.runs.shareable import shareable

FILES = (CONFIG, WEIGHTS, CARD)


@dataclass(frozen=True)
class Pushed:
    """Result of a push.

    Attributes:
        source: what the model is called from now on, in `predict`, `create_model` and `model.weights`.
        address: folder, or page on the hub.
        files: name -> bytes.
    """

    source: str
    address: str
    files: dict[str, int]


def push(source: str | Path, target: str | Path, *, license: str = "", public: bool = False, console: Console | None = None) -> Pushed:
    """Write the model of a run as a folder that `load_model`, `create_model` and timm read, or upload it.

    Neither contains where the data were, what the run logs to, or the state of the optimizer.

    Args:
        source: run folder, or one of its checkpoints.
        target: `OWNER/NAME` on the Hugging Face hub (as `hf-hub:OWNER/NAME` where a folder OWNER exists here), or a folder that does not
            exist yet.
        license: SPDX name of the licence that the weights are given; empty: not stated.
        public: whether everybody sees a model that is new on the hub.
        console: where progress is printed.

    Raises:
        UserError: VA-R003, no run there; VA-R007, the folder exists; VA-W008, the hub cannot be reached or refuses; as `load_model`.
    """
    console = console or Console()
    model_id, folder = hub_id(target), Path(target).expanduser()
    if model_id is None:
        _require_new(folder)
    else:
        _require_token(model_id)
    _require_run(Path(source))
    loaded = load_model(source, lambda text: console.field("", text))
    name = model_id.rpartition("/")[2] if model_id else folder.resolve().name
    called = f"{HUB}{model_id}" if model_id else name  # in the card: where the folder is here concerns nobody else
    if loaded.config.plugins:
        console.warn(f"the model needs code of its own, which is not shared: {shown(', '.join(loaded.config.plugins))}")
    if model_id is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as temporary:
            sizes = _write(temporary, loaded, Path(source), name, called, license)
        return Pushed(os.path.expanduser(target), str(folder), sizes)  # with the ./ that tells a folder from a name
    with tempfile.TemporaryDirectory() as scratch:
        sizes = _write(Path(scratch), loaded, Path(source), name, called, license)
        console.field("uploading", f"{', '.join(sizes)} ({sum(sizes.values()) / 2**20:,.1f} MiB) to {endpoint()}/{model_id}")
        address = _upload(Path(scratch), model_id, public)
    return Pushed(called, address, sizes)


def hub_id(target: str | Path) -> str | None:
    """The model of the hub that a target names; None for a folder."""
    text = str(target)
    if text.startswith(HUB):
        if not is_model_id(text.removeprefix(HUB)):
            raise UserError("VA-W007", f'"{text}" names no model of the hub', fix="hf-hub:OWNER/NAME")
        return text.removeprefix(HUB)
    path = Path(text)
    return text if is_model_id(text) and not path.exists() and not path.parent.exists() else None


def _require_run(source: Path) -> None:
    """Stop at anything but a run or a checkpoint: published weights have their own authors.

    Raises:
        UserError: VA-R003.
    """
    checkpoint = source.parent if source.is_file() else source
    if not (checkpoint / "meta.json").is_file() and not is_run_folder(source):
        RunFolder.open(source)


def _require_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = f"{shown(str(folder))} exists already"
        raise UserError("VA-R007", what, fix="choose another folder, or remove it first")


def _require_token(model_id: str) -> None:
    """Stop before anything is written if nothing can be uploaded.

    Raises:
        UserError: VA-W008.
    """
    folder = f"visionattn push RUN ./{model_id}"
    if switch := offline():
        raise UserError("VA-W008", f"{model_id} cannot be uploaded: {switch} is set", fix=f"a folder instead: {folder}")
    if get_token() is None:
        why = "no token of the Hugging Face hub was found"
        raise UserError("VA-W008", f"{model_id} cannot be uploaded", why=why, fix=f"hf auth login, or HF_TOKEN\na folder instead: {folder}")


# ---------------------------------------------------------------- the folder


def _write(folder: Path, loaded: LoadedModel, source: Path, title: str, called: str, license: str) -> dict[str, int]:
    """Write the files of a model and return their sizes."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in loaded.model.state_dict().items()}
    require_space(folder, sum(tensor.numel() * tensor.element_size() for tensor in state.values()) + 2**20, what="the model")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = shareable(loaded)
    section = {
        "step": _step(source),
        "config": config.model_dump(mode="json"),
        "target": loaded.target,
        "sha256": {WEIGHTS: sha256_of(folder / WEIGHTS)},
    }
    exchange = loaded.task.exchange_config(config, loaded.target, loaded.model)
    (folder / CONFIG).write_text(json.dumps({**exchange, RUN: section}, indent=1), encoding="utf-8")
    card = model_card(_facts(loaded, title, license, exchange), called, loaded.task.display, loaded.task.unit)
    (folder / CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
    return {name: (folder / name).stat().st_size for name in FILES}


def _step(source: Path) -> int:
    checkpoint = source.parent if source.is_file() else source
    if not (checkpoint / "meta.json").is_file() and not is_run_folder(checkpoint):
        checkpoint = best_checkpoint(RunFolder.open(checkpoint))
    return int(read_meta(checkpoint)["step"])


def _facts(loaded: LoadedModel, title: str, license: str, exchange: Mapping[str, Any]) -> CardFacts:
    config, task = loaded.config, loaded.task
    classes = loaded.target.get("classes", [])
    return CardFacts(
        title=title,
        backbone=task.backbone_name(config),
        task=task.name,
        pipeline_tag=task.pipeline_tag,
        license=license,
        started_from=_started_from(task.published_weights(config)),
        preprocessing=_preprocessing(loaded, exchange),
        classes=[str(name) for name in classes] if isinstance(classes, list) else [],
        evaluation=_evaluation(loaded),
        in_timm=bool(exchange),
        plugins=shareable(loaded).plugins,
    )


def _started_from(record: Weights | None) -> str:
    if record is None or not record.sources:
        return ""
    weights, code = record.weights_license or "not stated", record.code_license or "not stated"
    note = f"; {record.license_note}" if record.license_note else ""
    return f"{record.name}, licence of the weights: {weights}, of the code: {code}{note}"


def _preprocessing(loaded: LoadedModel, exchange: Mapping[str, Any]) -> dict[str, str]:
    """What happens to an image before the network, in words."""
    cfg, config = getattr(loaded.model, "pretrained_cfg", {}), loaded.config
    resized = exchange.get("pretrained_cfg")
    size, facts = config.model.img_size, {}
    if size != "auto":
        facts["size"] = f"{' x '.join(map(str, size)) if isinstance(size, tuple) else size} px"
    if cfg:
        facts["channels"] = str(config.model.channels)
    for name in ("mean", "std"):
        if name in cfg:
            facts[name] = ", ".join(f"{value:.4g}" for value in cfg[name])
    if resized:
        facts["resizing"] = f"{resized['interpolation']}, centre crop of {resized['crop_pct']:.3g}"
    return facts


def _evaluation(loaded: LoadedModel) -> dict[str, Any]:
    """The validation of these weights; empty if there is none."""
    if loaded.run is None or loaded.weights != best_weights(loaded.run):
        return {}
    return RunSummary.of(loaded.run, loaded.config, loaded.task).evaluation


# ---------------------------------------------------------------- the hub


def _upload(folder: Path, model_id: str, public: bool) -> str:
    """Upload the files in one commit, into a model that is created if there is none; returns its address.

    Raises:
        UserError: VA-W008.
    """
    api = HfApi(endpoint=endpoint(), library_name="visionattn")
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in FILES]
    try:
        api.create_repo(model_id, private=not public, exist_ok=True)
        api.create_commit(model_id, operations=operations, commit_message="Upload a model of visionattn")
    except Exception as error:  # of whichever HTTP library is below
        why = "\n".join(dict.fromkeys(line for item in (error, error.__cause__) for line in _lines(item)))[:600]
        fix = f"a token that may write to {model_id.partition('/')[0]}: hf auth login, or HF_TOKEN\ncheck the name and the connection"
        raise UserError("VA-W008", f"{model_id} was not uploaded", where=endpoint(), why=why, fix=fix) from error
    return f"{endpoint()}/{model_id}"


def _lines(error: BaseException | None) -> list[str]:
    return [] if error is None else [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]

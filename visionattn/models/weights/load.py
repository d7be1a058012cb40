"""Checkpoint files: read without running anything in them, renamed to our keys, loaded strictly."""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from visionattn.backbones import Backbone
from visionattn.backbones.registry import get_variant, list_models
from visionattn.errors import UserError, did_you_mean
from visionattn.models.classifier import Classifier
from visionattn.models.segmenter import Segmenter
from visionattn.models.weights.recognise import State, recognise, split_decoder, to_our_keys

# Where official files keep their tensors.
CONTAINERS = ("model", "state_dict", "state_dict_ema")


class Inert:
    """In the place of an object beside the tensors that nobody needs: whatever the file wants of it, nothing happens."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Objects beside the tensors in official files. They are rebuilt as data, nothing of theirs is run;
# yacs' CfgNode becomes an OrderedDict, because torch fills no other subclass of dict.
SAFE_OBJECTS: list[Any] = [argparse.Namespace, pathlib.PosixPath, (OrderedDict, "yacs.config.CfgNode")]
# The log of a training that mmengine keeps in each checkpoint: curves as numpy arrays, and methods found by `getattr`, which is not called.
SAFE_OBJECTS += [(Inert, "mmengine.logging.history_buffer.HistoryBuffer"), (Inert, "builtins.getattr")]
SAFE_OBJECTS += [(Inert, f"numpy.{name}") for name in ("ndarray", "dtype")]
SAFE_OBJECTS += [(Inert, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("_reconstruct", "scalar")]

NO_CHECKPOINT = "it is neither a zip archive nor a pickle of tensors"


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        matched: tensors loaded as they are.
        reshaped: one line per adaptation (first convolution, position tables, kernel sizes).
        skipped: one line per part that was left as it was (classifier).
        reason: one line that sums it up.
    """

    matched: int
    reshaped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    reason: str = ""


def load_checkpoint(
    model: Classifier | Backbone | Segmenter,
    source: str | Path | Mapping[str, Any],
    *,
    allow: Collection[str] = ("classifier", "first_conv", "position", "auxiliary"),
) -> LoadReport:
    """Load a file or a state dict, in the authors' layout, timm's, mmsegmentation's or ours.

    After renaming, every tensor must fit, except for what `allow` names: "classifier" (another
    number of classes leaves the model's own), "first_conv" (input channels summed, or repeated and
    scaled), "position" (tables resampled by the family's rule), "auxiliary" (the auxiliary head of a
    segmentation model, where only one of file and model has it).

    Args:
        model: a classifier; a backbone (`features_only`), which takes the backbone's part; a segmentation
            model, whose backbone alone is loaded from a classifier's or a backbone's file.
        source: path of a .safetensors or .pth file, or a mapping of names to tensors.
        allow: differences that are adapted instead of refused.

    Raises:
        UserError: VA-W003 another model's weights, VA-W004 a pickle that would run code,
            VA-W005 not readable, VA-W006 no such file.
    """
    given = tensors_of(source if isinstance(source, Mapping) else read_file(Path(source)))
    backbone = model if isinstance(model, Backbone) else model.backbone
    prefix = "" if backbone is model else "backbone."
    rest, parts = split_decoder(given)
    state = to_our_keys(rest, backbone)
    if not isinstance(model, Classifier):
        state = {prefix + key.removeprefix("backbone."): value for key, value in state.items() if not key.startswith("head.")}
    if not isinstance(model, Backbone):
        state |= parts  # a classifier refuses them below
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}

    reshaped = _adapt_position(backbone, state, prefix) if "position" in allow else []
    if "first_conv" in allow:
        reshaped += _adapt_first_conv(model, state, f"{prefix}{backbone.first_conv}.weight")
    kept: set[str] = set()
    skipped: list[str] = []
    if isinstance(model, Classifier):
        skipped = _keep_classifier(model, state) if "classifier" in allow else []
        kept = {"head.fc.weight", "head.fc.bias"} if skipped else set()
    elif not isinstance(model, Backbone):
        kept, skipped = _fit_decoder(model, state, allow)

    wanted = model.state_dict()
    norms = {key for key in wanted if key.startswith(f"{prefix}out_norms.")}
    if norms and not norms & set(state):  # a classifier's file starts a dense model, whose norms it cannot have
        kept |= norms
        skipped.append(f"the norms of {len(backbone.out_norms)} outputs are not in the file: they start anew")
    kept |= {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in kept]
    unexpected = [key for key in state if key not in wanted]
    shapes = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    if missing or unexpected or shapes:
        raise _mismatch(model, given, state, missing, unexpected, shapes)
    model.load_state_dict(state, strict=False)  # all differences were dealt with above
    total = len(wanted) - sum(key.endswith("num_batches_tracked") for key in wanted)
    reason = "; ".join([f"{len(state)} of {total} tensors loaded", *reshaped, *skipped])
    return LoadReport(matched=len(state), reshaped=reshaped, skipped=skipped, reason=reason)


def read_file(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint file; a pickle is restricted to tensors and a few plain objects.

    Raises:
        UserError: VA-W004, VA-W005, VA-W006.
    """
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError("VA-W006", f'checkpoint "{path}" not found', fix=did_you_mean(path.name, siblings))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(SAFE_OBJECTS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), None)
        if refused is None:
            raise _unreadable(path, NO_CHECKPOINT) from error
        raise UserError(
            "VA-W004",
            f"{path.name} holds more than tensors and was not opened",
            where=str(path),
            why=refused,
            fix="a checkpoint that needs code to load can do anything on your machine: ask its author for safetensors",
        ) from error
    except (KeyError, EOFError) as error:  # of the unpickler, from bytes that are no pickle
        raise _unreadable(path, NO_CHECKPOINT) from error
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise _unreadable(path, str(error).partition("\n")[0][:300] or type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise UserError("VA-W005", f"{path.name} holds a {type(content).__name__}, not named tensors", where=str(path))
    return content


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        "VA-W005",
        f"{path.name} is not a readable checkpoint ({path.stat().st_size:,} bytes)",
        where=str(path),
        why=why,
        fix="the file is truncated or something else: download it again",
    )


def tensors_of(content: Mapping[str, Any]) -> State:
    """The named tensors inside a container, without the prefix of DataParallel."""
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _adapt_position(backbone: Backbone, state: State, prefix: str) -> list[str]:
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    notes = backbone.adapt(own)
    state.update({prefix + key: value for key, value in own.items()})
    return notes


def _adapt_first_conv(model: torch.nn.Module, state: State, key: str) -> list[str]:
    """Input channels: summed for one, else repeated in turn and scaled so that the response stays."""
    weight, wanted = state.get(key), model.get_parameter(key)
    if weight is None or weight.dim() != 4 or weight.shape[1] == wanted.shape[1] or weight.shape[0] != wanted.shape[0]:
        return []
    old, new = weight.shape[1], wanted.shape[1]
    if new == 1:
        state[key] = weight.sum(1, keepdim=True)
    else:
        state[key] = weight[:, torch.arange(new) % old] * (old / new)
    return [f"first convolution {old} -> {new} input channels ({'summed' if new == 1 else 'repeated and scaled'})"]


def _keep_classifier(model: Classifier, state: State) -> list[str]:
    given, own = state.get("head.fc.weight"), getattr(model.head.fc, "weight", None)
    if own is not None and (given is None or given.shape == own.shape):
        return []  # the same size; a file without a classifier is refused by the strict load
    for key in ("head.fc.weight", "head.fc.bias"):
        state.pop(key, None)
    if own is None:
        return ["the file's classifier left out (num_classes=0)"] if given is not None else []
    classes = given.shape[0] if given is not None else 0
    return [f"checkpoint head has {classes} classes, the model {own.shape[0]}: head re-initialised"]


def _fit_decoder(model: Segmenter, state: State, allow: Collection[str]) -> tuple[set[str], list[str]]:
    """Make the tensors of the heads those of the model; returns what the model keeps of its own, and one line per reason."""
    own = {key for key in model.state_dict() if not key.startswith("backbone.")}
    head = {key: state.pop(key) for key in list(state) if key.startswith("decode_head.")}
    if not head:
        return own, ["the file has no segmentation head: it starts anew"]
    renamed = model.decode_head.from_upstream({key.removeprefix("decode_head."): value for key, value in head.items()})
    state.update({f"decode_head.{key}": value for key, value in renamed.items()})
    kept: set[str] = set()
    skipped = []
    given, ours = ({key for key in keys if key.startswith("auxiliary_head.")} for keys in (state, own))
    if "auxiliary" in allow and bool(given) != bool(ours):
        kept |= ours
        for key in given:
            del state[key]
        skipped.append("the file's auxiliary head left out" if given else "the file has no auxiliary head: it starts anew")
    classes = state.get("decode_head.conv_seg.weight")
    if "classifier" in allow and classes is not None and classes.shape[0] != model.num_classes:
        last = {key for key in own if ".conv_seg." in key}  # of both heads
        kept |= last
        for key in last:
            state.pop(key, None)
        skipped.append(f"checkpoint head has {classes.shape[0]} classes, the model {model.num_classes}: last layer re-initialised")
    return kept, skipped


def _mismatch(model: Any, given: State, state: State, missing: list[str], unexpected: list[str], shapes: list[str]) -> UserError:
    wanted = model.state_dict()
    lines = [f"matched {len(state) - len(unexpected) - len(shapes)} tensors"]
    if shapes:
        lines += [f"shape   {key}: file {list(state[key].shape)}, model {list(wanted[key].shape)}" for key in shapes[:3]]
    lines += [f"missing {key}" for key in missing[:3]] + [f"unknown {key}" for key in unexpected[:3]]
    rest = len(shapes) + len(missing) + len(unexpected) - (len(lines) - 1)
    lines += [f"... and {rest} more"] if rest > 0 else []
    asked = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
    head = getattr(model, "decode_head", None) and model.head
    what = f"the file does not fit {asked}"
    fix = "check the model's arguments"
    guess = recognise(given)
    if guess is not None and asked not in guess.names:
        names = " or ".join(f"{name}{_blocks(name)}" for name in guess.names)
        what = f"looks like {names} - you asked for {asked}{_blocks(asked)}"
        fix = f"create_model({guess.names[0]!r}) or the right file"
    elif guess is not None and guess.decoder is not None and guess.decoder.head != head:
        what = f"looks like a segmentation model with {guess.decoder.head} - you asked for {head or 'a classifier'}"
        fix = f"create_segmenter({guess.names[0]!r}, {guess.decoder.head!r}, {guess.num_classes}) or the right file"
    return UserError("VA-W003", what, why="\n".join(lines), fix=fix)


def _blocks(name: str) -> str:
    depths = get_variant(name).args.get("depths") if name in list_models() else None
    return f" ({sum(depths)} blocks)" if depths else ""

"""Load checkpoint files: without executing code in them, with keys renamed to ours, strictly."""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from visionattn.backbones.registry import get_variant, list_models
from visionattn.errors import UserError, did_you_mean
from visionattn.models.weights.recognise import DECODER, State, counter, recognise, split_decoder, to_our_keys

# Tensors of our classifiers and segmentation models outside the backbone.
HEADS = ("head.", *DECODER)
# Keys that hold the tensors in official files.
CONTAINERS = ("model", "state_dict", "state_dict_ema")


class Inert:
    """Placeholder for an object in a file that is not needed."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Objects other than tensors in official files. They are rebuilt as data, without executing their code;
# yacs' CfgNode becomes an OrderedDict, the only subclass of dict that torch can fill.
SAFE_OBJECTS: list[Any] = [argparse.Namespace, pathlib.PosixPath, (OrderedDict, "yacs.config.CfgNode")]
# mmengine's training log in each checkpoint: curves as numpy arrays, and methods looked up by `getattr`, which is not called.
SAFE_OBJECTS += [(Inert, "mmengine.logging.history_buffer.HistoryBuffer"), (Inert, "builtins.getattr")]
SAFE_OBJECTS += [(Inert, f"numpy.{name}") for name in ("ndarray", "dtype")]
SAFE_OBJECTS += [(Inert, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("_reconstruct", "scalar")]

NO_CHECKPOINT = "it is neither a zip archive nor a pickle of tensors"


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a checkpoint.

    Attributes:
        matched: number of tensors loaded.
        reshaped: one line per adaptation (first convolution, position tables, kernel sizes).
        skipped: one line per part that was not loaded (classifier).
        reason: summary in one line.
    """

    matched: int
    reshaped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    reason: str = ""


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    allow: Collection[str] = ("classifier", "first_conv", "position", "auxiliary"),
) -> LoadReport:
    """Load a file or a state dict, in the authors' layout, timm's, mmsegmentation's or ours.

    After renaming, every tensor must fit, except for what `allow` names: "classifier" (a head for
    another number of classes keeps the model's own values), "first_conv" (input channels summed, or
    repeated and scaled), "position" (tables resampled by the family's rule), "auxiliary" (the auxiliary
    head of a segmentation model, where only one of file and model has it).

    Args:
        model: a backbone, which takes its part of any file; or a module with one as `.backbone`. What is outside
            the backbone is up to the module's `fit_head(state, allow)`, see `Classifier.fit_head`; without
            that method, tensors outside the backbone are loaded if all of them fit, and otherwise start anew.
        source: path of a .safetensors or .pth file, or a mapping of names to tensors.
        allow: differences to adapt to; all others raise.

    Raises:
        UserError: VA-W003 weights of another model, VA-W004 a pickle that would execute code,
            VA-W005 not readable, VA-W006 no such file.
    """
    given = tensors_of(source if isinstance(source, Mapping) else read_file(Path(source)))
    backbone: Any = getattr(model, "backbone", model)
    prefix = "" if backbone is model else "backbone."
    rest, decoder = split_decoder(given)
    renamed = {key: value for key, value in (to_our_keys(rest, backbone) | decoder).items() if not counter(key)}
    trunk = {key.removeprefix("backbone."): value for key, value in renamed.items() if key.startswith("backbone.")}

    reshaped = backbone.adapt(trunk) if "position" in allow else []
    if "first_conv" in allow:
        reshaped += _adapt_first_conv(backbone, trunk)
    state = {prefix + key: value for key, value in trunk.items()}
    kept: set[str] = set()
    skipped: list[str] = []
    head = {key: value for key, value in renamed.items() if not key.startswith("backbone.")}
    if backbone is model:
        head = {key: value for key, value in head.items() if not key.startswith(HEADS)}
    else:
        kept, skipped = getattr(model, "fit_head", partial(_fit_head, model))(head, allow)
    state |= head

    wanted = model.state_dict()
    norms = {key for key in wanted if key.startswith(f"{prefix}out_norms.")}
    if norms and not norms & set(state):  # a classifier's file starts a dense model, whose norms it cannot have
        kept |= norms
        skipped.append(f"the norms of {len(backbone.out_norms)} outputs are not in the file: they start anew")
    missing = [key for key in wanted if key not in state and key not in kept and not counter(key)]
    unexpected = [key for key in state if key not in wanted]
    shapes = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    if missing or unexpected or shapes:
        raise _mismatch(model, given, state, missing, unexpected, shapes)
    model.load_state_dict(state, strict=False)  # all differences are handled above
    total = len(wanted) - sum(map(counter, wanted))
    reason = "; ".join([f"{len(state)} of {total} tensors loaded", *reshaped, *skipped])
    return LoadReport(matched=len(state), reshaped=reshaped, skipped=skipped, reason=reason)


def read_file(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint file; pickles may contain only tensors and a few plain objects.

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
            f"{path.name} contains more than tensors and was not loaded",
            where=str(path),
            why=refused,
            fix="a checkpoint that needs code to load can do anything on your machine: ask its author for safetensors",
        ) from error
    except (KeyError, EOFError) as error:  # from the unpickler, if the bytes are not a pickle
        raise _unreadable(path, NO_CHECKPOINT) from error
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise _unreadable(path, str(error).partition("\n")[0][:300] or type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise UserError("VA-W005", f"{path.name} contains a {type(content).__name__}, not named tensors", where=str(path))
    return content


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        "VA-W005",
        f"{path.name} is not a readable checkpoint ({path.stat().st_size:,} bytes)",
        where=str(path),
        why=why,
        fix="the file is truncated or not a checkpoint: download it again",
    )


def tensors_of(content: Mapping[str, Any]) -> State:
    """Extract the named tensors from a container, without DataParallel's prefix."""
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _adapt_first_conv(backbone: Any, state: State) -> list[str]:
    """Adapt the input channels: summed for one channel, otherwise repeated and scaled to keep the response."""
    key = f"{backbone.first_conv}.weight"
    weight, wanted = state.get(key), backbone.get_parameter(key)
    if weight is None or weight.dim() != 4 or weight.shape[1] == wanted.shape[1] or weight.shape[0] != wanted.shape[0]:
        return []
    old, new = weight.shape[1], wanted.shape[1]
    if new == 1:
        state[key] = weight.sum(1, keepdim=True)
    else:
        state[key] = weight[:, torch.arange(new) % old] * (old / new)
    return [f"first convolution {old} -> {new} input channels ({'summed' if new == 1 else 'repeated and scaled'})"]


def _fit_head(model: nn.Module, state: State, allow: Collection[str]) -> tuple[set[str], list[str]]:
    """Do what `fit_head` does, for a model without one: load the tensors of its head if all of them fit, otherwise none."""
    own = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("backbone.") and not counter(key)}
    if "classifier" not in allow or {key: value.shape for key, value in state.items()} == own:
        return set(), []
    for key in [key for key in state if key in own or key.startswith(HEADS)]:
        del state[key]
    return set(own), ["the file's head does not fit: the model's starts anew"]


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

"""Load checkpoint files: without executing code in them, with keys renamed to ours, strictly."""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from visionattn.backbones.registry import get_variant, list_models
from visionattn.errors import UserError, did_you_mean
from visionattn.files import counted
from visionattn.models.weights.hub import weights_file
from visionattn.models.weights.recognise import DECODER, MISFITS, State, counter, recognise, split_decoder, to_our_keys
from visionattn.models.weights.scan import ForeignObject, Refused, scan

# Tensors of our classifiers and segmentation models outside the backbone.
HEADS = ("head.", *DECODER)
# Keys that hold the tensors in files of training code. A moving average is taken first: it is what its training evaluated.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "module")
# What wrappers put before every name: compilation, parallel training, a training module, a model around the backbone.
WRAPPERS = ("_orig_mod.", "module.", "model.", "net.", "backbone.", "encoder.")
# What a training module calls its model, beside which its losses and metrics have tensors too.
MODELS = ("ema_model.", "model_ema.", "ema.", "model.", "net.", "module.", "_orig_mod.")
MAX_NESTING = 4  # containers in containers
MAX_TENSORS = 20_000  # ten times those of the largest model
MAX_NAME = 500  # letters


class Inert:
    """Placeholder for an object in a file that is not needed."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Objects other than tensors in official files. They are rebuilt as data, without executing their code;
# yacs' CfgNode becomes an OrderedDict, the only subclass of dict that torch can fill.
SAFE_OBJECTS: list[Any] = [(argparse.Namespace, "argparse.Namespace"), (pathlib.PosixPath, "pathlib.PosixPath")]
SAFE_OBJECTS += [(OrderedDict, "yacs.config.CfgNode")]
# mmengine's training log in each checkpoint: curves as numpy arrays, and methods looked up by `getattr`, which is not called.
SAFE_OBJECTS += [(Inert, "mmengine.logging.history_buffer.HistoryBuffer"), (Inert, "builtins.getattr")]
SAFE_OBJECTS += [(Inert, f"numpy.{name}") for name in ("ndarray", "dtype")]
SAFE_OBJECTS += [(Inert, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("_reconstruct", "scalar")]


class NamedTensors(NamedTuple):
    """The tensors of a file, and which of several sets they are (empty if there is only one)."""

    state: State
    note: str


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a checkpoint.

    Attributes:
        matched: number of tensors loaded.
        reshaped: one line per adaptation (first convolution, position tables, kernel sizes).
        skipped: one line per part that was not loaded (classifier).
        not_finite: one line if there are NaN or infinite values among those loaded.
        reason: summary in one line, with which of several sets of weights was taken.
    """

    matched: int
    reshaped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    not_finite: str = ""
    reason: str = ""

    def log(self, source: str | Path) -> None:
        """Log the summary; as a warning if there are values that are not finite."""
        logging.getLogger(__name__).log(logging.WARNING if self.not_finite else logging.INFO, "%s: %s", source, self.reason)


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    allow: Collection[str] = ("classifier", "first_conv", "position", "auxiliary"),
) -> LoadReport:
    """Load a file or a state dict, in the authors' layout, timm's, mmsegmentation's, transformers' or ours, as training code saved it.

    After renaming, every tensor must fit, except for what `allow` names: "classifier" (a head for
    another number of classes keeps the model's own values), "first_conv" (input channels summed, or
    repeated and scaled), "position" (tables resampled by the family's rule), "auxiliary" (the auxiliary
    head of a segmentation model, where only one of file and model has it).

    Args:
        model: a backbone, which takes its part of any file; or a module with one as `.backbone`. What is outside
            the backbone is up to the module's `fit_head(state, allow)`, see `Classifier.fit_head`; without
            that method, tensors outside the backbone are loaded if all of them fit, and otherwise start anew.
        source: path of a .safetensors or .pth file, `hf-hub:OWNER/NAME` or a folder with `config.json` and `model.safetensors`, or a
            mapping of names to tensors.
        allow: differences to adapt to; all others raise.

    Raises:
        UserError: VA-W003 weights of another model, VA-W004 a pickle that would execute code,
            VA-W005 not readable, VA-W006 no such file; VA-W001, VA-W002, VA-W007 a model of the hub.
    """
    backbone: Any = getattr(model, "backbone", model)
    content = source if isinstance(source, Mapping) else read_file(weights_file(source))
    given, note = tensors_of(content, known={*model.state_dict(), *backbone.state_dict()})
    prefix = "" if backbone is model else "backbone."
    kept: set[str] = set()
    skipped: list[str] = []
    try:
        rest, decoder = split_decoder(given)
        renamed = {key: value for key, value in (to_our_keys(rest, backbone) | decoder).items() if not counter(key)}
        trunk = {key.removeprefix("backbone."): value for key, value in renamed.items() if key.startswith("backbone.")}
        reshaped = backbone.adapt(trunk) if "position" in allow else []
        if "first_conv" in allow:
            reshaped += _adapt_first_conv(backbone, trunk)
        head = {key: value for key, value in renamed.items() if not key.startswith("backbone.")}
        if backbone is model:
            head = {key: value for key, value in head.items() if not key.startswith(HEADS)}
        else:
            kept, skipped = getattr(model, "fit_head", partial(_fit_head, model))(head, allow)
    except UserError:
        raise
    except MISFITS as error:
        raise UserError("VA-W003", f"the file does not fit {_asked(model)}", why=f"its tensors have unexpected shapes: {error}") from error
    state = {prefix + key: value for key, value in trunk.items()} | head

    wanted = model.state_dict()  # after it was adapted
    norms = {key for key in wanted if key.startswith(f"{prefix}out_norms.")}
    if norms and not norms & set(state):  # a classifier's file starts a dense model, whose norms it cannot have
        kept |= norms
        skipped.append(f"the norms of {len(backbone.out_norms)} outputs are not in the file: they start anew")
    missing = [key for key in wanted if key not in state and key not in kept and not counter(key)]
    unexpected = [key for key in state if key not in wanted]
    shapes = [key for key in state if key in wanted and _form(state[key]) != _form(wanted[key])]
    if missing or unexpected or shapes:
        raise _mismatch(model, given, state, missing, unexpected, shapes)
    try:
        model.load_state_dict(state, strict=False)  # all differences are handled above
    except RuntimeError as error:  # types that torch cannot convert
        raise UserError("VA-W003", f"the file does not fit {_asked(model)}", why=str(error).partition("\n")[2].strip()) from error
    total = len(wanted) - sum(map(counter, wanted))
    not_finite = _not_finite(model, state)
    facts = [f"{len(state)} of {total} tensors loaded", note, *reshaped, *skipped, not_finite]
    return LoadReport(len(state), reshaped, skipped, not_finite, reason="; ".join(filter(None, facts)))


def read_file(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint file; pickles may contain only tensors and a few plain objects.

    Raises:
        UserError: VA-W004, VA-W005, VA-W006.
    """
    if not os.path.isfile(path):  # also for names that no file can have
        if os.path.lexists(path):
            raise UserError("VA-W006", f'checkpoint "{path}" is not a file', fix="give a .pth or .safetensors file, or a run folder")
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError("VA-W006", f'checkpoint "{path}" not found', fix=did_you_mean(path.name, siblings))
    try:
        scan(path, [name for _, name in SAFE_OBJECTS])
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(SAFE_OBJECTS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ForeignObject as error:
        raise UserError(
            "VA-W004",
            f"{path.name} contains more than tensors and was not loaded",
            where=str(path),
            why=f"it asks for {error}",
            fix="a checkpoint that needs code to load can do anything on your machine: ask its author for safetensors",
        ) from error
    except Refused as error:
        raise _unreadable(path, str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the readers raise whatever comes next
        raise _unreadable(path, str(error).partition("\n")[0][:300] or type(error).__name__) from error
    if not isinstance(content, dict):
        raise UserError("VA-W005", f"{path.name} contains a {type(content).__name__}, not named tensors", where=str(path))
    return content


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        "VA-W005",
        f"{path.name} is not a readable checkpoint ({path.stat().st_size:,} bytes)",
        where=str(path),
        why=why,
        fix="the file is truncated or not a checkpoint: download it again, or save it again with torch.save or safetensors",
    )


def tensors_of(content: Mapping[str, Any], known: Collection[str] = ()) -> NamedTensors:
    """Extract the named tensors from the containers of training code, without the prefixes of its wrappers.

    Args:
        content: of a file.
        known: names of the model's tensors, if there is a model: they are not taken for wrapped ones.

    Raises:
        UserError: VA-W005, more tensors or longer names than any model has.
    """
    notes = []
    for _ in range(MAX_NESTING):
        sets = [key for key in (*AVERAGES, *CONTAINERS) if _holds_tensors(content.get(key))]
        if not sets:
            break
        taken, others = sets[0], ", ".join(sets[1:])
        average = f"moving average ({taken}) taken" if taken in AVERAGES else f"{taken} taken" if others else ""
        notes += [f"{average}; {others} {'are' if len(sets) > 2 else 'is'} there too" if others else average]
        content = content[taken]
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if len(state) > MAX_TENSORS or any(len(key) > MAX_NAME for key in state):
        raise UserError("VA-W005", f"no model has {len(state):,} tensors, or names of {max(map(len, state)):,} letters")
    state, unwrapped = _unwrap(state, known)
    return NamedTensors(state, "; ".join(filter(None, [*notes, *unwrapped])))


def _holds_tensors(value: Any, *, below: bool = True) -> bool:
    """Whether a mapping holds tensors, itself or `below`, in a container of its own."""
    if not isinstance(value, Mapping):
        return False
    if any(isinstance(item, torch.Tensor) for item in value.values()):
        return True
    return below and any(_holds_tensors(value.get(key), below=False) for key in (*AVERAGES, *CONTAINERS))


def _unwrap(state: State, known: Collection[str]) -> tuple[State, list[str]]:
    """Remove prefixes that all tensors have, and what training modules hold beside their model; return the rest and notes."""
    notes: list[str] = []
    while state and sum(key in known for key in state) <= len(state) / 2:
        if "n_averaged" in state and all(key == "n_averaged" or key.startswith("module.") for key in state):
            notes.append("average of weights (torch's AveragedModel) taken")
            state = {key: value for key, value in state.items() if key != "n_averaged"}
            continue
        common = next((prefix for prefix in WRAPPERS if all(key.startswith(prefix) for key in state)), "")
        inside = common or next((prefix for prefix in MODELS if _share(state, prefix) > 0.4), "")
        if not inside:
            break
        outside = [key for key in state if not key.startswith(inside)]
        if outside:
            notes.append(f"{inside[:-1]} taken, without {counted(len(outside), 'other tensor')} ({outside[0]}, ...)")
        state = {key.removeprefix(inside): value for key, value in state.items() if key.startswith(inside)}
    return state, notes


def _share(state: State, prefix: str) -> float:
    return sum(key.startswith(prefix) for key in state) / len(state)


def _adapt_first_conv(backbone: Any, state: State) -> list[str]:
    """Adapt the input channels: summed for one channel, otherwise repeated and scaled to keep the response."""
    notes = []
    for name in (backbone.first_conv, *getattr(backbone, "further_convs", ())):
        key = f"{name}.weight"
        weight, wanted = state.get(key), backbone.get_parameter(key)
        if weight is None or weight.dim() != 4 or weight.shape[1] == wanted.shape[1] or weight.shape[0] != wanted.shape[0]:
            continue
        old, new = weight.shape[1], wanted.shape[1]
        if new == 1:
            state[key] = weight.sum(1, keepdim=True)
        else:
            state[key] = weight[:, torch.arange(new) % old] * (old / new)
        notes.append(f"first convolution {old} -> {new} input channels ({'summed' if new == 1 else 'repeated and scaled'})")
    return list(dict.fromkeys(notes))


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
        lines += [f"shape   {key}: file {_text(state[key])}, model {_text(wanted[key])}" for key in shapes[:3]]
    lines += [f"missing {key}" for key in missing[:3]] + [f"unknown {key}" for key in unexpected[:3]]
    rest = len(shapes) + len(missing) + len(unexpected) - (len(lines) - 1)
    lines += [f"... and {rest} more"] if rest > 0 else []
    asked = _asked(model)
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


def _asked(model: Any) -> str:
    """Name of a model for messages."""
    return str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))


def _form(tensor: torch.Tensor) -> tuple[torch.Size, bool, bool]:
    """What has to be equal in a file and a model: the shape, and the kind of number."""
    return tensor.shape, tensor.is_floating_point(), tensor.is_complex()


def _text(tensor: torch.Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"


def _not_finite(model: nn.Module, loaded: Collection[str]) -> str:
    """Report NaN and infinite values among the loaded tensors of a model."""
    values = {key: value for key, value in model.state_dict().items() if key in loaded and value.is_floating_point() and not value.is_meta}
    damaged = [key for key, value in values.items() if not value.isfinite().all()]
    return f"NaN or infinite values in {counted(len(damaged), 'tensor')} of the file, first {damaged[0]}" if damaged else ""

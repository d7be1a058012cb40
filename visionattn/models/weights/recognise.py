"""Identify the model of a checkpoint from tensor names and shapes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from visionattn.backbones import Backbone
from visionattn.backbones.registry import Variant, get_variant, list_models
from visionattn.errors import UserError
from visionattn.heads import FCN, HEADS, Head

State = dict[str, torch.Tensor]

# Parts of a segmentation file that are not its backbone; the neck is a part of our head.
DECODER = ("decode_head.", "auxiliary_head.", "neck.")
# What the rules of a family or head raise on tensors that have its names but other shapes.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Decoder:
    """The head recognised in a segmentation file.

    Attributes:
        head: name in `HEADS`.
        args: arguments of its class.
        aux: whether there is an auxiliary head.
        num_classes: logits per pixel.
        fit: share of the tensors that match the head in name and shape.
    """

    head: str
    args: dict[str, Any]
    aux: bool
    num_classes: int
    fit: float


@dataclass(frozen=True)
class Recognised:
    """The model recognised in a file.

    Attributes:
        names: registered models with these shapes; more than one if shapes do not distinguish them
            (nat_mini and dinat_mini differ only in their dilations).
        args: arguments of the family's class in which the file differs from the registered model (for example the window).
        num_classes: outputs of the classifier, or of the segmentation head; 0 if there is none.
        in_chans: channels of the images.
        fit: share of the tensors that match the model in name and shape.
        decoder: the head of a segmentation model; None for the file of a classifier or a backbone.
    """

    names: tuple[str, ...]
    args: dict[str, Any]
    num_classes: int
    in_chans: int
    fit: float
    decoder: Decoder | None = None


def recognise(given: State) -> Recognised | None:
    """Identify the registered models that best match the tensors of a file; None if less than nine tenths match."""
    rest, parts = split_decoder(given)
    best = _recognise_backbone(rest, dense=bool(parts))
    if best is None or not parts:
        return best
    variant = get_variant(best.names[0])
    decoder = _recognise_decoder(parts, _on_meta(variant.cls, {**variant.args, **best.args, "in_chans": best.in_chans}))
    if decoder is None:
        return None
    args = {key: value for key, value in best.args.items() if key != "out_norm"}  # every segmentation model has it
    return replace(best, args=args, num_classes=decoder.num_classes, fit=min(best.fit, decoder.fit), decoder=decoder)


def _recognise_decoder(parts: State, backbone: Backbone) -> Decoder | None:
    """Identify head and auxiliary head over the maps of a backbone; None if less than nine tenths of the tensors match."""
    aux = any(key.startswith("auxiliary_head.") for key in parts)
    for name in HEADS:
        try:
            decoder = _as_head(name, parts, backbone, aux)
        except MISFITS:  # names of this head on the tensors of another
            continue
        if decoder is not None and decoder.fit > 0.9:
            return decoder
    return None


def _as_head(name: str, parts: State, backbone: Backbone, aux: bool) -> Decoder | None:
    """Compare the tensors of a head with one of ours; None if they belong to another."""
    cls = HEADS[name]
    own = cls.from_upstream({key.removeprefix("decode_head."): value for key, value in parts.items() if key.startswith("decode_head.")})
    if "conv_seg.weight" not in own or (args := cls.infer_args(own)) is None:
        return None
    classes = own["conv_seg.weight"].shape[0]
    channels, strides = backbone.channels, backbone.strides
    with torch.device("meta"):
        head = cls(*maps_of(cls, backbone), classes, **args)  # type: ignore[call-arg]  # as every head takes them
        wanted = {f"decode_head.{key}": value for key, value in head.state_dict().items()}
        if aux:
            wanted |= {f"auxiliary_head.{key}": value for key, value in auxiliary(channels, strides, classes).state_dict().items()}
    have = {f"decode_head.{key}": value for key, value in own.items()}
    fit = _share(have | {key: value for key, value in parts.items() if key.startswith("auxiliary_head.")}, wanted)
    return Decoder(name, args, aux, classes, fit)


def _recognise_backbone(given: State, dense: bool) -> Recognised | None:
    found: list[tuple[float, int, Recognised]] = []
    families: dict[type[Backbone], list[Variant]] = {}
    for name in list_models():
        families.setdefault(get_variant(name).cls, []).append(get_variant(name))
    for variants in families.values():
        try:
            found += _matches(given, variants, dense)
        except MISFITS:  # names of this family on the tensors of another
            continue
    best = max(((fit, plain) for fit, plain, _ in found), default=(0.0, 0))
    if best[0] <= 0.9:
        return None
    same = [one for fit, plain, one in found if (fit, plain) == best]
    names = tuple(name for one in same for name in one.names)
    return Recognised(names, same[0].args, same[0].num_classes, same[0].in_chans, best[0])


def _matches(given: State, variants: list[Variant], dense: bool) -> Iterator[tuple[float, int, Recognised]]:
    """Compare a file with the variants of a family: share of the tensors, minus the number of unusual arguments, what it would be."""
    cls, example = variants[0].cls, _shallow(variants[0].name)
    state = to_our_keys(given, example)
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    first, head = own.get(f"{cls.first_conv}.weight"), state.get("head.fc.weight")
    if first is None or first.dim() != 4 or not first.numel() or not _alike(own, example):
        return
    defaults = {key: parameter.default for key, parameter in inspect.signature(cls).parameters.items()}
    channels = defaults["in_chans"] if cls.per_channel else first.shape[1]
    inferred = {**cls.infer_args(given), "in_chans": channels}
    if any(key.startswith("out_norms.") for key in own) or (dense and "out_norm" in defaults):
        inferred["out_norm"] = True
    for variant in _as_deep(own, variants):
        backbone = _on_meta(cls, {**variant.args, **inferred})
        if _numel(backbone.state_dict()) > 4 * _numel(own):
            continue  # adapting tables to it would take more memory than the file has
        fitting = dict(own)
        backbone.adapt(fitting)
        fit = _share(fitting, backbone.state_dict())
        usual = {**defaults, **variant.args, "in_chans": inferred["in_chans"]}
        beyond = {key: value for key, value in inferred.items() if usual[key] != value}
        classes = head.shape[0] if head is not None else 0
        yield fit, -len(beyond), Recognised((variant.name,), beyond, classes, channels, fit)


def one_name(path: Path, found: Recognised, asked: str | None, *, fix: str) -> str:
    """Choose among the models that match a file: the one asked for, or the one in the file's name.

    Args:
        fix: how to choose, for the error.

    Raises:
        UserError: VA-W003.
    """
    named = [name for name in found.names if name in path.name.lower().replace("-", "_")]
    candidates = [name for name in found.names if name == asked] if asked else [max(named, key=len)] if named else list(found.names)
    if len(candidates) == 1:
        return candidates[0]
    names = " and ".join(found.names)
    if asked:
        raise UserError("VA-W003", f"{path.name} looks like {names} - you asked for {asked}", where=str(path))
    why = "they have the same tensors and differ only in settings that a file does not hold"
    raise UserError("VA-W003", f"{path.name} fits {names} equally well", where=str(path), why=why, fix=f"choose one: {fix}")


def maps_of(cls: type[Head], backbone: Backbone) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the channels and strides that a head is built for."""
    if cls.uses_image:
        return (backbone.in_chans, *backbone.channels), (1, *backbone.strides)
    return backbone.channels, backbone.strides


def auxiliary(channels: Sequence[int], strides: Sequence[int], num_classes: int) -> FCN:
    """Build the auxiliary head of the published recipes, on the last map but one."""
    return FCN(channels, strides, num_classes, width=256, num_convs=1, concat_input=False, level=max(len(channels) - 2, 0))


def split_decoder(given: State) -> tuple[State, State]:
    """Split tensors into those of a backbone or classifier and those of segmentation heads, the latter under our names."""
    if not any(key.startswith("decode_head.") for key in given):
        return given, {}
    parts = {key: value for key, value in given.items() if key.startswith(DECODER)}
    rest = {key: value for key, value in given.items() if key not in parts}
    return rest, {f"decode_head.{key}" if key.startswith("neck.") else key: value for key, value in parts.items()}


def to_our_keys(given: State, backbone: Backbone) -> State:
    """Rename the tensors of a classifier or backbone, in any known layout, to `backbone.*` and `head.*`."""
    ours = {_pattern(key) for key in backbone.state_dict()}

    def mostly_ours(keys: Collection[str]) -> bool:  # not all, so that the error names the key at fault
        return sum(_pattern(key) in ours for key in keys) > 0.9 * len(keys)

    own = [key.removeprefix("backbone.") for key in given if key.startswith("backbone.")]
    if own and mostly_ours(own):
        return given
    bare = {key.removeprefix("backbone."): value for key, value in given.items()}
    if mostly_ours([key for key in bare if not key.startswith("head.")]):
        return {key if key.startswith("head.") else f"backbone.{key}": value for key, value in bare.items()}
    return backbone.from_upstream(bare)


def counter(key: str) -> bool:
    """Whether a key is the batch counter of a batch norm; counters are neither compared nor loaded."""
    return key.endswith("num_batches_tracked")


def _pattern(key: str) -> str:
    """Replace the numbers in a key, so that the keys of all blocks are equal."""
    return re.sub(r"\d+", "#", key)


def _on_meta(cls: type[Backbone], args: Any) -> Backbone:
    """Build a backbone on the meta device, without initialisation, which takes most of the time even there."""
    bare = type(cls.__name__, (cls,), {"init_weights": lambda self: None})
    with torch.device("meta"):
        return bare(**args)


@cache
def _shallow(name: str) -> Backbone:
    """Build a backbone with few blocks, for the key patterns of its family."""
    variant = get_variant(name)
    depths = variant.args.get("depths")
    return _on_meta(variant.cls, {**variant.args, **({"depths": [min(2, depth) for depth in depths]} if depths else {})})


def _alike(own: State, example: Backbone) -> bool:
    theirs, ours = ({_pattern(key) for key in keys} for keys in (own, example.state_dict()))
    return len(theirs & ours) > 0.5 * len(theirs | ours)


def _as_deep(own: State, variants: list[Variant]) -> list[Variant]:
    """Return the variants with the same number of blocks per stage as the file, or all if there are none."""
    blocks: dict[int, int] = {}
    for key in own:
        if found := re.match(r"stages\.(\d+)\.(?:blocks\.)?(\d+)\.", key):
            stage, block = int(found[1]), int(found[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    depths = [blocks[stage] for stage in sorted(blocks)]
    return [variant for variant in variants if list(variant.args.get("depths", ())) == depths] or variants


def _numel(state: State) -> int:
    return sum(value.numel() for value in state.values())


def _share(given: State, wanted: State) -> float:
    """Compute the share of names, over those of both sides, with the same shape in both."""
    given, wanted = ({key: value for key, value in side.items() if not counter(key)} for side in (given, wanted))
    same = sum(key in given and given[key].shape == value.shape for key, value in wanted.items())
    return same / len(given.keys() | wanted.keys())

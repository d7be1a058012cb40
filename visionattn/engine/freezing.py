"""Parameters that are not trained, chosen by names of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from visionattn.errors import UserError, did_you_mean
from visionattn.names import shown


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop training what the patterns name, a module or a parameter with everything below it.

    A pattern is a name with `*` for any text, from the model or from its backbone on: `head`, `stages.0`, `*.norm*`. `stem` is
    what the backbone has in front of its stages, whatever its name there.

    Returns:
        Modules that have to stay in evaluation mode, so that their statistics stay too.

    Raises:
        UserError: VA-C002, a pattern names nothing, or nothing is left to train.
    """
    if not patterns:
        return []
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    names = [name for name in (*modules, *parameters) if name]
    stem = {name for name in names if re.match(_stem(model), name)}
    frozen: set[str] = set()
    for pattern in patterns:
        found = stem if pattern == "stem" and stem else {name for name in names if _fits(name, pattern)}
        if not found:
            raise _nothing_named(pattern, names)
        frozen |= {name for name in names if any(above in found for above in _and_above(name))}
    for name in frozen & parameters.keys():
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("VA-C002", f"train.freeze: nothing is left to train: {shown(', '.join(patterns))}", fix="leave the head out")
    return [name for name, module in modules.items() if name in frozen or _all_frozen(module)]


def frozen_text(model: nn.Module, patterns: Sequence[str]) -> str:
    """How many parameters are frozen, and by which names."""
    total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or counted) for counted in (True, False))
    return f"{total - trained:,} of {total:,} parameters: {shown(', '.join(patterns))}"


def keep_frozen(model: nn.Module, frozen: Iterable[str]) -> None:
    """Return the modules of `freeze` to evaluation mode, after the model was put in that of training."""
    for name in frozen:
        model.get_submodule(name).training = False  # not what is in it: a bias table may be frozen, and the dropout beside it not


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removeprefix("backbone."), pattern)


def _stem(model: Any) -> str:
    """Regular expression of the names of the stem; of a model without groups one that fits none."""
    return str(model.group_matcher()["stem"]) if hasattr(model, "group_matcher") else r"(?!)"


def _and_above(name: str) -> Iterator[str]:
    """A name and those of the modules that it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _all_frozen(module: nn.Module) -> bool:
    """Whether a module without others in it, a norm for example, has parameters, all of them frozen."""
    own = list(module.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own) and not any(module.children())


def _nothing_named(pattern: str, names: Sequence[str]) -> UserError:
    short = [name.removeprefix("backbone.") for name in names]
    near = did_you_mean(pattern.strip("*."), dict.fromkeys([*short, *names]))
    tops = [name for name in dict.fromkeys(short) if name.count(".") < 1 or re.fullmatch(r"stages\.\d+", name)]
    what, why = f'train.freeze: nothing in the model is called "{shown(pattern)}"', f"parts of it: {', '.join(tops)}"
    return UserError("VA-C002", what, why=why, fix=near or "a name of these, or of a part of them; * stands for any text")

"""Registry of backbones: name -> (class, arguments, preprocessing).

It is a sibling of the backbones, because they register themselves on import.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from visionattn.errors import ArgumentError, UserError, did_you_mean

if TYPE_CHECKING:
    from visionattn.backbones.base import Backbone


@dataclass(frozen=True)
class Variant:
    """One registered backbone.

    Attributes:
        name: registered name.
        cls: the family's class.
        args: arguments of the class for this variant.
        cfg: preprocessing of its published classifier, in timm's keys.
    """

    name: str
    cls: type[Backbone]
    args: Mapping[str, Any]
    cfg: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Module that defines the class, for example `swin`."""
        return self.cls.__module__.rpartition(".")[2]


_VARIANTS: dict[str, Variant] = {}

# Prefix of names -> what describes a backbone of another library by such a name.
_SOURCES: dict[str, Callable[[str], Variant]] = {}

DEFAULT_CFG: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "num_classes": 1000,
    "fixed_input_size": False,
}


def register_backbone(cls: type[Backbone], variants: Mapping[str, Mapping[str, Any]], cfgs: Mapping[str, Any] | None = None) -> None:
    """Register the variants of a family.

    Args:
        cls: subclass of `Backbone`.
        variants: name -> arguments of `cls`.
        cfgs: preprocessing that differs from the ImageNet default, in timm's keys; entries under
            "*" apply to all variants, those under a name only to that variant.

    Raises:
        ValueError: a name is taken.
    """
    cfgs = cfgs or {}
    for name, args in variants.items():
        if name in _VARIANTS:
            raise ValueError(f"backbone {name!r} is registered already, by {_VARIANTS[name].cls.__module__}")
        _VARIANTS[name] = Variant(name, cls, args, {**DEFAULT_CFG, **cfgs.get("*", {}), **cfgs.get(name, {})})


def register_source(prefix: str, describe: Callable[[str], Variant]) -> None:
    """Register the backbones of another library: `describe` looks up a name with this prefix, or raises VA-M001."""
    _SOURCES[prefix] = describe


def is_foreign(name: str) -> bool:
    """Whether a name is one of another library, `timm:NAME`."""
    return name.startswith(tuple(_SOURCES))


def get_variant(name: str) -> Variant:
    """Look up a variant by name.

    Raises:
        UserError: VA-M001 with close names.
    """
    for prefix, describe in _SOURCES.items():
        if name.startswith(prefix):
            return describe(name)
    if name not in _VARIANTS:
        fix = f"{did_you_mean(name, _VARIANTS)} List them: visionattn models list".strip()
        raise UserError("VA-M001", f'unknown model "{name}"', fix=fix)
    return _VARIANTS[name]


def list_models(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """List registered names that match a glob, sorted; `family` selects those of one module, for example `swin`."""
    return sorted(name for name, variant in _VARIANTS.items() if fnmatch(name, pattern) and family in (None, variant.family))


def check_arguments(variant: Variant, args: Mapping[str, Any]) -> None:
    """Reject arguments that the family's class does not accept.

    Raises:
        ArgumentError: VA-M002 with the closest argument.
    """
    known = list(inspect.signature(variant.cls.__init__).parameters)[1:]
    for name in args:
        if name not in known:
            fix = f"{did_you_mean(name, known, 1)} {variant.cls.__name__} takes: {', '.join(known)}".strip()
            raise ArgumentError("VA-M002", f'{variant.name} has no argument "{name}"', fix=fix)

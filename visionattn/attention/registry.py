"""Registry of attention modules: name -> builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from visionattn.attention.cb import ContextBroadcasting
from visionattn.attention.cbam import CBAM
from visionattn.attention.contmix import ContMix
from visionattn.attention.dsl import DSL
from visionattn.attention.eca import ECA
from visionattn.attention.efficient import EfficientAttention2d
from visionattn.attention.ela import ELA
from visionattn.attention.psa import ParallelPSA, SequentialPSA
from visionattn.attention.se import SE
from visionattn.attention.tap import TAP
from visionattn.attention.triplet import TripletAttention
from visionattn.attention.ulsam import ULSAM
from visionattn.errors import UserError, did_you_mean

# A builder takes the channels of the map and its own keyword arguments.
ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "contmix": ContMix,
    "eca": ECA,
    "dsl": DSL,
    "tap": TAP,
    "ela_t": partial(ELA, gate="t"),
    "ela_b": partial(ELA, gate="b"),
    "ela_s": partial(ELA, gate="s"),
    "ela_l": partial(ELA, gate="l"),
    "se": SE,
    "cbam": CBAM,
    "triplet": TripletAttention,
    "triplet_no_spatial": partial(TripletAttention, spatial=False),
    "psa_p": ParallelPSA,
    "psa_s": SequentialPSA,
    "ulsam": ULSAM,
    "efficient": EfficientAttention2d,
    "cb": ContextBroadcasting,
}
# Those whose exported graph was seen to be right at any size of the map.
ANY_SIZE = frozenset(("cbam", "eca", "ela_b", "ela_l", "ela_s", "ela_t", "se"))


def register_attention(name: str, builder: Callable[..., nn.Module]) -> None:
    """Register an attention module, usually a class.

    The network initialises it: a submodule with `reset_parameters` resets itself and its submodules, a
    `Conv2d` is initialised like the other convolutions of the network.

    Args:
        name: name in the table.
        builder: `builder(channels, **args)` returns a module that maps `[B, C, H, W]` to the same shape.

    Raises:
        ValueError: the name is taken.
    """
    if name in ATTENTION or name == "none":
        raise ValueError(f"attention {name!r} is registered already")
    ATTENTION[name] = builder


def build_attention(name: str, channels: int, **args: Any) -> nn.Module:
    """Build an attention module by name for a number of channels.

    Raises:
        UserError: VA-M002 with close names.
    """
    if name not in ATTENTION:
        raise unknown_attention("attention", name)
    return ATTENTION[name](channels, **args)


def unknown_attention(argument: str, name: str, others: Sequence[str] = ()) -> UserError:
    """Create the error for a name that is neither in the table nor in `others`, the further choices of an argument."""
    known = [*others, *ATTENTION]
    fix = f"{did_you_mean(str(name), known)} Expected one of: {', '.join(known)}".strip()
    return UserError("VA-M002", f'unknown {argument} "{name}"', fix=fix)

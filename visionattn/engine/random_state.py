"""The global random generators, saved and restored."""

from __future__ import annotations

import random
import typing
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The generators of python, numpy and torch as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = typing.cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state(legacy=True))
    return {
        "python": (version, list(words), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Return to the moment of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

"""Thresholds on the probabilities of classes: `eval.threshold`, a number for all of them or numbers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visionattn.errors import UserError, did_you_mean


def class_thresholds(given: float | Mapping[str, float] | None, names: Sequence[Sequence[str]], unnamed: float) -> np.ndarray | None:
    """The threshold of each class, `[classes]`; None if none is set.

    Args:
        given: `eval.threshold`.
        names: every list of the names of the classes, in the order of the outputs.
        unnamed: of classes that are not named.

    Raises:
        UserError: VA-C002, a name that is not a class.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return np.full(len(names[0]), given, np.float32)
    numbers = {name: number for kind in names for number, name in enumerate(kind)}
    if unknown := [name for name in given if name not in numbers]:
        what = f'eval.threshold: "{unknown[0]}" is not a class of the model'
        first = ", ".join(names[0][:8]) + (", ..." if len(names[0]) > 8 else "")
        raise UserError("VA-C002", what, why=f"it has {len(names[0])}: {first}", fix=did_you_mean(unknown[0], numbers))
    found = np.full(len(names[0]), unnamed, np.float32)
    for name, value in given.items():
        found[numbers[name]] = value
    return found

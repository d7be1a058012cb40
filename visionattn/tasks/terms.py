"""Settings of losses of label maps: terms by name."""

from __future__ import annotations

from typing import Any

from visionattn.config.schema import Section, setting


class LossTermConfig(Section):
    name: str = setting(
        "cross_entropy",
        "cross_entropy, binary_cross_entropy, focal, ohem_cross_entropy, dice, generalised_dice, tversky, "
        "focal_tversky, boundary or lovasz.",
    )
    weight: float = setting(1.0, "Factor of this term in the sum.", ge=0)
    args: dict[str, Any] = setting({}, "Arguments of the loss, for example {gamma: 2.0} or {class_weights: balanced}.")

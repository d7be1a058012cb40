"""What `auto` stands for: the settings that a user left open, each chosen with a reason.

Training from scratch has fixed defaults. From weights, a fine-tuning rule follows the network, the number of samples and the batch;
`docs/training.md` explains it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, TypeVar

from visionattn.config.schema import FROM_SCRATCH, RunConfig

Config = TypeVar("Config", bound=RunConfig)


class Choice(NamedTuple):
    """A key, the value chosen for it, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Facts:
    """What the choices follow.

    Attributes:
        pretrained: whether the run starts from weights.
        samples: of the training set.
        batch: samples per optimizer step, on all processes.
        layers: of the model, as `optim.layer_decay` counts them.
        params: number of parameters.
        cnn: whether the backbone is a CNN.
        stochastic_depth: whether the network has it.
        unit: what a sample is called.
    """

    pretrained: bool
    samples: int
    batch: int
    layers: int
    params: int
    cnn: bool
    unit: str = "image"
    stochastic_depth: bool = True


def choices(config: RunConfig, facts: Facts) -> list[Choice]:
    """The defaults of training from scratch, or the fine-tuning rule."""
    if not facts.pretrained:
        return [Choice(key, value, "from scratch") for key, value in FROM_SCRATCH.items()]
    network, millions = "CNN" if facts.cnn else "attention", facts.params / 1e6
    epochs = min(max(round(20_000 / facts.samples), 10), 40)
    if config.train.steps is not None:
        planned = config.train.steps * facts.batch / facts.samples
    else:
        planned = epochs if config.train.epochs == "auto" else config.train.epochs
    # The rate that suits Adam falls with the width of a network, and grows with the square root of the batch. A mask of many labels is
    # worth more than one label, as the task's own batch size says.
    usual = int(type(config)().train.batch_size)
    lr = (2e-3 if facts.cnn else 1e-3) * math.sqrt(facts.batch / usual) * min(1.0, math.sqrt(3 / millions))
    if config.optim.name == "sgd":
        lr *= 20
    if config.optim.lr_batch is not None:  # it is scaled to the batch again
        lr *= config.optim.lr_batch / facts.batch
    large = not facts.cnn and millions >= 20
    decay = rounded(0.3 ** (1 / max(facts.layers - 1, 1))) if large else None
    drop_path = 0.0 if not large or not facts.stochastic_depth else 0.1 if millions < 80 else 0.2
    return [
        Choice("train.epochs", epochs, f"{epochs * facts.samples:,} {facts.unit}s are seen, of {facts.samples:,}"),
        Choice("optim.lr", rounded(lr), f"{network} of {millions:.0f} million parameters, {facts.batch} samples per step"),
        Choice("optim.layer_decay", decay, f"{network} of {millions:.0f} million parameters, {facts.layers} layers"),
        Choice("optim.weight_decay", 0.05, "as from scratch"),
        Choice("schedule.warmup_epochs", rounded(planned / 10), "a tenth of the run"),
        Choice("model.drop_path_rate", drop_path, f"{network} of {millions:.0f} million parameters"),
    ]


def apply_choices(config: Config, choices: Iterable[Choice]) -> tuple[Config, list[Choice]]:
    """The config with values in the place of `auto`, and the choices that were needed."""
    used = [choice for choice in choices if _value(config, choice.key) == "auto"]
    values = config.model_dump()
    for key, value, _ in used:
        *sections, name = key.split(".")
        reduce(lambda section, part: section[part], sections, values)[name] = value
    return type(config).model_validate(values), used


def rounded(value: float) -> float:
    """A number of two digits, as people write them."""
    return float(f"{value:.2g}")


def _value(config: Any, key: str) -> Any:
    """The value of a dotted key; None inside of a section that is null."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config

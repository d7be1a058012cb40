"""The network of a config, and its input from bags."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from visionattn.data.bags.readers import Bag
from visionattn.errors import UserError, did_you_mean
from visionattn.heads import BAG_HEADS
from visionattn.heads.mil import BagOutput
from visionattn.models.bag_classifier import BagClassifier
from visionattn.names import shown
from visionattn.tasks.bags.settings import BagsConfig


def check_names(config: BagsConfig) -> None:
    """Check the head's name and arguments, and the backbone of patches.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    from visionattn.backbones.registry import get_variant

    name, args = config.model.name, config.model.args
    if name not in BAG_HEADS:
        fix = f"{did_you_mean(name, BAG_HEADS)} There are: {', '.join(BAG_HEADS)}".strip()
        raise UserError("VA-M001", f'unknown head of bags "{shown(name)}"', fix=fix)
    parameters = inspect.signature(BAG_HEADS[name].__init__).parameters
    known = [key for key, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for argument in args:
        if argument not in known:
            fix = f"{did_you_mean(argument, known, 1)} {name} takes: {', '.join(known)}".strip()
            raise UserError("VA-M002", f'{name} has no argument "{shown(argument)}"', fix=fix)
    get_variant(config.data.patches.backbone)


def build_model(config: BagsConfig, target: dict[str, Any]) -> BagClassifier:
    """The network for features and classes of a target.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    check_names(config)
    features, num_classes = int(target["features"]), len(target["classes"])
    try:
        head = BAG_HEADS[config.model.name](features, num_classes, **config.model.args)
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        what = f"{config.model.name} cannot be built with model.args {config.model.args}"
        raise UserError("VA-M002", what, why=str(error), fix="visionattn config show task=bags") from error
    return BagClassifier(head, features, target.get("mean"), target.get("std"))


def outputs_of(model: Any, bags: Sequence[Bag], device: torch.device) -> BagOutput:
    """Run a network on bags, padded to the longest of them."""
    sizes = [len(bag) for bag in bags]
    tensors = [torch.from_numpy(bag.features).to(device) for bag in bags]
    padded = tensors[0][None] if len(tensors) == 1 else torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    output: BagOutput = model(padded, sizes, [bag.seed for bag in bags])
    return output


def mean_output(outputs: Sequence[BagOutput], logits: torch.Tensor) -> BagOutput:
    """The output of several networks: given logits, their mean attention, and no branches, whose numbers may differ."""
    attention = torch.stack([output.attention for output in outputs]).mean(0)
    return BagOutput(logits, attention, attention.clamp_min(torch.finfo(attention.dtype).tiny).log()[:, None, None])

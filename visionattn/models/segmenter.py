"""Segmentation model: a backbone and a segmentation head."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from visionattn.backbones import Backbone, Sizes
from visionattn.errors import ArgumentError, UserError, did_you_mean
from visionattn.heads import FCN, HEADS, Aux, Head, HeadOutput, resize_to
from visionattn.models.classifier import group_matcher
from visionattn.models.weights.recognise import auxiliary, maps_of


class Segmenter(nn.Module):
    """A backbone, a head and, for training, an auxiliary head.

    Parameters are `backbone.*`, `decode_head.*` and `auxiliary_head.*`, as in mmsegmentation's files
    (except that the neck of `semantic_fpn` is `decode_head.neck.*`).

    Attributes:
        head: name of the head.
        num_classes: logits per pixel.
        pretrained_cfg: input size, mean, std and interpolation, in timm's keys.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: str,
        num_classes: int,
        *,
        aux: bool | None = None,
        aux_weight: float = 0.4,
        pretrained_cfg: dict[str, Any] | None = None,
        **head_args: Any,
    ) -> None:
        super().__init__()
        cls = head_class(head, head_args)
        self.backbone = backbone
        self.decode_head: Head = cls(*maps_of(cls, backbone), num_classes, **head_args)  # type: ignore[call-arg]  # as every head takes them
        self.auxiliary_head: FCN | None = None
        if cls.auxiliary if aux is None else aux:
            self.auxiliary_head = auxiliary(backbone.channels, backbone.strides, num_classes)
        self.aux_weight = aux_weight
        self.head = head
        self.num_classes = num_classes
        self.in_chans = backbone.in_chans
        self.pretrained_cfg = pretrained_cfg or {}

    def forward(self, image: torch.Tensor) -> torch.Tensor | HeadOutput:
        """Compute logits `[B, num_classes, H, W]` of images `[B, in_chans, H, W]`; in training, also auxiliary outputs."""
        maps = self.backbone(image)
        output: HeadOutput = self.decode_head([image, *maps] if self.decode_head.uses_image else maps)
        logits = resize_to(output.logits, image.shape[2:])
        if not self.training:
            return logits
        if self.auxiliary_head is None:
            return output._replace(logits=logits)
        aux = Aux("auxiliary_head", self.auxiliary_head(maps).logits, self.aux_weight)
        return output._replace(logits=logits, aux=(*output.aux, aux))

    def export_sizes(self, size: tuple[int, int]) -> Sizes:
        """Sizes of images that a graph exported at `size` holds for, if its height and width are left open."""
        return self.backbone.export_sizes(size) if self.decode_head.any_size else Sizes(size)

    def fit_head(self, state: dict[str, torch.Tensor], allow: Collection[str]) -> tuple[set[str], list[str]]:
        """Fit the tensors of a file outside the backbone to the heads, in place (`load_checkpoint`).

        Returns:
            Keys whose values the model keeps, and one line per reason.
        """
        own = {key for key in self.state_dict() if not key.startswith("backbone.")}
        for key in [key for key in state if key.startswith("head.")]:  # of a classifier
            del state[key]
        head = {key: state.pop(key) for key in list(state) if key.startswith("decode_head.")}
        if not head:
            return own, ["the file has no segmentation head: it starts anew"]
        renamed = self.decode_head.from_upstream({key.removeprefix("decode_head."): value for key, value in head.items()})
        state.update({f"decode_head.{key}": value for key, value in renamed.items()})
        kept: set[str] = set()
        skipped = []
        given, ours = ({key for key in keys if key.startswith("auxiliary_head.")} for keys in (state, own))
        if "auxiliary" in allow and bool(given) != bool(ours):
            kept |= ours
            for key in given:
                del state[key]
            skipped.append("the file's auxiliary head left out" if given else "the file has no auxiliary head: it starts anew")
        classes = state.get("decode_head.conv_seg.weight")
        if "classifier" in allow and classes is not None and len(classes) != self.num_classes:
            mine, other = self.state_dict(), ((self.num_classes,), tuple(classes.shape[:1]))
            # Also those of auxiliary outputs, whatever their names.
            last = {key for key in own & state.keys() if (tuple(mine[key].shape[:1]), tuple(state[key].shape[:1])) == other}
            kept |= last
            for key in last:
                del state[key]
            skipped.append(f"checkpoint head has {len(classes)} classes, the model {self.num_classes}: last layer re-initialised")
        return kept, skipped

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn the recomputation of the backbone's activations in the backward pass on or off."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters, other than norms and biases, without weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that assign parameters to layers, from the input on (timm's layer decay)."""
        return group_matcher(self.backbone, coarse)

    def init_weights(self) -> None:
        """Initialise all parameters, including those of a model built on the meta device."""
        self.backbone.init_weights()
        self.decode_head.init_weights()
        if self.auxiliary_head is not None:
            self.auxiliary_head.init_weights()


def head_class(name: str, args: Mapping[str, Any]) -> type[Head]:
    """Find the class of a head and check that it accepts these arguments.

    Raises:
        UserError: VA-M001 unknown head, VA-M002 unknown argument.
    """
    if name not in HEADS:
        fix = f"{did_you_mean(name, HEADS)} There are: {', '.join(HEADS)}".strip()
        raise UserError("VA-M001", f'unknown head "{name}"', fix=fix)
    cls = HEADS[name]
    parameters = inspect.signature(cls.__init__).parameters
    known = [key for key, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for argument in args:
        if argument not in known:
            fix = f"{did_you_mean(argument, known, 1)} {cls.__name__} takes: {', '.join(known)}".strip()
            raise ArgumentError("VA-M002", f'{name} has no argument "{argument}"', fix=fix)
    return cls

"""Image classifier: a backbone and a head for classes, with the methods of timm's models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn

from visionattn.backbones import Backbone, Sizes
from visionattn.errors import ArgumentError, did_you_mean
from visionattn.heads import EfficientProbe, LinearHead


class Classifier(nn.Module):
    """A backbone and a head, "linear" or "ep" (efficient probing); parameters are `backbone.*` and `head.*`.

    Attributes:
        pretrained_cfg: input size, mean, std, interpolation and crop of the model, in timm's keys.
        default_cfg: alias of `pretrained_cfg`, timm's older name.
        num_features: channels of the last map.
        head_hidden_size: channels of the pooled features; others than `num_features` if the head projects.
    """

    backbone: Backbone
    head: LinearHead | EfficientProbe

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        classifier: str = "linear",
        classifier_args: Mapping[str, Any] | None = None,
        pretrained_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        channels = (*backbone.channels[:-1], backbone.final_channels)
        args = {"norm": backbone.final_norm(), "global_pool": global_pool, "drop_rate": drop_rate, **(classifier_args or {})}
        if classifier == "linear":
            self.head = LinearHead(channels, num_classes, pool_first=backbone.pool_first, **args)
        elif classifier == "ep":
            self.head = EfficientProbe(channels, num_classes, **args)
        else:
            fix = f"{did_you_mean(classifier, ('linear', 'ep'))} There are: linear, ep".strip()
            raise ArgumentError("VA-M002", f'unknown classifier "{classifier}"', fix=fix)
        self.num_classes = num_classes
        self.in_chans = backbone.in_chans
        self.num_features, self.head_hidden_size = backbone.channels[-1], self.head.num_features
        self.pretrained_cfg = pretrained_cfg or {}

    @property
    def default_cfg(self) -> dict[str, Any]:
        return self.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, cfg: dict[str, Any]) -> None:
        self.pretrained_cfg = cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One `dict(num_chs, reduction, module)` per stage."""
        return [{**info, "module": f"backbone.{info['module']}"} for info in self.backbone.feature_dicts()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits `[B, num_classes]` of images `[B, in_chans, H, W]`; pooled features if `num_classes` is 0."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the last map, `[B, C, H / 32, W / 32]`."""
        return self.backbone(x)[-1]  # type: ignore[no-any-return]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Compute logits from the last map, or its pooled features with `pre_logits`."""
        return self.head([x], pre_logits)  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the last map and the maps of the stages in `indices` (a number selects the last ones).

        `norm` applies the head's norm to the last map, unless the head normalises after pooling (as in timm) or projects.
        All maps are always computed: `stop_early` has no effect.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: maps are NCHW, got {output_fmt!r}")
        maps = self.backbone(x)
        final = maps[-1]
        if norm and not self.head.pool_first and self.backbone.final_channels == final.shape[1]:
            maps[-1] = self.head.norm(final)
        chosen = [maps[index] for index in self._stage_indices(indices, len(maps))]
        return chosen if intermediates_only else (final, chosen)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Remove the stages after the last of `indices`, with them the head's norm, and the classifier; return the indices."""
        count = len(self.backbone.channels)
        kept = self._stage_indices(indices, count)
        projects = self.backbone.final_channels != self.backbone.channels[-1]
        if isinstance(self.head, EfficientProbe) and (max(kept) + 1 < count or (prune_norm and projects)):
            raise ValueError(f"indices: the head attends to the last of the {count} stages, which has to stay with its norm; got {indices}")
        if max(kept) + 1 < count:
            self.backbone.select_stages(range(max(kept) + 1))
        if prune_norm or max(kept) + 1 < count:  # the norm is that of the last stage
            self.head.norm = nn.Identity()
            if isinstance(self.head, LinearHead):
                self.num_features = self.head_hidden_size = self.head.num_features = self.backbone.channels[-1]
        if prune_head:
            self.reset_classifier(0)
        return kept

    @staticmethod
    def _stage_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
        chosen = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not chosen or any(not -count <= index < count for index in chosen):
            raise ValueError(f"indices: expected a count or indices of the {count} stages, got {indices}")
        return [index % count for index in chosen]

    def get_classifier(self) -> nn.Module:
        """Return the linear layer (an identity if `num_classes` is 0)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer; 0 classes remove it. `global_pool`: "avg", "" for a map, None to keep the current one."""
        like = next(self.backbone.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.fc.to(like.device, like.dtype).train(self.training)
        self.num_classes = num_classes

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Set the size that transforms are built for; the network accepts any size from 32 px."""
        self.pretrained_cfg = {**self.pretrained_cfg, "input_size": (self.in_chans, *to_2tuple(img_size))}

    def export_sizes(self, size: tuple[int, int]) -> Sizes:
        """Sizes of images that a graph exported at `size` holds for, if its height and width are left open."""
        return self.backbone.export_sizes(size)

    def fit_head(self, state: dict[str, torch.Tensor], allow: Collection[str]) -> tuple[set[str], list[str]]:
        """Fit the tensors of a file outside the backbone to this head, in place (`load_checkpoint`).

        Returns:
            Keys whose values the model keeps, and one line per reason.
        """
        given, own = state.get("head.fc.weight"), getattr(self.head.fc, "weight", None)
        if "classifier" not in allow:
            return set(), []
        shapes = {key: value.shape for key, value in self.state_dict().items() if _pools(key)}
        if given is not None and shapes != {key: value.shape for key, value in state.items() if _pools(key)}:
            for key in [key for key in state if _pools(key) or key.startswith("head.fc.")]:
                del state[key]
            fresh = {*shapes, *(key for key in self.state_dict() if key.startswith("head.fc."))}
            return fresh, ["the file has another kind of head: head re-initialised"]
        if given is None:  # of a backbone, or of a model for features: whatever the head has besides starts anew too
            missing = {key for key in self.state_dict() if key.startswith("head.")} - state.keys()
            return missing, ["the file has no classifier: head re-initialised"] if own is not None else []
        if own is not None and given.shape == own.shape:
            return set(), []
        for key in ("head.fc.weight", "head.fc.bias"):
            state.pop(key, None)
        if own is None:
            return set(), ["the file's classifier left out (num_classes=0)"]
        return {"head.fc.weight", "head.fc.bias"}, [f"checkpoint head has {len(given)} classes, the model {len(own)}: head re-initialised"]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn the recomputation of activations in the backward pass on or off."""
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
        for module in self.head.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.Conv2d)):
                module.reset_parameters()
        self.head.init_weights()


def _pools(key: str) -> bool:
    """Whether a tensor, other than a batch counter, belongs to how a head pools."""
    return key.startswith("head.") and not key.startswith(("head.fc.", "head.norm.")) and not key.endswith("num_batches_tracked")


def group_matcher(backbone: Backbone, coarse: bool) -> dict[str, Any]:
    """Return the backbone's patterns for a model that holds it as `backbone`."""

    def below(pattern: str) -> str:
        return r"^backbone\." + pattern.removeprefix("^")

    return {
        key: below(value) if isinstance(value, str) else [(below(pattern), order) for pattern, order in value]
        for key, value in backbone.group_matcher(coarse).items()
    }

"""Base of all backbones: everything except the network itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import nn
from torch.utils.checkpoint import checkpoint


def rename_keys(state: dict[str, torch.Tensor], rules: Sequence[tuple[str, str]], drop: str = "") -> dict[str, torch.Tensor]:
    """Apply the first matching rule (regular expression, replacement) to each key; remove keys that contain `drop`."""
    renamed = {}
    for key, value in state.items():
        if drop and re.search(drop, key):
            continue
        pattern, replacement = next((rule for rule in rules if re.match(rule[0], key)), ("", ""))
        renamed[re.sub(pattern, replacement, key, count=1) if pattern else key] = value
    return renamed


class Backbone(nn.Module):
    """Feature pyramid: maps an image `[B, in_chans, H, W]` to one NCHW map per stage, finest first.

    A family's class builds `self.stages` (an `nn.ModuleList`, one module per stage). The default `forward` also
    uses `self.patch_embed` and each stage's `downsample` and `blocks`, with channels last; families with a different
    structure define their own, which returns the maps of `self.out_indices`. The size of a map is `ceil(size / stride)`.

    Attributes:
        channels: channels of the returned maps.
        strides: strides of the returned maps.
        out_norm: whether the maps are normalised for dense prediction.
    """

    cnn = False  # whether channels_last memory is faster
    pool_first = False  # whether the classifier pools before the final norm
    per_channel = False  # whether the first convolution reads each channel by itself, so that their number is open
    first_conv = ""  # name of the convolution on the image
    patch_embed: Any  # for the default forward: image to map B H W C
    stages: Any  # nn.ModuleList; Any, because torch types its items as plain modules

    def __init__(self, *, in_chans: int, channels: Sequence[int], strides: Sequence[int], out_norm: bool = False) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.stage_channels, self.stage_strides = tuple(channels), tuple(strides)
        self.out_indices = tuple(range(len(self.stage_channels)))
        self.out_norm = out_norm
        self.out_norms = nn.ModuleDict()  # stage index -> norm of its map, with out_norm
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.patch_embed(x), []
        for index, stage in enumerate(self.stages):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run_block(block, x)
            if index in self.out_indices:
                y = self.out_norms[str(index)](x) if self.out_norm else x
                maps.append(y.permute(0, 3, 1, 2))  # B C H W
        return maps

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.stage_channels[index] for index in self.out_indices)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.stage_strides[index] for index in self.out_indices)

    @property
    def feature_info(self) -> FeatureInfo:
        """Description of the maps in timm's format."""
        return FeatureInfo(self.feature_dicts(), self.out_indices)

    def feature_dicts(self) -> list[dict[str, Any]]:
        """One `dict(num_chs, reduction, module)` per stage."""
        return [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{index}"}
            for index, (channels, stride) in enumerate(zip(self.stage_channels, self.stage_strides, strict=True))
        ]

    def select_stages(self, out_indices: Iterable[int]) -> None:
        """Return only the maps of these stages and drop all stages after the last of them.

        Raises:
            ValueError: an index is out of range.
        """
        count = len(self.stage_channels)
        indices = tuple(out_indices)
        if not indices or any(not -count <= index < count for index in indices):
            raise ValueError(f"out_indices: expected indices of the {count} stages, got {indices}")
        self.out_indices = tuple(sorted({index % count for index in indices}))
        del self.stages[self.out_indices[-1] + 1 :]
        for index in set(self.out_norms) - {str(index) for index in self.out_indices}:
            del self.out_norms[index]

    def run_block(self, block: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Run `block(x)`, recomputing activations in the backward pass if checkpointing is on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        self.grad_checkpointing = enable

    def init_weights(self) -> None:
        """Initialise all parameters; also completes a model that was built on the meta device."""
        raise NotImplementedError

    def final_norm(self) -> nn.Module | None:
        """Return the norm that the classifier applies over NCHW to the last map, or with `pool_first` to its average."""
        return None

    @property
    def final_channels(self) -> int:
        """Channels after `final_norm`, which differ from those of the last map where it projects too."""
        return self.channels[-1]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides norms and biases."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, starting at the input (timm's layer decay).

        By default: the stem, downsampling and blocks of each stage, the norms of the outputs.
        """
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^out_norms", (99999,))]
        return {"stem": r"^(?:stem|patch_embed)", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the keys of a file to `backbone.*` and `head.*`.

        Supported layouts: the authors' classifier and dense backbone, timm's, and those of torchvision and
        mmpretrain if they publish the model. The prefix `backbone.` is already removed. The default renames nothing.
        """
        return state

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer arguments of the class, for example a window, from the tensors of a file, whatever their keys."""
        return {}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Adapt the model to a file, or its weights to the model, where the file determines it or a published rule exists.

        `state` has the keys of this backbone and is changed in place. Returns one line per kind of change.
        """
        return []

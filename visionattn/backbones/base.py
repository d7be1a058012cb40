"""Base of all backbones: everything except the network itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import nn

from visionattn.layers import recomputed


def rename_keys(state: dict[str, torch.Tensor], rules: Sequence[tuple[str, str]], drop: str = "") -> dict[str, torch.Tensor]:
    """Apply the first matching rule (regular expression, replacement) to each key; remove keys that contain `drop`."""
    renamed = {}
    for key, value in state.items():
        if drop and re.search(drop, key):
            continue
        pattern, replacement = next((rule for rule in rules if re.match(rule[0], key)), ("", ""))
        renamed[re.sub(pattern, replacement, key, count=1) if pattern else key] = value
    return renamed


@dataclass(frozen=True)
class Sizes:
    """Sizes of images, in pixels, for which an exported graph computes what the network does.

    Attributes:
        size: height and width that it was exported at.
        step: sides have to be multiples of it; 0 if `size` is the only one.
        least: least side.
    """

    size: tuple[int, int]
    step: int = 0
    least: int = 0

    def holds(self, size: tuple[int, int]) -> bool:
        """Whether a height and width are among them."""
        return size == self.size or (self.step > 0 and all(side >= self.least and side % self.step == 0 for side in size))

    def another(self) -> tuple[int, int] | None:
        """A second, oblong size near the first; None if there is none."""
        if not self.step:
            return None
        height, width = (
            self.step * max(round(share * side / self.step), -(-self.least // self.step))
            for share, side in zip((0.7, 1.1), self.size, strict=True)
        )
        return (height, width) if height != width and (height, width) != self.size else (height, width + self.step)

    def text(self) -> str:
        """In words, as `any size from 33 px`."""
        if not self.step:
            return f"{self.size[0]}x{self.size[1]} px"
        return f"{'any size' if self.step == 1 else f'multiples of {self.step} px'} from {self.least} px"


class Backbone(nn.Module):
    """Feature pyramid: maps an image `[B, in_chans, H, W]` to one NCHW map per stage, finest first.

    A family's class builds `self.stages` (an `nn.ModuleList`, one module per stage). The default `forward` also
    uses `self.patch_embed` and each stage's `downsample` and `blocks`, with channels last; families with a different
    structure define their own, which returns the maps of `self.out_indices`. The size of a map is `ceil(size / stride)`.

    Attributes:
        channels: channels of the returned maps.
        strides: strides of the returned maps.
        out_norm: whether the maps are normalised for dense prediction.
        least_sides: per stage, what the sides of its map exceed in an exported graph of open size, which takes no smaller image: a
            side of 1 would be a constant of the graph.
    """

    cnn = False  # whether channels_last memory is faster
    pool_first = False  # whether the classifier pools before the final norm
    class_token = False  # whether the first query of each attention, not the map's average, is what the classifier reads
    placed_attention = True  # whether keys of recorded attention are positions of the stage's map
    size_step = 0  # an exported graph of open size is right if it divides both sides; 0: such a graph has one size only
    per_channel = False  # whether the first convolution reads each channel by itself, so that their number is open
    first_conv = ""  # name of the convolution on the image
    further_convs: tuple[str, ...] = ()  # names of others on the image
    patch_embed: Any  # for the default forward: image to map B H W C
    stages: Any  # nn.ModuleList; Any, because torch types its items as plain modules

    def __init__(self, *, in_chans: int, channels: Sequence[int], strides: Sequence[int], out_norm: bool = False) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.stage_channels, self.stage_strides = tuple(channels), tuple(strides)
        self.out_indices = tuple(range(len(self.stage_channels)))
        self.least_sides: Sequence[int] = (1,) * len(self.stage_channels)
        self.out_norm = out_norm
        self.out_norms = nn.ModuleDict()  # stage index -> norm of its map, with out_norm
        self.grad_checkpointing = False

    def add_out_norms(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        """Add the norms of the maps, `norm(channels)` for each, if the maps are normalised."""
        if self.out_norm:
            self.out_norms.update({str(index): norm(channels) for index, channels in enumerate(self.stage_channels)})

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

    def export_sizes(self, size: tuple[int, int]) -> Sizes:
        """Sizes that a graph exported at `size` holds for, if its height and width are left open.

        Only `size`, if it is too small or no multiple of `size_step`.
        """
        kept = self.stage_strides[: self.out_indices[-1] + 1]
        least = max(side * stride for side, stride in zip(self.least_sides, kept, strict=False)) + 1
        found = Sizes(size, self.size_step, least)
        return found if self.size_step and min(size) >= least and not any(side % self.size_step for side in size) else Sizes(size)

    def dilate(self, output_stride: int) -> None:
        """Replace strides beyond `output_stride` by dilation: finer maps from the same weights, which see as far as before.

        Every second position of a dilated map, or every fourth, is a position of the map that it replaces.

        Raises:
            ValueError: the family does not dilate, or no stage has this stride.
        """
        if output_stride not in self.stage_strides:
            raise ValueError(f"output_stride: expected one of {self.stage_strides}, got {output_stride}")
        strides = [stride for stride in self.strides if stride > output_stride]
        if strides and type(self).dilate_stage is Backbone.dilate_stage:
            family, stride = type(self).__name__, self.strides[-1]
            smp = "encoder_output_stride=32, or encoder_depth=4, encoder_output_stride=16 for DeepLabV3 and DeepLabV3Plus"
            raise ValueError(
                f"output_stride: the last map of {family} has stride {stride}, not {output_stride}, and its stages are not dilated; "
                f"with features_only=True, out_indices can exclude it. In segmentation_models_pytorch: {smp}"
            )
        before = 1
        for stage, stride in zip(self.stages, self.stage_strides, strict=False):  # stages at the end may have been dropped
            if stride > output_stride:
                self.dilate_stage(stage, before, stride // output_stride)
                before = stride // output_stride
        self.stage_strides = tuple(min(stride, output_stride) for stride in self.stage_strides)

    def dilate_stage(self, stage: Any, before: int, after: int) -> None:
        """Take the stride out of a stage.

        Args:
            before: dilation of what comes before the stride, `after` of what follows it.
        """
        raise NotImplementedError

    def run_block(self, block: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Run `block(x)`, recomputing activations in the backward pass if checkpointing is on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(block, x)  # type: ignore[no-any-return]
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

    def cam_layer(self, index: int = -1) -> nn.Module:
        """Return the module that class activation maps (Grad-CAM, arXiv 1610.02391) of a stage are made of.

        It is called once per forward pass, and the following layers read its output: by default the last block.
        """
        stage = self.stages[index]
        return getattr(stage, "blocks", stage)[-1]  # type: ignore[no-any-return]

    def cam_map(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Arrange the output of `cam_layer`, or its gradient, as a map NCHW; by default from NHWC, of a CNN as it is.

        Args:
            size: height and width of the image.
        """
        return output if self.cnn else output.permute(0, 3, 1, 2)

    def to_queries(self, places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Turn values of the positions of a map, `[..., h, w]`, into those of the queries of its attention, `[..., *size]`.

        By default the map is padded at the bottom and right.
        """
        return F.pad(places, (0, size[1] - places.shape[-1], 0, size[0] - places.shape[-2]))

    def to_places(self, keys: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Turn values of the keys of an attention, `[..., Hk, Wk]`, into those of the positions of the map, `[..., *size]`.

        By default padding is cut off; a value of a smaller map of keys is shared out among the positions of its cell.
        """
        for axis, length in ((-2, size[0]), (-1, size[1])):
            ratio = -(-length // keys.shape[axis])
            keys = keys.repeat_interleave(ratio, axis) / ratio if ratio > 1 else keys
            keys = keys.narrow(axis, 0, length)
        return keys

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

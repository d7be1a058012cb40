"""Settings of the volumes task."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from visionattn.config.schema import Auto, BackboneConfig, EvalConfig, RunConfig, Section, TrainConfig, setting
from visionattn.data.volumes.settings import VolumeAugmentConfig, VolumeDataConfig
from visionattn.tasks.terms import LossTermConfig

# Networks whose layers are three-dimensional; every other name is that of a backbone, which sees slices.
NETWORKS = ("unet3d", "agunet3d", "daunet3d", "mpunet3d")


class SliceHeadConfig(Section):
    name: str = setting("unet", "Head on a 2D backbone, see visionattn.heads.HEADS.")
    args: dict[str, Any] = setting({}, "Arguments of the head's class, for example {skip: gate}.")


class VolumeModelConfig(BackboneConfig):
    default_size: ClassVar[int] = 64

    name: str = setting(
        "unet3d", f"3D network ({', '.join(NETWORKS)}), or a 2D backbone, which sees a slice with its neighbours as channels (2.5D)."
    )
    in_chans: int = setting(1, "Channels of a volume.", ge=1)
    img_size: int | tuple[int, int] | tuple[int, int, int] | Auto = setting(  # type: ignore[assignment]
        "auto",
        "Size of a patch in voxels along the axes right, front and up, of 2.5D in the plane of the slices: one number, or one for each "
        "axis; auto: the median volume, at most 128 and 96^3 in all.",
    )
    context: int = setting(1, "2.5D: neighbouring slices on each side that a slice is seen with.", ge=0, le=8)
    slice_axis: Literal[0, 1, 2] | Auto = setting(
        "auto", "2.5D: axis across the slices, 0 right, 1 front, 2 up; auto: that of the coarsest spacing, or up."
    )
    head: SliceHeadConfig = SliceHeadConfig()
    args: dict[str, Any] = setting({}, "Arguments of the network's class, for example {width: 32, depth: 4}.")

    @property
    def is_3d(self) -> bool:
        """Whether the network has three-dimensional layers."""
        return self.name in NETWORKS

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of a patch, three or (2.5D) two."""
        size: Any = self.default_size if self.img_size == "auto" else self.img_size
        return tuple(size) if isinstance(size, tuple) else (size,) * (3 if self.is_3d else 2)

    @property
    def size(self) -> tuple[int, int]:
        """The two longest sides of a patch."""
        shortest = min(range(len(self.patch)), key=lambda axis: (self.patch[axis], axis)) if len(self.patch) == 3 else None
        first, second = (side for axis, side in enumerate(self.patch) if axis != shortest)
        return first, second


class VolumeTrainConfig(TrainConfig):
    batch_size: Annotated[int, Field(ge=1)] | Auto = setting(
        2, "Volumes per step and device, with augment.patches patches of each; auto: what fits, with train.accum for steps of 2 volumes."
    )


class VolumeEvalConfig(EvalConfig):
    best: Literal["auto", "dice", "iou", "nsd"] = setting("auto", "Metric that selects the best checkpoint; auto: dice.")
    overlap: float = setting(0.5, "Share of a window that the next one overlaps.", ge=0, lt=1)
    blend: Literal["constant", "gaussian", "nnunet"] = setting("gaussian", "Weights of overlapping windows, see the segmentation task.")
    flips: bool = setting(False, "Average over flips along all axes (2.5D: of the slice); left and right then have to look alike.")
    window_batch: int = setting(1, "Windows (2.5D: slices, four times as many) per call of the network.", ge=1)
    hausdorff: Literal["max_directed", "pooled"] = setting("max_directed", "Definition of hd95.")
    tolerance: float = setting(1.0, "Distance in mm within which nsd accepts a surface.", gt=0)
    protocol: Literal["none", "synapse"] = setting(
        "none", "Further metrics by the rule of published tables, to compare with these only: synapse_dice, and synapse_hd95 in voxels."
    )


class VolumesConfig(RunConfig):
    """All settings of a run on volumes."""

    task: Literal["volumes"] = setting("volumes", "Kind of job.")
    model: VolumeModelConfig = VolumeModelConfig()
    data: VolumeDataConfig = VolumeDataConfig()
    augment: VolumeAugmentConfig = VolumeAugmentConfig()
    loss: list[LossTermConfig] = setting(
        [LossTermConfig(), LossTermConfig(name="dice", args={"include_background": False, "batch": True})],
        "Terms of the loss, summed; of regions each against all else.",
        min_length=1,
    )
    train: VolumeTrainConfig = VolumeTrainConfig()
    eval: VolumeEvalConfig = VolumeEvalConfig()

    @model_validator(mode="after")
    def _check_volumes(self) -> VolumesConfig:
        sides = 3 if self.model.is_3d else 2
        if len(self.model.patch) != sides:
            what = "a 3D network" if self.model.is_3d else "slices"
            raise ValueError(f"model.img_size: expected one number or {sides} for {what}, got {len(self.model.patch)}")
        if min(self.model.patch) < 1:
            raise ValueError("model.img_size: expected numbers > 0")
        if self.model.is_3d and self.model.head != SliceHeadConfig():
            raise ValueError(f"model.head: {self.model.name} has none, only a 2D backbone takes one")
        if self.model.is_3d and (self.model.context != 1 or self.model.slice_axis != "auto"):
            raise ValueError(f"model.context and model.slice_axis: {self.model.name} sees volumes, only a 2D backbone sees slices")
        if self.model.is_3d and self.model.drop_path_rate not in ("auto", 0):
            raise ValueError(f"model.drop_path_rate: {self.model.name} has no stochastic depth; model.drop_path_rate=0")
        if self.data.sampler == "balanced":
            raise ValueError("data.sampler: a volume has no single class; augment.foreground chooses the patches")
        if self.model.is_3d and self.train.channels_last is True:
            raise ValueError("train.channels_last: 3D networks have one layout; train.channels_last=auto")
        if not any(term.weight for term in self.loss):
            raise ValueError("loss: expected a term with weight > 0")
        return self

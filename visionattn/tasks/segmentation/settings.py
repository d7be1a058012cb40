"""Settings of the segmentation task."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from visionattn.config.schema import Auto, BackboneConfig, EvalConfig, RunConfig, Section, TrainConfig, setting
from visionattn.data.masks.settings import MaskAugmentConfig, MaskDataConfig
from visionattn.tasks.terms import LossTermConfig

Probability = Annotated[float, Field(ge=0, le=1)]


class AuxConfig(Section):
    enabled: bool | Literal["auto"] = setting(
        "auto", "Train an auxiliary FCN head on the second-to-last map; auto: if the head's published recipes do."
    )
    weight: float = setting(0.4, "Weight of the auxiliary head's loss.", ge=0)
    rule: Literal["upsample_logits", "downsample_label"] = setting(
        "upsample_logits", "Size at which auxiliary outputs are compared with the label; downsample_label is nnU-Net's deep supervision."
    )


class HeadConfig(Section):
    name: str = setting(
        "auto", "Segmentation head or decoder, see visionattn.heads.HEADS; auto: that of a preset or of the weights, or segformer."
    )
    args: dict[str, Any] = setting({}, "Arguments of the head's class, for example width or dropout; they override a preset's.")
    aux: AuxConfig = AuxConfig()


class SegmenterConfig(BackboneConfig):
    default_size: ClassVar[int] = 512

    name: str = setting(
        "davit_tiny",
        "Backbone, see `visionattn models list`, or a preset of backbone and head: att_swin_unet, dae_former, trans_dae, resunet_eca_aspp.",
    )
    img_size: int | tuple[int, int] | Auto = setting(
        "auto", "Size of a training crop in pixels: one number, or [height, width]; auto: 512, or less for smaller images."
    )
    head: HeadConfig = HeadConfig()


class SegmentEvalConfig(EvalConfig):
    best: Literal["auto", "miou", "macc", "aacc", "mdice", "dice", "iou", "nsd"] = setting(
        "auto", "Metric that selects the best checkpoint; auto: miou, or dice with eval.per_case. The last three need eval.per_case."
    )
    mode: Literal["whole", "slide"] = setting("whole", "The whole image at once, or windows of eval.tile.")
    tile: int | tuple[int, int] | None = setting(None, "Window of slide in pixels: one number, or [height, width]; null: model.img_size.")
    stride: int | tuple[int, int] | None = setting(None, "Steps of the window in pixels; null: from eval.overlap.")
    overlap: float = setting(0.33, "Share of a window that the next one overlaps.", ge=0, lt=1)
    blend: Literal["constant", "gaussian", "nnunet"] = setting(
        "constant", "Weights of overlapping windows: constant is mmsegmentation's rule, gaussian MONAI's, nnunet nnU-Net's with its grid."
    )
    flips: Literal["none", "horizontal", "both"] = setting("none", "Average over flips of the image: none, left-right, or up-down too.")
    scales: list[float] = setting([], "Average over the image at these scales, for example [0.75, 1, 1.25]; empty: only the original size.")
    average: Literal["logits", "probabilities"] = setting(
        "logits", "Quantity averaged over flips and scales; probabilities is mmsegmentation's rule."
    )
    threshold: Probability | dict[str, Probability] | None = setting(
        None,
        "Probability from which on a pixel has a class: one number for all but the background, or {CLASS: NUMBER}; other pixels get the "
        "most probable class without a threshold.",
    )
    per_case: bool = setting(False, "Dice, IoU and surface distances per image, averaged over images, as usual in medical imaging.")
    spacing: tuple[float, float] | None = setting(None, "Pixel size in mm, [rows, columns], for distances; null measures in pixels.")
    hausdorff: Literal["max_directed", "pooled"] = setting("max_directed", "Definition of hd95.")
    tolerance: float = setting(1.0, "Distance within which nsd accepts a surface, in mm or pixels.", gt=0)
    protocol: Literal["none", "pooled_f1"] = setting(
        "none", "A further metric by the rule of published tables, to compare with these only: pooled_f1, which skin lesions' call Dice."
    )


class SegmentTrainConfig(TrainConfig):
    batch_size: Annotated[int, Field(ge=1)] | Auto = setting(
        8, "Images per step and device; auto: what fits, with train.accum for steps of optim.lr_batch images, or of 8 per device."
    )


class SegmentConfig(RunConfig):
    """All settings of a segmentation run."""

    task: Literal["segment"] = setting("segment", "Kind of job.")
    model: SegmenterConfig = SegmenterConfig()
    data: MaskDataConfig = MaskDataConfig()
    augment: MaskAugmentConfig = MaskAugmentConfig()
    loss: list[LossTermConfig] = setting([LossTermConfig()], "Terms of the loss, summed.", min_length=1)
    train: SegmentTrainConfig = SegmentTrainConfig()
    eval: SegmentEvalConfig = SegmentEvalConfig()

    @model_validator(mode="after")
    def _check(self) -> SegmentConfig:
        if not all(scale > 0 for scale in self.eval.scales):
            raise ValueError(f"eval.scales: expected numbers > 0, got {self.eval.scales}")
        if self.eval.best in ("dice", "iou", "nsd") and not self.eval.per_case:
            raise ValueError(f"eval.best: {self.eval.best} is a score of cases; set eval.per_case=true, or use mdice or miou")
        if self.data.sampler == "balanced":
            raise ValueError(
                "data.sampler: an image with a mask has no single class; loss=[{name: cross_entropy, args: {class_weights: balanced}}]"
            )
        if not any(term.weight for term in self.loss):
            raise ValueError("loss: expected a term with weight > 0")
        for key in ("tile", "stride"):
            if self.eval.mode == "whole" and getattr(self.eval, key) is not None:
                raise ValueError(f"eval.{key}: windows need eval.mode=slide; eval.{key}=null for the whole image")
        if self.eval.spacing is not None and not self.eval.per_case:
            raise ValueError("eval.spacing: distances are scores of cases; set eval.per_case=true")
        return self

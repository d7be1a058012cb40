"""Settings of classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from visionattn.config.schema import Auto, BackboneConfig, RunConfig, Section, setting
from visionattn.data.images.settings import AugmentConfig, LabelDataConfig
from visionattn.tasks.class_settings import ClassEvalConfig

Probability = Annotated[float, Field(ge=0, le=1)]


class ClassHeadConfig(Section):
    name: Literal["linear", "ep"] = setting(
        "linear", "linear: mean of the last map, and a linear layer; ep: pooled by learned queries (efficient probing), and a linear layer."
    )
    queries: int | None = setting(None, "Queries of ep, which share the channels of the last map; null: 32.", ge=1)
    reduction: int = setting(1, "Channels of the last map per channel of the values of ep.", ge=1)

    @model_validator(mode="after")
    def _check(self) -> ClassHeadConfig:
        if self.name == "linear" and (self.queries is not None or self.reduction != 1):
            raise ValueError("queries and reduction are those of ep: set model.classifier.name=ep, or leave them out")
        return self


class ClassifierConfig(BackboneConfig):
    drop_rate: float = setting(0.0, "Dropout before the classifier.", ge=0, lt=1)
    classifier: ClassHeadConfig = ClassHeadConfig()


class LossConfig(Section):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Auto = setting("auto", "Label smoothing; auto: 0, or 0.1 from weights.")
    class_weights: Literal["none", "balanced"] | list[float] = setting(
        "none", "Weight per class: none, balanced (inverse frequency), or a list."
    )


class ClassifyEvalConfig(ClassEvalConfig):
    best: Literal["auto", "top1", "balanced_accuracy", "macro_f1", "auroc", "kappa"] = setting(
        "auto", "Metric that chooses the best checkpoint; auto: top1, or macro_f1 for multi-label."
    )
    batch_size: int | None = setting(None, "Images per evaluation step; null: as in training.", ge=1)
    crop_pct: float | None = setting(
        None, "Share of the resized image that is kept by the centre crop; null: the model's own.", ge=0.1, le=1
    )
    flips: Literal["none", "horizontal", "both"] = setting("none", "Average over flips of the image: none, left-right, or up-down too.")
    scales: list[float] = setting([], "Average over the image at these scales, for example [1, 1.25]; empty: only model.img_size.")
    average: Literal["logits", "probabilities"] = setting("logits", "Quantity averaged over flips and scales.")
    temperature: float = setting(1.0, "Divisor of the logits, see `visionattn eval RUN --calibrate`.", gt=0)
    threshold: Probability | dict[str, Probability] | None = setting(
        None,
        "Least probability of an answer: one number, or {CLASS: NUMBER}. Below it the answer is unsure; of several labels per image it "
        "decides on each, and is 0.5 where none is set.",
    )


class ClassifyConfig(RunConfig):
    """All settings of a run that classifies."""

    task: Literal["classify"] = setting("classify", "Kind of job.")
    model: ClassifierConfig = ClassifierConfig()
    data: LabelDataConfig = LabelDataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    eval: ClassifyEvalConfig = ClassifyEvalConfig()

    @model_validator(mode="after")
    def _check(self) -> ClassifyConfig:
        crop = self.augment.random_resized_crop
        for name, (low, high) in {"scale": crop.area, "ratio": crop.ratio}.items() if crop else ():
            if not 0 < low <= high:
                raise ValueError(f"augment.random_resized_crop.{name}: expected [low, high] with 0 < low <= high, got [{low:g}, {high:g}]")
        if not all(scale > 0 and min(self.model.size) * scale >= 32 for scale in self.eval.scales):
            raise ValueError(f"eval.scales: expected numbers > 0 that leave 32 pixels of {list(self.model.size)}, got {self.eval.scales}")
        if self.data.multi_label and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("augment.mixup and augment.cutmix mix single labels: set them to 0 with data.multi_label")
        if self.data.multi_label and self.data.sampler == "balanced":
            raise ValueError("data.sampler: an image of several classes has none to balance; loss.class_weights=balanced weights the loss")
        if self.data.multi_label and self.eval.best == "top1":
            raise ValueError("eval.best: top1 needs one label per image; use macro_f1 or auroc with data.multi_label")
        if self.data.multi_label and self.eval.kappa != "none":
            raise ValueError("eval.kappa: it needs one label per image; set eval.kappa=none with data.multi_label")
        return self

"""Settings of the task on bags of instances."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from visionattn.config.schema import Auto, BackboneConfig, OptimConfig, RunConfig, Section, TrainConfig, setting
from visionattn.data.bags.settings import BagDataConfig
from visionattn.tasks.class_settings import ClassEvalConfig

# Keys of a backbone that networks on given features do not have, and what auto becomes when a run starts.
_UNUSED: dict[str, Any] = {"weights": "none", "in_chans": 3, "img_size": "auto", "drop_path_rate": 0.0}


class BagModelConfig(BackboneConfig):
    name: str = setting("abmil", "Head that pools a bag: abmil, mha, acmil, acmil_mha, or one of your own.")
    weights: str = setting("none", "Always none: heads of bags start from scratch.")
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | Auto = setting(0.0, "Always 0: heads of bags have no blocks to leave out.")
    grad_checkpointing: bool = setting(False, "Recompute smaller pieces of a bag in the backward pass: less memory, more time.")
    args: dict[str, Any] = setting({}, "Arguments of the head's class, for example width, branches or dropout.")


class BagAugmentConfig(Section):
    max_instances: int | None = setting(None, "Most instances of a bag in a training step, chosen anew each time; null: all.", ge=1)


class BagLossConfig(Section):
    label_smoothing: float = setting(0.0, "Label smoothing.", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | list[float] = setting(
        "none", "Weight per class: none, balanced (inverse frequency), or a list."
    )
    branches: float = setting(1.0, "Weight of the cross-entropy of the branches, of heads that have some (ACMIL).", ge=0)
    diversity: float = setting(1.0, "Weight of the similarity of the branches' attention (ACMIL): the mean cosine of two.", ge=0)
    entropy: float = setting(
        0.0, "Weight of the negative entropy of the attention, of any head (AEM, arXiv 2406.15303): its authors take 0.1.", ge=0
    )


class BagOptimConfig(OptimConfig):
    lr: Annotated[float, Field(gt=0)] | Auto = setting(2e-4, "Learning rate, given for lr_batch samples per step; auto: 1e-3.")
    weight_decay: Annotated[float, Field(ge=0)] | Auto = setting(1e-4, "Weight decay; norms and biases are left out; auto: 0.05.")


class BagTrainConfig(TrainConfig):
    epochs: Annotated[int, Field(ge=1)] | Auto = setting(50, "Passes over the training set; auto: 20.")
    batch_size: Annotated[int, Field(ge=1)] | Auto = setting(
        1, "Bags per step and device, padded to the longest; train.accum=8 takes eight one after the other instead."
    )


class BagEvalConfig(ClassEvalConfig):
    best: Literal["auto", "auroc", "top1", "balanced_accuracy", "macro_f1", "kappa"] = setting(
        "auto", "Metric that selects the best checkpoint; auto: auroc. With one label per bag the micro F1 is top1."
    )
    key_instances: int | None = setting(
        None, "Instance label (inst) of the key instances: attention is scored by how often it ranks them above the others (key_auroc)."
    )
    thumbnails: str = setting("", "Folder of pictures of the slides, named like the bags, under the heat maps of predict.")


class BagsConfig(RunConfig):
    """All settings of a run on bags."""

    task: Literal["bags"] = setting("bags", "Kind of job.")
    model: BagModelConfig = BagModelConfig()
    data: BagDataConfig = BagDataConfig()
    augment: BagAugmentConfig = BagAugmentConfig()
    loss: BagLossConfig = BagLossConfig()
    optim: BagOptimConfig = BagOptimConfig()
    train: BagTrainConfig = BagTrainConfig()
    eval: BagEvalConfig = BagEvalConfig()

    @model_validator(mode="after")
    def _check(self) -> BagsConfig:
        for key, usual in _UNUSED.items():
            if getattr(self.model, key) not in (usual, "auto"):
                raise ValueError(f"model.{key}: heads of bags have none; a backbone for patches is set by data.patches")
        return self

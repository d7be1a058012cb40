"""Bags of instances, such as the patches of a whole slide: one class per bag (multiple instance learning)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.config.schema import RunConfig
from visionattn.errors import UserError
from visionattn.tasks.bags.settings import BagsConfig
from visionattn.tasks.base import Dataset, Display, Meter, Objective, Pictures, Predictor, Target, Task, Writer, WriterRequest
from visionattn.tasks.class_settings import CLASS_MEANINGS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from visionattn.data.bags.sets import BagData, BagSet
    from visionattn.data.check import CheckReport
    from visionattn.data.splits import ManifestRow
    from visionattn.heads.mil import BagOutput
    from visionattn.tasks.batch import Batch


class Bags(Task):
    """The target holds `classes`, `features` per instance, and their `mean` and `std` if they are standardised."""

    name = "bags"
    config = BagsConfig
    unit = "bag"
    formats = ("json", "csv", "attention", "heatmap")
    default_formats = ("json", "csv", "attention", "heatmap")
    display = Display(
        metrics=("auroc", "top1", "macro_f1", "kappa", "sensitivity", "key_auroc"),
        curves=("auroc", "top1", "balanced_accuracy", "macro_f1", "kappa", "key_auroc"),
        names={"top1": "accuracy", "key_auroc": "key AUROC", "auroc": "AUROC", "sensitivity": "sens@spec"},
        meanings=CLASS_MEANINGS
        | {
            "top1": "bags whose most probable class is the right one",
            "key_auroc": "how often attention ranks an instance that makes the label before another one; 50 % is chance",
        },
        class_rank="f1",
    )
    leaves_unused = True  # a part of the loss that has no weight leaves the classifiers of branches unused

    # data

    def recognise(self, root: Path) -> bool:
        from visionattn.data.bags.recognise import holds_bags

        return holds_bags(root)

    def check_source(self, config: BagsConfig) -> None:
        from visionattn.data.root import find_root

        find_root(config.data)

    def read_data(self, config: BagsConfig) -> BagData:
        from visionattn.data.bags.sets import load_bags
        from visionattn.tasks.bags.data import patch_features

        return load_bags(config.data, patch_features(config), seed=config.seed)

    def read_split(self, config: BagsConfig, split: str, target: Target) -> BagSet:
        from visionattn.data.bags.sets import load_bag_split
        from visionattn.tasks.bags.data import patch_features

        return load_bag_split(config.data, patch_features(config), split, target["classes"], seed=config.seed)

    def check_data(self, config: BagsConfig, data: BagData, *, cache_dir: Path, progress: Callable[[int], None]) -> CheckReport:
        from visionattn.data.bags.check import check_bags

        return check_bags(data, config.data, progress)

    def usable_data(self, config: BagsConfig, data: BagData, report: CheckReport) -> BagData:
        from visionattn.data.bags.check import usable_bags

        return usable_bags(data, report)

    def manifest(self, data: BagData, report: CheckReport) -> list[ManifestRow]:
        from visionattn.data.bags.check import bag_manifest

        return bag_manifest(data, report)

    def target(self, config: BagsConfig, data: BagData) -> Target:
        from visionattn.data.bags.check import moments, width_of

        if not config.data.standardise:
            return {"classes": data.classes, "features": width_of(data.train)}
        mean, std = moments(data.train)
        return {"classes": data.classes, "features": len(mean), "mean": mean.tolist(), "std": std.tolist()}

    def describe(self, config: BagsConfig, target: Target) -> str:
        return f"{len(target['classes'])} classes, {target['features']} features"

    def purpose(self, config: BagsConfig, target: Target) -> str:
        return f"gives a bag of instances (such as the patches of a slide) one of {len(target['classes'])} classes"

    def describe_input(self, config: BagsConfig) -> str:
        return ""

    def train_dataset(self, config: BagsConfig, model: nn.Module, data: BagData, report: CheckReport) -> Dataset:
        from visionattn.tasks.bags.data import LabelledBags

        return LabelledBags(data.train, _features(model), config.augment, config.seed)

    def eval_dataset(self, config: BagsConfig, model: nn.Module, split: BagSet) -> Dataset:
        from visionattn.tasks.bags.data import LabelledBags

        return LabelledBags(split, _features(model))

    def file_dataset(self, config: BagsConfig, model: nn.Module, files: Sequence[Path]) -> Dataset:
        from visionattn.tasks.bags.data import BagFiles, bags_of_files, patch_features

        return BagFiles(bags_of_files(files), _features(model), config.data.max_bytes, patch_features(config))

    @property
    def input_suffixes(self) -> frozenset[str]:
        from visionattn.data.bags.recognise import SUFFIXES
        from visionattn.data.walk import IMAGE_SUFFIXES

        return SUFFIXES | IMAGE_SUFFIXES

    # model

    def check_names(self, config: BagsConfig) -> None:
        from visionattn.tasks.bags.model import check_names

        check_names(config)

    def build_model(self, config: BagsConfig, target: Target) -> nn.Module:
        from visionattn.tasks.bags.model import build_model

        return build_model(config, target)

    def published_weights(self, config: BagsConfig) -> None:
        return None

    def with_weights(self, config: BagsConfig) -> BagsConfig:
        return config

    def with_model_of(self, config: BagsConfig, other: RunConfig) -> BagsConfig:
        return config

    # training and evaluation

    def forward(self, model: nn.Module, batch: Batch) -> BagOutput:
        from visionattn.tasks.bags.model import outputs_of

        return outputs_of(model, batch["bag"], batch["label"].device)

    def objective(self, config: BagsConfig, target: Target, dataset: Any) -> Objective:
        from visionattn.tasks.bags.objective import BagObjective

        return BagObjective(config, len(target["classes"]), dataset)

    def sample_classes(self, config: BagsConfig, dataset: Any) -> Sequence[int]:
        classes: Sequence[int] = dataset.part.labels
        return classes

    def predictor(self, config: BagsConfig, target: Target, model: nn.Module, device: torch.device) -> Predictor:
        from visionattn.tasks.bags.model import outputs_of

        return lambda batch: outputs_of(model, batch["bag"], device)

    def embedder(self, model: nn.Module, device: torch.device) -> Predictor:
        raise self.no_features()

    def meter(self, config: BagsConfig, target: Target) -> Meter:
        from visionattn.tasks.bags.scores import BagMeter

        return BagMeter(target["classes"], config.eval.key_instances, specificity=config.eval.specificity, kappa=config.eval.kappa)

    def monitor(self, config: BagsConfig) -> str:
        return "auroc"

    def pictures(self, target: Target) -> Pictures:
        from visionattn.tasks.bags.pictures import BagPictures

        return BagPictures(target["classes"])

    # export

    def network_input(self, config: BagsConfig) -> tuple[int, int, int]:
        why = "the network takes bags of any number of instances, not images"
        raise UserError("VA-C002", "models of task bags cannot be exported yet", why=why)

    # ensembles

    def average(self, config: BagsConfig, outputs: Sequence[BagOutput]) -> BagOutput:
        """Logits whose probabilities are the mean of those of the models, and their mean attention."""
        from visionattn.tasks.bags.model import mean_output
        from visionattn.tasks.means import mean_logits

        return mean_output(outputs, mean_logits([output.logits for output in outputs], independent=False))

    # prediction

    def file_batch_size(self, batch_size: int) -> int:
        return 1  # bags may be large

    def writer(self, config: BagsConfig, target: Target, request: WriterRequest) -> Writer:
        from visionattn.tasks.bags.output import BagWriter

        return BagWriter(target["classes"], request, config.eval.thumbnails)


def _features(model: Any) -> int:
    """Features per instance that a model takes."""
    return int(model.features)

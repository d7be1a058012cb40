"""Classification of images: one class per image, or several (multi-label)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.config.choices import Choice, Facts
from visionattn.errors import UserError
from visionattn.tasks.base import (
    Dataset,
    Display,
    Evaluation,
    Member,
    Meter,
    Objective,
    Pictures,
    Predictor,
    Presenter,
    PublishedModel,
    Question,
    Subject,
    Target,
    Task,
    Writer,
    WriterRequest,
)
from visionattn.tasks.class_settings import CLASS_MEANINGS
from visionattn.tasks.classification.settings import ClassifyConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from visionattn.data.check import CheckReport
    from visionattn.data.images.sets import ImageSet, LabelledData
    from visionattn.models.weights.download import Report


class Classification(Task):
    """The target holds `classes` in the order of the outputs; `display_classes`, where labels of data are not what people read."""

    name = "classify"
    pipeline_tag = "image-classification"
    config = ClassifyConfig
    formats = ("json", "csv", "probs")
    display = Display(
        metrics=("top1", "top5", "auroc", "kappa", "sensitivity"),
        curves=("top1", "balanced_accuracy", "macro_f1", "auroc", "kappa"),
        names={"ece": "ECE", "answered_top1": "top1 of the answered", "sensitivity": "sens@spec"},
        meanings=CLASS_MEANINGS | {"top1": "images whose most probable class is the right one"},
        class_rank="f1",
    )

    # data

    def check_source(self, config: ClassifyConfig) -> None:
        from visionattn.data.root import find_root

        if config.data.format not in ("digits", "torchvision") and not config.data.on_hub:
            find_root(config.data, otherwise="data.format=digits needs no files")

    def read_data(self, config: ClassifyConfig) -> LabelledData:
        from visionattn.data.images.labels import load_data
        from visionattn.data.masks.annotations.find import annotations_advised

        with annotations_advised(config.data.root):
            return load_data(config.data, seed=config.seed, in_chans=config.model.channels)

    def read_split(self, config: ClassifyConfig, split: str, target: Target) -> ImageSet:
        from visionattn.data.images.labels import load_split

        return load_split(config.data, split, target["classes"], config.model.channels, seed=config.seed)

    def labelled_split(self, config: ClassifyConfig, split: str, target: Target) -> tuple[ImageSet, list[str]]:
        from visionattn.data.images.labels import load_own_split
        from visionattn.tasks.class_scores import names_of

        found, classes = load_own_split(config.data, split, config.model.channels, seed=config.seed)
        if found.labels.ndim == 1:
            return found, [classes[number] for number in found.labels]
        return found, [";".join(names_of(row, classes)) or "none" for row in found.labels]

    def usable_data(self, config: ClassifyConfig, data: LabelledData, report: CheckReport) -> LabelledData:
        from visionattn.tasks.classification.data import require_classes

        return require_classes(data, super().usable_data(config, data, report), report)

    def target(self, config: ClassifyConfig, data: LabelledData) -> Target:
        return {"classes": data.classes}

    def describe(self, config: ClassifyConfig, target: Target) -> str:
        return f"{len(target['classes'])} classes" + (", several per image" if config.data.multi_label else "")

    def purpose(self, config: ClassifyConfig, target: Target) -> str:
        count = len(target["classes"])
        return f"names what an image shows: any of {count} classes" if config.data.multi_label else f"gives an image one of {count} classes"

    def train_dataset(self, config: ClassifyConfig, model: nn.Module, data: LabelledData, report: CheckReport) -> Dataset:
        from visionattn.tasks.classification.data import augmentation
        from visionattn.tasks.images import LabelledImages

        return LabelledImages(data.train, augmentation(config, model), seed=config.seed)

    def eval_dataset(self, config: ClassifyConfig, model: nn.Module, split: ImageSet) -> Dataset:
        from visionattn.tasks.classification.data import preprocessing
        from visionattn.tasks.images import LabelledImages

        return LabelledImages(split, preprocessing(config, model))

    def file_dataset(self, config: ClassifyConfig, model: nn.Module, files: Sequence[Path]) -> Dataset:
        from visionattn.tasks.classification.data import preprocessing
        from visionattn.tasks.images import image_files

        return image_files(config, files, preprocessing(config, model))

    def preview(
        self, config: ClassifyConfig, model: nn.Module, data: LabelledData, split: ImageSet, count: int, path: Path, *, augmented: bool
    ) -> bool:
        from visionattn.tasks.classification.data import augmentation, preprocessing, preview

        preview(split, data.classes, augmentation(config, model) if augmented else preprocessing(config, model), count, path)
        return True

    # model

    def choices(self, config: ClassifyConfig, facts: Facts, report: CheckReport | None) -> list[Choice]:
        from visionattn.tasks.classification.data import rand_augment_choice

        found = super().choices(config, facts, report)
        if facts.pretrained:
            found.append(Choice("loss.label_smoothing", 0.1, "few labels"))
            found.append(Choice("augment.random_resized_crop.scale", (0.35, 1.0), "moderate, for a short run"))
            found.append(rand_augment_choice(config, facts))
        return found

    def build_model(self, config: ClassifyConfig, target: Target) -> nn.Module:
        from visionattn.tasks.classification.model import build_classifier

        return build_classifier(config, len(target["classes"]))

    def exchange_config(self, config: ClassifyConfig, target: Target, model: Any) -> dict[str, Any]:
        from visionattn.tasks.classification.model import exchange_config

        return exchange_config(config, target, model)

    def open_published(self, source: str | Path, report: Report | None) -> PublishedModel | None:
        from visionattn.tasks.classification.model import open_published

        return open_published(str(source), report)

    # training and evaluation

    def objective(self, config: ClassifyConfig, target: Target, dataset: Any) -> Objective:
        from visionattn.tasks.classification.objective import ClassificationObjective

        self._thresholds(config, target)  # a wrong name stops before the first step
        return ClassificationObjective(config, len(target["classes"]), dataset)

    def sample_classes(self, config: ClassifyConfig, dataset: Any) -> Sequence[int]:
        classes: Sequence[int] = dataset.image_set.labels
        return classes

    def predictor(self, config: ClassifyConfig, target: Target, model: nn.Module, device: torch.device) -> Predictor:
        from visionattn.tasks.classification.predictor import ClassPredictor

        return ClassPredictor(config, model, device)

    def embedder(self, model: nn.Module, device: torch.device) -> Predictor:
        from visionattn.tasks.classification.predictor import pooled_features

        return pooled_features(model, device)

    def meter(self, config: ClassifyConfig, target: Target) -> Meter:
        from visionattn.tasks.class_scores import ClassificationMeter

        thresholds = self._thresholds(config, target)
        return ClassificationMeter(
            target["classes"],
            multi_label=config.data.multi_label,
            thresholds=thresholds,
            specificity=config.eval.specificity,
            kappa=config.eval.kappa,
        )

    def monitor(self, config: ClassifyConfig) -> str:
        return "macro_f1" if config.data.multi_label else "top1"

    def calibrate(self, config: ClassifyConfig, target: Target, evaluation: Evaluation) -> dict[str, Any]:
        from visionattn.tasks.classification.calibration import best_thresholds, fit_temperature

        found, labels = evaluation.scores.details.probabilities, evaluation.scores.details.labels
        if config.data.multi_label:
            return {"threshold": best_thresholds(found, labels, target["classes"])}
        return {"temperature": fit_temperature(found, labels)}

    def eval_batch_size(self, config: ClassifyConfig) -> int:
        return config.eval.batch_size or int(config.train.batch_size)

    def pictures(self, target: Target) -> Pictures:
        from visionattn.tasks.classification.pictures import ClassificationPictures

        return ClassificationPictures(target["classes"])

    # explanation

    def subject(self, config: ClassifyConfig, target: Target, model: nn.Module, question: Question, device: torch.device) -> Subject:
        from visionattn.tasks.classification.explain import class_subject

        return class_subject(config, target.get("display_classes") or target["classes"], model, question, device)

    def image_to_explain(self, dataset: Any, index: int) -> np.ndarray | None:
        from visionattn.tasks.images import loaded_image

        return loaded_image(dataset.image_set.images, index)

    # export

    def size_advice(self, size: tuple[int, int]) -> str:
        return "leave the size as it is: eval.scales=[]"

    # ensembles

    def ensemble(self, members: Sequence[Member]) -> Sequence[Member]:
        if len({member.config.data.multi_label for member in members}) > 1:
            raise UserError("VA-M004", "of the models, some give one class per image and some several (data.multi_label)")
        return members

    def average(self, config: ClassifyConfig, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The logits whose probabilities are the mean of those of the models."""
        from visionattn.tasks.means import mean_logits

        return mean_logits(outputs, independent=config.data.multi_label)

    # prediction

    def writer(self, config: ClassifyConfig, target: Target, request: WriterRequest) -> Writer:
        from visionattn.tasks.classification.output import RankedClasses

        names: list[str] = target.get("display_classes") or target["classes"]
        thresholds = self._thresholds(config, target)
        return RankedClasses(names, request, multi_label=config.data.multi_label, thresholds=thresholds)

    # serving

    def upload_dataset(self, config: ClassifyConfig, model: nn.Module, content: bytes) -> Dataset:
        from visionattn.tasks.classification.data import preprocessing
        from visionattn.tasks.images import Upload

        return Upload(config, content, preprocessing(config, model))

    def presenter(self, config: ClassifyConfig, target: Target, topk: int) -> Presenter:
        from visionattn.tasks.classification.output import present

        writer = self.writer(config, target, WriterRequest({Path("image"): Path("image")}, None, (), topk))
        return lambda predictions, batch: present(*writer.write(predictions, batch))

    def _thresholds(self, config: ClassifyConfig, target: Target) -> np.ndarray | None:
        from visionattn.tasks.thresholds import class_thresholds

        names = [target["classes"], *([target["display_classes"]] if "display_classes" in target else [])]
        return class_thresholds(config.eval.threshold, names, unnamed=0.5 if config.data.multi_label else 0.0)

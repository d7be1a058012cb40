"""Image segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.config.choices import Choice, Facts
from visionattn.config.schema import RunConfig
from visionattn.tasks.base import (
    Dataset,
    Display,
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
from visionattn.tasks.segmentation.settings import SegmentConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from visionattn.data.check import CheckReport
    from visionattn.data.masks.palettes import Colour
    from visionattn.data.masks.sets import MaskData, MaskSet
    from visionattn.data.splits import ManifestRow
    from visionattn.models.weights.download import Report
    from visionattn.models.weights.records import Weights


class Segmentation(Task):
    """Segmentation task; the target contains `classes` in the order of the outputs, and the `palette` with a colour for each."""

    name = "segment"
    pipeline_tag = "image-segmentation"
    config = SegmentConfig
    formats = ("mask", "overlay", "coco", "json", "csv", "probs", "confidence")
    default_formats = ("mask", "overlay")
    display = Display(
        metrics=("dice", "iou", "miou", "mdice", "aacc"),
        curves=("miou", "mdice", "aacc", "dice"),
        class_curves=("iou",),
        class_rank="iou",
        meanings={
            "miou": "overlap of prediction and truth (intersection over union), averaged over the classes",
            "macc": "pixels of a class that are found, averaged over the classes",
            "mdice": "overlap of prediction and truth (Dice), averaged over the classes",
            "aacc": "pixels with the right class",
            "boundary_iou": "overlap close to the borders of the classes: how exact outlines are",
            "ignored": "pixels without a label, which count for nothing",
            "iou": "overlap: pixels in both prediction and truth, of those in either",
            "acc": "pixels of the class that are found",
            "dice": "overlap: twice the pixels in both, of those in prediction and truth together",
            "hd95": "distance between the outlines of prediction and truth, leaving out the largest 5 %",
            "nsd": "share of the outlines that lie where they should, within the tolerance",
            "assd": "mean distance between the outlines of prediction and truth",
            "pixel_share": "share of the class in all pixels",
        },
        names={
            "miou": "mIoU",
            "macc": "mAcc",
            "mdice": "mDice",
            "aacc": "aAcc",
            "iou": "IoU",
            "acc": "Acc",
            "dice": "Dice",
            "pixel_share": "pixels",
            "boundary_iou": "boundary IoU",
            "case_dice": "case Dice",
            "case_iou": "case IoU",
            "hd95": "HD95",
            "nsd": "NSD",
            "assd": "ASSD",
            "pooled_f1": "pooled F1 (skin lesions' rule)",
            "n_defined": "cases",
            "n_missed": "missed",
        },
        metric_names={"dice": "case Dice", "iou": "case IoU", "dice_pooled": "pooled Dice", "ignored": "ignored pixels"},
        plain=frozenset({"hd95", "assd", "n_defined", "n_missed"}),
        hidden_metrics=frozenset({"n_defined", "n_missed"}),
        hidden_columns=frozenset({"hd95_unit", "hd95_variant"}),
    )
    leaves_unused = True  # some heads skip maps, which leaves the norms of these maps unused
    synchronises_norms = True  # as in published recipes, since a GPU fits few images

    # data

    def recognise(self, root: Path) -> bool:
        from visionattn.data.masks.recognise import holds_masks

        return holds_masks(root)

    def check_source(self, config: SegmentConfig) -> None:
        from visionattn.data.root import find_root

        find_root(config.data)

    def read_data(self, config: SegmentConfig) -> MaskData:
        from visionattn.data.masks.annotations.find import annotations_advised
        from visionattn.data.masks.sets import load_mask_data

        with annotations_advised(config.data.root):
            return load_mask_data(config.data, seed=config.seed, in_chans=config.model.channels)

    def read_split(self, config: SegmentConfig, split: str, target: Target) -> MaskSet:
        from visionattn.data.masks.sets import load_mask_split

        return load_mask_split(config.data, split, target["classes"], config.model.channels, seed=config.seed)

    def with_data(self, config: SegmentConfig, data: MaskData) -> SegmentConfig:
        from visionattn.data.sources import ChannelFiles

        if config.data.channel_files != "auto":
            return config
        several = isinstance(data.train.images, ChannelFiles)
        return config.model_copy(update={"data": config.data.model_copy(update={"channel_files": several})})

    def check_data(self, config: SegmentConfig, data: MaskData, *, cache_dir: Path, progress: Callable[[int], None]) -> CheckReport:
        from visionattn.data.masks.check import check_masks

        return check_masks(data, config.data, cache_dir=cache_dir, progress=progress)

    def manifest(self, data: MaskData, report: CheckReport) -> list[ManifestRow]:
        from visionattn.data.masks.sets import mask_manifest

        return mask_manifest(data, report.hashes)

    def target(self, config: SegmentConfig, data: MaskData) -> Target:
        return {"classes": data.classes, "palette": [list(colour) for colour in data.palette]}

    def describe(self, config: SegmentConfig, target: Target) -> str:
        return f"{len(target['classes'])} classes"

    def purpose(self, config: SegmentConfig, target: Target) -> str:
        return f"gives each pixel of an image one of {len(target['classes'])} classes"

    def train_dataset(self, config: SegmentConfig, model: nn.Module, data: MaskData, report: CheckReport) -> Dataset:
        import numpy as np

        from visionattn.tasks.segmentation.data import MaskedImages, augmentation

        known = report.counts["train"]  # empty unless the check decoded the masks
        counts = np.array([known[name] for name in data.classes], np.int64) if known else None
        return MaskedImages(data.train, augmentation(config, model), seed=config.seed, counts=counts)

    def eval_dataset(self, config: SegmentConfig, model: nn.Module, split: MaskSet) -> Dataset:
        from visionattn.tasks.segmentation.data import MaskedImages, preprocessing

        return MaskedImages(split, preprocessing(config, model))

    def file_dataset(self, config: SegmentConfig, model: nn.Module, files: Sequence[Path]) -> Dataset:
        import torch

        from visionattn.tasks.images import image_files

        return image_files(
            config, files, torch.tensor, channel_files=config.data.channel_files is True
        )  # unchanged: large images are normalised window by window

    def feature_dataset(self, config: SegmentConfig, model: nn.Module, files: Sequence[Path]) -> Dataset:
        from visionattn.tasks.images import image_files
        from visionattn.tasks.segmentation.data import preprocessing

        return image_files(config, files, preprocessing(config, model), channel_files=config.data.channel_files is True)

    def preview(
        self, config: SegmentConfig, model: nn.Module, data: MaskData, split: MaskSet, count: int, path: Path, *, augmented: bool
    ) -> bool:
        from visionattn.tasks.segmentation.data import augmentation, preprocessing, preview

        transform = augmentation(config, model) if augmented else preprocessing(config, model)
        preview(split, data.classes, data.palette, transform, count, path)
        return True

    # model

    def check_names(self, config: SegmentConfig) -> None:
        from visionattn.tasks.segmentation.model import check_names

        check_names(config)

    def backbone_name(self, config: SegmentConfig) -> str:
        from visionattn.tasks.segmentation.model import parts_of

        return parts_of(config).backbone

    def build_model(self, config: SegmentConfig, target: Target) -> nn.Module:
        from visionattn.tasks.segmentation.model import build_segmenter

        return build_segmenter(config, len(target["classes"]))

    def with_weights(self, config: SegmentConfig) -> SegmentConfig:
        from visionattn.tasks.segmentation.model import with_published_head

        return with_published_head(super().with_weights(config))

    def size_of_weights(self, record: Any) -> Any:
        return "auto"  # a crop has the size that suits the data, not that of the images a backbone was trained on

    def with_model_of(self, config: SegmentConfig, other: RunConfig) -> SegmentConfig:
        from visionattn.tasks.segmentation.model import with_head_of

        return with_head_of(super().with_model_of(config, other), other)

    def choices(self, config: SegmentConfig, facts: Facts, report: CheckReport | None) -> list[Choice]:
        from visionattn.tasks.segmentation.data import crop_choice, photometric_choice
        from visionattn.tasks.segmentation.model import head_choice

        found = [*super().choices(config, facts, report), crop_choice(report), head_choice(config), photometric_choice(config)]
        if facts.pretrained:
            found.append(Choice("augment.scale", (0.75, 1.5), "moderate, for a short run"))
        return found

    def published_weights(self, config: SegmentConfig) -> Weights | None:
        from visionattn.tasks.segmentation.model import published_weights

        return published_weights(config)

    def open_published(self, source: str | Path, report: Report | None) -> PublishedModel | None:
        from visionattn.tasks.segmentation.model import open_published

        return open_published(source, report)

    # training and evaluation

    def objective(self, config: SegmentConfig, target: Target, dataset: Any) -> Objective:
        from visionattn.tasks.segmentation.decision import pixel_thresholds
        from visionattn.tasks.segmentation.objective import build_objective

        pixel_thresholds(config.eval.threshold, target["classes"])  # a wrong name stops before the first step
        return build_objective(config, len(target["classes"]), dataset)

    def predictor(self, config: SegmentConfig, target: Target, model: nn.Module, device: torch.device) -> Predictor:
        from visionattn.tasks.segmentation.predictor import build_predictor

        return build_predictor(config, len(target["classes"]), model, device)

    def meter(self, config: SegmentConfig, target: Target) -> Meter:
        from visionattn.tasks.segmentation.decision import pixel_thresholds
        from visionattn.tasks.segmentation.scores import SegmentationMeter

        settings = config.eval
        return SegmentationMeter(
            target["classes"],
            thresholds=pixel_thresholds(settings.threshold, target["classes"]),
            per_case=settings.per_case,
            spacing=settings.spacing,
            hausdorff=settings.hausdorff,
            tolerance=settings.tolerance,
            protocol=settings.protocol,
        )

    def monitor(self, config: SegmentConfig) -> str:
        return "dice" if config.eval.per_case else "miou"

    def eval_batch_size(self, config: SegmentConfig) -> int:
        return 1  # images keep their own sizes

    def pictures(self, target: Target) -> Pictures:
        from visionattn.tasks.segmentation.pictures import SegmentationPictures

        return SegmentationPictures(target["classes"], palette_of(target))

    # explanation

    def subject(self, config: SegmentConfig, target: Target, model: nn.Module, question: Question, device: torch.device) -> Subject:
        from visionattn.tasks.segmentation.explain import pixel_subject

        return pixel_subject(config, target["classes"], model, question, device)

    def image_to_explain(self, dataset: Any, index: int) -> np.ndarray | None:
        from visionattn.tasks.images import loaded_image

        return loaded_image(dataset.mask_set.images, index)

    # export

    def size_advice(self, size: tuple[int, int]) -> str:
        return f"predict in windows: eval.mode=slide 'eval.tile=[{size[0]}, {size[1]}]'"

    # ensembles

    def ensemble(self, members: Sequence[Member]) -> Sequence[Member]:
        from visionattn.tasks.segmentation.ensemble import one_segmenter

        return members if len(members) == 1 else [one_segmenter(members)]

    # prediction

    def input_files(self, config: SegmentConfig, files: dict[Path, Path]) -> dict[Path, Path]:
        if config.data.channel_files is not True:
            return files
        return {path: place for path, place in files.items() if path.stem.endswith("_0000")}

    def file_predictor(
        self,
        config: SegmentConfig,
        target: Target,
        model: nn.Module,
        device: torch.device,
        formats: Collection[str],
        warn: Callable[[str], object],
    ) -> Predictor:
        from visionattn.tasks.segmentation.data import preprocessing
        from visionattn.tasks.segmentation.decision import pixel_thresholds
        from visionattn.tasks.segmentation.predictor import MapPredictor, build_predictor

        whole, tiled = (build_predictor(config, len(target["classes"]), model, device, tiled=tiled) for tiled in (False, True))
        thresholds = pixel_thresholds(config.eval.threshold, target["classes"])
        return MapPredictor(whole, tiled, preprocessing(config, model), thresholds=thresholds, formats=formats, warn=warn)

    def file_batch_size(self, batch_size: int) -> int:
        return 1

    def writer(self, config: SegmentConfig, target: Target, request: WriterRequest) -> Writer:
        from visionattn.tasks.segmentation.output import MaskWriter

        return MaskWriter(target["classes"], palette_of(target), request, config.data.preview)

    # serving

    def upload_dataset(self, config: SegmentConfig, model: nn.Module, content: bytes) -> Dataset:
        import torch

        from visionattn.tasks.images import Upload

        return Upload(config, content, torch.tensor)

    def presenter(self, config: SegmentConfig, target: Target, topk: int) -> Presenter:
        from visionattn.tasks.segmentation.output import MaskWriter

        if config.data.channel_files is True:
            raise self.not_served("each of its images is in several files, and a request brings one")
        request = WriterRequest({Path("image"): Path("image")}, None, (), topk)
        return MaskWriter(target["classes"], palette_of(target), request, config.data.preview).present


def palette_of(target: Target) -> list[Colour]:
    """Colour of each class."""
    from visionattn.data.masks.palettes import default_palette

    if not target.get("palette"):
        return default_palette(len(target["classes"]))
    return [(int(red), int(green), int(blue)) for red, green, blue in target["palette"]]

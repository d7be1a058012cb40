"""Build the segmentation model of a config, and load published ones by name or file."""

from __future__ import annotations

from pathlib import Path

from visionattn.backbones.registry import get_variant
from visionattn.config.choices import Choice
from visionattn.config.schema import RunConfig, chosen
from visionattn.data.masks.palettes import read_classes
from visionattn.data.masks.settings import MaskAugmentConfig
from visionattn.errors import UserError
from visionattn.models import Segmenter, create_segmenter, segmenter_from_file
from visionattn.models.segmenter import head_class
from visionattn.models.segmenter_factory import IMAGENET, Preset, with_preset
from visionattn.models.weights.download import Report
from visionattn.models.weights.records import SegmenterRecord, Weights, find_segmenter, named_weights
from visionattn.tasks.base import PublishedModel
from visionattn.tasks.images import with_normalisation
from visionattn.tasks.segmentation.settings import HeadConfig, SegmentConfig, SegmenterConfig


def parts_of(config: SegmentConfig) -> Preset:
    """Resolve backbone, head and head arguments, filling in those of a preset."""
    head = config.model.head
    return with_preset(config.model.name, None if head.name == "auto" else head.name, head.args)


def with_published_head(config: SegmentConfig) -> SegmentConfig:
    """The config with the head and the crop of published weights of a whole model, where they were left open."""
    model, record = config.model, published_weights(config)
    if not isinstance(record, SegmenterRecord):
        return config
    head = model.head.model_copy(update={"name": record.head}) if model.head.name == "auto" else model.head
    size = record.crop if model.img_size == "auto" else model.img_size
    return config.model_copy(update={"model": model.model_copy(update={"head": head, "img_size": size})})


def head_choice(config: SegmentConfig) -> Choice:
    """The head that auto means."""
    return Choice("model.head.name", parts_of(config).head, "that of the preset, or the cheapest one")


def with_head_of(config: SegmentConfig, other: RunConfig) -> SegmentConfig:
    """The config with the head of another run, if that is a segmentation run with the same backbone and the head was left open."""
    mine, theirs = config.model, other.model
    if not isinstance(theirs, SegmenterConfig) or mine.name != theirs.name or mine.head.name != "auto":
        return config
    head = mine.head.model_copy(update={"name": theirs.head.name, "args": {**theirs.head.args, **mine.head.args}})
    return config.model_copy(update={"model": mine.model_copy(update={"head": head})})


def check_names(config: SegmentConfig) -> None:
    """Check that backbone and head are known.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    parts = parts_of(config)
    get_variant(parts.backbone)
    head_class(parts.head, parts.head_args)


def published_weights(config: SegmentConfig) -> Weights | None:
    """Find the record of model.weights: weights of the backbone, or of a model with its head."""
    name, tag = parts_of(config).backbone, config.model.weights
    return named_weights(name, tag) or find_segmenter(f"{name}.{tag}")


def build_segmenter(config: SegmentConfig, num_classes: int) -> Segmenter:
    """Build the model with initial weights.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    settings, aux, parts = config.model, config.model.head.aux, parts_of(config)
    record = published_weights(config)
    whole = record if isinstance(record, SegmenterRecord) else None  # includes weights of the head
    try:
        model = create_segmenter(
            parts.backbone if record is None or whole else record.name,
            parts.head,
            num_classes,
            in_chans=settings.channels,
            img_size=settings.size,
            drop_path_rate=chosen(settings.drop_path_rate, "model.drop_path_rate"),
            aux=None if aux.enabled == "auto" else aux.enabled,
            backbone_args={**(whole.args if whole else {}), **settings.args},
            **parts.head_args,
        )
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        what = f"{settings.name} cannot be built with model.args {settings.args} and model.head.args {settings.head.args}"
        raise UserError("VA-M002", what, why=str(error), fix=f"visionattn models info {settings.name}") from error
    model.aux_weight = aux.weight
    if whole and settings.channels == 3:
        model.pretrained_cfg |= IMAGENET
    segmenter: Segmenter = with_normalisation(model, config)
    return segmenter


def open_published(source: str | Path, report: Report | None) -> PublishedModel | None:
    """Open a published model by name, or a segmentation file, with the preprocessing of the published recipes.

    150 classes without names are taken to be those of ADE20K.

    Raises:
        UserError: VA-W001 to VA-W007.
    """
    if not Path(source).is_file() and find_segmenter(str(source)) is None:
        return None
    model, classes, palette = segmenter_from_file(source, report=report)
    known = [entry for entry in read_classes("ade20k") if not entry.ignored]
    ade20k = model.num_classes == len(known)
    if classes is None:
        classes = tuple(entry.name for entry in known) if ade20k else tuple(str(number) for number in range(model.num_classes))
    if palette is None and ade20k:
        palette = tuple(entry.colour for entry in known if entry.colour is not None)
    settings = SegmenterConfig(
        name=model.pretrained_cfg["architecture"], weights=str(source), in_chans=model.in_chans, head=HeadConfig(name=model.head)
    )
    # The published test on ADE20K: the image is resized to fit into 2048 x 512 and predicted as a whole.
    augment = MaskAugmentConfig(resize=(2048, 512)) if ade20k else MaskAugmentConfig()
    names = list(classes)
    if model.num_classes == 1:  # one logit separates a class from the background
        names, palette = ["background", *names], None
    target = {"classes": names, **({"palette": [list(colour) for colour in palette]} if palette else {})}
    return PublishedModel(SegmentConfig(model=settings, augment=augment), model, target)

"""Samples of classification: labelled images with their augmentation, files without labels, and a preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.config.choices import Choice, Facts
from visionattn.data.check import CheckReport, contact_sheet, listed_reasons
from visionattn.data.images.sets import ImageSet, LabelledData
from visionattn.data.images.transforms import (
    RAND_AUGMENT_INCLUDES,
    EvalTransform,
    RandAugmentTransform,
    TrainTransform,
    eval_transform,
    train_transform,
)
from visionattn.data.readers import UnreadableFile
from visionattn.data.sampling import derive_seed
from visionattn.errors import UserError
from visionattn.files import atomic_write
from visionattn.names import shown
from visionattn.tasks.classification.settings import ClassifyConfig
from visionattn.tasks.images import normalisation

Transform = TrainTransform | RandAugmentTransform | EvalTransform


def augmentation(config: ClassifyConfig, model: Any) -> TrainTransform | RandAugmentTransform:
    """Augmentation and normalisation for a model."""
    return train_transform(config.augment, config.model.size, **normalisation(model))


def preprocessing(config: ClassifyConfig, model: Any) -> EvalTransform:
    """The published evaluation of a model at the config's size."""
    cfg = model.pretrained_cfg
    crop = config.eval.crop_pct if config.eval.crop_pct is not None else cfg["crop_pct"]
    return eval_transform(config.model.size, **normalisation(model), interpolation=cfg["interpolation"], crop_pct=crop)


def rand_augment_choice(config: ClassifyConfig, facts: Facts) -> Choice:
    """RandAugment of colour pictures, stronger for CNNs, which overfit sooner; none beside settings that it takes the place of."""
    given = [name for name in RAND_AUGMENT_INCLUDES if getattr(config.augment, name)]
    if given:
        value, reason = "", f"augment.{given[0]} is given"
    elif isinstance(config.data.preview, list) or config.model.channels != 3:
        value, reason = "", "no colour pictures of 8 bits"
    elif facts.cnn:
        value, reason = "rand-m6-mstd0.5-inc1", "CNN"
    else:
        value, reason = "rand-m4-n1-mstd0.5-inc1", "attention"
    return Choice("augment.rand_augment", value, reason)


def require_classes(before: LabelledData, after: LabelledData, report: CheckReport) -> LabelledData:
    """The data after exclusion, if each class still has training images.

    Raises:
        UserError: VA-D005.
    """
    counts = zip(before.class_counts(before.train).items(), after.class_counts(after.train).values(), strict=True)
    lost = [name for (name, had), has in counts if had and not has]
    if lost:
        broken = {name: index for index, name in enumerate(before.train.ids) if name in report.unreadable}
        theirs = [name for name, index in broken.items() if set(before.label_text(before.train, index).split(";")) & set(lost)]
        raise UserError(
            "VA-D005",
            shown(f"no readable training image is left of {', '.join(lost)}"),
            where=listed_reasons({name: report.unreadable[name] for name in theirs}),
            fix="repair these files, or remove the class in all splits",
        )
    return after


def preview(part: ImageSet, classes: list[str], transform: Transform, count: int, path: Path) -> None:
    """Write a PNG of images as the network sees them, with their class names, the classes in turn.

    Raises:
        UserError: VA-D010, none could be read.
    """
    tiles = []
    for position, index in enumerate(_classes_in_turn(part)[:count]):
        try:
            image = part.images.read(index)
        except UnreadableFile:
            continue
        label = part.labels[index]
        names = [classes[number] for number in np.atleast_1d(label if part.labels.ndim == 1 else np.flatnonzero(label))]
        tensor = transform(image) if isinstance(transform, EvalTransform) else transform(image, derive_seed(0, position))
        tiles.append((transform.normalize.undo(tensor), ";".join(names)))
    if not tiles:
        raise UserError("VA-D010", f"no image of {part.name} could be read for the preview")
    atomic_write(path, contact_sheet(tiles))


def _classes_in_turn(part: ImageSet) -> list[int]:
    """All positions, the first of each class before the second of any."""
    classes = part.labels if part.labels.ndim == 1 else part.labels.argmax(1)
    seen: dict[int, int] = {}
    turns = []
    for index, number in enumerate(classes.tolist()):
        turns.append((seen.get(number, 0), number, index))
        seen[number] = seen.get(number, 0) + 1
    return [index for _, _, index in sorted(turns)]

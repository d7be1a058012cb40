"""Samples of bags: labelled ones, and those of files without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.bags.patches import PatchFeatures
from visionattn.data.bags.readers import Bag, Place, check_form, list_bags, read_bag
from visionattn.data.bags.recognise import SUFFIXES
from visionattn.data.bags.sets import BagSet, folders_of_patches
from visionattn.data.readers import UnreadableFile
from visionattn.names import from_path
from visionattn.tasks.bags.settings import BagAugmentConfig, BagsConfig
from visionattn.tasks.batch import SampleDataset


def patch_features(config: BagsConfig) -> PatchFeatures:
    """What makes features of folders of patches."""
    return PatchFeatures(config.data.patches, config.train.device)


class LabelledBags(SampleDataset):
    """Samples `bag`, a `Bag`, and `label`.

    Args:
        features: per instance, as the model takes them.
        augment: of a training set.
    """

    def __init__(self, part: BagSet, features: int, augment: BagAugmentConfig | None = None, seed: int | None = None) -> None:
        super().__init__(part.ids, seed)
        self.part, self.features, self.augment = part, features, augment

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        bag = self.part.read(index)
        check_form(bag, self.part.ids[index], features=self.features)
        if self.augment is not None and seed is not None:
            bag = augmented(bag, self.augment, seed)
        return {"bag": bag, "label": int(self.part.labels[index])}


def augmented(bag: Bag, settings: BagAugmentConfig, seed: int) -> Bag:
    """A bag in training: some of its instances, and the seed of the sample."""
    if settings.max_instances is not None and len(bag) > settings.max_instances:
        chosen = np.random.default_rng(seed).choice(len(bag), settings.max_instances, replace=False)
        bag = bag.take(np.sort(chosen))
    return replace(bag, seed=seed)


@dataclass(frozen=True)
class FileBag:
    """A bag to predict on: where it is, and its name; `reason`, if its file cannot be read."""

    place: Place
    name: str
    reason: str = ""


class BagFiles(SampleDataset):
    """Samples `bag` of files without labels."""

    def __init__(self, bags: Sequence[FileBag], features: int, max_bytes: int, patches: PatchFeatures) -> None:
        super().__init__([bag.name for bag in bags])
        self.bags, self.features, self.max_bytes, self.patches = bags, features, max_bytes, patches

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        found = self.bags[index]
        if found.reason:
            raise UnreadableFile(found.name, found.reason)
        bag = self.patches.read(found.place) if found.place.patches else read_bag(found.place, max_bytes=self.max_bytes)
        check_form(bag, found.name, features=self.features)
        return {"bag": bag}


def bags_of_files(files: Sequence[Path]) -> list[FileBag]:
    """The bags in files; images are the patches of the folder they are in. Names are paths, with the bag's name where there are several."""
    found = []
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            continue
        try:
            listed = list_bags(path)
        except UnreadableFile as error:
            found.append(FileBag(Place(str(path)), from_path(str(path)), error.reason))
            continue
        several = len(listed) > 1 or listed[0].place.group
        found += [FileBag(item.place, from_path(f"{path}/{item.name}" if several else str(path))) for item in listed]
    folders = folders_of_patches([path for path in files if path.suffix.lower() not in SUFFIXES])
    return found + [
        FileBag(Place(str(folder), patches=tuple(map(str, inside))), from_path(str(folder))) for folder, inside in folders.items()
    ]

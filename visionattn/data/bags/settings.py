"""Settings of bags of instances."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import Self

from visionattn.config.schema import Auto, DataConfig, Section, setting


class PatchConfig(Section):
    """How folders of patches become features: a frozen backbone, whose pooled output describes a patch."""

    backbone: str = setting("davit_tiny", "Backbone that describes a patch, see `visionattn models list`.")
    weights: str = setting(
        "pretrained",
        "Its weights: a tag (visionattn weights list), pretrained for the model's default, a file, or none for random ones.",
    )
    args: dict[str, Any] = setting({}, "Arguments of the family's class, for example depths or embed_dim.")
    img_size: Annotated[int, Field(ge=32)] | Auto = setting(
        "auto", "Side of a patch as the backbone sees it, in pixels; auto: the size of its weights."
    )
    batch_size: int = setting(64, "Patches per step.", ge=1)
    cache: str = setting("", "Folder of computed features; empty: in the user's cache folder.")


class BagDataConfig(DataConfig):
    """The `data` section of bags."""

    root: str = setting(
        "",
        "Folder of bags (.h5, .npz, .pt) or of patches (class/slide/*.png), or a file with many bags (.npz, .h5).",
    )
    labels: str = setting(
        "", "CSV file with columns slide_id,label and, where there are, patient,split,fold; empty: one in data.root, if there is one."
    )
    classes: Literal["auto"] | list[str] = setting("auto", "Class names in order: auto (from the labels), or a list.")
    group_by: str = setting(
        "", "CSV column, or regular expression on the id, whose equal values stay in one split; empty: a column patient, if there is one."
    )
    standardise: bool = setting(True, "Shift and scale each feature to mean 0 and deviation 1 over the training bags.")
    max_bytes: int = setting(2**33, "Largest bag in memory, in bytes.", ge=1)
    workers: int | Literal["auto"] = setting(
        0, "Loader processes, each of which holds two steps ahead; auto is the number of cores, at most 8."
    )
    patches: PatchConfig = PatchConfig()

    def at(self, root: str) -> Self:
        return super().at(root).model_copy(update={"labels": ""})

"""Volumes: a class for each voxel, of NIfTI files and DICOM series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.config.choices import Choice, Facts
from visionattn.errors import UserError
from visionattn.tasks.base import Dataset, Display, Meter, Objective, Pictures, Predictor, Target, Task, Writer, WriterRequest
from visionattn.tasks.volumes.settings import VolumesConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from visionattn.data.check import CheckReport
    from visionattn.data.splits import ManifestRow
    from visionattn.data.volumes.sets import VolumeData, VolumeSet
    from visionattn.models.weights.records import Weights
    from visionattn.tasks.batch import Batch


class Volumes(Task):
    """Volumes task; the target contains the classes, the label values, and how a volume is prepared."""

    name = "volumes"
    config = VolumesConfig
    unit = "volume"
    formats = ("mask", "overlay", "json", "csv")
    default_formats = ("mask",)
    display = Display(
        metrics=("dice", "hd95", "nsd"),
        curves=("dice", "nsd"),
        class_curves=("dice", "hd95"),
        class_rank="dice",
        meanings={
            "dice": "overlap of prediction and truth: twice the voxels in both, of those in either counted apart",
            "iou": "overlap: voxels in both prediction and truth, of those in either",
            "hd95": "distance between the surfaces of prediction and truth in mm, leaving out the largest 5 %; 0 is best",
            "nsd": "share of the surfaces that lie where they should, within the tolerance",
            "assd": "mean distance between the surfaces of prediction and truth in mm; 0 is best",
            "dice_pooled": "overlap over the voxels of all volumes together",
        },
        names={
            "dice": "Dice",
            "iou": "IoU",
            "hd95": "HD95",
            "nsd": "NSD",
            "assd": "ASSD",
            "dice_pooled": "pooled Dice",
            "n_defined": "cases",
            "n_missed": "missed",
            "synapse_dice": "Dice (Synapse's rule)",
            "synapse_hd95": "HD95 in voxels (Synapse's rule)",
        },
        plain=frozenset({"hd95", "assd", "n_defined", "n_missed", "synapse_hd95"}),
        hidden_metrics=frozenset({"n_defined", "n_missed"}),
        hidden_columns=frozenset({"hd95_unit", "hd95_variant"}),
    )
    leaves_unused = True  # the head of a 2D backbone may skip maps
    synchronises_norms = True  # few volumes fit on a device

    # data

    def recognise(self, root: Path) -> bool:
        from visionattn.data.volumes.recognise import holds_volumes

        return holds_volumes(root)

    def check_source(self, config: VolumesConfig) -> None:
        from visionattn.data.root import find_root
        from visionattn.data.volumes.extra import require_libraries

        find_root(config.data)
        require_libraries()

    def read_data(self, config: VolumesConfig) -> VolumeData:
        from visionattn.data.volumes.extra import require_libraries
        from visionattn.data.volumes.sets import load_volume_data
        from visionattn.tasks.volumes.data import require_channels

        require_libraries()
        data = load_volume_data(config.data, seed=config.seed)
        require_channels(config, data.channels)
        return data

    def read_split(self, config: VolumesConfig, split: str, target: Target) -> VolumeSet:
        from visionattn.data.volumes.sets import load_volume_split
        from visionattn.tasks.volumes.data import rule_of

        return load_volume_split(config.data, split, target["classes"], rule_of(target), config.model.in_chans, config.seed)

    def check_data(self, config: VolumesConfig, data: VolumeData, *, cache_dir: Path, progress: Callable[[int], None]) -> CheckReport:
        from visionattn.data.volumes.check import check_volumes

        return check_volumes(data, config.data, cache_dir=cache_dir, progress=progress)

    def usable_data(self, config: VolumesConfig, data: VolumeData, report: Any) -> VolumeData:
        from dataclasses import replace

        usable: VolumeData = super().usable_data(config, data, report)
        return replace(usable, facts=report.facts)

    def manifest(self, data: VolumeData, report: CheckReport) -> list[ManifestRow]:
        from visionattn.data.volumes.sets import volume_manifest

        return volume_manifest(data, report.hashes)

    def target(self, config: VolumesConfig, data: VolumeData) -> Target:
        from visionattn.data.volumes.sets import make_plan
        from visionattn.tasks.volumes.data import make_target

        return make_target(config, data, make_plan(config.data, data))

    def describe(self, config: VolumesConfig, target: Target) -> str:
        spacing = target["plan"]["spacing"]
        sizes = "their own spacing" if spacing is None else f"{' x '.join(f'{size:.3g}' for size in spacing)} mm"
        kind = f"{len(target['classes'])} {'regions' if target['regions'] else 'classes'}"
        patch = " x ".join(map(str, config.model.patch))
        slices = "" if config.model.is_3d else f", slices across {['right', 'front', 'up'][target['slice_axis']]}"
        return f"{kind}, {sizes}, patches of {patch}{slices}"

    def purpose(self, config: VolumesConfig, target: Target) -> str:
        kind = "marks {} regions in a scan" if target["regions"] else "gives each voxel of a scan one of {} classes"
        return kind.format(len(target["classes"]))

    def describe_input(self, config: VolumesConfig) -> str:
        return ""  # the patch is in `describe`

    def train_dataset(self, config: VolumesConfig, model: nn.Module, data: VolumeData, report: CheckReport) -> Dataset:
        from visionattn.tasks.volumes.data import VolumePatches

        return VolumePatches(config, data.train, model.pretrained_cfg)  # type: ignore[arg-type]

    def eval_dataset(self, config: VolumesConfig, model: nn.Module, split: VolumeSet) -> Dataset:
        from visionattn.tasks.volumes.data import WholeVolumes

        return WholeVolumes(split, model.pretrained_cfg)  # type: ignore[arg-type]

    def file_dataset(self, config: VolumesConfig, model: nn.Module, files: Sequence[Path]) -> Dataset:
        from visionattn.tasks.volumes.data import VolumeFiles
        from visionattn.tasks.volumes.output import volumes_of

        sources = volumes_of({path: path for path in files}, config.model.in_chans)
        return VolumeFiles(sources, model.pretrained_cfg, config.data.max_bytes)  # type: ignore[arg-type]

    @property
    def input_suffixes(self) -> frozenset[str]:
        from visionattn.data.volumes.recognise import SUFFIXES

        return SUFFIXES

    def is_input(self, path: str) -> bool:
        from visionattn.data.volumes.recognise import is_dicom

        return is_dicom(path)

    def preview(
        self, config: VolumesConfig, model: nn.Module, data: VolumeData, split: VolumeSet, count: int, path: Path, *, augmented: bool
    ) -> bool:
        from visionattn.tasks.volumes.data import VolumePatches, WholeVolumes, preview

        cfg: Any = model.pretrained_cfg
        preview(VolumePatches(config, split, cfg) if augmented else WholeVolumes(split, cfg), count, path)
        return True

    # model

    def check_names(self, config: VolumesConfig) -> None:
        from visionattn.tasks.volumes.model import check_names

        check_names(config)

    def build_model(self, config: VolumesConfig, target: Target) -> nn.Module:
        from visionattn.tasks.volumes.model import build_model

        return build_model(config, target)

    def published_weights(self, config: VolumesConfig) -> Weights | None:
        return None if config.model.is_3d else super().published_weights(config)

    def with_weights(self, config: VolumesConfig) -> VolumesConfig:
        if not config.model.is_3d:
            return super().with_weights(config)  # type: ignore[no-any-return]
        weights = "none" if config.model.weights == "auto" else config.model.weights
        return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})

    def size_of_weights(self, record: Any) -> Any:
        return "auto"  # a slice has the size that suits the data

    def choices(self, config: VolumesConfig, facts: Facts, report: CheckReport | None) -> list[Choice]:
        from visionattn.tasks.volumes.data import volume_choices

        own = volume_choices(config, facts, report)
        return [*(choice for choice in super().choices(config, facts, report) if choice.key not in {item.key for item in own}), *own]

    # training and evaluation

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["image"].flatten(0, 1))  # volumes and their patches

    def objective(self, config: VolumesConfig, target: Target, dataset: Any) -> Objective:
        from visionattn.tasks.volumes.objective import VolumeObjective

        return VolumeObjective(config, len(target["classes"]), target["regions"])

    def predictor(self, config: VolumesConfig, target: Target, model: nn.Module, device: torch.device) -> Predictor:
        from visionattn.tasks.volumes.predictor import VolumePredictor

        axis = model.pretrained_cfg["slice_axis"]  # type: ignore[index]  # its own, also among several models
        return VolumePredictor(model, config, device, slice_axis=axis, regions=bool(target["regions"]))  # type: ignore[arg-type]

    def embedder(self, model: nn.Module, device: torch.device) -> Predictor:
        raise self.no_features()

    def meter(self, config: VolumesConfig, target: Target) -> Meter:
        from visionattn.tasks.volumes.scores import VolumeMeter

        settings = config.eval
        return VolumeMeter(target, hausdorff=settings.hausdorff, tolerance=settings.tolerance, protocol=settings.protocol)

    def monitor(self, config: VolumesConfig) -> str:
        return "dice"

    def eval_batch_size(self, config: VolumesConfig) -> int:
        return 1  # volumes keep their own sizes

    def pictures(self, target: Target) -> Pictures:
        from visionattn.tasks.volumes.pictures import VolumePictures

        return VolumePictures(target)

    # export

    def network_input(self, config: VolumesConfig) -> tuple[int, int, int]:
        raise UserError("VA-C002", "models of task volumes cannot be exported yet", why="the network takes scans, not images")

    # ensembles

    def average(self, config: VolumesConfig, outputs: Sequence[Any]) -> Any:
        from dataclasses import replace

        return replace(outputs[0], parts=[part for output in outputs for part in output.parts])

    # prediction

    def file_batch_size(self, batch_size: int) -> int:
        return 1

    def writer(self, config: VolumesConfig, target: Target, request: WriterRequest) -> Writer:
        from visionattn.tasks.volumes.output import LabelMapWriter

        return LabelMapWriter(target, config.model.in_chans, request)

"""Attention backbones for vision: models, training, evaluation.

Names are imported when first used, so that `import visionattn` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm.data import create_transform as create_transform
    from timm.data import resolve_data_config as resolve_data_config

    from visionattn import kernels as kernels
    from visionattn.attention import register_attention as register_attention
    from visionattn.backbones import register_backbone as register_backbone
    from visionattn.heads import register_head as register_head
    from visionattn.jobs.compare import compare as compare
    from visionattn.jobs.evaluate import evaluate as evaluate
    from visionattn.jobs.explain import explain as explain
    from visionattn.jobs.export import export as export
    from visionattn.jobs.features import extract_bags as extract_bags
    from visionattn.jobs.features import extract_features as extract_features
    from visionattn.jobs.folds import resume_folds as resume_folds
    from visionattn.jobs.folds import train_folds as train_folds
    from visionattn.jobs.neighbors import find_neighbors as find_neighbors
    from visionattn.jobs.predict import predict as predict
    from visionattn.jobs.serve import serve as serve
    from visionattn.jobs.train import train as train
    from visionattn.models.factory import create_model as create_model
    from visionattn.models.factory import model_info as model_info
    from visionattn.models.segmenter_factory import create_segmenter as create_segmenter
    from visionattn.models.weights.load import LoadReport as LoadReport
    from visionattn.models.weights.load import load_checkpoint as load_checkpoint
    from visionattn.models.weights.records import list_models as list_models
    from visionattn.tasks import load_config as load_config
    from visionattn.tasks import register_task as register_task

__version__ = "0.1.0"

_EXPORTS = {
    "compare": "visionattn.jobs.compare",
    "create_model": "visionattn.models.factory",
    "create_segmenter": "visionattn.models.segmenter_factory",
    "model_info": "visionattn.models.factory",
    "load_checkpoint": "visionattn.models.weights.load",
    "LoadReport": "visionattn.models.weights.load",
    "list_models": "visionattn.models.weights.records",
    "register_backbone": "visionattn.backbones",
    "register_attention": "visionattn.attention",
    "register_head": "visionattn.heads",
    "register_task": "visionattn.tasks",
    "load_config": "visionattn.tasks",
    "resolve_data_config": "timm.data",
    "create_transform": "timm.data",
    "train": "visionattn.jobs.train",
    "train_folds": "visionattn.jobs.folds",
    "resume_folds": "visionattn.jobs.folds",
    "evaluate": "visionattn.jobs.evaluate",
    "predict": "visionattn.jobs.predict",
    "explain": "visionattn.jobs.explain",
    "export": "visionattn.jobs.export",
    "extract_bags": "visionattn.jobs.features",
    "extract_features": "visionattn.jobs.features",
    "find_neighbors": "visionattn.jobs.neighbors",
    "serve": "visionattn.jobs.serve",
    "kernels": "visionattn.kernels",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'visionattn' has no attribute {name!r}")
    module = import_module(_EXPORTS[name])
    return module if name == "kernels" else getattr(module, name)

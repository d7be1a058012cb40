"""Attention backbones for vision: models, training, evaluation.

Names are imported when first used, so that `import visionattn` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
    "kernels": "visionattn.kernels",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'visionattn' has no attribute {name!r}")
    module = import_module(_EXPORTS[name])
    return module if name == "kernels" else getattr(module, name)

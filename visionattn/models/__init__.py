"""Create models by name and load their weights.

Names are imported when first used: the records of weights are read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.models.classifier import Classifier
    from visionattn.models.factory import create_model, model_info
    from visionattn.models.segmenter import Segmenter
    from visionattn.models.segmenter_factory import create_segmenter, segmenter_from_file
    from visionattn.models.weights.load import LoadReport, load_checkpoint

_EXPORTS = {
    "Classifier": "classifier",
    "LoadReport": "weights.load",
    "Segmenter": "segmenter",
    "create_model": "factory",
    "create_segmenter": "segmenter_factory",
    "load_checkpoint": "weights.load",
    "model_info": "factory",
    "segmenter_from_file": "segmenter_factory",
}

__all__ = [
    "Classifier",
    "LoadReport",
    "Segmenter",
    "create_model",
    "create_segmenter",
    "load_checkpoint",
    "model_info",
    "segmenter_from_file",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'visionattn.models' has no attribute {name!r}")
    return getattr(import_module(f"visionattn.models.{_EXPORTS[name]}"), name)

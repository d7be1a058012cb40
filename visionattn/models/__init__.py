"""Create models by name and load their weights."""

from visionattn.models.classifier import Classifier
from visionattn.models.factory import create_model, model_info
from visionattn.models.segmenter import Segmenter
from visionattn.models.segmenter_factory import create_segmenter, segmenter_from_file
from visionattn.models.weights.load import LoadReport, load_checkpoint

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

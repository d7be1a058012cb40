"""Models by name: backbone and head together, and the files that hold their weights."""

from visionattn.models.classifier import Classifier
from visionattn.models.factory import create_model, model_info
from visionattn.models.weights import LoadReport, load_checkpoint

__all__ = ["Classifier", "LoadReport", "create_model", "load_checkpoint", "model_info"]

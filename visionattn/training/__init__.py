"""Train, evaluate, predict: what the command line calls and a notebook can call."""

from visionattn.training.classification import Prediction
from visionattn.training.inference import evaluate, predict
from visionattn.training.jobs import TrainResult, train
from visionattn.training.masks import MaskPrediction

__all__ = ["MaskPrediction", "Prediction", "TrainResult", "evaluate", "predict", "train"]

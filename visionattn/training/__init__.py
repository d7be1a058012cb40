"""Train, evaluate, predict: what the command line calls and a notebook can call."""

from visionattn.training.classification import Prediction
from visionattn.training.inference import evaluate, predict
from visionattn.training.jobs import TrainResult, train

__all__ = ["Prediction", "TrainResult", "evaluate", "predict", "train"]

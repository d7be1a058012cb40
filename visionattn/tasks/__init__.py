"""Tasks own what says what a prediction is worth: loss, outputs, metrics."""

from visionattn.tasks.base import Meter, Scores, Task
from visionattn.tasks.classification import Classification
from visionattn.tasks.segmentation import Segmentation

__all__ = ["Classification", "Meter", "Scores", "Segmentation", "Task"]

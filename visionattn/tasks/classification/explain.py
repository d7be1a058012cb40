"""What `explain` explains of a classifier: the logit of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visionattn.errors import UserError
from visionattn.tasks.base import Question, Subject
from visionattn.tasks.classification.data import preprocessing
from visionattn.tasks.classification.settings import ClassifyConfig
from visionattn.tasks.images import class_number, image_of, require_point


def class_subject(config: ClassifyConfig, classes: Sequence[str], model: Any, question: Question, device: torch.device) -> Subject:
    """The image as it is evaluated, and the logit of a class: by default the most probable one.

    Raises:
        UserError: VA-C002, VA-D010.
    """
    pixels = image_of(config, question.image)
    transform = preprocessing(config, model)
    image = transform(pixels)
    picture = transform.normalize.undo(image)
    height, width = image.shape[1:]
    point = (height // 2, width // 2)
    if question.point is not None:
        size = (pixels.shape[0], pixels.shape[1])
        require_point(question.point, size)
        left, top = transform.position(question.point[0] + 0.5, question.point[1] + 0.5, size)
        point = (int(np.floor(top)), int(np.floor(left)))
        if not (0 <= point[0] < height and 0 <= point[1] < width):
            what = f"--query: the point {question.point[0]:g},{question.point[1]:g} is outside of what the network sees"
            raise UserError("VA-C002", what, why="images are cropped to their centre", fix=f"--query {size[1] // 2},{size[0] // 2}")
    image = image[None].to(device)
    with torch.no_grad():
        outputs = model(image)
    number = int(outputs[0].argmax()) if question.class_name is None else class_number(question.class_name, classes)
    temperature = config.eval.temperature

    def probability(outputs: torch.Tensor) -> torch.Tensor:
        scaled = outputs.float() / temperature
        return (scaled.sigmoid() if config.data.multi_label else scaled.softmax(1))[:, number]

    return Subject(
        image=image,
        picture=np.broadcast_to(picture, (height, width, 3)),
        point=point,
        class_name=classes[number],
        where="",
        region=None,
        logit=lambda outputs: outputs[:, number],
        probability=probability,
    )

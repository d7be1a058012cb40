"""What `explain` explains of a segmentation model: the logit of a class at a pixel, or over the pixels predicted as it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.layers import to_2tuple

from visionattn.data.masks.annotations.records import is_background
from visionattn.errors import UserError
from visionattn.names import shown
from visionattn.tasks.base import Question, Subject
from visionattn.tasks.images import class_number, image_of, require_point
from visionattn.tasks.segmentation.data import preprocessing
from visionattn.tasks.segmentation.decision import pixel_probabilities
from visionattn.tasks.segmentation.settings import SegmentConfig

LARGE = 2**19  # pixels; of larger images a window is explained: recorded attention takes much memory


def pixel_subject(config: SegmentConfig, classes: Sequence[str], model: Any, question: Question, device: torch.device) -> Subject:
    """The image as it is evaluated, or the window of it that has the point in its middle, and the logit of a class.

    At a point it is the class predicted there; otherwise the one that most pixels have, apart from a background, as the mean over them.

    Raises:
        UserError: VA-C002, VA-D010.
    """
    pixels = image_of(config, question.image, channel_files=config.data.channel_files is True)
    size = (pixels.shape[0], pixels.shape[1])
    transform = preprocessing(config, model)
    image = transform(pixels)
    point, note = None, ""
    if question.point is not None:
        require_point(question.point, size)
        scale = (image.shape[1] / size[0], image.shape[2] / size[1])
        point = (int((question.point[1] + 0.5) * scale[0]), int((question.point[0] + 0.5) * scale[1]))
    if config.eval.mode == "slide" or image.shape[1] * image.shape[2] > LARGE:
        tile = config.model.size if config.eval.tile is None else to_2tuple(config.eval.tile)
        image, point = _window(image, point, tile)
        note = f", in a window of {image.shape[2]} x {image.shape[1]}"
    picture = transform.normalize.undo(image)
    height, width = image.shape[1:]
    image = image[None].to(device)
    with torch.no_grad():
        found = pixel_probabilities(model(image)[0].float())  # K H W
    predicted = found.argmax(0)
    given = None if question.class_name is None else class_number(question.class_name, classes)
    if point is not None:
        number = int(predicted[point]) if given is None else given
        region = torch.zeros(height, width, device=device)
        region[point] = 1
        where = f"at the pixel in column {point[1]}, row {point[0]}"
    else:
        number = _largest(predicted, classes) if given is None else given
        chosen = predicted == number
        if not chosen.any():
            what = f'--class: no pixel is predicted as "{classes[number]}"'
            raise UserError("VA-C002", shown(what), fix=f"--query {size[1] // 2},{size[0] // 2} explains one pixel, whatever its class")
        region = chosen.float()
        where = f"mean over the {int(chosen.sum()):,} pixels that are predicted as it"
        best = int(torch.where(chosen, found[number], -1.0).argmax())
        point = (best // width, best % width)
    weights = region / region.sum()

    def logit(outputs: torch.Tensor) -> torch.Tensor:
        chosen = outputs[:, number] if outputs.shape[1] > 1 else (2 * number - 1) * outputs[:, 0]
        return (chosen * weights).sum((1, 2))

    def probability(outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([(pixel_probabilities(one.float())[number] * weights).sum() for one in outputs])

    return Subject(
        image=image,
        picture=np.broadcast_to(picture, (height, width, 3)),
        point=point,
        class_name=classes[number],
        where=where + note,
        region=region,
        logit=logit,
        probability=probability,
    )


def _window(image: torch.Tensor, point: tuple[int, int] | None, tile: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int] | None]:
    """The part of an image `[C, H, W]` around a point, or its middle, and where the point is in it."""
    size = image.shape[1:]
    middle = (size[0] // 2, size[1] // 2) if point is None else point
    starts = [max(0, min(at - side // 2, length - side)) for at, side, length in zip(middle, tile, size, strict=True)]
    part = image[:, starts[0] : starts[0] + tile[0], starts[1] : starts[1] + tile[1]].contiguous()
    return part, None if point is None else (point[0] - starts[0], point[1] - starts[1])


def _largest(predicted: torch.Tensor, classes: Sequence[str]) -> int:
    """The class of most pixels, apart from a background unless all have it."""
    counts = torch.bincount(predicted.flatten(), minlength=len(classes))
    inside = [count if not is_background(name) else 0 for name, count in zip(classes, counts.tolist(), strict=True)]
    return int(np.argmax(inside if any(inside) else counts.tolist()))

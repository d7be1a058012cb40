"""Class activation maps through the package grad-cam, with the layer that the family names (`Backbone.cam_layer`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from visionattn.errors import UserError

# Name -> class of the package.
CAMS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
    "eigencam": "EigenCAM",
    "scorecam": "ScoreCAM",
}
PACKAGE = "pytorch_grad_cam"


def installed() -> bool:
    """Whether the package grad-cam is there."""
    return find_spec(PACKAGE) is not None


def require_package() -> None:
    """Check that the package grad-cam is there.

    Raises:
        UserError: VA-R007.
    """
    if not installed():
        what = "class activation maps need the package grad-cam, which is not installed"
        raise UserError("VA-R007", what, fix='pip install "visionattn[explain]"\nor without them: --method attention')


def class_activation(
    method: str, model: Any, image: torch.Tensor, logit: Callable[[torch.Tensor], torch.Tensor], stage: int = -1
) -> np.ndarray:
    """Compute a class activation map, `[H, W]` in 0..1.

    Args:
        method: a name in `CAMS`.
        model: a backbone with a head, in evaluation mode; its parameters need no gradients, the image gets one.
        image: `[1, C, H, W]`, on the device of the model.
        logit: the output to explain, `[B]` of the outputs of the model.
        stage: index of the stage whose map is weighed.

    Raises:
        UserError: VA-R007, the package is not installed.
    """
    require_package()
    build = getattr(import_module(PACKAGE), CAMS[method])
    backbone = model.backbone
    arrange = partial(backbone.cam_map, size=tuple(image.shape[2:]))
    with build(model, [backbone.cam_layer(stage)], reshape_transform=arrange) as cam, torch.enable_grad():
        (found,) = cam(image.detach().clone().requires_grad_(), [partial(_of_one, logit)])
    return np.nan_to_num(np.asarray(found, np.float32))


def _of_one(logit: Callable[[torch.Tensor], torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """The output to explain, of the outputs for one image without the axis of the batch."""
    return logit(output[None])[0]

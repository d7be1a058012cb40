"""Detectors of torchvision on our pyramids: a training step of RetinaNet and of Mask R-CNN on random images.

python detection.py
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

import visionattn


class Pyramid(nn.Module):
    """A backbone and a feature pyramid network: a dict of five maps with the same number of channels, as torchvision's detectors take them.

    Args:
        name: see `visionattn.list_models()`; `pretrained=True` starts from published weights.
        width: channels of the maps.
        **args: further arguments of `visionattn.create_model`.
    """

    def __init__(self, name: str, *, width: int = 256, **args: Any) -> None:
        super().__init__()
        self.backbone = visionattn.create_model(name, features_only=True, **args)
        self.fpn = FeaturePyramidNetwork(list(self.backbone.channels), width, extra_blocks=LastLevelMaxPool())
        self.out_channels = width

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(level), feature) for level, feature in enumerate(self.backbone(images))))


def anchors() -> AnchorGenerator:
    """One size per map: strides 4, 8, 16, 32 and 64."""
    sizes = tuple((side,) for side in (32, 64, 128, 256, 512))
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


def retinanet(name: str, num_classes: int, *, size: int = 800, **args: Any) -> RetinaNet:
    """Build a RetinaNet; images are resized to `size` pixels on their shorter side."""
    return RetinaNet(Pyramid(name, **args), num_classes, min_size=size, max_size=2 * size, anchor_generator=anchors())


def mask_rcnn(name: str, num_classes: int, *, size: int = 800, **args: Any) -> MaskRCNN:
    """Build a Mask R-CNN; class 0 is the background."""
    return MaskRCNN(Pyramid(name, **args), num_classes, min_size=size, max_size=2 * size, rpn_anchor_generator=anchors())


def train_step(detector: nn.Module, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Take one step of AdamW; returns the losses."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4)
    losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def random_sample(height: int, width: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An image with one object: its box, its class and its mask."""
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]])
    return torch.rand(3, height, width), {"boxes": box, "labels": torch.tensor([1]), "masks": mask}


if __name__ == "__main__":
    images, targets = zip(random_sample(200, 300), random_sample(240, 180), strict=True)
    for build in (retinanet, mask_rcnn):
        print(build.__name__, train_step(build("dinat_mini", num_classes=2, size=256), list(images), list(targets)))

"""CAS-ViT: the two classifiers of its files."""

from __future__ import annotations

import torch

import visionattn as va
from tests.tiny import TINY


def test_two_classifiers_are_averaged() -> None:
    name, args = TINY["CASViT"]
    model = va.create_model(name, num_classes=3, **args)
    with torch.no_grad():
        renamed = model.backbone.from_upstream(
            {
                "head.weight": torch.full((3, 32), 1.0),
                "dist_head.weight": torch.full((3, 32), 2.0),
                "head.bias": torch.zeros(3),
                "dist_head.bias": torch.ones(3),
            }
        )
    assert sorted(renamed) == ["head.fc.bias", "head.fc.weight"]
    assert renamed["head.fc.weight"].unique().tolist() == [1.5] and renamed["head.fc.bias"].unique().tolist() == [0.5]
    alone = model.backbone.from_upstream({"head.weight": torch.ones(3, 32), "head.bias": torch.ones(3)})
    assert alone["head.fc.weight"].unique().tolist() == [1.0]

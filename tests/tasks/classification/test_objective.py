"""The loss of classification against slow, obvious versions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visionattn.errors import UserError
from visionattn.tasks import config_from_dict
from visionattn.tasks.batch import Batch
from visionattn.tasks.classification.objective import ClassificationObjective


def objective(
    *, multi_label: bool = False, labels: np.ndarray | None = None, augment: dict[str, float] | None = None, **loss: object
) -> ClassificationObjective:
    given = labels if labels is not None else np.array([0, 0, 0, 1, 2, 3])
    config = config_from_dict({"loss": loss, "augment": augment or {}, "data": {"multi_label": multi_label}})
    return ClassificationObjective(config, 4, SimpleNamespace(image_set=SimpleNamespace(labels=given)))


def batch(label: torch.Tensor, image: torch.Tensor | None = None) -> Batch:
    names = [str(number) for number in range(len(label))]
    return Batch({"label": label, **({} if image is None else {"image": image})}, list(range(len(label))), names, names)


def loss(given: ClassificationObjective, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return given.loss(logits, batch(label))["loss"]


def test_losses() -> None:
    logits, label = torch.randn(5, 4, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 0])
    smoothed = float(loss(objective(label_smoothing=0.1), logits, label))
    want = 0.0
    for row, target in zip(logits.tolist(), label.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        want += sum((norm - value) * (0.9 * (index == target) + 0.1 / 4) for index, value in enumerate(row)) / 5
    assert smoothed == pytest.approx(want, rel=1e-5)
    soft = F.one_hot(label, 4).float() * 0.9 + 0.1 / 4  # as mixup gives it, smoothed already
    assert float(loss(objective(label_smoothing=0.1), logits, soft)) == pytest.approx(want, rel=1e-5)
    balanced = objective(class_weights="balanced").class_weights
    assert balanced is not None and balanced.tolist() == pytest.approx([0.5, 1.5, 1.5, 1.5])
    assert loss(objective(), logits.bfloat16(), label).dtype == torch.float32
    with pytest.raises(UserError) as caught:
        objective(class_weights=[1.0, 2.0])
    assert caught.value.code == "VA-C002"


def test_losses_of_several_labels() -> None:
    truth = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    weighted = objective(multi_label=True, labels=truth, class_weights="balanced")
    assert weighted.class_weights is not None and weighted.class_weights.tolist() == [1.0, 1.0, 1.0, 4.0]  # negatives per positive
    logits, label = torch.randn(4, 4), torch.from_numpy(truth)
    want = 0.0
    for row, truths in zip(logits.tolist(), truth.tolist(), strict=True):
        for value, positive, weight in zip(row, truths, (1, 1, 1, 4), strict=True):
            share = 0.9 * positive + 0.05
            want -= (weight * share * math.log(1 / (1 + math.exp(-value))) + (1 - share) * math.log(1 / (1 + math.exp(value)))) / 16
    smoothed = objective(multi_label=True, labels=truth, class_weights="balanced", label_smoothing=0.1)
    assert float(loss(smoothed, logits, label)) == pytest.approx(want, rel=1e-5)


def test_mixup_leaves_an_odd_image_out() -> None:
    np.random.seed(0)
    mixing = objective(label_smoothing=0.1, augment={"mixup": 0.4})
    mixed = mixing.mix(batch(torch.tensor([0, 1, 2, 3, 0]), torch.randn(5, 3, 8, 8)))
    assert mixed["image"].shape[0] == 4 and mixed["label"].shape == (4, 4) and mixed.indices == [0, 1, 2, 3]
    assert torch.allclose(mixed["label"].sum(1), torch.ones(4), atol=1e-5)
    alone = mixing.mix(batch(torch.tensor([2]), torch.randn(1, 3, 8, 8)))
    assert len(alone) == 0
    given = batch(torch.tensor([2]), torch.randn(1, 3, 8, 8))
    assert objective().mix(given) is given

"""The losses of segmentation over the outputs of a model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.parity import FIXTURES
from tests.tasks.segmentation.noise import batch, labels, noise, upsampled
from visionattn.data.masks.settings import IGNORE
from visionattn.errors import UserError
from visionattn.heads.base import Aux, HeadOutput, Regularizer
from visionattn.tasks.losses import balanced_weights, cross_entropy, dice, nearest_label, output_weights
from visionattn.tasks.segmentation import objective as module
from visionattn.tasks.segmentation.objective import SegmentationObjective

BOTH: list[tuple[str, float, dict[str, Any]]] = [("cross_entropy", 1.0, {}), ("dice", 0.5, {"include_background": False})]


def test_loss_is_the_weighted_sum_of_all_outputs() -> None:
    label = labels(2, 8, 12)
    output = HeadOutput(noise(2, 3, 4, 6), (Aux("a", noise(2, 3, 2, 3, seed=1), 0.4), Aux("b", noise(2, 3, 8, 12, seed=2), 0.0)))
    parts = SegmentationObjective(3, losses=BOTH).loss(output, batch(label=label))
    main, aux = upsampled(output.logits, (8, 12)), upsampled(output.aux[0].logits, (8, 12))
    want = cross_entropy(main, label) + 0.5 * dice(main, label, include_background=False)
    want_aux = 0.4 * (cross_entropy(aux, label) + 0.5 * dice(aux, label, include_background=False))
    assert set(parts) == {"loss", "cross_entropy", "dice", "aux"}
    assert parts["loss"].item() == pytest.approx((want + want_aux).item())
    assert parts["aux"].item() == pytest.approx(want_aux.item())
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy(main, label).item())
    plain = SegmentationObjective(3, losses=BOTH).loss(output.logits, batch(label=label))
    assert set(plain) == {"loss", "cross_entropy", "dice"} and plain["loss"].item() == pytest.approx(want.item())
    assert plain["loss"].dtype == torch.float32


def test_deep_supervision_at_the_size_of_each_output() -> None:
    label = labels(2, 8, 12)
    output = HeadOutput(noise(2, 3, 8, 12), (Aux("a", noise(2, 3, 4, 6, seed=1), 0.5), Aux("b", noise(2, 3, 2, 3, seed=2), 0.25)))
    parts = SegmentationObjective(3, deep_supervision="downsample_label").loss(output, batch(label=label))
    want = cross_entropy(output.logits, label)
    want = want + 0.5 * cross_entropy(output.aux[0].logits, label[:, 1::2, 1::2])
    want = want + 0.25 * cross_entropy(output.aux[1].logits, label[:, 2::4, 2::4])
    assert parts["loss"].item() == pytest.approx(want.item() / 1.75)
    assert nearest_label(label, (4, 6)).equal(label[:, 1::2, 1::2])
    assert set(nearest_label(label, (5, 7)).unique().tolist()) <= {0, 1, 2, IGNORE}


def test_regularizers_of_a_head_are_added() -> None:
    label, value = labels(1, 4, 4), torch.tensor(3.0, requires_grad=True)
    output = HeadOutput(noise(1, 3, 4, 4), (), (Regularizer("semantic", value, 0.25), Regularizer("off", torch.tensor(7.0), 0.0)))
    for rule in ("upsample_logits", "downsample_label"):
        parts = SegmentationObjective(3, losses=BOTH, deep_supervision=rule).loss(output, batch(label=label))  # type: ignore[arg-type]
        plain = SegmentationObjective(3, losses=BOTH).loss(output.logits, batch(label=label))
        assert parts["loss"].item() == pytest.approx(plain["loss"].item() + 0.75)
        assert (parts["semantic"].item(), parts["off"].item()) == (3.0, 7.0)
    assert torch.autograd.grad(parts["loss"], value)[0] == 0.25


def test_recorded_weights_of_deep_supervision() -> None:
    want = json.loads((FIXTURES / "losses.json").read_text())["deep_supervision"]["nnunet_5_outputs"]
    assert output_weights([0.5, 0.25, 0.125, 0.0], "downsample_label") == pytest.approx(want, rel=1e-6)
    assert output_weights([0.4], "upsample_logits") == [1.0, 0.4]


def test_every_output_has_gradients_and_nothing_labelled_gives_zero() -> None:
    tensors = [noise(1, 3, 4, 4, seed=seed).bfloat16().requires_grad_() for seed in (0, 1)]
    output = HeadOutput(tensors[0], (Aux("a", tensors[1], 0.0),))
    objective = SegmentationObjective(3, losses=BOTH)
    objective.loss(output, batch(label=labels(1, 8, 8)))["loss"].backward()
    assert all(tensor.grad is not None for tensor in tensors)  # processes that wait for each other's gradients need them all
    empty = objective.loss(output, batch(label=torch.full((1, 8, 8), IGNORE)))["loss"]
    empty.backward()
    assert empty == 0 and all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


def test_class_weights() -> None:
    counts = np.array([90, 10, 0])
    weights = balanced_weights(counts)
    assert weights[0] * 90 == pytest.approx(weights[1] * 10) and weights[2] == 1.0
    label, logits = labels(1, 4, 4), noise(1, 3, 4, 4)
    for given in ("balanced", weights):
        objective = SegmentationObjective(3, losses=[("cross_entropy", 1.0, {"class_weights": given})], pixel_counts=counts)
        want = F.cross_entropy(logits, label, weight=torch.tensor(weights), ignore_index=IGNORE)
        assert objective.loss(logits, batch(label=label))["loss"].item() == pytest.approx(want.item())
    bare = SegmentationObjective(3, losses=[("cross_entropy", 1.0, {"class_weights": "none"})])
    assert bare.loss(logits, batch(label=label))["loss"].item() == pytest.approx(cross_entropy(logits, label).item())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"losses": [("dize", 1.0, {})]}, 'no loss "dize"'),
        ({"losses": [("dice", 1.0, {"smoth": 1})]}, 'no setting "smoth"'),
        ({"losses": [("dice", 1.0, {}), ("dice", 1.0, {})]}, "twice"),
        ({"losses": [("focal", 1.0, {"class_weights": [1.0, 2.0]})]}, "expected 3 numbers"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        SegmentationObjective(3, **arguments)
    assert caught.value.code == "VA-C002"


def test_one_class_cannot_be_segmented() -> None:
    for count in (1, 256):
        with pytest.raises(UserError, match=f"2 to 255 classes, got {count}") as caught:
            SegmentationObjective(count)
        assert caught.value.code == "VA-C002"


def test_batch_is_not_mixed() -> None:
    given = batch(image=noise(1, 3, 2, 2))
    assert SegmentationObjective(3).mix(given) is given


def test_the_loss_of_a_large_evaluation_is_that_of_fewer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    label, logits = labels(1, 40, 60), noise(1, 3, 40, 60)
    objective = SegmentationObjective(3, losses=BOTH)
    whole = objective.loss(logits, batch(label=label))["loss"].item()
    monkeypatch.setattr(module, "LOSS_VALUES", 3 * 20 * 30)
    small = nearest_label(label, (20, 30))
    want = cross_entropy(upsampled(logits, (20, 30)), small) + 0.5 * dice(upsampled(logits, (20, 30)), small, include_background=False)
    assert objective.loss(logits, batch(label=label))["loss"].item() == pytest.approx(want.item())
    assert objective.loss(HeadOutput(logits), batch(label=label))["loss"].item() == whole  # training is never cut short

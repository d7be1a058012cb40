"""The segmentation task: losses of several outputs, prediction, meter."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from visionattn.tasks.losses import cross_entropy, dice

from tests.parity import FIXTURES
from visionattn.config import IGNORE
from visionattn.errors import UserError
from visionattn.heads.base import Aux, HeadOutput
from visionattn.tasks import segmentation
from visionattn.tasks.segmentation import Segmentation, balanced_weights, nearest_label, output_weights

CLASSES = ["background", "cell", "wall"]
BOTH: list[tuple[str, float, dict[str, Any]]] = [("cross_entropy", 1.0, {}), ("dice", 0.5, {"include_background": False})]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 0) -> torch.Tensor:
    label = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))
    label[..., 0] = IGNORE
    return label


def upsampled(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def test_loss_is_the_weighted_sum_of_all_outputs() -> None:
    label = labels(2, 8, 12)
    output = HeadOutput(noise(2, 3, 4, 6), (Aux("a", noise(2, 3, 2, 3, seed=1), 0.4), Aux("b", noise(2, 3, 8, 12, seed=2), 0.0)))
    parts = Segmentation(CLASSES, losses=BOTH).loss(output, {"label": label})
    main, aux = upsampled(output.logits, (8, 12)), upsampled(output.aux[0].logits, (8, 12))
    want = cross_entropy(main, label) + 0.5 * dice(main, label, include_background=False)
    want_aux = 0.4 * (cross_entropy(aux, label) + 0.5 * dice(aux, label, include_background=False))
    assert set(parts) == {"loss", "cross_entropy", "dice", "aux"}
    assert parts["loss"].item() == pytest.approx((want + want_aux).item())
    assert parts["aux"].item() == pytest.approx(want_aux.item())
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy(main, label).item())
    plain = Segmentation(CLASSES, losses=BOTH).loss(output.logits, {"label": label})
    assert set(plain) == {"loss", "cross_entropy", "dice"} and plain["loss"].item() == pytest.approx(want.item())
    assert plain["loss"].dtype == torch.float32


def test_deep_supervision_at_the_size_of_each_output() -> None:
    label = labels(2, 8, 12)
    output = HeadOutput(noise(2, 3, 8, 12), (Aux("a", noise(2, 3, 4, 6, seed=1), 0.5), Aux("b", noise(2, 3, 2, 3, seed=2), 0.25)))
    parts = Segmentation(CLASSES, deep_supervision="downsample_label").loss(output, {"label": label})
    want = cross_entropy(output.logits, label)
    want = want + 0.5 * cross_entropy(output.aux[0].logits, label[:, 1::2, 1::2])
    want = want + 0.25 * cross_entropy(output.aux[1].logits, label[:, 2::4, 2::4])
    assert parts["loss"].item() == pytest.approx(want.item() / 1.75)
    assert nearest_label(label, (4, 6)).equal(label[:, 1::2, 1::2])
    assert set(nearest_label(label, (5, 7)).unique().tolist()) <= {0, 1, 2, IGNORE}


def test_recorded_weights_of_deep_supervision() -> None:
    want = json.loads((FIXTURES / "losses.json").read_text())["deep_supervision"]["nnunet_5_outputs"]
    assert output_weights([0.5, 0.25, 0.125, 0.0], "downsample_label") == pytest.approx(want, rel=1e-6)
    assert output_weights([0.4], "upsample_logits") == [1.0, 0.4]


def test_every_output_has_gradients_and_nothing_labelled_gives_zero() -> None:
    tensors = [noise(1, 3, 4, 4, seed=seed).bfloat16().requires_grad_() for seed in (0, 1)]
    output = HeadOutput(tensors[0], (Aux("a", tensors[1], 0.0),))
    task = Segmentation(CLASSES, losses=BOTH)
    task.loss(output, {"label": labels(1, 8, 8)})["loss"].backward()
    assert all(tensor.grad is not None for tensor in tensors)  # processes that wait for each other's gradients need them all
    empty = task.loss(output, {"label": torch.full((1, 8, 8), IGNORE)})["loss"]
    empty.backward()
    assert empty == 0 and all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


def test_class_weights() -> None:
    counts = np.array([90, 10, 0])
    weights = balanced_weights(counts)
    assert weights[0] * 90 == pytest.approx(weights[1] * 10) and weights[2] == 1.0
    label, logits = labels(1, 4, 4), noise(1, 3, 4, 4)
    for given in ("balanced", weights):
        task = Segmentation(CLASSES, losses=[("cross_entropy", 1.0, {"class_weights": given})], pixel_counts=counts)
        want = F.cross_entropy(logits, label, weight=torch.tensor(weights), ignore_index=IGNORE)
        assert task.loss(logits, {"label": label})["loss"].item() == pytest.approx(want.item())
    bare = Segmentation(CLASSES, losses=[("cross_entropy", 1.0, {"class_weights": "none"})])
    assert bare.loss(logits, {"label": label})["loss"].item() == pytest.approx(cross_entropy(logits, label).item())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"losses": [("dize", 1.0, {})]}, 'no loss "dize"'),
        ({"losses": [("dice", 1.0, {"smoth": 1})]}, 'no setting "smoth"'),
        ({"losses": [("dice", 1.0, {}), ("dice", 1.0, {})]}, "twice"),
        ({"losses": [("focal", 1.0, {"class_weights": [1.0, 2.0]})]}, "expected 3 numbers"),
        ({"monitor": "dice"}, "not scored"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Segmentation(CLASSES, **arguments)
    assert caught.value.code == "VA-C002"


def test_one_class_cannot_be_segmented() -> None:
    with pytest.raises(UserError, match="2 to 255"):
        Segmentation(["cell"])


class Pointwise(nn.Module):
    """Logits of each pixel from that pixel alone, so that windows and whole images must agree."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, classes, 1)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        return self.conv(image)


@torch.no_grad()
def test_prediction() -> None:
    torch.manual_seed(0)
    model, image = Pointwise().eval(), noise(2, 2, 9, 14)
    whole = Segmentation(CLASSES).predict(model, image)
    assert whole.equal(model(image))
    for extra in ({}, {"flips": (-1, -2)}, {"flips": (-1,), "scales": (1.0,)}, {"flips": (-1,), "average": "probabilities"}):
        model.sizes.clear()
        task = Segmentation(CLASSES, window=(6, 6), overlap=0.34, blend="gaussian", window_batch=3, **extra)
        got = task.predict(model, image)
        assert set(model.sizes) == {(6, 6)}
        assert torch.allclose(got.softmax(1), whole.softmax(1), atol=1e-5)
    model.sizes.clear()
    Segmentation(CLASSES, scales=(0.5, 2.0)).predict(model, noise(1, 2, 8, 14))
    assert model.sizes == [(4, 7), (16, 28)]


@torch.no_grad()
@pytest.mark.parametrize("classes", [1, 3])
def test_averages_of_flips(classes: int) -> None:
    """A model that sees only the left edge, so that flips disagree."""

    def model(image: torch.Tensor) -> torch.Tensor:
        return image[:, :classes, :, :1].expand(-1, -1, -1, image.shape[3]) * 3

    image = noise(1, 3, 4, 5)
    left, right = model(image), model(image.flip(-1))
    names = CLASSES if classes == 3 else CLASSES[:2]

    def predicted(**arguments: Any) -> torch.Tensor:
        return Segmentation(names, flips=(-1,), **arguments).predict(model, image)  # type: ignore[arg-type]

    def shares(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(1) if classes > 1 else logits.sigmoid()

    assert torch.allclose(predicted(), (left + right) / 2)
    assert torch.allclose(shares(predicted(average="probabilities")), (shares(left) + shares(right)) / 2, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_class_map_is_that_of_the_logits(channels: int) -> None:
    torch.manual_seed(0)
    model, image = Pointwise(channels).eval(), noise(1, 2, 9, 14)
    task = Segmentation(CLASSES[: max(2, channels)], window=(6, 6), flips=(-1,))
    logits = task.predict(model, image)
    want = logits.argmax(1)[0] if channels > 1 else (logits > 0)[0, 0]
    assert 0 < want.float().mean() < 2
    assert task.class_map(model, image).long().equal(want.long())
    with pytest.raises(ValueError, match="windows"):
        Segmentation(CLASSES).class_map(model, image)


def scored(task: Segmentation, logits: torch.Tensor, label: torch.Tensor, first: int = 0) -> Any:
    meter = task.meter()
    meter.update(logits, {"label": label, "index": torch.arange(first, first + len(label))})
    return meter


def test_meter_scores_at_the_size_of_the_label() -> None:
    logits, label = noise(2, 3, 5, 6), labels(2, 10, 12)
    task = Segmentation(CLASSES)
    scores = scored(task, logits, label).result()
    guess = upsampled(logits, (10, 12)).argmax(1)
    keep = label != IGNORE
    ious = [float(((guess == k) & (label == k)).sum() / (((guess == k) | (label == k)) & keep).sum()) for k in range(3)]
    assert scores.metrics["miou"] == pytest.approx(np.mean(ious))
    assert scores.metrics["aacc"] == pytest.approx(float((guess == label)[keep].float().mean()))
    assert scores.metrics["ignored"] == pytest.approx(1 / 12)
    assert [row["class"] for row in scores.per_class] == CLASSES
    assert [row["iou"] for row in scores.per_class] == pytest.approx(ious)
    assert {"class", "iou", "acc", "dice", "pixel_share"} <= set(scores.per_class[0])
    assert sum(row["pixel_share"] for row in scores.per_class) == pytest.approx(1)
    assert [row["index"] for row in scores.per_image] == [0, 1] and {task.monitor, *task.shown} <= set(scores.metrics)
    assert scores.per_image[1]["aacc"] == pytest.approx(float((guess[1] == label[1])[keep[1]].float().mean()))


def test_states_of_several_processes_come_together() -> None:
    logits, label = noise(3, 3, 6, 6), labels(3, 6, 6)
    task = Segmentation(CLASSES, per_case=True)
    want = scored(task, logits, label).result()
    parts = [scored(task, logits[2:], label[2:], 2), scored(task, logits[:2], label[:2])]
    whole = task.meter()
    whole.merge([pickle.loads(pickle.dumps(part.state())) for part in parts])
    assert whole.result() == want
    assert task.meter().result().metrics["miou"] is None


def test_cases() -> None:
    """Two images of two classes, told by one logit: a perfect one, and one whose cell is missed."""
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, 2:5, 2:5] = 1
    logits = torch.full((2, 1, 8, 8), -1.0)
    logits[0, 0, 2:5, 2:5] = 1.0
    task = Segmentation(CLASSES[:2], per_case=True, spacing=(0.5, 0.5))
    scores = scored(task, logits, label).result()
    assert scores.metrics["dice"] == 0.5 and scores.metrics["n_missed"] == 1 and scores.metrics["mdice"] is not None
    background, cell = scores.per_class
    assert background["case_dice"] is None and cell["case_dice"] == 0.5 and cell["hd95_unit"] == "mm" and set(background) == set(cell)
    assert cell["dice"] == pytest.approx(2 * 9 / (9 + 18))  # of all pixels together
    assert [row["dice"] for row in scores.per_image] == [1.0, 0.0]
    assert [row["hd95"] for row in scores.per_image] == [0.0, pytest.approx(4 * 2**0.5)]  # the diagonal, not infinity
    assert task.monitor == "dice" and set(task.shown) <= set(scores.metrics)


def test_batch_is_not_mixed() -> None:
    batch = {"image": noise(1, 3, 2, 2)}
    assert Segmentation(CLASSES).mix(batch) is batch


def test_the_loss_of_a_large_evaluation_is_that_of_fewer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    label, logits = labels(1, 40, 60), noise(1, 3, 40, 60)
    task = Segmentation(CLASSES, losses=BOTH)
    whole = task.loss(logits, {"label": label})["loss"].item()
    monkeypatch.setattr(segmentation, "LOSS_VALUES", 3 * 20 * 30)
    small = nearest_label(label, (20, 30))
    want = cross_entropy(upsampled(logits, (20, 30)), small) + 0.5 * dice(upsampled(logits, (20, 30)), small, include_background=False)
    assert task.loss(logits, {"label": label})["loss"].item() == pytest.approx(want.item())
    assert task.loss(HeadOutput(logits), {"label": label})["loss"].item() == whole  # training is never cut short


def test_intervals_over_images() -> None:
    task = Segmentation(CLASSES[:2], per_case=True)
    truth = torch.zeros(12, 8, 8, dtype=torch.int64)
    truth[:, :4] = 1
    truth[11] = IGNORE
    logits = torch.stack([truth == 0, truth == 1], 1).float()
    logits[0] = logits[0].flip(0)  # all wrong

    def intervals(indices: list[int]) -> dict[str, tuple[float, float]]:
        meter = task.meter()
        meter.update(logits[indices], {"label": truth[indices], "index": torch.tensor(indices)})
        scores = task.meter()
        scores.merge([pickle.loads(pickle.dumps(meter.state()))])
        result = scores.result()
        for name, (low, high) in result.intervals.items():
            value = result.metrics[name]
            assert value is not None and low <= value <= high
        return result.intervals

    assert intervals(list(range(1, 12))) == {"miou": (1.0, 1.0), "dice": (1.0, 1.0)}
    one_wrong = intervals(list(range(12)))
    assert one_wrong == intervals(list(reversed(range(12))))  # whatever process had which image
    assert one_wrong["dice"] == pytest.approx((8 / 11, 1.0), abs=0.08) and one_wrong["miou"][0] < one_wrong["dice"][0]
    assert intervals(list(range(5))) == {}

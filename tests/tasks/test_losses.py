"""Losses of segmentation against recorded values of other libraries and against slow, obvious versions."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from tests.parity import FIXTURES
from visionattn.data.masks.settings import IGNORE
from visionattn.tasks.losses import (
    LOSSES,
    binary_cross_entropy,
    boundary,
    boundary_distances,
    cross_entropy,
    dice,
    focal,
    focal_tversky,
    generalised_dice,
    lovasz,
    ohem_cross_entropy,
    tversky,
)

RECORD = json.loads((FIXTURES / "losses.json").read_text())
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draws(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"input:{name}".encode()))


def recorded(library: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels with which the values of a library were computed."""
    facts = RECORD[library]["logits"]
    logits = torch.from_numpy(draws(facts["name"]).standard_normal(facts["shape"]).astype(np.float32))
    if library == "mmseg":
        label = torch.from_numpy(draws("loss.label").randint(0, 5, (2, 6, 7)))
        label[0, :2] = IGNORE
        label[1, 5, 6] = IGNORE
    else:
        label = torch.from_numpy(draws("ml.label").randint(0, 3, (2, 1, 6, 5, 4)))[:, 0]
        label[1][label[1] == 2] = 0  # an absent class
    return logits, label


def weighted(*terms: tuple[float, Loss]) -> Loss:
    return lambda logits, label: torch.stack([weight * loss(logits, label) for weight, loss in terms]).sum()


def last_where_ignored(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Recorded without an ignore label: ignored pixels had the last class."""
    weights = torch.tensor(RECORD["mmseg"]["class_weights"])
    return cross_entropy(logits, label.where(label != IGNORE, logits.shape[1] - 1), class_weights=weights)


transunet = partial(dice, squared=True, batch=True)
foreground = partial(dice, include_background=False)
EQUAL: dict[str, dict[str, Loss]] = {
    "mmseg": {
        "ce_default": partial(cross_entropy, avg="all"),
        "ce_avg_non_ignore": cross_entropy,
        "torch_ce": cross_entropy,
        "ce_class_weight_nonignored_labels": last_where_ignored,
        "dice_softmax": partial(dice, per_class=False, squared=True, smooth=(0, 2e-3), avg="all"),
        "dice_softmax_naive": partial(dice, per_class=False, smooth=1e-3, avg="all"),
    },
    "medical": {
        "monai_dice": dice,
        "monai_dice_nobg": foreground,
        "monai_dice_sq": partial(dice, squared=True),
        "monai_dice_batch": partial(dice, batch=True),
        "monai_dice_jaccard": partial(tversky, alpha=1, beta=1, smooth=5e-6),
        "monai_dicece": weighted((1, cross_entropy), (1, dice)),
        "monai_gdl": generalised_dice,
        "monai_tversky_0.3_0.7": tversky,
        # MONAI's mean is over classes too, all but one of which are zero.
        "monai_focal": weighted((1 / 3, focal)),
        # nnU-Net subtracts the coefficient where we add 1 - coefficient.
        "nnunet_dc_and_ce_do_bg_false_batch_dice_false": lambda x, y: cross_entropy(x, y) + foreground(x, y) - 1,
        "nnunet_dc_and_ce_batch_dice": lambda x, y: cross_entropy(x, y) + foreground(x, y, batch=True) - 1,
        "transunet_dice": transunet,
        "daeformer_0.4ce_0.6dice": weighted((0.4, cross_entropy), (0.6, transunet)),
        "transunet_0.5ce_0.5dice": weighted((0.5, cross_entropy), (0.5, transunet)),
    },
}


@pytest.mark.parametrize("library", EQUAL)
def test_every_recorded_loss_has_an_equal(library: str) -> None:
    assert set(EQUAL[library]) == set(RECORD[library]["values"])


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, losses in EQUAL.items() for name in losses])
def test_recorded_losses(library: str, name: str) -> None:
    logits, label = recorded(library)
    want = RECORD[library]["values"][name]
    assert float(EQUAL[library][name](logits, label)) == pytest.approx(want, rel=1e-5)
    assert float(EQUAL[library][name](logits.double(), label)) == pytest.approx(want, rel=1e-6)


def example(classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Double logits and labels of two images; class 2 is absent, a tenth of the pixels is ignored."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, max(classes, 2), (2, 5, 6))
    label[label == 2] = 1
    label[rng.random(label.shape) < 0.1] = IGNORE
    return torch.from_numpy(rng.standard_normal((2, classes, 5, 6))), torch.from_numpy(label)


def pixels(logits: torch.Tensor, label: torch.Tensor) -> list[tuple[list[float], int]]:
    """Probabilities of all classes and the label of each pixel that is not ignored."""
    probabilities = logits.softmax(1) if logits.shape[1] > 1 else torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1)
    found = zip(probabilities.movedim(1, -1).reshape(-1, probabilities.shape[1]).tolist(), label.flatten().tolist(), strict=True)
    return [(row, truth) for row, truth in found if truth != IGNORE]


def slow_cross_entropy(logits: torch.Tensor, label: torch.Tensor, weights: list[float], gamma: float = 0, of_weights: bool = True) -> float:
    found = pixels(logits, label)
    total = sum(-weights[truth] * (1 - row[truth]) ** gamma * math.log(row[truth]) for row, truth in found)
    return total / (sum(weights[truth] for _, truth in found) if of_weights else len(found))


def slow_tversky(logits: torch.Tensor, label: torch.Tensor, alpha: float, beta: float, smooth: float, classes: list[int]) -> float:
    losses = []
    for image, truths in zip(logits, label, strict=True):
        found = pixels(image[None], truths[None])
        for index in classes:
            hits = sum(row[index] for row, truth in found if truth == index)
            false_positives = sum(row[index] for row, truth in found if truth != index)
            false_negatives = sum(1 - row[index] for row, truth in found if truth == index)
            losses.append(1 - (hits + smooth) / (hits + alpha * false_positives + beta * false_negatives + smooth))
    return sum(losses) / len(losses)


def slow_boundary(logits: torch.Tensor, label: torch.Tensor, classes: list[int]) -> float:
    """By searching, for each pixel, the nearest pixel on the other side."""
    errors = []
    for image, truths in zip(logits, label.tolist(), strict=True):
        places = [(y, x) for y in range(len(truths)) for x in range(len(truths[0]))]
        found = iter(pixels(image[None], torch.tensor(truths)[None]))
        for y, x in places:
            if truths[y][x] == IGNORE:
                continue
            row, truth = next(found)
            for index in classes:
                others = [math.dist((y, x), place) for place in places if (truths[place[0]][place[1]] == index) != (truth == index)]
                absent = not any(index in line for line in truths)
                errors.append(0 if absent else abs((truth == index) - row[index]) * (min(others) - 0.5))
    return sum(errors) / len(errors)


def slow_lovasz(logits: torch.Tensor, label: torch.Tensor) -> float:
    """Definition by sets: errors, worst first, times the rise of the Jaccard loss as the pixel joins the wrong ones."""
    found = pixels(logits, label)
    losses = []
    for index in [1] if logits.shape[1] == 1 else sorted({truth for _, truth in found}):
        errors = sorted(((abs((truth == index) - row[index]), truth == index) for row, truth in found), reverse=True)
        size = sum(inside for _, inside in errors)

        def jaccard_loss(wrong: list[tuple[float, bool]], size: int = size) -> float:
            misses, extras = sum(inside for _, inside in wrong), sum(not inside for _, inside in wrong)
            return (misses + extras) / (size + extras) if wrong else 0.0

        losses.append(sum(error * (jaccard_loss(errors[: k + 1]) - jaccard_loss(errors[:k])) for k, (error, _) in enumerate(errors)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_against_slow_versions(classes: int) -> None:
    logits, label = example(classes)
    weights = [0.5, 2.0, 3.0, 1.5][: max(classes, 2)]
    given = torch.tensor(weights)
    all_classes = [1] if classes == 1 else list(range(classes))
    assert cross_entropy(logits, label, class_weights=given).item() == pytest.approx(slow_cross_entropy(logits, label, weights))
    assert focal(logits, label, gamma=1.5).item() == pytest.approx(slow_cross_entropy(logits, label, [1.0] * 4, 1.5))
    assert focal(logits, label, class_weights=given).item() == pytest.approx(
        slow_cross_entropy(logits, label, weights, 2, of_weights=False)
    )
    assert tversky(logits, label, smooth=0.1).item() == pytest.approx(slow_tversky(logits, label, 0.3, 0.7, 0.1, all_classes))
    assert dice(logits, label, smooth=0.2).item() == pytest.approx(slow_tversky(logits, label, 0.5, 0.5, 0.1, all_classes))
    bare = dice(logits, label, include_background=False, smooth=0.2).item()
    assert bare == pytest.approx(slow_tversky(logits, label, 0.5, 0.5, 0.1, [index for index in all_classes if index]))
    each = [
        slow_tversky(image[None], truth[None], 0.3, 0.7, 0.1, [index])
        for image, truth in zip(logits, label, strict=True)
        for index in all_classes
    ]
    wanted = np.mean([loss ** (1 / 1.5) for loss in each])
    assert focal_tversky(logits, label, gamma=1.5, smooth=0.1).item() == pytest.approx(wanted)
    assert boundary(logits, label).item() == pytest.approx(slow_boundary(logits, label, [index for index in all_classes if index]))
    assert boundary(logits, label, include_background=True).item() == pytest.approx(slow_boundary(logits, label, all_classes))
    assert lovasz(logits, label).item() == pytest.approx(slow_lovasz(logits, label))
    each = [slow_lovasz(image[None], truth[None]) for image, truth in zip(logits, label, strict=True)]
    assert lovasz(logits, label, per_image=True).item() == pytest.approx(np.mean(each))


def test_one_logit_is_two_classes() -> None:
    logits, label = example(1)
    pair = torch.cat([torch.zeros_like(logits), logits], 1)
    keep = label != IGNORE
    plain = F.binary_cross_entropy_with_logits(logits[:, 0][keep], label[keep].double())
    assert cross_entropy(logits, label).item() == pytest.approx(plain.item())
    assert binary_cross_entropy(logits, label).item() == pytest.approx(plain.item())
    assert focal(logits, label).item() == pytest.approx(
        sigmoid_focal_loss(logits[:, 0][keep], label[keep].double(), alpha=-1, gamma=2, reduction="mean").item()
    )
    for name in ("cross_entropy", "focal", "ohem_cross_entropy"):
        assert LOSSES[name](logits, label).item() == pytest.approx(LOSSES[name](pair, label).item())
    for loss in (dice, tversky):
        assert loss(logits, label).item() == pytest.approx(loss(pair, label, include_background=False).item())


def test_binary_cross_entropy_of_each_class() -> None:
    logits, label = example()
    want = [
        -math.log(1 / (1 + math.exp(-value))) * 3 if truth == index else -math.log(1 / (1 + math.exp(value)))
        for row, truth in zip(logits.movedim(1, -1).reshape(-1, 4).tolist(), label.flatten().tolist(), strict=True)
        for index, value in enumerate(row)
        if truth != IGNORE
    ]
    assert binary_cross_entropy(logits, label, pos_weight=3).item() == pytest.approx(np.mean(want))


def test_cross_entropy_is_that_of_torch() -> None:
    logits, label = example()
    weights = torch.tensor([0.5, 2.0, 3.0, 1.5]).double()
    want = F.cross_entropy(logits, label, weight=weights, label_smoothing=0.1, ignore_index=IGNORE)
    assert cross_entropy(logits, label, class_weights=weights, label_smoothing=0.1).item() == pytest.approx(want.item())
    share = (label != IGNORE).double().mean()
    every = cross_entropy(logits, label, class_weights=weights, label_smoothing=0.1, avg="all")
    assert every.item() == pytest.approx((want * share).item())


def test_ohem_keeps_the_hardest() -> None:
    logits, label = example()
    hardness = sorted((-math.log(row[truth]) for row, truth in pixels(logits, label)), reverse=True)
    # Nothing is below a threshold of 0: the six hardest, three per image.
    assert ohem_cross_entropy(logits, label, threshold=1e-9, min_kept=3).item() == pytest.approx(np.mean(hardness[:6]))
    below = [value for value in hardness if value > -math.log(0.3)]
    assert 6 < len(below) < len(hardness)
    assert ohem_cross_entropy(logits, label, threshold=0.3, min_kept=3).item() == pytest.approx(np.mean(below))
    assert ohem_cross_entropy(logits, label, threshold=0.3, min_kept=1000).item() == pytest.approx(np.mean(hardness))
    assert ohem_cross_entropy(logits, label, threshold=1e-9, min_kept=0).item() == pytest.approx(hardness[0])
    order = sorted(pixels(logits, label), key=lambda pixel: pixel[0][pixel[1]])[:6]
    weights = [0.5, 2.0, 3.0, 1.5]
    want = sum(-weights[t] * math.log(row[t]) for row, t in order) / sum(weights[t] for _, t in order)
    got = ohem_cross_entropy(logits, label, threshold=1e-9, min_kept=3, class_weights=torch.tensor(weights))
    assert got.item() == pytest.approx(want)


def test_lovasz_is_the_iou_of_hard_predictions() -> None:
    label = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    guess = label.clone()
    guess[0, :3] = 1
    got = lovasz(F.one_hot(guess, 3).movedim(-1, 1) * 1000.0, label)
    iou = [float(((guess == k) & (label == k)).sum() / ((guess == k) | (label == k)).sum()) for k in range(3)]
    assert got.item() == pytest.approx(1 - np.mean(iou))


def test_distances_to_a_boundary() -> None:
    row = torch.tensor([0, 1, 1, 1, 0, 0]).bool()
    masks = torch.stack([row, torch.zeros(6).bool(), torch.ones(6).bool()])[None]
    assert boundary_distances(masks).tolist() == [[[0.5, 0.5, 1.5, 0.5, 0.5, 1.5], [0.0] * 6, [0.0] * 6]]
    cube = torch.zeros(1, 1, 5, 5, 5).bool()
    cube[0, 0, 2, 2, 2] = True
    assert boundary_distances(cube)[0, 0, 0, 2, 2] == 1.5 and boundary_distances(cube)[0, 0, 2, 2, 2] == 0.5


# Labels in the way of a loss.
DIFFICULT = {
    "all ignored": torch.full((2, 5, 6), IGNORE),
    "one image ignored": torch.cat([torch.full((1, 5, 6), IGNORE), torch.ones(1, 5, 6, dtype=torch.long)]),
    "background only": torch.zeros(2, 5, 6, dtype=torch.long),
    "foreground only": torch.ones(2, 5, 6, dtype=torch.long),
    "one pixel": torch.full((2, 5, 6), IGNORE).index_put((torch.tensor(0), torch.tensor(2), torch.tensor(3)), torch.tensor(1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["usual", "certain"])
@pytest.mark.parametrize("case", DIFFICULT)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_difficult_labels(name: str, classes: int, case: str, scale: float, dtype: torch.dtype) -> None:
    logits = (example(classes)[0] * scale).to(dtype).requires_grad_()
    label = DIFFICULT[case]
    loss = LOSSES[name](logits, label)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss >= 0
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[(label == IGNORE).unsqueeze(1).expand_as(logits)] == 0).all()
    if case == "all ignored":
        assert loss == 0


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_are_not_seen(name: str, classes: int) -> None:
    logits, label = example(classes)
    other = logits.masked_fill((label == IGNORE).unsqueeze(1), 7.0)
    other[:, -1] = other[:, -1].where(label != IGNORE, -3.0)
    assert LOSSES[name](other, label).item() == pytest.approx(LOSSES[name](logits, label).item())


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str, classes: int) -> None:
    logits, label = (values[..., :3, :4] for values in example(classes))
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, label), logits.clone().requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_better_logits_lose_less(name: str) -> None:
    label = example()[1]
    right = F.one_hot(label.where(label != IGNORE, 0), 4).movedim(-1, 1) * 2.0 - 1
    losses = [LOSSES[name](right * sharpness, label).item() for sharpness in (-1.0, 0.0, 1.0, 10.0)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.05 * losses[0]

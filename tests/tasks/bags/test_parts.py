"""Scores, losses and pictures of bags against slow, obvious versions."""

from __future__ import annotations

import math
import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn.data.bags.readers import Bag
from visionattn.data.bags.recognise import holds_bags
from visionattn.errors import UserError
from visionattn.heads.mil import ABSENT, BagOutput
from visionattn.tasks import TASKS, load_config
from visionattn.tasks.bags.heatmap import heat_map, spacing
from visionattn.tasks.bags.objective import branch_similarity, negative_entropy
from visionattn.tasks.bags.scores import BagMeter
from visionattn.tasks.batch import Batch


def output(counts: list[int], classes: int = 3, branches: int = 1, heads: int = 1) -> BagOutput:
    scores = torch.randn(len(counts), heads, branches, max(counts))
    for row, count in enumerate(counts):
        scores[row, ..., count:] = ABSENT
    each = torch.randn(len(counts), branches, classes) if branches > 1 else None
    return BagOutput(torch.randn(len(counts), classes), scores.softmax(-1).mean((1, 2)), scores, each)


def batch(bags: list[Bag], labels: list[int], start: int = 0) -> Batch:
    indices = list(range(start, start + len(bags)))
    names = [f"b{index}" for index in indices]
    return Batch({"bag": bags, "label": torch.tensor(labels)}, indices, names, names)


def test_entropy_and_similarity_by_hand() -> None:
    found = output([4, 2], branches=3, heads=2)
    entropies, cosines = [], []
    for bag, head in product(range(2), range(2)):
        rows = []
        for branch in range(3):
            values = [math.exp(value) for value in found.scores[bag, head, branch].tolist()]
            rows.append([value / sum(values) for value in values])
            entropies.append(sum(p * math.log(p) for p in rows[-1] if p))
        for first, second in ((0, 1), (0, 2), (1, 2)):
            dot = sum(a * b for a, b in zip(rows[first], rows[second], strict=True))
            cosines.append(dot / math.sqrt(sum(a * a for a in rows[first]) * sum(b * b for b in rows[second])))
    assert float(negative_entropy(found.scores)) == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert float(branch_similarity(found.scores)) == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)


def test_the_loss_is_the_weighted_sum() -> None:
    class Data:
        class part:
            labels = np.array([0, 0, 1, 2])

    config = load_config(None, ["task=bags", "loss={branches: 0.5, diversity: 2.0, entropy: 0.1, class_weights: balanced}"])
    objective = TASKS["bags"].objective(config, {"classes": ["a", "b", "c"]}, Data)
    found, label = output([3, 2], branches=2), torch.tensor([2, 0])
    parts = objective.loss(found, batch([], [2, 0]))
    assert found.branches is not None
    weight = torch.tensor([4 / 6, 4 / 3, 4 / 3])
    own = torch.nn.functional.cross_entropy(found.logits, label, weight=weight)
    each = torch.nn.functional.cross_entropy(found.branches.flatten(0, 1), torch.tensor([2, 2, 0, 0]), weight=weight)
    want = own + 0.5 * each + 2 * branch_similarity(found.scores) + 0.1 * negative_entropy(found.scores)
    assert torch.allclose(parts["loss"], want) and parts.keys() == {"loss", "bag", "branches", "diversity", "entropy"}
    plain = load_config(None, ["task=bags"])
    single = TASKS["bags"].objective(plain, {"classes": ["a", "b", "c"]}, Data)
    assert single.loss(output([3, 2]), batch([], [2, 0])).keys() == {"loss", "bag"}


def test_scores_of_two_processes_are_those_of_one() -> None:
    bags = [Bag(np.zeros((count, 2), np.float32), instances=np.arange(count) == 1) for count in (3, 2, 4, 1)]
    labels = [0, 1, 0, 0]
    found = [output([len(bag)], classes=3) for bag in bags]
    one, parts = BagMeter(["a", "b", "c"], 1), [BagMeter(["a", "b", "c"], 1) for _ in range(2)]
    for index, (bag, label, predicted) in enumerate(zip(bags, labels, found, strict=True)):
        one.update(predicted, batch([bag], [label], index))
        parts[index % 2].update(predicted, batch([bag], [label], index))
    merged = BagMeter(["a", "b", "c"], 1)
    merged.merge([pickle.loads(pickle.dumps(part.state())) for part in parts])
    first, second = one.result(), merged.result()
    assert first.metrics == second.metrics and "top5" not in first.metrics
    assert [row["id"] for row in second.per_case] == ["b0", "b1", "b2", "b3"]
    assert all(np.array_equal(a.attention, b.attention) for a, b in zip(first.details.seen, second.details.seen, strict=True))
    assert "not defined for 1 of 3 classes" in first.remarks[0] and "3 bags" in first.remarks[1]
    above = []
    for bag, predicted in zip(bags[:3], found, strict=False):
        shares = predicted.attention[0].tolist()
        above.append(np.mean([shares[1] > value for index, value in enumerate(shares[: len(bag)]) if index != 1]))
    assert first.metrics["key_auroc"] == pytest.approx(float(np.mean(above)))


def test_heat_maps() -> None:
    coords = np.array([[0, 0], [256, 0], [0, 256]], float) + 1024
    attention = np.array([0.1, 0.7, 0.2])
    assert spacing(coords) == 256
    picture = heat_map(attention, coords, side=64)
    assert picture.shape == (64, 64, 3) and (picture[-1, -1] == 255).all(), "no instance there"
    brightness = picture.astype(int).sum(2)
    assert brightness[5, 50] > brightness[50, 5] > brightness[5, 5]
    centres = heat_map(attention, np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]), side=64)
    assert np.array_equal(centres[5, 50], picture[5, 50]) and (centres[-1, -1] == 255).all()
    assert heat_map(np.ones(1), np.array([[0.0, 0.0]]), side=32).shape == (32, 32, 3)
    assert heat_map(attention, None, side=32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a/s1.h5"], True),
        (["train/a/s1.pt", "val/a/s2.pt"], True),
        (["a/slide/1024_2048.png"], True),
        (["train/a/slide/x1024_y2048.jpg"], True),
        (["train/a/blood_1024_2048.jpg"], False),
        (["a/1024_2048.png"], False),
        (["a/slide/cat.png"], False),
        ([], False),
    ],
)
def test_names_tell_bags(tmp_path: Path, files: list[str], found: bool) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert holds_bags(tmp_path) == found
    np.savez(tmp_path / "images.npz", train_images=np.zeros(1))
    np.savez(tmp_path / "bags.npz", X=np.zeros(1))
    assert not holds_bags(tmp_path / "images.npz") and holds_bags(tmp_path / "bags.npz")


def test_settings_that_bags_do_not_have() -> None:
    for key, value in (("img_size", "64"), ("weights", "in1k"), ("in_chans", "1"), ("drop_path_rate", "0.2")):
        with pytest.raises(UserError, match=rf"model\.{key}"):
            load_config(None, ["task=bags", f"model.{key}={value}"])
    config = load_config(None, ["task=bags", "model.name=abmill"])
    with pytest.raises(UserError, match=r"Did you mean abmil") as caught:
        TASKS["bags"].check_names(config)
    assert caught.value.code == "VA-M001"
    with pytest.raises(UserError, match=r"Did you mean width"):
        TASKS["bags"].check_names(load_config(None, ["task=bags", "model.args={wdth: 3}"]))

"""Dynamic subspace learners against slow, obvious versions; the attention map has a recorded output, see `test_medical_parity.py`."""

from __future__ import annotations

import math

import pytest
import torch

from visionattn.heads.subspaces import SubspaceHead, margin_loss, taylor_scores


def head(width: int = 12, learners: int = 3) -> SubspaceHead:
    torch.manual_seed(0)
    return SubspaceHead([4, 8], width=width, learners=learners).double().eval()


def test_embedding_by_hand() -> None:
    module, last = head(width=10), torch.randn(2, 8, 3, 5).double()
    assert module.learner.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    embedding = module([torch.randn(2, 4, 6, 10).double(), last])
    gate = module.attention_map.gate(last)
    pooled = torch.stack([sum(last[:, :, y, x] * gate[:, :, y, x] for y in range(3) for x in range(5)) / 15])[0]  # type: ignore[misc]
    plain = pooled @ module.embedding.weight.T + module.embedding.bias
    parts = [part / part.square().sum(1, keepdim=True).sqrt() for part in plain.split([4, 3, 3], 1)]
    assert torch.allclose(embedding, torch.cat(parts, 1)) and torch.allclose(module.pool([last]), pooled)
    assert all(torch.equal(part, embedding[:, module.learner == index]) for index, part in enumerate(module.subspaces(embedding)))


def test_a_split_keeps_the_numbers_that_matter() -> None:
    module = head(width=20, learners=2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    scores = torch.tensor([0.9, 0.1, 0.6, 0.5, 0.0, 1.0, 0.7, 0.2, 0.8, 0.3])
    assert not module.split(scores, least=6) and module.learners == 2
    assert module.split(scores)
    kept = torch.cat([torch.ones(10, dtype=torch.bool), scores > 0.5])
    assert module.learner.tolist() == [0] * 10 + [1 if score > 0.5 else 2 for score in scores]
    assert torch.equal(module.embedding.weight[kept], before["embedding.weight"][kept])
    assert (module.embedding.weight[~kept] != before["embedding.weight"][~kept]).all()
    assert module([torch.randn(3, 8, 2, 2).double()]).square().sum(1).tolist() == pytest.approx([3.0] * 3), "three subspaces of length 1"
    again = head(width=20, learners=1)
    again.load_state_dict(module.state_dict())
    assert again.learners == 3


def test_scores_by_hand() -> None:
    values, gradients = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    means = [abs(sum(float(values[i, k] * gradients[i, k]) for i in range(5)) / 5) for k in range(4)]
    want = [(mean - min(means)) / (max(means) - min(means)) for mean in means]
    assert taylor_scores(values, gradients).tolist() == pytest.approx(want)
    assert taylor_scores(values[:, :1].expand(5, 3), gradients[:, :1].expand(5, 3)).tolist() == [0.0] * 3


def slow_margin_loss(points: list[list[float]], labels: list[int], boundary: float, margin: float, cutoff: float) -> float:
    losses = []
    for i, a in enumerate(points):
        positives = [j for j in range(len(points)) if j != i and labels[j] == labels[i]]
        others = sorted(math.dist(a, b) for j, b in enumerate(points) if labels[j] != labels[i] and math.dist(a, b) >= cutoff)
        losses += [max(0.0, math.dist(a, points[j]) - boundary + margin) for j in positives]
        losses += [max(0.0, boundary + margin - distance) for distance in others[: len(positives)]]
    active = [loss for loss in losses if loss > 0]
    return sum(active) / max(1, len(active))


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5, 6, 7], [0] * 8, [0, 0, 0, 0, 0, 0, 1, 1]])
def test_margin_loss_by_hand(labels: list[int]) -> None:
    points = torch.nn.functional.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    points[7] = points[0]  # pairs that are the same point
    points.requires_grad_()
    for boundary, margin, cutoff in ((1.2, 0.2, 0.5), (0.8, 0.4, 0.9)):
        loss = margin_loss(points, torch.tensor(labels), boundary=boundary, margin=margin, cutoff=cutoff)
        assert loss.item() == pytest.approx(slow_margin_loss(points.tolist(), labels, boundary, margin, cutoff), abs=1e-7)
        (gradient,) = torch.autograd.grad(loss, points)
        assert gradient.isfinite().all()


def test_images_of_a_class_come_together() -> None:
    torch.manual_seed(0)
    module = SubspaceHead([6], width=8, learners=2)
    labels = torch.arange(12) % 3
    maps = torch.randn(12, 6, 3, 3)
    maps[torch.arange(12), labels] += 1.0
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)

    def nearest_is_of_the_class() -> float:
        found = module.eval()([maps])
        distance = torch.cdist(found, found).fill_diagonal_(torch.inf)
        return float((labels[distance.argmin(1)] == labels).float().mean())

    for _ in range(40):
        loss = torch.stack([margin_loss(part, labels) for part in module.train().subspaces(module([maps]))]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert nearest_is_of_the_class() == 1.0


def test_more_learners_than_numbers() -> None:
    with pytest.raises(ValueError, match="expected 1 to the width 4, got 5"):
        SubspaceHead([8], width=4, learners=5)

"""Dynamic subspace learners: an embedding in parts, each of which learns a similarity of its own.

Paper: Adiga V et al., "Attention-based Dynamic Subspace Learners for Medical Image Analysis", arXiv 2206.09068.
Upstream: github adigasu/Dynamic_subspace_learners, commit 84fce0a (MIT); its attention map is `visionattn.attention.DSL`.

Metric learning is no task of this package: head and losses are for loops of your own. In the paper, the images are clustered by
`SubspaceHead.pool`, each learner is trained on the images of one cluster with `margin_loss`, and where retrieval on held-out images no
longer improves, the last learner is split by `taylor_scores`.

Differences from upstream:

* Any number of channels and any size of the map. The pooled map is averaged over all positions, there over 14 x 14.
* A split leaves numbers with high scores where they are; there they are moved to the front, over others that may be needed too.
* `margin_loss` leaves out negatives that are too close, also if there are not enough others, and divides by the number of pairs that
  contribute, as in the paper of that loss; there by the number of triplets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.attention import DSL


class SubspaceHead(nn.Module):
    """Embed images: the last map, gated per position and averaged, projected to subspaces of length 1 each.

    Args:
        channels: channels of the maps, the last of which is used.
        width: numbers of an embedding.
        learners: subspaces at first, of equal width.
        dropout: rate on the pooled features.

    Attributes:
        learner: the subspace of each number, `[width]`.
    """

    learner: torch.Tensor

    def __init__(self, channels: Sequence[int], *, width: int = 128, learners: int = 1, dropout: float = 0.01) -> None:
        super().__init__()
        if not 1 <= learners <= width:
            raise ValueError(f"learners: expected 1 to the width {width}, got {learners}")
        self.attention_map = DSL(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Linear(channels[-1], width)
        self.register_buffer("learner", torch.arange(width) * learners // width)
        for index in range(learners):
            self._reset(self.learner == index)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Compute embeddings `[B, width]`, on which nearness is Euclidean distance."""
        found: torch.Tensor = self.embedding(self.dropout(self.pool(maps)))
        length = found.new_zeros(len(found), self.learners).index_add(1, self.learner, found.square()).sqrt()
        return found / length.clamp(min=1e-12)[:, self.learner]

    def pool(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Compute features `[B, C]` before the embedding, by which images are clustered."""
        pooled: torch.Tensor = self.attention_map(maps[-1]).mean((2, 3))
        return pooled

    @property
    def learners(self) -> int:
        """Number of subspaces."""
        return int(self.learner.max()) + 1

    def subspaces(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """The parts `[B, width of a subspace]` of embeddings, by learner."""
        return [embeddings[:, self.learner == index] for index in range(self.learners)]

    @torch.no_grad()
    def split(self, scores: torch.Tensor, *, threshold: float = 0.5, least: int = 5) -> bool:
        """Split the last subspace: numbers with scores above the threshold stay, the others start anew as one more subspace.

        Args:
            scores: see `taylor_scores`, `[width of the last subspace]`.
            threshold: of the scores.
            least: numbers that either part needs, else nothing changes.

        Returns:
            Whether it was split. An optimizer with momentum should then start anew.
        """
        last = self.learner == self.learners - 1
        others = last.clone()
        others[last] = scores.to(last.device) <= threshold
        if min(int(others.sum()), int((last & ~others).sum())) < least:
            return False
        self.learner[others] += 1
        self._reset(others)
        return True

    def _reset(self, chosen: torch.Tensor) -> None:
        """Draw the weights of these numbers, as those of a layer of its own."""
        fresh = nn.Linear(self.embedding.in_features, int(chosen.sum()))
        nn.init.xavier_normal_(fresh.weight)
        with torch.no_grad():
            self.embedding.weight[chosen] = fresh.weight.to(self.embedding.weight)
            self.embedding.bias[chosen] = fresh.bias.to(self.embedding.bias)


def taylor_scores(embeddings: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Score how much the loss depends on each number of a subspace: the mean of value times gradient, scaled to 0 to 1 over the subspace.

    Args:
        embeddings: of many images, `[N, width of the subspace]`.
        gradients: of their loss, the same shape.
    """
    score = (embeddings * gradients).mean(0).abs()
    return (score - score.min()) / (score.max() - score.min()).clamp(min=torch.finfo(score.dtype).tiny)


def margin_loss(
    embeddings: torch.Tensor, labels: torch.Tensor, *, boundary: float = 1.2, margin: float = 0.2, cutoff: float = 0.5
) -> torch.Tensor:
    """Margin loss (Wu et al., arXiv 1706.07567, eq. 4), over all positive pairs and as many of the nearest negatives of each image.

    Args:
        embeddings: of length 1, `[B, C]`.
        labels: classes `[B]`.
        boundary: distance that parts pairs of a class from others.
        margin: how far from it a pair has to be to contribute nothing.
        cutoff: distance below which a pair of two classes is left out.

    Returns:
        The mean over the pairs that contribute; 0 if there are none.
    """
    distance = (embeddings[:, None] - embeddings).square().sum(-1).clamp(min=1e-8).sqrt()
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)
    reach = distance.detach().masked_fill(same | (distance < cutoff), torch.inf)
    rank = reach.argsort(1).argsort(1)
    negative = (rank < positive.sum(1, keepdim=True)) & reach.isfinite()
    losses = torch.cat([F.relu(distance[positive] - boundary + margin), F.relu(boundary + margin - distance[negative])])
    return losses.sum() / (losses > 0).sum().clamp(min=1)

"""Attention-challenging multiple instance learning (ACMIL): several branches of attention, which training keeps apart.

Paper: Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification", arXiv 2311.07125.
Upstream: dazhangyu123/ACMIL at e53d19c (MIT); recorded outputs of its two forms are reproduced, no code of it is used. The
branches share an embedding; each has a classifier, and the slide one on the mean attention of all. In training the largest
attention logits of each branch are masked at random (stochastic top-k instance masking, STKIM, section 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from visionattn.heads.abmil import GatedAttention, gated_keys
from visionattn.heads.mha import QueryAttention, ValueProjection, query_keys
from visionattn.heads.mil import ABSENT, BagHead, BagOutput, Embedding, inner_width, pool, softmax


def mask_top(scores: torch.Tensor, draws: torch.Tensor, rate: float) -> torch.Tensor:
    """Mask a share of the largest logits.

    Args:
        scores: `[..., N]`.
        draws: `[..., k]`, a random number for each of the k largest; the smallest of them choose.
        rate: share of the k largest that is masked.
    """
    top = scores.topk(draws.shape[-1], -1).indices
    chosen = draws.argsort(-1)[..., : int(draws.shape[-1] * rate)]
    return scores.scatter(-1, top.gather(-1, chosen), ABSENT)


class _Branches(BagHead):
    """What both forms have: masking in training, the branches' classifiers, and the slide's."""

    def __init__(self, width: int, num_classes: int, branches: int, top: int, mask_rate: float, dropout: float) -> None:
        super().__init__()
        if not 0 <= mask_rate < 1:
            raise ValueError(f"mask_rate: expected a share from 0 to below 1, got {mask_rate}")
        self.top, self.mask_rate = top, mask_rate
        self.dropout = nn.Dropout(dropout)
        self.branches = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(branches))
        self.classifier = nn.Linear(width, num_classes)

    def masked(self, scores: torch.Tensor, sizes: Sequence[int] | None, seeds: Sequence[int] | None) -> torch.Tensor:
        """Attention logits `[B, ..., N]` of training: the draws of a bag come from its seed, or from torch's generator."""
        if not (self.training and self.top and self.mask_rate):
            return scores
        rows = []
        for number, row in enumerate(scores):
            present = row if sizes is None else row[..., : sizes[number]]
            generator = None if seeds is None else torch.Generator().manual_seed(seeds[number])
            # Of a small bag as many are drawn from as there are, so that some are always kept.
            draws = torch.rand(*row.shape[:-1], min(self.top, present.shape[-1]), generator=generator)
            kept = mask_top(present, draws.to(row.device), self.mask_rate)
            rows.append(torch.cat([kept, row[..., present.shape[-1] :]], -1))
        return torch.stack(rows)

    def classified(self, each: Sequence[torch.Tensor], whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the slide, and of each branch `[B, branches, classes]`."""
        found = [classifier(self.dropout(vector)) for classifier, vector in zip(self.branches, each, strict=True)]
        return self.classifier(self.dropout(whole)), torch.stack(found, 1)


class ACMIL(_Branches):
    """ACMIL with gated attention.

    Args:
        features: features of an instance.
        num_classes: number of classes.
        width: width of embedded instances; None: by the features.
        hidden: width of the gated attention.
        branches: number of branches.
        top: largest attention logits of a branch among which training masks.
        mask_rate: share of them that is masked; 0 masks none.
        dropout: dropout on embedded instances and before the classifiers.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        width: int | None = None,
        hidden: int = 128,
        branches: int = 5,
        top: int = 10,
        mask_rate: float = 0.6,
        dropout: float = 0.0,
    ) -> None:
        width = width or inner_width(features)
        super().__init__(width, num_classes, branches, top, mask_rate, dropout)
        self.embedding = Embedding(features, width, dropout)
        self.attention = GatedAttention(width, hidden, branches)

    def forward(self, bags: torch.Tensor, sizes: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> BagOutput:
        found: list[torch.Tensor] = []

        def weigh(scores: torch.Tensor) -> torch.Tensor:
            found.extend(softmax(self.masked(scores, sizes, seeds), sizes))
            return found[1]

        sums = pool(bags, self.embedding, self.attention, weigh, self.piece)  # B branches width
        scores, weights = found
        logits, branches = self.classified(sums.unbind(1), sums.mean(1))  # the sum with the mean attention is the mean of the sums
        return BagOutput(logits, weights.mean(1), scores[:, None], branches)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return gated_keys(_classifier_keys(state))


class ACMILHeads(_Branches):
    """ACMIL with a learned query and multi-head attention per branch; arguments as of `ACMIL`.

    Args:
        heads: number of attention heads.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        width: int | None = None,
        heads: int = 8,
        branches: int = 5,
        top: int = 10,
        mask_rate: float = 0.6,
        dropout: float = 0.0,
    ) -> None:
        width = width or inner_width(features)
        super().__init__(width, num_classes, branches, top, mask_rate, dropout)
        self.embedding = Embedding(features, width, dropout)
        self.query = nn.Parameter(torch.empty(branches, width))
        self.attention = nn.ModuleList(QueryAttention(width, heads) for _ in range(branches))
        self.value = ValueProjection(width, heads)
        nn.init.normal_(self.query, std=1e-6)

    def forward(self, bags: torch.Tensor, sizes: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> BagOutput:
        count = len(self.branches)
        found: list[torch.Tensor] = []

        def score(x: torch.Tensor) -> torch.Tensor:  # B N width -> B N (branches heads)
            return torch.cat([attend.score(query, x) for attend, query in zip(self.attention, self.query, strict=True)], -1)  # type: ignore[operator]

        def weigh(scores: torch.Tensor) -> torch.Tensor:
            found.extend(softmax(self.masked(scores, sizes, seeds), sizes))
            return found[1]

        sums = pool(bags, self.embedding, score, weigh, self.piece).unflatten(1, (count, -1))  # B branches heads width
        each = [attend.value(part) for attend, part in zip(self.attention, sums.unbind(1), strict=True)]  # type: ignore[operator]
        logits, branches = self.classified(each, self.value(sums.mean(1)))
        scores, weights = (value.unflatten(1, (count, -1)).transpose(1, 2) for value in found)  # B heads branches N
        return BagOutput(logits, weights.mean((1, 2)), scores, branches)

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        own = {key.replace("sub_attention.", "attention.").replace("bag_attention.", "."): value for key, value in state.items()}
        return {key.removeprefix("."): value for key, value in query_keys(_classifier_keys(own)).items()}


def _classifier_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {key: re.sub(r"^classifier\.(\d+)\.fc\.", r"branches.\1.", key).replace("Slide_classifier.fc.", "classifier.") for key in state}
    return {names[key]: value for key, value in state.items()}

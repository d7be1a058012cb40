"""The loss of bags: cross-entropy of the bag and of its branches, and what keeps attention from resting on few instances."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F

from visionattn.heads.mil import BagOutput
from visionattn.tasks.bags.settings import BagsConfig
from visionattn.tasks.base import Objective
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_weights import class_weights


class BagObjective(Objective):
    """Weighted sum by the config's `loss`; parts that a head has nothing for are left out.

    Args:
        dataset: labelled bags, from which balanced class weights are counted.
    """

    def __init__(self, config: BagsConfig, num_classes: int, dataset: Any) -> None:
        self.settings = config.loss
        self.class_weights = class_weights(config.loss.class_weights, dataset.part.labels, num_classes)

    def loss(self, outputs: BagOutput, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss` and its unweighted parts: `bag`, `branches`, `diversity`, `entropy`."""
        settings, label = self.settings, batch["label"].to(outputs.logits.device)
        parts = {"bag": self._cross_entropy(outputs.logits, label)}
        total = parts["bag"]
        if outputs.branches is not None and settings.branches:
            count = outputs.branches.shape[1]
            parts["branches"] = self._cross_entropy(outputs.branches.flatten(0, 1), label.repeat_interleave(count))
            total = total + settings.branches * parts["branches"]
        if outputs.scores.shape[2] > 1 and settings.diversity:
            parts["diversity"] = branch_similarity(outputs.scores)
            total = total + settings.diversity * parts["diversity"]
        if settings.entropy:
            parts["entropy"] = negative_entropy(outputs.scores)
            total = total + settings.entropy * parts["entropy"]
        return {"loss": total, **parts}

    def _cross_entropy(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, label, weight=weight, label_smoothing=self.settings.label_smoothing)


def branch_similarity(scores: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity of the attention of two branches (ACMIL, arXiv 2311.07125, equation 7).

    Args:
        scores: attention logits `[B, heads, branches, N]`.
    """
    attention = scores.softmax(-1)
    pairs = list(combinations(range(scores.shape[2]), 2))
    first, second = (attention[:, :, list(side)] for side in zip(*pairs, strict=True))
    return F.cosine_similarity(first, second, dim=-1).mean()


def negative_entropy(scores: torch.Tensor) -> torch.Tensor:
    """Sum of p log p over instances, averaged over bags, heads and branches (AEM, arXiv 2406.15303, equation 6).

    Args:
        scores: attention logits `[B, heads, branches, N]`.
    """
    return (scores.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()

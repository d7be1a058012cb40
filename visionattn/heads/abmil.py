"""Gated attention over the instances of a bag (ABMIL).

Paper: Ilse, Tomczak, Welling, "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712, equations 7 and 9; with an
embedding in front, as ACMIL (arXiv 2311.07125) and AEM (arXiv 2406.15303) use it. Written from the equations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from visionattn.heads.mil import BagHead, BagOutput, Embedding, inner_width, pool, softmax


class GatedAttention(nn.Module):
    """Attention logits of embedded instances, `w (tanh(V h) * sigmoid(U h))`: B N width -> B N branches."""

    def __init__(self, width: int, hidden: int, branches: int = 1) -> None:
        super().__init__()
        self.tanh = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(self.tanh(x).tanh() * self.gate(x).sigmoid())  # type: ignore[no-any-return]


class ABMIL(BagHead):
    """Logits of the attention-weighted mean of embedded instances.

    Args:
        features: features of an instance.
        num_classes: number of classes.
        width: width of embedded instances; None: by the features.
        hidden: width of the gated attention.
        dropout: dropout on embedded instances and before the classifier.
    """

    def __init__(self, features: int, num_classes: int, *, width: int | None = None, hidden: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        width = width or inner_width(features)
        self.embedding = Embedding(features, width, dropout)
        self.attention = GatedAttention(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, bags: torch.Tensor, sizes: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> BagOutput:
        found: list[torch.Tensor] = []

        def weigh(scores: torch.Tensor) -> torch.Tensor:
            found.extend(softmax(scores, sizes))
            return found[1]

        pooled = pool(bags, self.embedding, self.attention, weigh, self.piece)  # B 1 width
        scores, weights = found
        return BagOutput(self.classifier(self.dropout(pooled[:, 0])), weights[:, 0], scores[:, None])

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return gated_keys({key.replace("classifier.fc.", "classifier."): value for key, value in state.items()})


def gated_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the authors' keys of embedding and gated attention to ours."""
    names = {
        "dimreduction.fc1.": "embedding.linear.",
        "attention.attention_V.0.": "attention.tanh.",
        "attention.attention_U.0.": "attention.gate.",
        "attention.attention_weights.": "attention.score.",
    }
    renamed = {}
    for key, value in state.items():
        theirs = next((name for name in names if key.startswith(name)), "")
        renamed[names[theirs] + key.removeprefix(theirs) if theirs else key] = value
    return renamed

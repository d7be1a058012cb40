"""Multi-head attention of learned queries over the instances of a bag.

Used by ACMIL (Zhang et al., arXiv 2311.07125) and AEM (Zhang et al., arXiv 2406.15303) beside gated attention; written from the
equations of attention (arXiv 1706.03762). Keys and values are linear in the instances, so their projections are applied to the
query and to the weighted sum instead of to every instance: the same function, at the cost of gated attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from visionattn.heads.mil import BagHead, BagOutput, Embedding, inner_width, pool, softmax


class QueryAttention(nn.Module):
    """One query that attends to embedded instances in several heads.

    Args:
        width: width of query and instances.
        heads: number of heads, which divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.value = ValueProjection(width, heads)

    def score(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Attention logits of a query `[width]`: B N width -> B N heads."""
        q = self.q_proj(query).view(self.heads, -1)
        keys = self.k_proj.weight.view(self.heads, q.shape[1], -1)
        vectors = torch.einsum("hd,hdc->hc", q, keys)  # so that vectors @ x = q @ (keys @ x)
        offset = (q * self.k_proj.bias.view(self.heads, -1)).sum(1)
        return (x @ vectors.T + offset) * q.shape[1] ** -0.5


class ValueProjection(nn.Module):
    """Values of weighted sums of instances, projected and normalised: B heads width -> B width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, sums: torch.Tensor) -> torch.Tensor:
        weight = self.v_proj.weight.view(self.heads, -1, sums.shape[-1])
        values = torch.einsum("bhc,hdc->bhd", sums, weight) + self.v_proj.bias.view(self.heads, -1)
        return self.norm(self.out_proj(values.flatten(1)))  # type: ignore[no-any-return]


class MHA(BagHead):
    """Logits of what one learned query finds in a bag.

    Args:
        features: features of an instance.
        num_classes: number of classes.
        width: width of embedded instances; None: by the features.
        heads: number of attention heads.
        dropout: dropout on embedded instances and before the classifier.
    """

    def __init__(self, features: int, num_classes: int, *, width: int | None = None, heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        width = width or inner_width(features)
        self.embedding = Embedding(features, width, dropout)
        self.query = nn.Parameter(torch.empty(1, width))
        self.attention = QueryAttention(width, heads)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.query, std=1e-6)

    def forward(self, bags: torch.Tensor, sizes: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> BagOutput:
        found: list[torch.Tensor] = []

        def weigh(scores: torch.Tensor) -> torch.Tensor:
            found.extend(softmax(scores, sizes))
            return found[1]

        sums = pool(bags, self.embedding, lambda x: self.attention.score(self.query[0], x), weigh, self.piece)  # B heads width
        scores, weights = found
        logits = self.classifier(self.dropout(self.attention.value(sums)))
        return BagOutput(logits, weights.mean(1), scores[:, :, None])

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return query_keys({key.replace("classifier.fc.", "classifier."): value for key, value in state.items()})


def query_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the authors' keys of embedding and queries to ours."""
    renamed = {}
    for key, value in state.items():
        if key == "q":
            key, value = "query", value[0]
        key = key.replace("dimreduction.fc1.", "embedding.linear.").replace("layer_norm.", "norm.")
        for part in ("v_proj.", "out_proj.", "norm."):
            key = key.replace(f".{part}", f".value.{part}")
        renamed[key] = value
    return renamed

"""What the heads of bags share: their output, and the weighted sum of instances, whose memory is bounded.

A bag is a set of instances, each a vector of features: the patches of a slide. Bags of a batch are padded to the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ABSENT = -1e9  # attention logit of an instance that takes no part; not -inf, whose gradients are not numbers
PIECE = 16_384  # instances that are embedded at a time
SMALL_PIECE = 2_048  # and with gradient checkpointing


class BagOutput(NamedTuple):
    """Logits of a batch of bags, and what their instances contributed.

    Attributes:
        logits: `[B, classes]`.
        attention: `[B, N]`, share of each instance: their sum is 1, and those of a padded place 0.
        scores: `[B, heads, branches, N]`, attention logits; `ABSENT` where an instance is masked or padded.
        branches: `[B, branches, classes]`, logits of each branch, of heads with several.
    """

    logits: torch.Tensor
    attention: torch.Tensor
    scores: torch.Tensor
    branches: torch.Tensor | None = None


class Embedding(nn.Module):
    """Standardise features, then a linear layer without bias, ReLU, dropout.

    Attributes:
        mean, std: of each feature, buffers; 0 and 1 leave features as they are.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.linear = nn.Linear(features, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x.to(self.mean.dtype) - self.mean) / self.std
        return self.dropout(F.relu(self.linear(x)))  # type: ignore[no-any-return]


class BagHead(nn.Module):
    """Compute logits from the instances of bags.

    Attributes:
        piece: instances that are embedded at a time, in bags that have more; in training their activations are computed again.
    """

    piece: int = PIECE

    embedding: Embedding

    def forward(self, bags: torch.Tensor, sizes: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> BagOutput:
        """Compute the output of bags `[B, N, features]`.

        Args:
            sizes: instances of each bag, behind which its places are padded; None if none is.
            seeds: of each bag, for what is masked in training; None to draw from torch's generator.
        """
        raise NotImplementedError

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the authors' files to ours."""
        return state


def inner_width(features: int) -> int:
    """Width of embedded instances, as ACMIL's authors choose it by the number of features."""
    widths = {384: 128, 512: 256, 768: 384, 1024: 512}
    return next((width for limit, width in widths.items() if features <= limit), 768)


def pool(
    bags: torch.Tensor,
    embed: Callable[[torch.Tensor], torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    weigh: Callable[[torch.Tensor], torch.Tensor],
    piece: int,
) -> torch.Tensor:
    """Weighted sums of embedded instances, `weigh(score(embed(bags))) @ embed(bags)`: `[B, sums, width]`.

    Of bags with more instances than a piece, scores and weights are all that is kept: the pieces are embedded again for the
    sums (with dropout drawn anew), and in the backward pass.

    Args:
        embed: instances `[B, n, features]` to `[B, n, width]`.
        score: embedded instances to attention logits `[B, n, sums]`.
        weigh: all logits `[B, sums, N]` to weights of the same shape.
    """
    if bags.shape[1] <= piece:
        hidden = embed(bags)
        return weigh(score(hidden).transpose(1, 2)).to(hidden.dtype) @ hidden

    def part(instances: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        hidden = embed(instances)
        return weights.to(hidden.dtype) @ hidden

    pieces = bags.split(piece, 1)
    scores = torch.cat([_recomputed(lambda instances: score(embed(instances)), one) for one in pieces], 1)
    weights = weigh(scores.transpose(1, 2)).split(piece, 2)
    total: torch.Tensor = sum(_recomputed(part, *both) for both in zip(pieces, weights, strict=True))  # type: ignore[assignment]
    return total


def softmax(scores: torch.Tensor, sizes: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over instances in at least float32: the logits with `ABSENT` where a place is padded, and their softmax.

    Args:
        scores: `[B, sums, N]`.
        sizes: instances of each bag.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    count = scores.shape[-1]
    if sizes is not None and min(sizes) < count:
        ends = torch.tensor(sizes, device=scores.device).view(-1, 1, 1)
        scores = scores.masked_fill(torch.arange(count, device=scores.device) >= ends, ABSENT)
    return scores, scores.softmax(-1)


def _recomputed(function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """Call a function; where there is a gradient its activations are computed again for it."""
    if torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)  # type: ignore[no-any-return]
    return function(*args)

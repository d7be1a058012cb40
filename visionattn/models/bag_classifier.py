"""Classifier of bags: a head that pools the instances of a bag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from visionattn.heads.mil import PIECE, SMALL_PIECE, BagHead, BagOutput


class BagClassifier(nn.Module):
    """A head on given features; parameters are `head.*`, and the backbone passes features on as they are.

    Args:
        head: for `features` per instance.
        mean, std: of each feature, by which features are standardised; None leaves them as they are.
    """

    def __init__(self, head: BagHead, features: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.head = head
        self.features = features
        if mean is not None and std is not None:
            head.embedding.mean.copy_(torch.tensor(mean))
            head.embedding.std.copy_(torch.tensor(std))

    def forward(self, bags: torch.Tensor, sizes: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> BagOutput:
        """Compute the output of bags `[B, N, features]`, see `BagHead`."""
        return self.head(self.backbone(bags), sizes, seeds)  # type: ignore[no-any-return]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of smaller pieces of a bag."""
        self.head.piece = SMALL_PIECE if enable else PIECE

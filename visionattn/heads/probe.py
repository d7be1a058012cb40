"""Efficient probing: attentive pooling for a backbone that is not trained.

Paper: Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency", arXiv 2506.10178.
Upstream: github billpsomas/efficient-probing, commit b8f4fb8 (Apache-2.0).

Differences from upstream:

* The queries attend to the positions of the last map after the norm of the family's classifier, also where that classifier pools
  before its norm. Upstream probes the tokens of ViTs.
* The attention is computed with all channels of the values, of which each query keeps its own slice; upstream computes the slices.
"""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from torch import nn

from visionattn.errors import ArgumentError
from visionattn.kernels import dense_attention


class EfficientProbe(nn.Module):
    """Compute logits from the last map, pooled by learned queries.

    Each query attends to the positions of the map, whose values alone are projected, and pools its own slice of their channels.
    The slices are concatenated and normalised over the batch.

    Args:
        channels: channels of the maps; the last map is used.
        num_classes: number of classes; 0 returns the pooled features.
        norm: normalisation over NCHW, of the map.
        global_pool: "avg", as in `LinearHead`; there are no logits per position.
        drop_rate: dropout before the linear layer.
        queries: number of queries.
        reduction: channels of the map per channel of the values.

    Raises:
        ArgumentError: VA-M002, the channels cannot be shared out among the queries.
        ValueError: unknown `global_pool`.
    """

    pool_first = False

    def __init__(
        self,
        channels: tuple[int, ...],
        num_classes: int,
        *,
        norm: nn.Module | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        queries: int = 32,
        reduction: int = 1,
    ) -> None:
        super().__init__()
        dim = channels[-1]
        if dim % reduction or (dim // reduction) % queries:
            what = f"{queries} queries cannot share {dim} channels, reduced by {reduction}"
            fits = max(count for count in range(1, min(queries, dim) + 1) if dim % count == 0)
            raise ArgumentError("VA-M002", what, fix=f"model.classifier.queries={fits} model.classifier.reduction=1")
        self.num_features = dim // reduction
        self.norm = norm if norm is not None else nn.Identity()
        self.queries = nn.Parameter(torch.empty(queries, dim))
        self.value = nn.Linear(dim, self.num_features, bias=False)
        self.pooled_norm = nn.BatchNorm1d(self.num_features, eps=1e-6, affine=False)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset(num_classes, global_pool)
        self.init_weights()

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer."""
        if global_pool not in ("avg", None):
            raise ValueError(f'global_pool: the queries pool the map; expected "avg", got {global_pool!r}')
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self._init_classifier()

    def init_weights(self) -> None:
        nn.init.normal_(self.queries, std=0.02)
        self.value.reset_parameters()
        self.pooled_norm.reset_running_stats()
        self._init_classifier()

    def _init_classifier(self) -> None:
        if isinstance(self.fc, nn.Linear):
            trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, maps: list[torch.Tensor], pre_logits: bool = False) -> torch.Tensor:  # B C H W -> B num_classes
        x = self.drop(self.pooled_norm(self.pool(self.norm(maps[-1]))))
        return x if pre_logits else self.fc(x)  # type: ignore[no-any-return]

    def pool(self, x: torch.Tensor) -> torch.Tensor:  # B C H W -> B C'
        keys = x.permute(0, 2, 3, 1)  # B H W C
        batch, count = keys.shape[0], len(self.queries)
        queries = self.queries.to(keys.dtype).expand(batch, 1, count, -1)
        pooled = dense_attention(queries, keys, self.value(keys).to(keys.dtype))  # B 1 queries C
        own = pooled.view(batch, count, count, -1).diagonal(dim1=1, dim2=2)  # B C'/queries queries: slice i of query i
        return own.transpose(1, 2).flatten(1)

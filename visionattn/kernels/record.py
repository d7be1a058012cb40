"""Record the attention weights that operations compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class AttentionRecord(NamedTuple):
    """Attention weights of one call.

    Attributes:
        op: name of the operation.
        weights: after the softmax, detached (see `record_attention`), on the device of the call, with the keys along the last axis:
            neighborhood_attention `[B, heads, H, W, kh * kw]`, window_attention `[B, windows, heads, N, N]`,
            routed_attention `[B, R, heads, N, topk * N]`, aggregated_attention `[B, heads, H, W, k * k + P]`,
            channel_attention `[B, heads, dim, dim]`, dense_attention `[B, heads, H * W, Hk * Wk]` (without
            heads if q has none), agent_attention `[B, heads, H * W, Ha * Wa]`,
            strided_attention `[B, groups, heads, N, N]`, decayed_attention `[B, L, heads, N, N]` for L lines
            of N positions, criss_cross_attention `[B, H, W, H + W]`, danet_channel_attention `[B, C, C]`.
            Gates are those after the sigmoid: channel_gate `[B, C]`, strip_gate `[B, C, H + W]`, rows then columns.
        geometry: position of the weights on the map: always `size`, height and width of the map of queries;
            other keys are listed in `docs/kernels.md`, "Record attention weights".
    """

    op: str
    weights: torch.Tensor
    geometry: dict[str, Any]


_records: list[AttentionRecord] | None = None  # None: not recording
_gradients = False


@contextmanager
def record_attention(*, gradients: bool = False) -> Iterator[list[AttentionRecord]]:
    """Run the reference backend of every operation and record its attention weights, in the order of the calls.

    Overrides `use_backend` and `backend=`. The outputs are those of `use_backend("reference")`, and gradients flow.
    The list is kept after the block. Contexts may be nested: the innermost keeps the records. The state is
    per process, not per thread: calls in other threads are recorded too. With gradient checkpointing, call `backward`
    inside the block; recomputed calls are recorded again.

    Args:
        gradients: keep the weights in the graph of the outputs: after `backward`, `weights.grad` is their gradient.

    Yields:
        The list that the records are appended to.
    """
    global _records, _gradients
    before, _records, _gradients = (_records, _gradients), [], gradients
    try:
        yield _records
    finally:
        _records, _gradients = before


def recording() -> bool:
    """Whether attention weights are being recorded."""
    return _records is not None


def keep_weights(op: str, weights: torch.Tensor, **geometry: Any) -> None:
    """Record attention weights, if inside `record_attention`; for code that computes the weights itself.

    Gradients are recorded if the output is computed from this very tensor, not from one that it is a view of.
    """
    if _records is not None:
        detached = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in geometry.items()}
        if _gradients and weights.requires_grad:
            weights.retain_grad()
        _records.append(AttentionRecord(op, weights if _gradients else weights.detach(), detached))

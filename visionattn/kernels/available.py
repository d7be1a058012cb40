"""List the backends available to an operation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from visionattn.kernels import aggregated, neighborhood, routing
from visionattn.kernels.dispatch import BACKENDS, NONE_SUCH, torch_only

# The check that each operation runs before choosing a backend, on its first tensors.
REASONS: dict[str, Callable[..., dict[str, str]]] = {
    "agent_attention": torch_only,
    "aggregated_attention": aggregated.reasons,
    "channel_attention": torch_only,
    "channel_gate": torch_only,
    "decayed_attention": torch_only,
    "dense_attention": torch_only,
    "dilated_depthwise_conv2d": torch_only,
    "inline_attention": torch_only,
    "neighborhood_aggregate": torch_only,
    "neighborhood_attention": neighborhood.reasons,
    "rank_augmented_attention": torch_only,
    "routed_attention": routing.reasons,
    "strided_attention": torch_only,
    "strip_gate": torch_only,
    "window_attention": torch_only,
}


def available_backends(op: str, *tensors: torch.Tensor) -> dict[str, str]:
    """Map each backend, fastest first, to the reason it cannot run an operation with these tensors; empty if it can.

    Args:
        op: name of the operation, as in `visionattn.kernels`.
        tensors: tensors of the call, in order; their device, dtype and shape are checked.

    Raises:
        ValueError: unknown operation, or one without a choice of backends.
    """
    if op not in REASONS:
        raise ValueError(f"available_backends: expected one of {', '.join(REASONS)}, got {op!r}")
    reasons = REASONS[op](*tensors)
    return {name: reasons.get(name, NONE_SUCH) for name in BACKENDS}

"""Place recorded attention weights on the map: which positions a query, or all of them, attend to."""

from __future__ import annotations

import torch

from visionattn.kernels.neighborhood.reference import neighbors
from visionattn.kernels.record import AttentionRecord
from visionattn.kernels.strided.reference import from_groups, groups, pad_to_groups

# Operations whose keys are positions of a map; the others weigh channels.
POSITIONAL = frozenset(
    (
        "agent_attention",
        "aggregated_attention",
        "criss_cross_attention",
        "decayed_attention",
        "dense_attention",
        "neighborhood_aggregate",
        "neighborhood_attention",
        "routed_attention",
        "strided_attention",
        "window_attention",
    )
)


def spread_attention(record: AttentionRecord, share: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum over the queries what each gives to the keys: `out[k] = sum_q share[q] * weights[q, k]`.

    With a share of 1 at one position the result is its attention. A pooled key of `aggregated_attention` is shared out among the
    positions that it averages; its weights of neighbours are those of the softmax. What agents of `agent_attention` are given, they give
    to the positions that they gather from.

    Args:
        record: of an operation in `POSITIONAL`.
        share: of each query, `[H, W]` with the `size` of the record, or `[B, H, W]`.
        weights: of the shape of `record.weights`, to use instead of them.

    Returns:
        `[B, heads, Hk, Wk]`, the size of the map of keys.

    Raises:
        ValueError: the keys of the operation are not positions, or `share` has another size.
    """
    geometry, weights = record.geometry, record.weights if weights is None else weights
    height, width = geometry["size"]
    if share.shape[-2:] != (height, width):
        raise ValueError(f"share: expected a map of {height} x {width}, got {list(share.shape)}")
    share = share.to(weights).expand(len(weights), height, width)
    if record.op == "window_attention":
        return _windows(weights, share, geometry["window_size"], geometry["shift"])
    if record.op == "strided_attention":
        return _groups(weights, share, geometry["group_size"], geometry["interval"])
    if record.op == "routed_attention":
        return _regions(weights, share, geometry["region"], geometry["routes"])
    if record.op in ("neighborhood_aggregate", "neighborhood_attention"):
        return _neighbors(weights, share, geometry["kernel_size"], geometry["dilation"], geometry["border"])
    if record.op == "aggregated_attention":
        return _aggregated(weights, share, geometry["kernel_size"], geometry["pool"])
    if record.op == "dense_attention":
        weights = weights if weights.dim() == 4 else weights.unsqueeze(1)
        return (share.flatten(1)[:, None, None] @ weights).squeeze(2).unflatten(-1, geometry["key_size"])
    if record.op == "agent_attention":
        agents = share.flatten(1)[:, None, None] @ weights  # B heads 1 Na
        return (agents @ geometry["agent_weights"]).squeeze(2).unflatten(-1, (height, width))
    if record.op == "decayed_attention":
        return _lines(weights, share, geometry["along"])
    if record.op == "criss_cross_attention":
        column, row = weights.split([height, width], -1)
        return (torch.einsum("byx,byxk->bkx", share, column) + torch.einsum("byx,byxk->byk", share, row)).unsqueeze(1)
    raise ValueError(f"{record.op}: its keys are not positions")


def _windows(weights: torch.Tensor, share: torch.Tensor, window_size: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    (wh, ww), (sh, sw), (batch, height, width) = window_size, shift, share.shape
    rows, cols, heads = height // wh, width // ww, weights.shape[2]
    share = torch.roll(share, (-sh, -sw), (1, 2)).view(batch, rows, wh, cols, ww).transpose(2, 3)
    out = share.reshape(batch, rows * cols, 1, 1, wh * ww) @ weights  # B windows heads 1 N
    out = out.view(batch, rows, cols, heads, wh, ww).permute(0, 3, 1, 4, 2, 5).reshape(batch, heads, height, width)
    return torch.roll(out, (sh, sw), (2, 3))


def _groups(weights: torch.Tensor, share: torch.Tensor, group_size: tuple[int, int], interval: tuple[int, int]) -> torch.Tensor:
    height, width = share.shape[1:]
    padded = pad_to_groups(share[..., None, None], group_size, interval)
    out = groups(padded, group_size, interval).transpose(-2, -1) @ weights  # B groups heads 1 N
    shape = torch.Size((*padded.shape[:3], weights.shape[2], 1))
    return from_groups(out.transpose(-2, -1), shape, group_size, interval)[:, :height, :width, :, 0].permute(0, 3, 1, 2)


def _regions(weights: torch.Tensor, share: torch.Tensor, region: tuple[int, int], routes: torch.Tensor) -> torch.Tensor:
    (rh, rw), (batch, height, width) = region, share.shape
    rows, cols, heads, area = height // rh, width // rw, weights.shape[2], rh * rw
    share = share.reshape(batch, rows, rh, cols, rw).transpose(2, 3).reshape(batch, rows * cols, 1, 1, area)
    given = (share @ weights).squeeze(3).unflatten(-1, (-1, area))  # B R heads topk N
    given = given.transpose(2, 3).flatten(1, 2)  # B (R topk) heads N
    index = routes.flatten(1)[..., None, None].expand_as(given)
    out = given.new_zeros(batch, rows * cols, heads, area).scatter_add_(1, index, given)
    return out.view(batch, rows, cols, heads, rh, rw).permute(0, 3, 1, 4, 2, 5).reshape(batch, heads, height, width)


def _lines(weights: torch.Tensor, share: torch.Tensor, along: str) -> torch.Tensor:
    batch, height, width = share.shape
    lines = {"map": share.view(batch, 1, -1), "rows": share, "columns": share.transpose(1, 2)}[along]
    out = (lines[:, :, None, None] @ weights).squeeze(3).transpose(1, 2)  # B heads L N
    return out.transpose(2, 3) if along == "columns" else out.reshape(batch, -1, height, width)


def _neighbors(
    weights: torch.Tensor, share: torch.Tensor, kernel_size: tuple[int, int], dilation: tuple[int, int], border: str
) -> torch.Tensor:
    batch, heads, height, width, _ = weights.shape
    index, _, _ = neighbors(height, width, kernel_size, dilation, border, weights.device)  # type: ignore[arg-type]
    given = (weights * share[:, None, :, :, None]).flatten(2)  # keys outside the map have weight 0
    out = given.new_zeros(batch, heads, height * width)
    return out.scatter_add_(2, index.flatten().expand_as(given), given).unflatten(-1, (height, width))


def _aggregated(weights: torch.Tensor, share: torch.Tensor, kernel_size: int, pool: tuple[int, ...]) -> torch.Tensor:
    if len(pool) != 2:
        raise ValueError(f"aggregated_attention: a list of {pool[0]} pooled keys has no places")
    area, (height, width) = kernel_size**2, share.shape[1:]
    near = _neighbors(weights[..., :area], share, (kernel_size, kernel_size), (1, 1), "mask")
    far = torch.einsum("byx,bnyxp->bnp", share, weights[..., area:]).unflatten(-1, pool)
    rows, cols = (_bins(length, count, weights) for length, count in zip((height, width), pool, strict=True))
    return near + rows.T @ far @ cols


def _bins(length: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """Share of each position in the bins of adaptive average pooling, `[count, length]`."""
    position, cell = torch.arange(length, device=like.device), torch.arange(count, device=like.device)[:, None]
    inside = (position >= cell * length // count) & (position < ((cell + 1) * length + count - 1) // count)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)

"""Neighborhood attention: each position attends to a window of positions around it."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import choose, torch_only, triton_reason
from visionattn.kernels.neighborhood import fast, reference
from visionattn.kernels.neighborhood.reference import Border
from visionattn.kernels.record import keep_weights

Pair = int | tuple[int, int]


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel_size: Pair,
    dilation: Pair = 1,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    border: Border = "shift",
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention of each position to its neighborhood (NAT, arXiv 2204.07143, section 3; DiNAT, arXiv 2209.15001).

    The neighborhood is a window of `kernel_size` positions, `dilation` apart. At the border of the map
    "shift" moves the window inward, so that every position sees the same number of keys: NATTEN's rule,
    applied separately to each residue class modulo the dilation. "mask" keeps the window centred and
    excludes positions outside the map: TransNeXt's rule (arXiv 2311.17132). `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        kernel_size: height and width of the window in positions, odd; one number for both.
        dilation: distance between neighbouring keys in rows and columns; one number for both.
        bias: added to the scores, `[heads, 2 * kh - 1, 2 * kw - 1]`; entry `key - query + kernel_size - 1`,
            counted in dilated steps.
        scale: factor on q; default `dim ** -0.5`.
        border: "shift" or "mask".
        backend: "triton", "torch" or "reference"; by default the fastest available, see `visionattn.kernels.dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: a kernel size is even, shapes do not match, or with "shift" the map is smaller than
            kernel size x dilation.
        RuntimeError: the requested backend cannot run.
    """
    op = "neighborhood_attention"
    kernel, steps = _check(op, q, kernel_size, dilation, border)
    if q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"{op}: q, k and v must have one shape, got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}")
    _check_bias(op, bias, q.shape[3], kernel)
    scale = q.shape[4] ** -0.5 if scale is None else scale
    name = choose(op, backend, reasons(q, k, v))
    if name == "triton":
        from visionattn.kernels.neighborhood.triton import neighborhood_attention_triton

        return neighborhood_attention_triton(q, k, v, kernel, steps, bias, scale, border)
    run = fast.attention if name == "torch" else reference.attention
    return run(q, k, v, kernel_size=kernel, dilation=steps, bias=bias, scale=scale, border=border)


def neighborhood_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    kernel_size: Pair,
    dilation: Pair = 1,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    border: Border = "shift",
) -> torch.Tensor:
    """Compute the first half of `neighborhood_attention`: the scores before the softmax.

    Returns:
        `[B, H, W, heads, kh * kw]`, the window row by row; -inf for keys excluded by border "mask".

    Raises:
        ValueError: see `neighborhood_attention`.
    """
    kernel, steps = _check("neighborhood_scores", q, kernel_size, dilation, border)
    heads, dim = q.shape[3:]
    if q.shape != k.shape:
        raise ValueError(f"neighborhood_scores: q and k must have one shape, got {list(q.shape)} and {list(k.shape)}")
    _check_bias("neighborhood_scores", bias, heads, kernel)
    scale = dim**-0.5 if scale is None else scale
    return reference.scores(q, k, kernel_size=kernel, dilation=steps, bias=bias, scale=scale, border=border)


def neighborhood_bias(bias: torch.Tensor, height: int, width: int, dilation: Pair = 1, *, border: Border = "shift") -> torch.Tensor:
    """Expand the bias of `neighborhood_attention` to what it adds to the scores of each position of a map.

    Args:
        bias: `[heads, 2 * kh - 1, 2 * kw - 1]`.
        height, width: size of the map.
        dilation, border: see `neighborhood_attention`.

    Returns:
        `[heads, H, W, kh * kw]`, the window row by row.

    Raises:
        ValueError: see `neighborhood_attention`.
    """
    if bias.dim() != 3:
        raise ValueError(f"neighborhood_bias: bias must be [heads, 2 * kh - 1, 2 * kw - 1], got {list(bias.shape)}")
    kernel = (bias.shape[1] + 1) // 2, (bias.shape[2] + 1) // 2
    steps = _check_map("neighborhood_bias", height, width, kernel, dilation, border)[1]
    return reference.expand_bias(bias, height, width, steps, border).unflatten(1, (height, width))


def neighborhood_aggregate(
    weights: torch.Tensor,
    v: torch.Tensor,
    kernel_size: Pair,
    dilation: Pair = 1,
    *,
    border: Border = "shift",
    backend: str | None = None,
) -> torch.Tensor:
    """Sum the values of each neighborhood with given weights: the second half of `neighborhood_attention` (NATTEN's `na2d_av`).

    With weights that a network predicts for each position and head it is a dynamic convolution, as in ContMix (OverLoCK,
    arXiv 2502.20087, section 3.3).

    Args:
        weights: `[B, H, W, heads, kh * kw]`, the window row by row, any strides; with border "mask", weights of positions outside the
            map have no effect.
        v: `[B, H, W, heads, dim]`, any strides.
        kernel_size, dilation, border: see `neighborhood_attention`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: see `neighborhood_attention`.
        RuntimeError: the requested backend cannot run.
    """
    op = "neighborhood_aggregate"
    kernel, steps = _check(op, v, kernel_size, dilation, border)
    expected = (*v.shape[:4], kernel[0] * kernel[1])
    if weights.shape != expected:
        raise ValueError(f"{op}: weights must be [B, H, W, heads, kh * kw] = {list(expected)}, got {list(weights.shape)}")
    if choose(op, backend, torch_only()) == "torch":
        return fast.aggregate(weights, v, kernel_size=kernel, dilation=steps, border=border)
    heads_first = weights.permute(0, 3, 1, 2, 4)
    keep_weights(op, heads_first, size=tuple(v.shape[1:3]), kernel_size=kernel, dilation=steps, border=border)
    return reference.aggregate(heads_first.permute(0, 2, 3, 1, 4), v, kernel_size=kernel, dilation=steps, border=border)


def reasons(q: torch.Tensor, *others: torch.Tensor) -> dict[str, str]:
    """Map each backend to the reason it cannot run `neighborhood_attention` with q, k and v."""
    why = triton_reason(q)
    if not why:
        from visionattn.kernels.neighborhood.triton import reason

        why = reason(q, *others)
    return {"triton": why, "torch": "", "reference": ""}


def _check(op: str, x: torch.Tensor, kernel_size: Pair, dilation: Pair, border: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return kernel size and dilation as pairs, checked against the map."""
    if x.dim() != 5:
        raise ValueError(f"{op}: tensors are [B, H, W, heads, dim], got {list(x.shape)}")
    return _check_map(op, x.shape[1], x.shape[2], kernel_size, dilation, border)


def _check_map(op: str, height: int, width: int, kernel_size: Pair, dilation: Pair, border: str) -> tuple[tuple[int, int], tuple[int, int]]:
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])
    steps = (dilation, dilation) if isinstance(dilation, int) else (dilation[0], dilation[1])
    if any(side < 1 or side % 2 == 0 for side in kernel):
        raise ValueError(f"{op}: kernel_size must be odd, got {kernel_size}")
    if any(step < 1 for step in steps):
        raise ValueError(f"{op}: dilation must be at least 1, got {dilation}")
    if border not in ("shift", "mask"):
        raise ValueError(f'{op}: border is "shift" or "mask", got {border!r}')
    if border == "shift" and (height < kernel[0] * steps[0] or width < kernel[1] * steps[1]):
        raise ValueError(
            f"{op}: a map of {height}x{width} is smaller than kernel size x dilation, "
            f"{kernel[0] * steps[0]}x{kernel[1] * steps[1]}; pad it first"
        )
    return kernel, steps


def _check_bias(op: str, bias: torch.Tensor | None, heads: int, kernel: tuple[int, int]) -> None:
    table = (heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1)
    if bias is not None and bias.shape != table:
        raise ValueError(f"{op}: bias must be [heads, 2 * kh - 1, 2 * kw - 1] = {list(table)}, got {list(bias.shape)}")

"""Attention inside windows of a feature map, with or without a shift."""

from __future__ import annotations

import torch

from visionattn.kernels.dispatch import choose, torch_only
from visionattn.kernels.window import fast, reference


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window_size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention among the positions of each window (Swin, arXiv 2103.14030, section 3.2).

    With a shift, windows start at `shift` and wrap around the border; positions that share a
    window only because of the wrapping do not see each other. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        window_size: height and width of a window; they divide H and W.
        shift: rows and columns by which the windows are shifted, less than the window.
        bias: added to the scores, `[heads, N, N]` with N = window height x width.
        scale: factor on q; default `dim ** -0.5`.
        backend: "torch" or "reference"; for the default see `dispatch`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: the window does not divide the map; the shift is not less than the window; the backend is unknown.
        RuntimeError: the backend is not available for these tensors.
    """
    height, width = q.shape[1:3]
    scale = q.shape[4] ** -0.5 if scale is None else scale
    (wh, ww), (sh, sw) = window_size, shift
    if height % wh or width % ww:
        raise ValueError(f"window_attention: a window of {wh}x{ww} does not divide the map of {height}x{width}; pad it first")
    if not (0 <= sh < wh and 0 <= sw < ww):
        raise ValueError(f"window_attention: shift must be less than the window of {wh}x{ww}, got {sh}x{sw}")
    chosen = choose("window_attention", backend, torch_only())
    run = fast.window_attention if chosen == "torch" else reference.window_attention
    return run(q, k, v, window_size=window_size, shift=shift, bias=bias, scale=scale)

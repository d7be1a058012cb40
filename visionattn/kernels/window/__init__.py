"""Attention inside windows of a feature map, plain or shifted."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from visionattn.kernels.window.reference import shift_mask


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window_size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Multi-head attention among the positions of each window (Swin, arXiv 2103.14030, section 3.2).

    With a shift, windows start at `shift` and wrap around the border; positions that meet in a
    window only because of the wrapping do not see each other. `reference.py` is the definition.

    Args:
        q, k, v: `[B, H, W, heads, dim]`, any strides.
        window_size: height and width of a window; they divide H and W.
        shift: rows and columns by which the windows are moved, less than the window.
        bias: added to the scores, `[heads, N, N]` with N = window height x width.
        scale: factor on q; default `dim ** -0.5`.

    Returns:
        `[B, H, W, heads, dim]`.

    Raises:
        ValueError: the window does not divide the map.
    """
    batch, height, width, heads, dim = q.shape
    (wh, ww), (sh, sw) = window_size, shift
    if height % wh or width % ww:
        raise ValueError(f"window_attention: a window of {wh}x{ww} does not divide the map of {height}x{width}; pad it first")
    scale = dim**-0.5 if scale is None else scale
    rows, cols, area = height // wh, width // ww, wh * ww
    shifted = bool(sh or sw)

    def windows(x: torch.Tensor) -> torch.Tensor:  # B H W heads d -> B (windows heads) N d
        if shifted:
            x = torch.roll(x, (-sh, -sw), (1, 2))
        x = x.view(batch, rows, wh, cols, ww, heads, dim).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(batch, rows * cols * heads, area, dim)

    # One additive table for all images, `[windows * heads, N, N]`.
    table = None if bias is None else bias.to(q.dtype)[None]
    if shifted:
        mask = shift_mask(height, width, window_size, shift, q.device, q.dtype)[:, None]
        table = mask.expand(-1, heads, -1, -1) if table is None else table + mask
    if table is not None:
        table = table.expand(rows * cols, -1, -1, -1).reshape(rows * cols * heads, area, area)

    q, k, v = windows(q), windows(k), windows(v)
    if torch.is_grad_enabled() and q.device.type == "cpu":
        # A mask that needs a gradient sends SDPA to a slower path on the CPU.
        scores = (q * scale) @ k.transpose(-2, -1)
        out = (scores if table is None else scores + table).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if table is None else table[None], scale=scale)
    out = out.view(batch, rows, cols, heads, wh, ww, dim).permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads, dim)
    return torch.roll(out, (sh, sw), (1, 2)) if shifted else out

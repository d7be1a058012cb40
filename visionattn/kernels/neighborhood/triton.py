"""Neighborhood attention in Triton, for CUDA.

Algorithm: a program holds a tile of queries in registers and iterates over the rectangle of keys that they see,
block by block, with an online softmax (Dao et al., arXiv 2205.14135, arXiv 2307.08691). In the backward pass
`_dq_kernel` does the same; `_dk_dv_kernel` holds a tile of keys and iterates over the queries that see them;
`_dbias_kernel` sums the gradients of the scores over batch and tiles. No atomics:
two runs give the same bits.

A residue class of the dilation is a separate map; positions in it are counted in steps. Names of arrays end
in their shape, see `visionattn.kernels.tiles`:

    T   positions of the tile that is held: queries, in `_dk_dv_kernel` keys
    P   positions of the block iterated over: keys, in `_dk_dv_kernel` queries
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from visionattn.kernels.neighborhood.reference import Border
from visionattn.kernels.tiles import LOG2E, LOWEST, UPCAST, attend, dot, load, padded, product, shares, store, strides
from visionattn.kernels.tiles import reason as reason

FAR = tl.constexpr(1 << 24)  # steps; a position that no query sees


class Launch(NamedTuple):
    """Tile of positions that is held, number of positions in the block iterated over, and Triton's options."""

    tile_y: int
    tile_x: int
    block: int
    num_warps: int
    num_stages: int


# For a tile of 8 x 8, by kernel and bits of the dtype: the block, and the warps for head dims padded to 16, 32, 64, 128.
# Chosen to fit the registers on sm_80 and sm_90 with few warps; not yet tuned for speed.
BLOCKS_AND_WARPS = {
    ("forward", 16): (32, (4, 4, 4, 4)),
    ("dq", 16): (32, (4, 4, 4, 4)),
    ("dk_dv", 16): (16, (4, 4, 8, 8)),
    ("dbias", 16): (32, (4, 4, 4, 8)),
    ("forward", 32): (16, (4, 4, 8, 16)),
    ("dq", 32): (16, (4, 4, 8, 16)),
    ("dk_dv", 32): (16, (4, 4, 8, 16)),
    ("dbias", 32): (16, (8, 8, 8, 4)),
}


def launch(name: str, dim: int, kernel: Sequence[int], bits: int) -> Launch:
    """Configure a kernel ("forward", "dq", "dk_dv", "dbias") for a padded head dim, a window and a dtype."""
    block, warps = BLOCKS_AND_WARPS[name, bits]
    if prod(kernel) <= 9 and dim <= 64:  # a tile of 8 x 8 would load eleven times the keys of one query, this one four times
        return Launch(4, 4, block, num_warps=1 if dim <= 32 else 2, num_stages=2)
    return Launch(8, 8, block, num_warps=warps[dim.bit_length() - 5], num_stages=2)


# Indexing


@triton.jit
def _locate(index, height, width, dilation_y, dilation_x, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Image, residue class, first step and number of steps in the class, of a tile given by its index."""
    tiles_y = tl.cdiv(tl.cdiv(height, dilation_y), TILE_Y)
    tiles_x = tl.cdiv(tl.cdiv(width, dilation_x), TILE_X)
    first_x = index % tiles_x * TILE_X
    index = index // tiles_x
    first_y = index % tiles_y * TILE_Y
    index = index // tiles_y
    residue_x = index % dilation_x
    index = index // dilation_x
    residue_y = index % dilation_y
    image = (index // dilation_y).to(tl.int64)
    count_y = tl.cdiv(height - residue_y, dilation_y)
    count_x = tl.cdiv(width - residue_x, dilation_x)
    return image, residue_y, residue_x, first_y, first_x, count_y, count_x


@triton.jit
def _block(number, first_y, end_y, first_x, end_x, SIZE: tl.constexpr):
    """Steps in y and x of a block of a rectangle divided into blocks row by row; FAR beyond its end."""
    index = number * SIZE + tl.arange(0, SIZE)
    columns = end_x - first_x
    y = first_y + index // columns
    x = first_x + index % columns
    return tl.where(y < end_y, y, FAR), x


@triton.jit
def _tile(first_y, first_x, count_y, count_x, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Steps in y and x of the positions of a tile, and the mask of existing ones; the others repeat the last ones."""
    y, x = _block(0, first_y, first_y + TILE_Y, first_x, first_x + TILE_X, TILE_Y * TILE_X)
    return tl.minimum(y, count_y - 1), tl.minimum(x, count_x - 1), (y < count_y) & (x < count_x)


@triton.jit
def _centre(step, count, KERNEL: tl.constexpr, SHIFT: tl.constexpr):
    """Centre of a query's window: the query, moved inward at a shifted border."""
    if SHIFT:
        step = tl.minimum(tl.maximum(step, KERNEL // 2), count - 1 - KERNEL // 2)
    return step


@triton.jit
def _keys_seen(first, count, TILE: tl.constexpr, KERNEL: tl.constexpr, SHIFT: tl.constexpr):
    """First key and end of the keys that the queries of a tile see along an axis."""
    last = tl.minimum(first + TILE, count) - 1
    start = tl.maximum(_centre(first, count, KERNEL, SHIFT) - KERNEL // 2, 0)
    return start, tl.minimum(_centre(last, count, KERNEL, SHIFT) + KERNEL // 2 + 1, count)


@triton.jit
def _queries_seeing(first, count, TILE: tl.constexpr, KERNEL: tl.constexpr, SHIFT: tl.constexpr):
    """First query and end of the queries that see a key of a tile along an axis."""
    last = tl.minimum(first + TILE, count) - 1
    start = tl.maximum(first - KERNEL // 2, 0)
    end = tl.minimum(last + KERNEL // 2 + 1, count)
    if SHIFT:  # the first and the last `KERNEL` keys are in the windows of all queries beyond them
        start = tl.where(first < KERNEL, 0, start)
        end = tl.where(last >= count - KERNEL, count, end)
    return start, end


@triton.jit
def _token(y, x, residue_y, residue_x, width, dilation_y, dilation_x):
    """Index of a position in the map, row by row."""
    return (y * dilation_y + residue_y) * width + x * dilation_x + residue_x


# Computation


@triton.jit
def _scores(
    products,
    query_y,
    query_x,
    centre_y,
    centre_x,
    key_y,
    key_x,
    bias,
    scale,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Scores from the products of queries and keys: scaled, with bias, in base 2; -inf for keys outside the query's window.

    Positions have an axis of length one, queries and keys in the order of the axes of `products`.
    """
    visible = (tl.abs(key_y - centre_y) <= KERNEL_Y // 2) & (tl.abs(key_x - centre_x) <= KERNEL_X // 2)
    scores = products * (scale * LOG2E)
    if BIAS:
        columns: tl.constexpr = 2 * KERNEL_X - 1
        middle: tl.constexpr = (KERNEL_Y - 1) * columns + KERNEL_X - 1
        offset = (key_y * columns + key_x) - (query_y * columns + query_x - middle)
        scores += tl.load(bias + offset, mask=visible, other=0.0).to(tl.float32) * LOG2E
    return tl.where(visible, scores, float("-inf"))


# Kernels. Tensors are [B, tokens, heads, dim], q, k, v with strides in this order, the others contiguous; lse and delta without dim.


@triton.jit
def _forward_kernel(
    q, k, v, bias, o, lse,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    height, width, heads, dilation_y, dilation_x, scale,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, SHIFT: tl.constexpr, BIAS: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = TILE_Y * TILE_X
    head = (tl.program_id(0) % heads).to(tl.int64)
    image, residue_y, residue_x, first_y, first_x, count_y, count_x = _locate(
        tl.program_id(0) // heads, height, width, dilation_y, dilation_x, TILE_Y, TILE_X
    )
    if (first_y >= count_y) | (first_x >= count_x):
        return  # residue classes differ in length
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    if BIAS:
        bias += head * ((2 * KERNEL_Y - 1) * (2 * KERNEL_X - 1))
    plain = image * height * width * heads + head

    y_T, x_T, exists_T = _tile(first_y, first_x, count_y, count_x, TILE_Y, TILE_X)
    token_T = _token(y_T, x_T, residue_y, residue_x, width, dilation_y, dilation_x)
    centre_y_T = _centre(y_T, count_y, KERNEL_Y, SHIFT)
    centre_x_T = _centre(x_T, count_x, KERNEL_X, SHIFT)
    q_TD = load(q, token_T, exists_T, q_token, DIM, D)

    start_y, end_y = _keys_seen(first_y, count_y, TILE_Y, KERNEL_Y, SHIFT)
    start_x, end_x = _keys_seen(first_x, count_x, TILE_X, KERNEL_X, SHIFT)
    top_T = tl.full([T], LOWEST, dtype=tl.float32)
    sum_T = tl.zeros([T], dtype=tl.float32)
    o_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, tl.cdiv((end_y - start_y) * (end_x - start_x), P)):
        y_P, x_P = _block(number, start_y, end_y, start_x, end_x, P)
        token_P = _token(y_P, x_P, residue_y, residue_x, width, dilation_y, dilation_x)
        k_PD = load(k, token_P, y_P < FAR, k_token, DIM, D)
        v_PD = load(v, token_P, y_P < FAR, v_token, DIM, D)
        s_TP = _scores(
            product(q_TD, k_PD, T, P, UPCAST),
            y_T[:, None], x_T[:, None], centre_y_T[:, None], centre_x_T[:, None], y_P[None, :], x_P[None, :],
            bias, scale, KERNEL_Y, KERNEL_X, BIAS,
        )  # fmt: skip
        top_T, sum_T, o_TD = attend(s_TP, v_PD, top_T, sum_T, o_TD, UPCAST)

    store(o + plain * DIM, token_T, exists_T, heads * DIM, o_TD / sum_T[:, None], DIM, D)
    tl.store(lse + plain + token_T.to(tl.int64) * heads, top_T + tl.log2(sum_T), mask=exists_T)


@triton.jit
def _dq_kernel(
    q, k, v, bias, o, lse, do, dq, delta,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    height, width, heads, dilation_y, dilation_x, scale,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, SHIFT: tl.constexpr, BIAS: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute dq and delta, the scalar products of o and do, for the other two kernels."""
    T: tl.constexpr = TILE_Y * TILE_X
    head = (tl.program_id(0) % heads).to(tl.int64)
    image, residue_y, residue_x, first_y, first_x, count_y, count_x = _locate(
        tl.program_id(0) // heads, height, width, dilation_y, dilation_x, TILE_Y, TILE_X
    )
    if (first_y >= count_y) | (first_x >= count_x):
        return
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    if BIAS:
        bias += head * ((2 * KERNEL_Y - 1) * (2 * KERNEL_X - 1))
    plain = image * height * width * heads + head

    y_T, x_T, exists_T = _tile(first_y, first_x, count_y, count_x, TILE_Y, TILE_X)
    token_T = _token(y_T, x_T, residue_y, residue_x, width, dilation_y, dilation_x)
    centre_y_T = _centre(y_T, count_y, KERNEL_Y, SHIFT)
    centre_x_T = _centre(x_T, count_x, KERNEL_X, SHIFT)
    q_TD = load(q, token_T, exists_T, q_token, DIM, D)
    do_TD = load(do + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
    o_TD = load(o + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
    delta_T = tl.sum(o_TD.to(tl.float32) * do_TD.to(tl.float32), 1)
    at_T = plain + token_T.to(tl.int64) * heads
    lse_T = tl.load(lse + at_T, mask=exists_T, other=0.0)
    tl.store(delta + at_T, delta_T, mask=exists_T)

    start_y, end_y = _keys_seen(first_y, count_y, TILE_Y, KERNEL_Y, SHIFT)
    start_x, end_x = _keys_seen(first_x, count_x, TILE_X, KERNEL_X, SHIFT)
    dq_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, tl.cdiv((end_y - start_y) * (end_x - start_x), P)):
        y_P, x_P = _block(number, start_y, end_y, start_x, end_x, P)
        token_P = _token(y_P, x_P, residue_y, residue_x, width, dilation_y, dilation_x)
        k_PD = load(k, token_P, y_P < FAR, k_token, DIM, D)
        v_PD = load(v, token_P, y_P < FAR, v_token, DIM, D)
        s_TP = _scores(
            product(q_TD, k_PD, T, P, UPCAST),
            y_T[:, None], x_T[:, None], centre_y_T[:, None], centre_x_T[:, None], y_P[None, :], x_P[None, :],
            bias, scale, KERNEL_Y, KERNEL_X, BIAS,
        )  # fmt: skip
        ds_TP = tl.exp2(s_TP - lse_T[:, None]) * (product(do_TD, v_PD, T, P, UPCAST) - delta_T[:, None])
        dq_TD = dot(ds_TP.to(k_PD.dtype), k_PD, dq_TD, UPCAST)

    store(dq + plain * DIM, token_T, exists_T, heads * DIM, dq_TD * scale, DIM, D)


@triton.jit
def _dk_dv_kernel(
    q, k, v, bias, lse, delta, do, dk, dv,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    height, width, heads, dilation_y, dilation_x, scale,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, SHIFT: tl.constexpr, BIAS: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = TILE_Y * TILE_X
    head = (tl.program_id(0) % heads).to(tl.int64)
    image, residue_y, residue_x, first_y, first_x, count_y, count_x = _locate(
        tl.program_id(0) // heads, height, width, dilation_y, dilation_x, TILE_Y, TILE_X
    )
    if (first_y >= count_y) | (first_x >= count_x):
        return
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    if BIAS:
        bias += head * ((2 * KERNEL_Y - 1) * (2 * KERNEL_X - 1))
    plain = image * height * width * heads + head

    y_T, x_T, exists_T = _tile(first_y, first_x, count_y, count_x, TILE_Y, TILE_X)
    token_T = _token(y_T, x_T, residue_y, residue_x, width, dilation_y, dilation_x)
    k_TD = load(k, token_T, exists_T, k_token, DIM, D)
    v_TD = load(v, token_T, exists_T, v_token, DIM, D)

    start_y, end_y = _queries_seeing(first_y, count_y, TILE_Y, KERNEL_Y, SHIFT)
    start_x, end_x = _queries_seeing(first_x, count_x, TILE_X, KERNEL_X, SHIFT)
    dk_TD = tl.zeros([T, D], dtype=tl.float32)
    dv_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, tl.cdiv((end_y - start_y) * (end_x - start_x), P)):
        y_P, x_P = _block(number, start_y, end_y, start_x, end_x, P)
        exists_P = y_P < FAR
        token_P = _token(y_P, x_P, residue_y, residue_x, width, dilation_y, dilation_x)
        at_P = plain + token_P.to(tl.int64) * heads
        q_PD = load(q, token_P, exists_P, q_token, DIM, D)
        do_PD = load(do + plain * DIM, token_P, exists_P, heads * DIM, DIM, D)
        lse_P = tl.load(lse + at_P, mask=exists_P, other=0.0)
        delta_P = tl.load(delta + at_P, mask=exists_P, other=0.0)
        centre_y_P = tl.where(exists_P, _centre(y_P, count_y, KERNEL_Y, SHIFT), -FAR)
        centre_x_P = _centre(x_P, count_x, KERNEL_X, SHIFT)
        s_TP = _scores(
            product(k_TD, q_PD, T, P, UPCAST),
            y_P[None, :], x_P[None, :], centre_y_P[None, :], centre_x_P[None, :], y_T[:, None], x_T[:, None],
            bias, scale, KERNEL_Y, KERNEL_X, BIAS,
        )  # fmt: skip
        p_TP = tl.exp2(s_TP - lse_P[None, :])
        dv_TD = dot(p_TP.to(do_PD.dtype), do_PD, dv_TD, UPCAST)
        ds_TP = p_TP * (product(v_TD, do_PD, T, P, UPCAST) - delta_P[None, :])
        dk_TD = dot(ds_TP.to(q_PD.dtype), q_PD, dk_TD, UPCAST)

    store(dk + plain * DIM, token_T, exists_T, heads * DIM, dk_TD * scale, DIM, D)
    store(dv + plain * DIM, token_T, exists_T, heads * DIM, dv_TD, DIM, D)


@triton.jit
def _dbias_kernel(
    q, k, v, bias, lse, delta, do, sums,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    height, width, heads, dilation_y, dilation_x, scale, tiles, tiles_per_program, frame_y, frame_end_y, frame_x, frame_end_x,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, SHIFT: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of the scores over some tiles, `[splits, heads, T, blocks * P]`.

    A program processes one block of keys, at a fixed offset from the first query of each tile; the frame is the rectangle of all offsets.
    """
    T: tl.constexpr = TILE_Y * TILE_X
    blocks = tl.cdiv((frame_end_y - frame_y) * (frame_end_x - frame_x), P)
    number = tl.program_id(0) % blocks
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    split = tl.program_id(0) // (blocks * heads)
    q += head * q_head
    k += head * k_head
    v += head * v_head
    bias += head * ((2 * KERNEL_Y - 1) * (2 * KERNEL_X - 1))

    place_y_P, place_x_P = _block(number, frame_y, frame_end_y, frame_x, frame_end_x, P)
    ds_TP = tl.zeros([T, P], dtype=tl.float32)
    for turn in range(0, tiles_per_program):
        tile = split * tiles_per_program + turn
        image, residue_y, residue_x, first_y, first_x, count_y, count_x = _locate(
            tl.minimum(tile, tiles - 1), height, width, dilation_y, dilation_x, TILE_Y, TILE_X
        )
        count_y = tl.where(tile < tiles, count_y, 0)
        plain = image * height * width * heads + head
        y_T, x_T, exists_T = _tile(first_y, first_x, count_y, count_x, TILE_Y, TILE_X)
        token_T = _token(y_T, x_T, residue_y, residue_x, width, dilation_y, dilation_x)
        at_T = plain + token_T.to(tl.int64) * heads
        centre_y_T = tl.where(exists_T, _centre(y_T, count_y, KERNEL_Y, SHIFT), -FAR)
        centre_x_T = _centre(x_T, count_x, KERNEL_X, SHIFT)
        y_P = first_y + place_y_P
        x_P = first_x + place_x_P
        exists_P = (y_P >= 0) & (y_P < count_y) & (x_P >= 0) & (x_P < count_x)
        token_P = _token(y_P, x_P, residue_y, residue_x, width, dilation_y, dilation_x)
        q_TD = load(q + image * q_image, token_T, exists_T, q_token, DIM, D)
        k_PD = load(k + image * k_image, token_P, exists_P, k_token, DIM, D)
        v_PD = load(v + image * v_image, token_P, exists_P, v_token, DIM, D)
        do_TD = load(do + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
        lse_T = tl.load(lse + at_T, mask=exists_T, other=0.0)
        delta_T = tl.load(delta + at_T, mask=exists_T, other=0.0)
        s_TP = _scores(
            product(q_TD, k_PD, T, P, UPCAST),
            y_T[:, None], x_T[:, None], centre_y_T[:, None], centre_x_T[:, None], tl.where(exists_P, y_P, FAR)[None, :], x_P[None, :],
            bias, scale, KERNEL_Y, KERNEL_X, True,
        )  # fmt: skip
        ds_TP += tl.exp2(s_TP - lse_T[:, None]) * (product(do_TD, v_PD, T, P, UPCAST) - delta_T[:, None])

    row_T = (split * heads + head) * T + tl.arange(0, T)
    tl.store(sums + row_T[:, None] * (blocks * P) + (number * P + tl.arange(0, P))[None, :], ds_TP)


# Launches


def _tiles(q: Tensor, dilation: Sequence[int], config: Launch) -> int:
    """Number of tiles of all images and residue classes, for one head."""
    batch, height, width = q.shape[:3]
    tile = (config.tile_y, config.tile_x)
    each = (triton.cdiv(triton.cdiv(side, d), t) * d for side, d, t in zip((height, width), dilation, tile, strict=True))
    return batch * prod(each)


@lru_cache(maxsize=256)
def _frame(length: int, kernel: int, dilation: int, tile: int, shift: bool) -> tuple[int, int]:
    """Start and end of a tile's keys along an axis, relative to its first query; the union over all tiles."""
    half, start, end = kernel // 2, 0, 1
    for count in {length // dilation, -(-length // dilation)} - {0}:

        def centre(step: int, count: int = count) -> int:
            return min(max(step, half), count - 1 - half) if shift else step

        for first in range(0, count, tile):
            start = min(start, max(centre(first) - half, 0) - first)
            end = max(end, min(centre(min(first + tile, count) - 1) + half + 1, count) - first)
    return start, end


class _Call:
    """Arguments shared by the launches of one call."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        kernel: Sequence[int],
        dilation: Sequence[int],
        scale: float,
        shift: bool,
    ) -> None:
        (self.q, q_strides), (self.k, k_strides), (self.v, v_strides) = strides(q), strides(k), strides(v)
        self.bias = None if bias is None else bias.contiguous()
        self.kernel, self.dilation, self.shift = tuple(kernel), tuple(dilation), shift
        _, height, width, self.heads, self.dim = q.shape
        self.padded = padded(self.dim)
        self.numbers = (*q_strides, *k_strides, *v_strides, height, width, self.heads, *dilation, scale)

    def config(self, name: str) -> Launch:
        return launch(name, self.padded, self.kernel, self.q.element_size() * 8)

    def options(self, config: Launch) -> dict[str, Any]:
        return {
            "KERNEL_Y": self.kernel[0], "KERNEL_X": self.kernel[1], "SHIFT": self.shift, "DIM": self.dim, "D": self.padded,
            "TILE_Y": config.tile_y, "TILE_X": config.tile_x, "P": config.block, "UPCAST": UPCAST,
            "num_warps": config.num_warps, "num_stages": config.num_stages,
        }  # fmt: skip

    def run(self, name: str, kernel: Any, *tensors: Tensor) -> None:
        config = self.config(name)
        grid = (_tiles(self.q, self.dilation, config) * self.heads,)
        kernel[grid](self.q, self.k, self.v, self.bias, *tensors, *self.numbers, BIAS=self.bias is not None, **self.options(config))

    def run_dbias(self, lse: Tensor, delta: Tensor, do: Tensor) -> Tensor:
        assert self.bias is not None
        config = self.config("dbias")
        tile = (config.tile_y, config.tile_x)
        axes = zip(self.q.shape[1:3], self.kernel, self.dilation, tile, strict=True)
        (start_y, end_y), (start_x, end_x) = (_frame(*axis, self.shift) for axis in axes)
        rows, columns = end_y - start_y, end_x - start_x
        blocks = triton.cdiv(rows * columns, config.block)
        tiles = _tiles(self.q, self.dilation, config)
        per_program, splits = shares(tiles, blocks * self.heads)
        sums = torch.empty(splits, self.heads, prod(tile), blocks * config.block, device=do.device)
        _dbias_kernel[(splits * self.heads * blocks,)](
            self.q, self.k, self.v, self.bias, lse, delta, do, sums,
            *self.numbers, tiles, per_program, start_y, end_y, start_x, end_x, **self.options(config),
        )  # fmt: skip
        # Equal offsets of key and query form a diagonal: the window of offsets moves with the query.
        reach_y, reach_x = self.kernel[0] - 1, self.kernel[1] - 1
        framed = sums.sum(0)[..., : rows * columns].reshape(self.heads, *tile, rows, columns)
        framed = F.pad(framed, (start_x + reach_x, tile[1] + reach_x - end_x, start_y + reach_y, tile[0] + reach_y - end_y)).contiguous()
        head, query_y, query_x, key_y, key_x = framed.stride()
        diagonals = framed.as_strided(
            (self.heads, *tile, 2 * reach_y + 1, 2 * reach_x + 1), (head, query_y + key_y, query_x + key_x, key_y, key_x)
        )
        return diagonals.sum((1, 2)).to(self.bias.dtype)


# Registration

_WHAT = "Tensor q, Tensor k, Tensor v, Tensor? bias"
_HOW = "int[] kernel, int[] dilation, float scale, bool shift"


@torch.library.custom_op("visionattn::neighborhood_attention_forward", mutates_args=(), schema=f"({_WHAT}, {_HOW}) -> (Tensor, Tensor)")
def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: Sequence[int], dilation: Sequence[int], scale: float, shift: bool
) -> tuple[Tensor, Tensor]:
    o, lse = _forward_fake(q, k, v, bias, kernel, dilation, scale, shift)
    with torch.cuda.device_of(q):
        _Call(q, k, v, bias, kernel, dilation, scale, shift).run("forward", _forward_kernel, o, lse)
    return o, lse


@forward.register_fake
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: Sequence[int], dilation: Sequence[int], scale: float, shift: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:4], dtype=torch.float32, device=q.device)


@torch.library.custom_op(
    "visionattn::neighborhood_attention_backward",
    mutates_args=(),
    schema=f"({_WHAT}, Tensor o, Tensor lse, Tensor do, {_HOW}, bool dbias) -> (Tensor, Tensor, Tensor, Tensor)",
)
def backward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, o: Tensor, lse: Tensor, do: Tensor,
    kernel: Sequence[int], dilation: Sequence[int], scale: float, shift: bool, dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, no_dbias = _backward_fake(q, k, v, bias, o, lse, do, kernel, dilation, scale, shift, dbias)
    call = _Call(q, k, v, bias, kernel, dilation, scale, shift)
    do, delta = do.contiguous(), torch.empty_like(lse)
    with torch.cuda.device_of(q):
        call.run("dq", _dq_kernel, o, lse, do, dq, delta)
        call.run("dk_dv", _dk_dv_kernel, lse, delta, do, dk, dv)
        return dq, dk, dv, call.run_dbias(lse, delta, do) if dbias else no_dbias


@backward.register_fake
def _backward_fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, o: Tensor, lse: Tensor, do: Tensor,
    kernel: Sequence[int], dilation: Sequence[int], scale: float, shift: bool, dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    table = bias.shape if bias is not None and dbias else (0,)
    return dq, dk, dv, torch.empty(table, dtype=q.dtype if bias is None else bias.dtype, device=q.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, *ctx.how = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, bias, *output)


def _gradients(ctx: Any, do: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    with_bias = ctx.needs_input_grad[3]
    dq, dk, dv, dbias = backward(*ctx.saved_tensors, do, *ctx.how, with_bias)
    return dq, dk, dv, dbias if with_bias else None, None, None, None, None


forward.register_autograd(_gradients, setup_context=_setup_context)


def neighborhood_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    bias: Tensor | None,
    scale: float,
    border: Border,
) -> Tensor:
    """Run `neighborhood_attention` for checked arguments without a `reason` against it."""
    out: Tensor = forward(q, k, v, bias, kernel, dilation, scale, border == "shift")[0]
    return out

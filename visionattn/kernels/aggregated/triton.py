"""Aggregated attention in Triton, for CUDA.

Algorithm: a program holds consecutive queries of the map, processes their neighbours one offset at a time, elementwise, and
then the pooled keys block by block, in one online softmax (TransNeXt, arXiv 2311.17132, section 3.2). The weights
added after the softmax are summed separately. In the backward pass `_dq_kernel` does the same; `_dk_dv_kernel` holds keys and
iterates over the queries around them; `_dpool_kernel` holds pooled keys and iterates over queries; `_dpool_bias_kernel` holds both
and iterates over images. Sums over programs are stored and added by torch. No atomics: two runs give the same bits.

Names of arrays end in their shape, see `visionattn.kernels.tiles`:

    T   positions of the map
    P   pooled positions

Tensors may differ in dtype, as they do under autocast: neighbours are computed in float32, products with pooled keys in
the dtype of v_pool.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionattn.kernels import tiles
from visionattn.kernels.tiles import LOG2E, LOWEST, UPCAST, attend, dot, load, padded, product, shares, store, strides

# Indexing


@triton.jit
def _locate(index, heads, count, T: tl.constexpr):
    """Image, head and positions of a block of queries, and the mask of existing positions; the others repeat the last one."""
    head = (index % heads).to(tl.int64)
    index = index // heads
    blocks = tl.cdiv(count, T)
    token = index % blocks * T + tl.arange(0, T)
    return (index // blocks).to(tl.int64), head, tl.minimum(token, count - 1), token < count


@triton.jit
def _neighbor(token, exists, number, sign, height, width, KERNEL: tl.constexpr):
    """Neighbours with an index, row by row from the upper left; with sign -1, the positions whose neighbour with this index is `token`."""
    offset_y = (number // KERNEL - KERNEL // 2) * sign
    offset_x = (number % KERNEL - KERNEL // 2) * sign
    y = token // width + offset_y
    x = token % width + offset_x
    inside = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y * width + x, inside


@triton.jit
def _pool_scores(products, pool_bias, token, place, exists, pooled):
    """Scores of pooled positions from the products: with bias, in base 2; -inf for positions that do not exist.

    Positions have an axis of length one, in the order of the axes of `products`.
    """
    bias = tl.load(pool_bias + token.to(tl.int64) * pooled + place, mask=exists, other=0.0)
    return tl.where(exists, (products + bias.to(tl.float32)) * LOG2E, float("-inf"))


# Kernels. Maps are [B, tokens, heads, dim], q, k, v, k_pool and v_pool with strides in this order. The rest is contiguous: o, do, the
# gradients, and soft, the softmax part of o, like the maps; lse and delta without dim; local_bias [heads, KERNEL ** 2],
# pool_bias [heads, tokens, pooled], local_weight [B, tokens, heads, KERNEL ** 2].


@triton.jit
def _forward_kernel(
    q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, o, soft, lse,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    kp_image, kp_token, kp_head, vp_image, vp_token, vp_head,
    height, width, heads, pooled,
    KERNEL: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    AREA: tl.constexpr = KERNEL * KERNEL
    count = height * width
    image, head, token_T, exists_T = _locate(tl.program_id(0), heads, count, T)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    k_pool += image * kp_image + head * kp_head
    v_pool += image * vp_image + head * vp_head
    local_bias += head * AREA
    pool_bias += head * count * pooled
    plain = image * count * heads + head

    at_T = plain + token_T.to(tl.int64) * heads
    q_TD = load(q, token_T, exists_T, q_token, DIM, D)
    top_T = tl.full([T], LOWEST, dtype=tl.float32)
    sum_T = tl.zeros([T], dtype=tl.float32)
    o_TD = tl.zeros([T, D], dtype=tl.float32)
    added_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, AREA):
        near_T, inside_T = _neighbor(token_T, exists_T, number, 1, height, width, KERNEL)
        k_TD = load(k, near_T, inside_T, k_token, DIM, D).to(tl.float32)
        v_TD = load(v, near_T, inside_T, v_token, DIM, D).to(tl.float32)
        s_T = tl.sum(q_TD.to(tl.float32) * k_TD, 1) + tl.load(local_bias + number).to(tl.float32)
        s_T = tl.where(inside_T, s_T * LOG2E, float("-inf"))
        weight_T = tl.load(local_weight + at_T * AREA + number, mask=inside_T, other=0.0).to(tl.float32)
        before_T = top_T
        top_T = tl.maximum(before_T, s_T)
        p_T = tl.exp2(s_T - top_T)
        shrink_T = tl.exp2(before_T - top_T)
        sum_T = sum_T * shrink_T + p_T
        o_TD = o_TD * shrink_T[:, None] + p_T[:, None] * v_TD
        added_TD += weight_T[:, None] * v_TD

    for number in range(0, tl.cdiv(pooled, P)):
        place_P = number * P + tl.arange(0, P)
        exists_P = place_P < pooled
        v_PD = load(v_pool, place_P, exists_P, vp_token, DIM, D)
        k_PD = load(k_pool, place_P, exists_P, kp_token, DIM, D).to(v_PD.dtype)
        s_TP = product(q_TD.to(v_PD.dtype), k_PD, T, P, UPCAST)
        s_TP = _pool_scores(s_TP, pool_bias, token_T[:, None], place_P[None, :], exists_P[None, :], pooled)
        top_T, sum_T, o_TD = attend(s_TP, v_PD, top_T, sum_T, o_TD, UPCAST)

    o_TD /= sum_T[:, None]
    store(soft + plain * DIM, token_T, exists_T, heads * DIM, o_TD, DIM, D)
    store(o + plain * DIM, token_T, exists_T, heads * DIM, o_TD + added_TD, DIM, D)
    tl.store(lse + at_T, top_T + tl.log2(sum_T), mask=exists_T)


@triton.jit
def _dq_kernel(
    q, k, v, k_pool, v_pool, local_bias, pool_bias, soft, lse, do, dq, delta, dlocal_weight, sums,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    kp_image, kp_token, kp_head, vp_image, vp_token, vp_head,
    height, width, heads, pooled,
    KERNEL: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute dq, the gradient of local_weight, and delta, the scalar products of soft and do, for the other kernels.

    Also write the sums over T of the gradients of the local scores, `[B * blocks, heads, KERNEL ** 2]`.
    """
    AREA: tl.constexpr = KERNEL * KERNEL
    count = height * width
    image, head, token_T, exists_T = _locate(tl.program_id(0), heads, count, T)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    k_pool += image * kp_image + head * kp_head
    v_pool += image * vp_image + head * vp_head
    local_bias += head * AREA
    pool_bias += head * count * pooled
    sums += tl.program_id(0).to(tl.int64) * AREA
    plain = image * count * heads + head

    at_T = plain + token_T.to(tl.int64) * heads
    q_TD = load(q, token_T, exists_T, q_token, DIM, D)
    do_TD = load(do + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
    soft_TD = load(soft + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
    lse_T = tl.load(lse + at_T, mask=exists_T, other=0.0)
    delta_T = tl.sum(soft_TD.to(tl.float32) * do_TD.to(tl.float32), 1)
    tl.store(delta + at_T, delta_T, mask=exists_T)

    dq_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, AREA):
        near_T, inside_T = _neighbor(token_T, exists_T, number, 1, height, width, KERNEL)
        k_TD = load(k, near_T, inside_T, k_token, DIM, D).to(tl.float32)
        v_TD = load(v, near_T, inside_T, v_token, DIM, D).to(tl.float32)
        s_T = (tl.sum(q_TD.to(tl.float32) * k_TD, 1) + tl.load(local_bias + number).to(tl.float32)) * LOG2E
        p_T = tl.where(inside_T, tl.exp2(s_T - lse_T), 0.0)
        dp_T = tl.sum(do_TD.to(tl.float32) * v_TD, 1)
        ds_T = p_T * (dp_T - delta_T)
        dq_TD += ds_T[:, None] * k_TD
        tl.store(sums + number, tl.sum(ds_T, 0))
        tl.store(dlocal_weight + at_T * AREA + number, dp_T.to(dlocal_weight.dtype.element_ty), mask=exists_T)

    for number in range(0, tl.cdiv(pooled, P)):
        place_P = number * P + tl.arange(0, P)
        exists_P = place_P < pooled
        v_PD = load(v_pool, place_P, exists_P, vp_token, DIM, D)
        k_PD = load(k_pool, place_P, exists_P, kp_token, DIM, D).to(v_PD.dtype)
        s_TP = product(q_TD.to(v_PD.dtype), k_PD, T, P, UPCAST)
        s_TP = _pool_scores(s_TP, pool_bias, token_T[:, None], place_P[None, :], exists_P[None, :], pooled)
        dp_TP = product(do_TD.to(v_PD.dtype), v_PD, T, P, UPCAST)
        ds_TP = tl.exp2(s_TP - lse_T[:, None]) * (dp_TP - delta_T[:, None])
        dq_TD = dot(ds_TP.to(k_PD.dtype), k_PD, dq_TD, UPCAST)

    store(dq + plain * DIM, token_T, exists_T, heads * DIM, dq_TD, DIM, D)


@triton.jit
def _dk_dv_kernel(
    q, k, v, local_bias, local_weight, lse, delta, do, dk, dv,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    height, width, heads,
    KERNEL: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    AREA: tl.constexpr = KERNEL * KERNEL
    count = height * width
    image, head, token_T, exists_T = _locate(tl.program_id(0), heads, count, T)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    local_bias += head * AREA
    plain = image * count * heads + head

    k_TD = load(k, token_T, exists_T, k_token, DIM, D).to(tl.float32)
    v_TD = load(v, token_T, exists_T, v_token, DIM, D).to(tl.float32)
    dk_TD = tl.zeros([T, D], dtype=tl.float32)
    dv_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, AREA):
        near_T, inside_T = _neighbor(token_T, exists_T, number, -1, height, width, KERNEL)
        at_T = plain + near_T.to(tl.int64) * heads
        q_TD = load(q, near_T, inside_T, q_token, DIM, D).to(tl.float32)
        do_TD = load(do + plain * DIM, near_T, inside_T, heads * DIM, DIM, D).to(tl.float32)
        lse_T = tl.load(lse + at_T, mask=inside_T, other=0.0)
        delta_T = tl.load(delta + at_T, mask=inside_T, other=0.0)
        weight_T = tl.load(local_weight + at_T * AREA + number, mask=inside_T, other=0.0).to(tl.float32)
        s_T = (tl.sum(q_TD * k_TD, 1) + tl.load(local_bias + number).to(tl.float32)) * LOG2E
        p_T = tl.where(inside_T, tl.exp2(s_T - lse_T), 0.0)
        dv_TD += (p_T + weight_T)[:, None] * do_TD
        dk_TD += (p_T * (tl.sum(do_TD * v_TD, 1) - delta_T))[:, None] * q_TD

    store(dk + plain * DIM, token_T, exists_T, heads * DIM, dk_TD, DIM, D)
    store(dv + plain * DIM, token_T, exists_T, heads * DIM, dv_TD, DIM, D)


@triton.jit
def _dpool_kernel(
    q, k_pool, v_pool, pool_bias, lse, delta, do, dk_sums, dv_sums,
    q_image, q_token, q_head, kp_image, kp_token, kp_head, vp_image, vp_token, vp_head,
    batch, count, heads, pooled, blocks_per_program,
    DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of k_pool and v_pool from some blocks of queries, `[splits, B, pooled, heads, dim]`."""
    image, head, place_P, exists_P = _locate(tl.program_id(0), heads, pooled, P)
    split = image // batch
    image = image % batch
    q += image * q_image + head * q_head
    k_pool += image * kp_image + head * kp_head
    v_pool += image * vp_image + head * vp_head
    pool_bias += head * count * pooled
    plain = image * count * heads + head

    v_PD = load(v_pool, place_P, exists_P, vp_token, DIM, D)
    k_PD = load(k_pool, place_P, exists_P, kp_token, DIM, D).to(v_PD.dtype)
    dk_PD = tl.zeros([P, D], dtype=tl.float32)
    dv_PD = tl.zeros([P, D], dtype=tl.float32)
    for turn in range(0, blocks_per_program):
        token_T = ((split * blocks_per_program + turn) * T + tl.arange(0, T)).to(tl.int32)
        exists_T = token_T < count
        at_T = plain + token_T.to(tl.int64) * heads
        q_TD = load(q, token_T, exists_T, q_token, DIM, D).to(v_PD.dtype)
        do_TD = load(do + plain * DIM, token_T, exists_T, heads * DIM, DIM, D).to(v_PD.dtype)
        lse_T = tl.load(lse + at_T, mask=exists_T, other=0.0)
        delta_T = tl.load(delta + at_T, mask=exists_T, other=0.0)
        s_PT = product(k_PD, q_TD, P, T, UPCAST)
        s_PT = _pool_scores(s_PT, pool_bias, token_T[None, :], place_P[:, None], exists_P[:, None] & exists_T[None, :], pooled)
        p_PT = tl.exp2(s_PT - lse_T[None, :])
        dv_PD = dot(p_PT.to(do_TD.dtype), do_TD, dv_PD, UPCAST)
        ds_PT = p_PT * (product(v_PD, do_TD, P, T, UPCAST) - delta_T[None, :])
        dk_PD = dot(ds_PT.to(q_TD.dtype), q_TD, dk_PD, UPCAST)

    to = ((split * batch + image) * pooled * heads + head) * DIM
    store(dk_sums + to, place_P, exists_P, heads * DIM, dk_PD, DIM, D)
    store(dv_sums + to, place_P, exists_P, heads * DIM, dv_PD, DIM, D)


@triton.jit
def _dpool_bias_kernel(
    q, k_pool, v_pool, pool_bias, lse, delta, do, sums,
    q_image, q_token, q_head, kp_image, kp_token, kp_head, vp_image, vp_token, vp_head,
    batch, count, heads, pooled, images_per_program,
    DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of pool_bias from some images, `[splits, heads, tokens, pooled]`."""
    blocks = tl.cdiv(pooled, P)
    split, head, token_T, exists_T = _locate(tl.program_id(0) // blocks, heads, count, T)
    place_P = tl.program_id(0) % blocks * P + tl.arange(0, P)
    exists_P = place_P < pooled
    q += head * q_head
    k_pool += head * kp_head
    v_pool += head * vp_head
    pool_bias += head * count * pooled

    ds_TP = tl.zeros([T, P], dtype=tl.float32)
    for turn in range(0, images_per_program):
        image = split * images_per_program + turn
        there_T = exists_T & (token_T < tl.where(image < batch, count, 0))
        there_P = place_P < tl.where(image < batch, pooled, 0)
        plain = image * count * heads + head
        at_T = plain + token_T.to(tl.int64) * heads
        v_PD = load(v_pool + image * vp_image, place_P, there_P, vp_token, DIM, D)
        k_PD = load(k_pool + image * kp_image, place_P, there_P, kp_token, DIM, D).to(v_PD.dtype)
        q_TD = load(q + image * q_image, token_T, there_T, q_token, DIM, D).to(v_PD.dtype)
        do_TD = load(do + plain * DIM, token_T, there_T, heads * DIM, DIM, D).to(v_PD.dtype)
        lse_T = tl.load(lse + at_T, mask=there_T, other=0.0)
        delta_T = tl.load(delta + at_T, mask=there_T, other=0.0)
        s_TP = product(q_TD, k_PD, T, P, UPCAST)
        s_TP = _pool_scores(s_TP, pool_bias, token_T[:, None], place_P[None, :], there_P[None, :] & there_T[:, None], pooled)
        ds_TP += tl.exp2(s_TP - lse_T[:, None]) * (product(do_TD, v_PD, T, P, UPCAST) - delta_T[:, None])

    row_T = (split * heads + head) * count + token_T.to(tl.int64)
    tl.store(sums + row_T[:, None] * pooled + place_P[None, :], ds_TP, mask=exists_T[:, None] & exists_P[None, :])


# Launches


class _Call:
    """Arguments shared by the launches of one call."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor,
        local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor, kernel_size: int,
    ) -> None:  # fmt: skip
        (self.q, self.q_strides), (self.k, k_strides), (self.v, v_strides) = strides(q), strides(k), strides(v)
        (self.k_pool, kp_strides), (self.v_pool, vp_strides) = strides(k_pool), strides(v_pool)
        self.local_bias, self.pool_bias, self.local_weight = local_bias.contiguous(), pool_bias.contiguous(), local_weight.contiguous()
        self.map_strides, self.pool_strides = (*self.q_strides, *k_strides, *v_strides), (*kp_strides, *vp_strides)
        self.batch, self.height, self.width, self.heads, self.dim = q.shape
        self.count, self.pooled, self.area = self.height * self.width, k_pool.shape[1], kernel_size**2
        # Positions held and positions iterated over; chosen to fit the registers on sm_80 and sm_90, not yet tuned for speed.
        self.tile, self.block = 64, 32 if v_pool.element_size() == 2 else 16
        self.blocks = triton.cdiv(self.count, self.tile)
        self.kernel_size = kernel_size
        self.options: dict[str, Any] = {
            "DIM": self.dim, "D": padded(self.dim), "num_warps": 4 * max(1, padded(self.dim) // 32), "num_stages": 2,
        }  # fmt: skip

    def forward(self, o: Tensor, soft: Tensor, lse: Tensor) -> None:
        _forward_kernel[(self.batch * self.blocks * self.heads,)](
            self.q, self.k, self.v, self.k_pool, self.v_pool, self.local_bias, self.pool_bias, self.local_weight, o, soft, lse,
            *self.map_strides, *self.pool_strides, self.height, self.width, self.heads, self.pooled,
            KERNEL=self.kernel_size, T=self.tile, P=self.block, UPCAST=UPCAST, **self.options,
        )  # fmt: skip

    def dq(self, soft: Tensor, lse: Tensor, do: Tensor, dq: Tensor, delta: Tensor, dlocal_weight: Tensor) -> Tensor:
        """Compute dq and return the gradient of local_bias."""
        sums = torch.empty(self.batch * self.blocks, self.heads, self.area, device=do.device)
        _dq_kernel[(self.batch * self.blocks * self.heads,)](
            self.q, self.k, self.v, self.k_pool, self.v_pool, self.local_bias, self.pool_bias,
            soft, lse, do, dq, delta, dlocal_weight, sums,
            *self.map_strides, *self.pool_strides, self.height, self.width, self.heads, self.pooled,
            KERNEL=self.kernel_size, T=self.tile, P=self.block, UPCAST=UPCAST, **self.options,
        )  # fmt: skip
        return sums.sum(0).to(self.local_bias.dtype)

    def dk_dv(self, lse: Tensor, delta: Tensor, do: Tensor, dk: Tensor, dv: Tensor) -> None:
        _dk_dv_kernel[(self.batch * self.blocks * self.heads,)](
            self.q, self.k, self.v, self.local_bias, self.local_weight, lse, delta, do, dk, dv,
            *self.map_strides, self.height, self.width, self.heads, KERNEL=self.kernel_size, T=self.tile, **self.options,
        )  # fmt: skip

    def dpool(self, lse: Tensor, delta: Tensor, do: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of k_pool and v_pool."""
        programs = self.batch * triton.cdiv(self.pooled, self.tile) * self.heads
        each, splits = shares(triton.cdiv(self.count, self.block), programs)
        dk, dv = (torch.empty(splits, *x.shape, device=do.device) for x in (self.k_pool, self.v_pool))
        _dpool_kernel[(splits * programs,)](
            self.q, self.k_pool, self.v_pool, self.pool_bias, lse, delta, do, dk, dv,
            *self.q_strides, *self.pool_strides, self.batch, self.count, self.heads, self.pooled, each,
            T=self.block, P=self.tile, UPCAST=UPCAST, **self.options,
        )  # fmt: skip
        return dk.sum(0).to(self.k_pool.dtype), dv.sum(0).to(self.v_pool.dtype)

    def dpool_bias(self, lse: Tensor, delta: Tensor, do: Tensor) -> Tensor:
        programs = self.blocks * self.heads * triton.cdiv(self.pooled, self.block)
        each, splits = shares(self.batch, programs)
        sums = torch.empty(splits, *self.pool_bias.shape, device=do.device)
        _dpool_bias_kernel[(splits * programs,)](
            self.q, self.k_pool, self.v_pool, self.pool_bias, lse, delta, do, sums,
            *self.q_strides, *self.pool_strides, self.batch, self.count, self.heads, self.pooled, each,
            T=self.tile, P=self.block, UPCAST=UPCAST, **self.options,
        )  # fmt: skip
        return sums.sum(0).to(self.pool_bias.dtype)


# Registration

_WHAT = "Tensor q, Tensor k, Tensor v, Tensor k_pool, Tensor v_pool, Tensor local_bias, Tensor pool_bias, Tensor local_weight"


@torch.library.custom_op(
    "visionattn::aggregated_attention_forward", mutates_args=(), schema=f"({_WHAT}, int kernel_size) -> (Tensor, Tensor, Tensor)"
)
def forward(
    q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor,
    local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor, kernel_size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the output, its softmax part, and lse.

    The backward pass needs the softmax part: subtracting the added part from the rounded output would be less accurate.
    """
    o, soft, lse = _forward_fake(q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, kernel_size)
    with torch.cuda.device_of(q):
        _Call(q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, kernel_size).forward(o, soft, lse)
    return o, soft, lse


@forward.register_fake
def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    o, soft = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    return o, soft, torch.empty(q.shape[:4], dtype=torch.float32, device=q.device)


@torch.library.custom_op(
    "visionattn::aggregated_attention_backward",
    mutates_args=(),
    schema=f"({_WHAT}, Tensor soft, Tensor lse, Tensor do, int kernel_size) -> ({', '.join(8 * ['Tensor'])})",
)
def backward(
    q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor,
    local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor, soft: Tensor, lse: Tensor, do: Tensor, kernel_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, dlocal_weight = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, local_weight))
    call = _Call(q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, kernel_size)
    do, delta = do.contiguous(), torch.empty_like(lse)
    with torch.cuda.device_of(q):
        dlocal_bias = call.dq(soft, lse, do, dq, delta, dlocal_weight)
        call.dk_dv(lse, delta, do, dk, dv)
        return dq, dk, dv, *call.dpool(lse, delta, do), dlocal_bias, call.dpool_bias(lse, delta, do), dlocal_weight


@backward.register_fake
def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in arguments[:8])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.kernel_size = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _gradients(ctx: Any, do: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *backward(*ctx.saved_tensors, do, ctx.kernel_size), None


forward.register_autograd(_gradients, setup_context=_setup_context)


def reason(*maps: Tensor) -> str:
    """Return the reason that the kernels cannot run with these maps, on any device; empty if they can. Dtypes may differ."""
    return next((why for x in maps if (why := tiles.reason(x))), "")


def aggregated_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor,
    local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor, kernel_size: int,
) -> Tensor:  # fmt: skip
    """Run `aggregated_attention` for checked arguments without a `reason` against it."""
    out: Tensor = forward(q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight, kernel_size)[0]
    return out

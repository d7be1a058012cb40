"""Routed attention in Triton, for CUDA.

Algorithm: a program holds queries of one region and iterates over the keys of its selected regions, as one list, with an online softmax;
the keys are read in place (BiFormer's code copies them, arXiv 2303.08810). In the backward pass `_dq_kernel`
does the same; `_dk_dv_kernel` holds keys of one region and searches the routes of all regions for it. No
atomics: two runs give the same bits.

Names of arrays end in their shape, see `visionattn.kernels.tiles`:

    T   positions of the tile that is held: queries, in `_dk_dv_kernel` keys; all of one region
    P   positions of the block iterated over: keys, in `_dk_dv_kernel` queries; of one region or several
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionattn.kernels.tiles import LOG2E, LOWEST, UPCAST, attend, dot, load, padded, product, store, strides
from visionattn.kernels.tiles import reason as reason

ROUTES = tl.constexpr(16)  # number of routes read at a time


class Launch(NamedTuple):
    """Positions held, positions iterated over, and Triton's options."""

    tile: int
    block: int
    num_warps: int
    num_stages: int


def launch(name: str, dim: int, area: int, bits: int) -> Launch:
    """Configure a kernel ("forward", "dq", "dk_dv") for a padded head dim, the positions of a region and the bits of the dtype.

    Chosen to fit the registers on sm_80 and sm_90 with few warps; not yet tuned for speed.
    """
    tile = min(64, max(16, triton.next_power_of_2(area)))
    num_warps = tile // 16 * max(1, dim // (32 if bits == 32 else 64))
    if name == "dk_dv":  # it loads inside a branch, so loads cannot be prefetched
        return Launch(tile, 16, max(bits // 8, num_warps), num_stages=1)
    return Launch(tile, 32, num_warps, num_stages=3) if bits == 16 else Launch(tile, 16, num_warps, num_stages=2)


# Indexing


@triton.jit
def _locate(index, regions, tiles, T: tl.constexpr):
    """Image, region and positions in the region, of a tile given by its index."""
    first = index % tiles * T
    index = index // tiles
    return (index // regions).to(tl.int64), index % regions, first + tl.arange(0, T)


@triton.jit
def _token(region, place, columns, region_y, region_x):
    """Index of a position in the map, row by row, from its region and its place in it, with `columns` regions per row."""
    y = region // columns * region_y + place // region_x
    x = region % columns * region_x + place % region_x
    return y * (columns * region_x) + x


@triton.jit
def _keys(routes, number, topk, columns, region_y, region_x, P: tl.constexpr):
    """A block of the list of keys that the queries of a region see: indices in the map, and the mask of existing ones."""
    area = region_y * region_x
    index = number * P + tl.arange(0, P)
    exists = index < topk * area
    region = tl.load(routes + index // area, mask=exists, other=0).to(tl.int32)
    return _token(region, index % area, columns, region_y, region_x), exists


@triton.jit
def _times_named(routes, region_P, exists_P, wanted, topk, P: tl.constexpr):
    """Count how often regions list the region `wanted`."""
    times_P = tl.zeros([P], dtype=tl.int32)
    for number in range(0, tl.cdiv(topk, ROUTES)):
        rank = number * ROUTES + tl.arange(0, ROUTES)
        mask = exists_P[:, None] & (rank < topk)[None, :]
        named = tl.load(routes + region_P[:, None] * topk + rank[None, :], mask=mask, other=-1)
        times_P += tl.sum((named == wanted).to(tl.int32), 1)
    return times_P


# Kernels. Tensors are [B, tokens, heads, dim], q, k, v with strides in this order, the others contiguous; lse and delta without dim.


@triton.jit
def _forward_kernel(
    q, k, v, routes, o, lse,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    heads, regions, columns, region_y, region_x, topk, tiles, scale,
    DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    area = region_y * region_x
    head = (tl.program_id(0) % heads).to(tl.int64)
    image, region, place_T = _locate(tl.program_id(0) // heads, regions, tiles, T)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    routes += (image * regions + region) * topk
    plain = image * regions * area * heads + head

    exists_T = place_T < area
    token_T = _token(region, place_T, columns, region_y, region_x)
    q_TD = load(q, token_T, exists_T, q_token, DIM, D)
    top_T = tl.full([T], LOWEST, dtype=tl.float32)
    sum_T = tl.zeros([T], dtype=tl.float32)
    o_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, tl.cdiv(topk * area, P)):
        token_P, exists_P = _keys(routes, number, topk, columns, region_y, region_x, P)
        k_PD = load(k, token_P, exists_P, k_token, DIM, D)
        v_PD = load(v, token_P, exists_P, v_token, DIM, D)
        s_TP = product(q_TD, k_PD, T, P, UPCAST) * (scale * LOG2E)
        s_TP = tl.where(exists_P[None, :], s_TP, float("-inf"))
        top_T, sum_T, o_TD = attend(s_TP, v_PD, top_T, sum_T, o_TD, UPCAST)

    store(o + plain * DIM, token_T, exists_T, heads * DIM, o_TD / sum_T[:, None], DIM, D)
    tl.store(lse + plain + token_T.to(tl.int64) * heads, top_T + tl.log2(sum_T), mask=exists_T)


@triton.jit
def _dq_kernel(
    q, k, v, routes, o, lse, do, dq, delta,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    heads, regions, columns, region_y, region_x, topk, tiles, scale,
    DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute dq and delta, the scalar products of o and do, for `_dk_dv_kernel`."""
    area = region_y * region_x
    head = (tl.program_id(0) % heads).to(tl.int64)
    image, region, place_T = _locate(tl.program_id(0) // heads, regions, tiles, T)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    routes += (image * regions + region) * topk
    plain = image * regions * area * heads + head

    exists_T = place_T < area
    token_T = _token(region, place_T, columns, region_y, region_x)
    at_T = plain + token_T.to(tl.int64) * heads
    q_TD = load(q, token_T, exists_T, q_token, DIM, D)
    do_TD = load(do + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
    o_TD = load(o + plain * DIM, token_T, exists_T, heads * DIM, DIM, D)
    delta_T = tl.sum(o_TD.to(tl.float32) * do_TD.to(tl.float32), 1)
    lse_T = tl.load(lse + at_T, mask=exists_T, other=0.0)
    tl.store(delta + at_T, delta_T, mask=exists_T)

    dq_TD = tl.zeros([T, D], dtype=tl.float32)
    for number in range(0, tl.cdiv(topk * area, P)):
        token_P, exists_P = _keys(routes, number, topk, columns, region_y, region_x, P)
        k_PD = load(k, token_P, exists_P, k_token, DIM, D)
        v_PD = load(v, token_P, exists_P, v_token, DIM, D)
        s_TP = product(q_TD, k_PD, T, P, UPCAST) * (scale * LOG2E)
        p_TP = tl.where(exists_P[None, :], tl.exp2(s_TP - lse_T[:, None]), 0.0)
        ds_TP = p_TP * (product(do_TD, v_PD, T, P, UPCAST) - delta_T[:, None])
        dq_TD = dot(ds_TP.to(k_PD.dtype), k_PD, dq_TD, UPCAST)

    store(dq + plain * DIM, token_T, exists_T, heads * DIM, dq_TD * scale, DIM, D)


@triton.jit
def _dk_dv_kernel(
    q, k, v, routes, lse, delta, do, dk, dv,
    q_image, q_token, q_head, k_image, k_token, k_head, v_image, v_token, v_head,
    heads, regions, columns, region_y, region_x, topk, tiles, scale,
    DIM: tl.constexpr, D: tl.constexpr, T: tl.constexpr, P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    area = region_y * region_x
    head = (tl.program_id(0) % heads).to(tl.int64)
    image, region, place_T = _locate(tl.program_id(0) // heads, regions, tiles, T)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    routes += image * regions * topk
    plain = image * regions * area * heads + head

    exists_T = place_T < area
    token_T = _token(region, place_T, columns, region_y, region_x)
    k_TD = load(k, token_T, exists_T, k_token, DIM, D)
    v_TD = load(v, token_T, exists_T, v_token, DIM, D)
    dk_TD = tl.zeros([T, D], dtype=tl.float32)
    dv_TD = tl.zeros([T, D], dtype=tl.float32)
    # A block contains as many whole regions of queries as fit, or one region is divided into blocks.
    together = tl.maximum(P // area, 1)
    for group in range(0, tl.cdiv(regions, together)):
        part_P = tl.minimum(tl.arange(0, P) // area, together)
        region_P = group * together + part_P
        times_P = _times_named(routes, region_P, (part_P < together) & (region_P < regions), region, topk, P)
        if tl.max(times_P, 0) > 0:
            for number in range(0, tl.cdiv(together * area, P)):
                index_P = number * P + tl.arange(0, P)
                exists_P = (times_P > 0) & (index_P < together * area)
                token_P = _token(region_P, index_P % area, columns, region_y, region_x)
                at_P = plain + token_P.to(tl.int64) * heads
                q_PD = load(q, token_P, exists_P, q_token, DIM, D)
                do_PD = load(do + plain * DIM, token_P, exists_P, heads * DIM, DIM, D)
                lse_P = tl.load(lse + at_P, mask=exists_P, other=0.0)
                delta_P = tl.load(delta + at_P, mask=exists_P, other=0.0)
                s_TP = product(k_TD, q_PD, T, P, UPCAST) * (scale * LOG2E)
                p_TP = tl.where(exists_P[None, :], tl.exp2(s_TP - lse_P[None, :]) * times_P.to(tl.float32)[None, :], 0.0)
                dv_TD = dot(p_TP.to(do_PD.dtype), do_PD, dv_TD, UPCAST)
                ds_TP = p_TP * (product(v_TD, do_PD, T, P, UPCAST) - delta_P[None, :])
                dk_TD = dot(ds_TP.to(q_PD.dtype), q_PD, dk_TD, UPCAST)

    store(dk + plain * DIM, token_T, exists_T, heads * DIM, dk_TD * scale, DIM, D)
    store(dv + plain * DIM, token_T, exists_T, heads * DIM, dv_TD, DIM, D)


# Launches


class _Call:
    """Arguments shared by the launches of one call."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Sequence[int], scale: float) -> None:
        (q, q_strides), (k, k_strides), (v, v_strides) = strides(q), strides(k), strides(v)
        self.tensors = q, k, v, routes.contiguous()
        batch, _, width, heads, dim = q.shape
        regions, topk = routes.shape[1:]
        self.region, self.programs = tuple(region), batch * regions * heads
        self.dim, self.bits = dim, q.element_size() * 8
        self.numbers = (*q_strides, *k_strides, *v_strides, heads, regions, width // region[1], *region, topk)
        self.scale = scale

    def run(self, name: str, kernel: Any, *tensors: Tensor) -> None:
        config = launch(name, padded(self.dim), prod(self.region), self.bits)
        tiles = triton.cdiv(prod(self.region), config.tile)
        kernel[(self.programs * tiles,)](
            *self.tensors, *tensors, *self.numbers, tiles, self.scale,
            DIM=self.dim, D=padded(self.dim), T=config.tile, P=config.block, UPCAST=UPCAST,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


# Registration

_WHAT = "Tensor q, Tensor k, Tensor v, Tensor routes"
_HOW = "int[] region, float scale"


@torch.library.custom_op("visionattn::routed_attention_forward", mutates_args=(), schema=f"({_WHAT}, {_HOW}) -> (Tensor, Tensor)")
def forward(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    o, lse = _forward_fake(q, k, v, routes, region, scale)
    with torch.cuda.device_of(q):
        _Call(q, k, v, routes, region, scale).run("forward", _forward_kernel, o, lse)
    return o, lse


@forward.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:4], dtype=torch.float32, device=q.device)


@torch.library.custom_op(
    "visionattn::routed_attention_backward",
    mutates_args=(),
    schema=f"({_WHAT}, Tensor o, Tensor lse, Tensor do, {_HOW}) -> (Tensor, Tensor, Tensor)",
)
def backward(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, o: Tensor, lse: Tensor, do: Tensor, region: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _backward_fake(q, k, v, routes, o, lse, do, region, scale)
    call = _Call(q, k, v, routes, region, scale)
    do, delta = do.contiguous(), torch.empty_like(lse)
    with torch.cuda.device_of(q):
        call.run("dq", _dq_kernel, o, lse, do, dq, delta)
        call.run("dk_dv", _dk_dv_kernel, lse, delta, do, dk, dv)
    return dq, dk, dv


@backward.register_fake
def _backward_fake(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, o: Tensor, lse: Tensor, do: Tensor, region: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, region, scale = inputs
    ctx.how = region, scale
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, do: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *backward(*ctx.saved_tensors, do, *ctx.how), None, None, None


forward.register_autograd(_gradients, setup_context=_setup_context)


def routed_attention_triton(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: tuple[int, int], scale: float) -> Tensor:
    """Run `routed_attention` for checked arguments without a `reason` against it."""
    out: Tensor = forward(q, k, v, routes, region, scale)[0]
    return out

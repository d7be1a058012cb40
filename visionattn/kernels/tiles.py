"""Shared code of the Triton kernels; imported only where Triton runs.

Names of arrays end in their shape, one letter per axis: D is the head dim, padded with zeros to a power of two;
the others are explained where they are used. Scores and their log-sum-exp (`lse`) are in base 2.
Accumulators are float32; products of float32 are IEEE, without tensor cores: TF32 would keep three digits, and
the precision of three products in TF32 ("tf32x3") cannot be tested without a GPU.

Restricted to the common features of Triton 3.6 to 3.9. Verified without a GPU: results and gradients in Triton's
interpreter, and registers, shared memory and tensor core instructions of the code compiled for sm_80 and sm_90
(tests/kernels/test_triton.py). The speed has not been measured on a GPU yet.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # finite: a query may see no key of a block, and -inf - -inf is NaN

# About as many programs as fill a large GPU. A constant, because sums would otherwise depend on the device.
PROGRAMS = 2048

# Triton's interpreter multiplies bfloat16 wrongly (triton-lang/triton 4972).
UPCAST = os.environ.get("TRITON_INTERPRET") == "1"


# In kernels


@triton.jit
def vectors(base, token, exists, stride, DIM: tl.constexpr, D: tl.constexpr):
    """Addresses of the vectors of some tokens, and the mask of existing elements."""
    d = tl.arange(0, D)
    return base + token.to(tl.int64)[:, None] * stride + d[None, :], exists[:, None] & (d < DIM)[None, :]


@triton.jit
def load(base, token, exists, stride, DIM: tl.constexpr, D: tl.constexpr):
    pointers, mask = vectors(base, token, exists, stride, DIM, D)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store(base, token, exists, stride, values, DIM: tl.constexpr, D: tl.constexpr):
    pointers, mask = vectors(base, token, exists, stride, DIM, D)
    tl.store(pointers, values.to(base.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def product(a_MD, b_ND, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):
    """Compute the scalar products of the rows of two matrices, [M, N]."""
    return dot(a_MD, tl.trans(b_ND), tl.zeros([M, N], dtype=tl.float32), UPCAST)


@triton.jit
def attend(s_TP, v_PD, top_T, sum_T, o_TD, UPCAST: tl.constexpr):
    """Add a block of keys to the online softmax: the largest scores, and the sums of weights and weighted values."""
    before_T = top_T
    top_T = tl.maximum(before_T, tl.max(s_TP, 1))
    p_TP = tl.exp2(s_TP - top_T[:, None])
    shrink_T = tl.exp2(before_T - top_T)
    sum_T = sum_T * shrink_T + tl.sum(p_TP, 1)
    return top_T, sum_T, dot(p_TP.to(v_PD.dtype), v_PD, o_TD * shrink_T[:, None], UPCAST)


# In launches


def strides(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return a map or list of vectors in a layout that kernels can read, and its strides of image, token and head.

    `[B, H, W, heads, dim]` or `[B, tokens, heads, dim]`; copied unless tokens have a constant stride and vectors are contiguous.
    """
    if x.stride(-1) != 1 or (x.dim() == 5 and x.stride(1) != x.shape[2] * x.stride(2)):
        x = x.contiguous()
    return x, (x.stride(0), x.stride(-3), x.stride(-2))


def padded(dim: int) -> int:
    """Pad the head dim for kernels: tensor cores multiply at least 16."""
    return max(16, triton.next_power_of_2(dim))


def shares(pieces: int, programs: int) -> tuple[int, int]:
    """Split a sum into shares: pieces per share, and the number of shares, each computed by `programs` programs."""
    each = max(1, triton.cdiv(pieces, max(1, PROGRAMS // max(1, programs))))
    return each, triton.cdiv(pieces, each)


def reason(*tensors: Tensor) -> str:
    """Return the reason that kernels cannot run with these maps, on any device; empty if they can."""
    dtypes = [x.dtype for x in tensors]
    if len(set(dtypes)) > 1 or dtypes[0] not in (torch.float32, torch.float16, torch.bfloat16):
        return f"q, k, v must all be float32, float16 or bfloat16, got {', '.join(map(str, dtypes))}"
    if tensors[0].shape[-1] > 128:
        return f"the head dim must be at most 128, got {tensors[0].shape[-1]}"
    return ""

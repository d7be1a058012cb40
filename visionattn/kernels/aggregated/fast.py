"""Aggregated attention without unfolding: each neighbour is a view of the padded map, with a hand-written backward pass.

Autograd of the views would allocate a padded map of zeros for every neighbour of every tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from visionattn.kernels.aggregated.reference import outside

_CHUNK = 2**18  # elements of q at a time on a CPU: the eight maps of this size in use fit its cache


def aggregated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    *,
    local_bias: torch.Tensor,
    pool_bias: torch.Tensor,
    local_weight: torch.Tensor,
    kernel_size: int,
) -> torch.Tensor:
    """Compute the same as the definition, up to rounding."""
    tensors = (q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight)
    if torch.compiler.is_compiling() or q.device.type == "meta":  # the compiler fuses the plain form in both passes
        return _traceable(*tensors, kernel_size)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Aggregated.apply(*tensors, kernel_size)  # type: ignore[no-any-return]
    return _chunked(tensors, kernel_size, keep=False)[0]


def _cells(x: torch.Tensor, kernel_size: int) -> Iterator[torch.Tensor]:
    """Return a view of a padded map for each neighbour, row by row from the upper left."""
    height, width = x.shape[1] - kernel_size + 1, x.shape[2] - kernel_size + 1
    for row in range(kernel_size):
        for col in range(kernel_size):
            yield x[:, row : row + height, col : col + width]


def _pad(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, 0) + 4 * (kernel_size // 2,))


def _table(local_bias: torch.Tensor, height: int, width: int, kernel_size: int) -> torch.Tensor:
    """Bias of the scores of the neighbours, `[H, W, heads, kernel_size**2]`, with -inf outside the map."""
    beyond = outside(height, width, kernel_size, local_bias.device).unsqueeze(2)
    return local_bias.masked_fill(beyond, float("-inf"))


def _traceable(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    local_bias: torch.Tensor,
    pool_bias: torch.Tensor,
    local_weight: torch.Tensor,
    kernel_size: int,
) -> torch.Tensor:
    area, pooled = kernel_size**2, k_pool.shape[1]
    near = torch.stack([(q * key).sum(-1) for key in _cells(_pad(k, kernel_size), kernel_size)], -1)  # B H W heads k*k
    near = near + _table(local_bias, q.shape[1], q.shape[2], kernel_size)
    far = q.flatten(1, 2).transpose(1, 2) @ k_pool.permute(0, 2, 3, 1) + pool_bias  # B heads HW P
    near, far = torch.cat([near.flatten(1, 2).transpose(1, 2), far], -1).softmax(-1).split([area, pooled], -1)
    near = near.transpose(1, 2).reshape(local_weight.shape) + local_weight
    out = (far @ v_pool.transpose(1, 2)).transpose(1, 2).reshape(q.shape)
    for weight, value in zip(near.unbind(-1), _cells(_pad(v, kernel_size), kernel_size), strict=True):
        out = out + weight.unsqueeze(-1) * value
    return out.to(q.dtype)


def _chunked(tensors: Sequence[torch.Tensor], kernel_size: int, keep: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Compute the output and, if kept, the weights of each chunk. Half precision is computed in float32."""
    q, local_bias, pool_bias = tensors[0], tensors[5], tensors[6]
    height, width = q.shape[1:3]
    work, images = torch.promote_types(q.dtype, torch.float32), _images(q)
    table = _table(local_bias.to(work), height, width, kernel_size)
    bias = pool_bias.to(work).unflatten(1, (height, width)).permute(1, 2, 0, 3)  # H W heads P
    out, weights = torch.empty_like(q, memory_format=torch.contiguous_format), []
    with torch.autocast(q.device.type, enabled=False):
        batched = (x.split(images) for x in (out, *tensors[:5], tensors[7]))
        for part, *chunk in zip(*batched, strict=True):
            result, weight = _forward([x.to(work) for x in chunk], table, bias, kernel_size)
            part.copy_(result)
            if keep:
                weights.append(weight)
    return out, weights


def _images(q: torch.Tensor) -> int:
    """Number of images per chunk."""
    return max(1, _CHUNK // q[0].numel()) if q.device.type == "cpu" else len(q)


class _Aggregated(torch.autograd.Function):
    """The same operation with gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        *tensors, ctx.kernel_size = arguments
        out, weights = _chunked(tensors, ctx.kernel_size, keep=True)
        ctx.save_for_backward(*tensors, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: gradient checkpointing unpacks them again at each access
        tensors, weights = saved[:8], saved[8:]
        q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight = tensors
        work, images = torch.promote_types(q.dtype, torch.float32), _images(q)
        batched = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, k_pool, v_pool, local_weight)]
        table = local_bias.new_zeros(local_bias.shape, dtype=work)
        bias = pool_bias.new_zeros((*q.shape[1:4], k_pool.shape[1]), dtype=work)
        with torch.autocast(q.device.type, enabled=False):
            inputs = zip(*(x.split(images) for x in (*gradients, q, k, v, k_pool, v_pool, local_weight)), strict=True)
            outputs = zip(*(x.split(images) for x in batched), strict=True)
            for weight, chunk, parts in zip(weights, inputs, outputs, strict=True):
                results, scores = _backward([x.to(work) for x in chunk], weight, ctx.kernel_size)
                for part, result in zip(parts, results, strict=True):
                    part.copy_(result)
                near, far = scores.split([local_bias.shape[1], k_pool.shape[1]], -1)
                table += near.sum((0, 1, 2))
                bias += far.sum(0)
        dq, dk, dv, dk_pool, dv_pool, dlocal_weight = batched
        dpool_bias = bias.permute(2, 0, 1, 3).flatten(1, 2)
        return dq, dk, dv, dk_pool, dv_pool, table.to(local_bias.dtype), dpool_bias.to(pool_bias.dtype), dlocal_weight, None


def _forward(
    tensors: Sequence[torch.Tensor], table: torch.Tensor, bias: torch.Tensor, kernel_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the output `[B, H, W, heads, dim]` and the softmax weights `[B, H, W, heads, k*k + P]`, the neighbours first."""
    q, k, v, k_pool, v_pool, local_weight = tensors
    area = kernel_size**2
    scores = q.new_empty((*local_weight.shape[:4], area + bias.shape[3]))
    product = torch.empty_like(q, memory_format=torch.contiguous_format)
    for index, key in enumerate(_cells(_pad(k, kernel_size), kernel_size)):
        torch.sum(torch.mul(q, key, out=product), -1, out=scores[..., index])
    scores[..., :area] += table
    torch.add(_heads_first(q) @ k_pool.permute(0, 2, 3, 1), _heads_first(bias[None]), out=_heads_first(scores[..., area:]))
    weights = scores.softmax(-1)
    out = _heads_last(_heads_first(weights[..., area:]) @ v_pool.transpose(1, 2), q.shape)
    near = weights[..., :area] + local_weight
    for weight, value in zip(near.unbind(-1), _cells(_pad(v, kernel_size), kernel_size), strict=True):
        out.addcmul_(weight.unsqueeze(-1), value)
    return out, weights


def _backward(tensors: Sequence[torch.Tensor], weights: torch.Tensor, kernel_size: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Compute the gradients of q, k, v, k_pool, v_pool, local_weight, and the scores."""
    gradient, q, k, v, k_pool, v_pool, local_weight = tensors
    area, radius = kernel_size**2, kernel_size // 2
    inside = (slice(None), slice(radius, radius + q.shape[1]), slice(radius, radius + q.shape[2]))
    queries, given = _heads_first(q), _heads_first(gradient)  # B heads HW d
    product = torch.empty_like(q, memory_format=torch.contiguous_format)

    v = _pad(v, kernel_size)
    dv, dweights = torch.zeros_like(v), torch.empty_like(weights)
    near = weights[..., :area] + local_weight
    for index, (value, target) in enumerate(zip(_cells(v, kernel_size), _cells(dv, kernel_size), strict=True)):
        torch.sum(torch.mul(gradient, value, out=product), -1, out=dweights[..., index])
        target.addcmul_(near[..., index, None], gradient)
    dlocal_weight = dweights[..., :area].clone()
    _heads_first(dweights[..., area:]).copy_(given @ v_pool.permute(0, 2, 3, 1))
    dv_pool = (_heads_first(weights[..., area:]).transpose(2, 3) @ given).transpose(1, 2)  # B P heads d

    # Softmax gradient, in place: weight * (dweight - sum of weight * dweight).
    dscores = dweights.mul_(weights)
    dscores.addcmul_(weights, dscores.sum(-1, keepdim=True), value=-1)

    far = _heads_first(dscores[..., area:])
    dk_pool = (far.transpose(2, 3) @ queries).transpose(1, 2)
    dq = _heads_last(far @ k_pool.transpose(1, 2), q.shape)
    k = _pad(k, kernel_size)
    dk = torch.zeros_like(k)
    for index, (key, target) in enumerate(zip(_cells(k, kernel_size), _cells(dk, kernel_size), strict=True)):
        dq.addcmul_(dscores[..., index, None], key)
        target.addcmul_(dscores[..., index, None], q)
    return (dq, dk[inside], dv[inside], dk_pool, dv_pool, dlocal_weight), dscores


def _heads_first(x: torch.Tensor) -> torch.Tensor:  # B H W heads n -> B heads HW n, a view
    return x.flatten(1, 2).transpose(1, 2)


def _heads_last(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:  # B heads HW n -> B H W heads n
    return x.transpose(1, 2).reshape(shape)

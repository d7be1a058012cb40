"""Opponents of the attention operations, written as in the authors' public code or in the usual way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Plan = tuple[Tensor, Tensor]  # index of each query's keys, and of their offsets in the bias table
Call = Callable[..., Tensor]

# Neighborhood attention: `qkv` is [B, H, W, 3, heads, dim], `bias` [heads, 2 k - 1, 2 k - 1]. Index tensors are precomputed.


def gather(qkv: Tensor, bias: Tensor, *, plan: Plan) -> Tensor:
    """Copy each query's keys and values."""
    (q, k, v), (index, offset) = _heads_first(qkv), plan
    scores = (k[:, :, index] @ (q * q.shape[-1] ** -0.5).unsqueeze(-1)).squeeze(-1) + bias.flatten(1)[:, offset]
    return _map((scores.softmax(-1).unsqueeze(-2) @ v[:, :, index]).squeeze(-2), qkv)


def shifts(qkv: Tensor, bias: Tensor, *, plan: Plan, kernel: int) -> Tensor:
    """Use a shifted map per offset of the kernel; at the border, whole rows and columns move."""
    side, (q, k, v) = qkv.shape[1], qkv.unbind(3)
    index = plan[0].view(side, side, kernel, kernel)
    rows, cols = index[:, 0, :, 0] // side, index[0, :, 0, :] % side

    def shifted(x: Tensor) -> Iterator[Tensor]:
        for i in range(kernel):
            row = x.index_select(1, rows[:, i])
            for j in range(kernel):
                yield row.index_select(2, cols[:, j])

    q = q * q.shape[-1] ** -0.5
    scores = torch.stack([(q * key).sum(-1) for key in shifted(k)], -1)  # B H W heads taps
    weights = (scores + bias.flatten(1)[:, plan[1]].transpose(0, 1).view(side, side, *scores.shape[3:])).softmax(-1)
    out = torch.zeros_like(q)
    for tap, value in enumerate(shifted(v)):
        out = out + weights[..., tap : tap + 1] * value
    return out


def dense(qkv: Tensor, bias: Tensor, *, plan: Plan, fused: bool) -> Tensor:
    """Attend to the whole map, with the bias scattered into a mask."""
    (q, k, v), (index, offset) = _heads_first(qkv), plan
    count = index.shape[0]
    mask = bias.new_full((bias.shape[0], count, count), -torch.inf).scatter(
        2, index.expand(bias.shape[0], -1, -1), bias.flatten(1)[:, offset]
    )
    if fused or not torch.is_grad_enabled():
        return _map(F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None]), qkv)
    return _map(((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask).softmax(-1) @ v, qkv)


def flex(side: int, kernel: int, dilation: int, device: torch.device) -> Call:
    """Use compiled FlexAttention, with the neighborhood as block mask and the bias as score function."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def start(position: Tensor) -> Tensor:  # first key along an axis, in steps
        count = (side - position % dilation + dilation - 1) // dilation
        return torch.minimum((position // dilation - kernel // 2).clamp(min=0), count - kernel)

    def near(query: Tensor, key: Tensor) -> Tensor:
        tap = key // dilation - start(query)
        return (query % dilation == key % dilation) & (tap >= 0) & (tap < kernel)

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return near(query // side, key // side) & near(query % side, key % side)

    block_mask = create_block_mask(seen, None, None, side**2, side**2, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(qkv: Tensor, bias: Tensor) -> Tensor:
        def add(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            row = (key // side // dilation - query // side // dilation + kernel - 1).clamp(0, 2 * kernel - 2)
            col = (key % side // dilation - query % side // dilation + kernel - 1).clamp(0, 2 * kernel - 2)
            return score + bias[head, row, col]

        q, k, v = _heads_first(qkv)
        return _map(compiled(q, k, v, score_mod=add, block_mask=block_mask), qkv)

    return call


def natten(kernel: int, dilation: int) -> Call | None:
    """Use NATTEN's kernels with bias, if installed; versions from 0.20 have no bias."""
    try:
        from natten.functional import natten2dav, natten2dqkrpb
    except ImportError:
        return None

    def call(qkv: Tensor, bias: Tensor) -> Tensor:  # heads first, B heads H W d
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
        weights = natten2dqkrpb(q * q.shape[-1] ** -0.5, k, bias, kernel, dilation).softmax(-1)
        return natten2dav(weights, v, kernel, dilation).permute(0, 2, 3, 1, 4)

    return call


def _heads_first(qkv: Tensor) -> Sequence[Tensor]:  # B H W 3 heads d -> B heads N d
    return qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)


def _map(x: Tensor, qkv: Tensor) -> Tensor:  # B heads N d -> B H W heads d
    return x.transpose(1, 2).reshape(*qkv.shape[:3], *qkv.shape[4:])


# The other operations, with the operations' tensor layouts.


def gather_routed(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: tuple[int, int], scale: float) -> Tensor:
    """BiFormer: gather keys and values of all heads from a table expanded over the regions."""
    (batch, height, width, heads, dim), (rh, rw) = q.shape, region
    rows, cols, area, width_c = height // rh, width // rw, rh * rw, heads * dim

    def cut(x: Tensor) -> Tensor:  # B R N C
        return x.reshape(batch, rows, rh, cols, rw, width_c).transpose(2, 3).reshape(batch, rows * cols, area, width_c)

    def heads_first(x: Tensor) -> Tensor:  # B R ... C -> (B R) heads N d
        return x.reshape(batch * rows * cols, -1, heads, dim).transpose(1, 2)

    table = torch.cat([cut(k), cut(v)], -1).unsqueeze(1).expand(-1, rows * cols, -1, -1, -1)
    index = routes[..., None, None].expand(-1, -1, -1, area, 2 * width_c)
    keys, values = torch.gather(table, 2, index).split(width_c, -1)
    weights = ((heads_first(cut(q)) * scale) @ heads_first(keys).transpose(-2, -1)).softmax(-1)
    out = (weights @ heads_first(values)).transpose(1, 2).reshape(batch, rows, cols, rh, rw, heads, dim)
    return out.transpose(2, 3).reshape(q.shape)


def unfold_aggregated(
    q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor
) -> Tensor:
    """TransNeXt: F.unfold of keys and values together, then products of 1 x d with d x 9."""
    batch, height, width, heads, dim = q.shape
    count = height * width
    queries = q.reshape(batch, count, heads, dim).transpose(1, 2)
    both = torch.cat([k.flatten(3), v.flatten(3)], -1).permute(0, 3, 1, 2)
    keys, values = F.unfold(both, 3, padding=1).reshape(batch, 2 * heads, dim, 9, count).permute(0, 1, 4, 2, 3).chunk(2, 1)
    inside = F.unfold(torch.ones(1, 1, height, width, dtype=q.dtype, device=q.device), 3, padding=1)[0].T
    near = (queries.unsqueeze(-2) @ keys).squeeze(-2) + local_bias[:, None]
    near = near.masked_fill(inside == 0, float("-inf"))
    k_pool, v_pool = (x.reshape(batch, -1, heads, dim).transpose(1, 2) for x in (k_pool, v_pool))
    far = queries @ k_pool.transpose(-2, -1) + pool_bias
    near, far = torch.cat([near, far], -1).softmax(-1).split([9, far.shape[-1]], -1)
    near = near + local_weight.reshape(batch, count, heads, 9).transpose(1, 2)
    out = (near.unsqueeze(-2) @ values.transpose(-2, -1)).squeeze(-2) + far @ v_pool
    return out.transpose(1, 2).reshape(q.shape)


def unfold_windows(weights: Tensor, v: Tensor, *, kernel: int) -> Tensor:
    """ContMix without NATTEN: F.unfold of the values, windows at the border repeated, product and sum over the window."""
    batch, height, width, heads, dim = v.shape
    windows = F.unfold(v.permute(0, 3, 4, 1, 2).flatten(1, 2), kernel).unflatten(2, (height - kernel + 1, width - kernel + 1))
    windows = F.pad(windows, (kernel // 2,) * 4, mode="replicate").view(batch, heads, dim, kernel**2, height, width)
    return torch.einsum("byxhk,bhdkyx->byxhd", weights, windows)


def gather_windows(weights: Tensor, v: Tensor, *, index: Tensor) -> Tensor:
    """Copy the values of each window."""
    values = v.flatten(1, 2).transpose(1, 2)[:, :, index]  # B heads N k d
    out = weights.flatten(1, 2).transpose(1, 2).unsqueeze(-2) @ values
    return out.squeeze(-2).transpose(1, 2).reshape(v.shape)


def rolled_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, shift: int, mask: Tensor, fused: bool = False) -> Tensor:
    """Swin: roll, partition, product, bias and mask (of -100), softmax, product, and back; windows of 7 x 7.

    The fused form is timm's: scaled dot-product attention with bias and mask as its mask.
    """
    batch, height, width, heads, dim = q.shape
    rows, cols = height // 7, width // 7

    def cut(x: Tensor) -> Tensor:  # (B windows) heads N d
        x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
        x = x.reshape(batch, rows, 7, cols, 7, heads, dim).transpose(2, 3)
        return x.reshape(batch * rows * cols, 49, heads, dim).transpose(1, 2)

    q, k, v = cut(q), cut(k), cut(v)
    if fused:
        table = bias[None] + mask[:, None].to(bias.dtype).repeat(batch, 1, 1, 1) if shift else bias[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=table)
    else:
        scores = (q * dim**-0.5) @ k.transpose(-2, -1) + bias
        if shift:
            scores = (scores.view(batch, -1, heads, 49, 49) + mask[:, None].to(scores.dtype)).view(-1, heads, 49, 49)
        out = scores.softmax(-1) @ v
    out = out.transpose(1, 2).reshape(batch, rows, cols, 7, 7, heads, dim).transpose(2, 3).reshape(batch, height, width, heads, dim)
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out


def permuted_groups(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, group: int, interval: int) -> Tensor:
    """CrossFormer: pad to whole groups, permute, product, bias and mask (of -1e6 for padded keys), softmax, product, and back."""
    batch, height, width, heads, dim = q.shape
    span = group * interval
    bottom, right = -height % span, -width % span
    rows, cols = (height + bottom) // span, (width + right) // span

    def cut(x: Tensor) -> Tensor:  # (B groups) heads N d
        x = F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom)) if bottom or right else x
        x = x.reshape(batch, rows, group, interval, cols, group, interval, *x.shape[3:]).permute(0, 1, 4, 3, 6, 2, 5, 7, 8)
        return x.reshape(batch * rows * cols * interval**2, group**2, *x.shape[7:]).transpose(1, 2)

    q, k, v = cut(q), cut(k), cut(v)
    scores = (q * dim**-0.5) @ k.transpose(-2, -1) + bias
    if bottom or right:
        outside = F.pad(bias.new_zeros(1, height, width, 1, 1), (0, 0, 0, 0, 0, right, 0, bottom), value=-1e6)
        mask = outside.reshape(rows, group, interval, cols, group, interval).permute(0, 3, 2, 5, 1, 4).reshape(1, -1, 1, 1, group**2)
        scores = (scores.view(batch, -1, heads, group**2, group**2) + mask).view(scores.shape)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, rows, cols, interval, interval, group, group, heads, dim)
    out = out.permute(0, 1, 5, 3, 2, 6, 4, 7, 8).reshape(batch, height + bottom, width + right, heads, dim)
    return out[:, :height, :width]


def official_hilo(own: Any, x: Tensor) -> Tensor:
    """LITv2: windows and averages one after the other, each with its projections, heads first; `own` is our module, for its layers."""
    (batch, height, width, dim), scale = x.shape, own.head_dim**-0.5
    rows, cols, high, low = height // 2, width // 2, own.high, own.low
    windows = x.reshape(batch, rows, 2, cols, 2, dim).transpose(2, 3).reshape(batch, rows * cols, 4, dim)
    q, k, v = own.h_qkv(windows).reshape(batch, rows * cols, 4, 3, high, own.head_dim).permute(3, 0, 1, 4, 2, 5)
    near = (((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v).transpose(2, 3).reshape(batch, rows, cols, 2, 2, high * own.head_dim)
    near = own.h_proj(near.transpose(2, 3).reshape(batch, height, width, high * own.head_dim))
    q = own.l_q(x).reshape(batch, height * width, low, own.head_dim).permute(0, 2, 1, 3)
    averages = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, 2).reshape(batch, dim, -1).permute(0, 2, 1)
    k, v = own.l_kv(averages).reshape(batch, -1, 2, low, own.head_dim).permute(2, 0, 3, 1, 4)
    far = (((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v).transpose(1, 2).reshape(batch, height, width, low * own.head_dim)
    return torch.cat([near, own.l_proj(far)], -1)


def official_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """DaViT: heads first, products of the transposed keys with the values."""
    shape = q.shape
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    weights = ((k * k.shape[-1] ** -0.5).transpose(-1, -2) @ v).softmax(-1)
    return (weights @ q.transpose(-1, -2)).transpose(-1, -2).transpose(1, 2).reshape(shape)


def decayed_lines(qkv: Tensor, *, table: Tensor, along: str) -> Tensor:
    """RMT: lines of the map first, scores plus a table of decays made beforehand, softmax, product, and back."""
    q, k, v = qkv.unbind(3)
    if along == "map":
        q, k, v = (x.flatten(1, 2).unsqueeze(1) for x in (q, k, v))
    elif along == "columns":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    q, k, v = (x.transpose(2, 3) for x in (q, k, v))  # B lines heads N d
    out = (((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + table).softmax(-1) @ v).transpose(2, 3)
    out = out.transpose(1, 2) if along == "columns" else out
    return out.reshape(qkv[:, :, :, 0].shape)


def stepwise_linear(qkv: Tensor, *, cos: Tensor, sin: Tensor) -> Tensor:
    """RAVLT: heads first, keys weighted, then queries and keys rotated by cosines and sines of all channels."""
    shape = qkv[:, :, :, 0].shape
    q, k, v = _heads_first(qkv)
    q, k, count = F.elu(q) + 1, F.elu(k) + 1, q.shape[2]
    weights = count * ((q.mean(2, keepdim=True) * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    k = k * weights.transpose(-2, -1)
    normaliser = 1 / (q @ k.mean(2, keepdim=True).transpose(-2, -1) + 1e-6)
    q, k = (x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin for x in (q, k))
    out = q @ ((k.transpose(-2, -1) * count**-0.5) @ (v * count**-0.5)) * normaliser
    return out.transpose(1, 2).reshape(shape)


def stepwise_inline(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """InLine: heads first, the sum over keys, then the correction by the means."""
    shape, count = q.shape, q.shape[1] * q.shape[2]
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    q = q * q.shape[-1] ** -0.5
    total = q @ ((k.transpose(-2, -1) * count**-0.5) @ (v * count**-0.5))
    rest = 1 - q @ k.mean(2, keepdim=True).transpose(-2, -1)
    return (total + rest * v.mean(2, keepdim=True)).transpose(1, 2).reshape(shape)


def two_softmaxes(qkv: Tensor, agents: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    """Agent Attention: heads first, product, bias, softmax and product, twice."""
    q, k, v = _heads_first(qkv)
    agents = agents.flatten(1, 2).transpose(1, 2)
    scale = q.shape[-1] ** -0.5
    gathered = ((agents * scale) @ k.transpose(-2, -1) + agent_bias).softmax(-1) @ v
    return _map(((q * scale) @ agents.transpose(-2, -1) + query_bias).softmax(-1) @ gathered, qkv)

"""Neighborhood attention by tiles, in plain PyTorch.

The positions of a residue class modulo the dilation form a separate map in which neighbours are
adjacent. It is divided into tiles of queries; all queries of a tile see one block of keys, the tile and its
halo, and a table added to the scores holds the bias of each pair, with -inf for pairs outside the
neighborhood. The work is one batched product on each side of the softmax, with `(side + kernel - 1) ** 2`
keys per query instead of `kernel ** 2`, and no gather of single keys. Tiles at the same distance from
the borders share a table; rows of tiles that share all tables form a batch. A small map is one tile: dense attention with a mask.

Shapes: B images, H W map, h heads, d channels; R C rows and columns of tiles, r c residues, Q queries
of a tile, K keys of its block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from visionattn.kernels.attend import attend
from visionattn.kernels.dispatch import emulated
from visionattn.kernels.neighborhood.reference import Border

CACHE = 16 << 20  # bytes: scores of this size stay in a CPU's cache between the two products


class Axis(NamedTuple):
    """Tiling of one axis of the map, in steps of the dilation."""

    dilation: int
    tiles: int
    side: int  # queries per tile
    front: int  # keys before the first query of a tile
    keys: int  # keys per block
    classes: tuple[tuple[int, int], ...]  # distances from a tile's first query to the ends of the map, clipped to the relevant range
    members: tuple[int, ...]  # class per tile and residue


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
    border: Border,
) -> torch.Tensor:
    """Compute `neighborhood_attention`, `[B, H, W, h, d]`."""
    batch, height, width, heads, _ = q.shape
    rows = cut(height, kernel_size[0], dilation[0], border)
    cols = cut(width, kernel_size[1], dilation[1], border)
    if bias is None:
        bias = q.new_zeros(heads, 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1)
    table = bake(bias.float() if bias.dtype != torch.float64 else bias, rows, cols, border)
    table = table.unflatten(0, (len(rows.classes), len(cols.classes)))
    by_col = table.unbind(1)
    table = _cat([by_col[member].unsqueeze(1).expand(-1, size, -1, -1, -1) for member, size in _runs(cols.members)], 1).flatten(1, 2)
    if not needs_gradient(table):  # otherwise converted part by part, so that its gradient is summed in float32
        table = table.to(q.dtype)
    tables = table.unbind(0)  # one per class of rows: (C c h) Q K
    row = tables[0].numel() * q.element_size()  # bytes of the scores of a row of tiles
    image = row * len(rows.members)

    # A traced graph has no fixed batch size to split by, and a compiler fuses the steps.
    whole = torch.compiler.is_compiling()
    parts = [(q, k, v)] if whole or image * batch <= CACHE else zip(*(_split(x, max(1, CACHE // image), 0) for x in (q, k, v)), strict=True)
    step = len(rows.members) if whole else max(1, CACHE // row)  # rows of tiles at a time
    runs = [(member, min(step, size - begin)) for member, size in _runs(rows.members) for begin in range(0, size, step)]

    out = []
    for q, k, v in parts:
        sizes = [size for _, size in runs]
        queries, keys, values = (_split(x, sizes, 0) for x in (_tile(q, rows, cols), _blocks(k, rows, cols), _blocks(v, rows, cols)))
        bias_of = (tables[member] for member, _ in runs)
        done = [_attend(*tensors, scale) for tensors in zip(queries, keys, values, bias_of, strict=True)]
        out.append(_untile(_cat(done, 0), rows, cols))
    return _cat(out, 0)[:, :height, :width]


def aggregate(
    weights: torch.Tensor, v: torch.Tensor, *, kernel_size: tuple[int, int], dilation: tuple[int, int], border: Border
) -> torch.Tensor:
    """Compute `neighborhood_aggregate`, `[B, H, W, h, d]`.

    The weights of a tile are spread to its whole block of keys, with zeros for pairs that are not neighbors, and multiplied with the values
    of the block.
    """
    if emulated(v):
        with torch.autocast("cpu", enabled=False):
            return aggregate(weights.float(), v.float(), kernel_size=kernel_size, dilation=dilation, border=border).to(v.dtype)
    height, width, heads = v.shape[1:4]
    masked = border == "mask"  # then windows reach beyond the map
    rows = cut(height, kernel_size[0], dilation[0], border, halo=masked)
    cols = cut(width, kernel_size[1], dilation[1], border, halo=masked)
    keys, sees_all = rows.keys * cols.keys, not masked and (rows.keys, cols.keys) == kernel_size
    places = None if sees_all else _places(rows, cols, kernel_size, border, v.device)

    row = len(cols.members) * heads * rows.side * cols.side * keys * v.element_size()  # bytes of the spread weights of a row of tiles
    count = len(rows.members)
    whole = torch.compiler.is_compiling()  # a traced graph has no fixed batch size to split by
    parts = [(weights, v)] if whole else zip(*(_split(x, max(1, CACHE // (row * count)), 0) for x in (weights, v)), strict=True)

    out = []
    for part, of_part in parts:
        step = count if whole else max(1, CACHE // (row * max(1, len(part))))
        members = [rows.members[begin : begin + step] for begin in range(0, count, step)]
        sizes = [len(some) for some in members]
        tiled = _split(_tile(part, rows, cols), sizes, 0), _split(_blocks(of_part, rows, cols), sizes, 0)
        done = []
        for some, given, values in zip(members, *tiled, strict=True):
            done.append(_spread(given, None if places is None else places[list(some)], keys) @ values)
        out.append(_untile(_cat(done, 0), rows, cols))
    return _cat(out, 0)[:, :height, :width]


def _spread(weights: torch.Tensor, places: torch.Tensor | None, keys: int) -> torch.Tensor:
    """Spread weights of windows to blocks of keys: `[rows, B, C c h, Q, kh * kw]` -> `[rows, B, C c h, Q, K]`."""
    if places is None:
        return weights
    by_tile = weights.unflatten(2, (places.shape[1], -1))
    places = places[:, None, :, None].expand(by_tile.shape)
    return weights.new_zeros(*by_tile.shape[:5], keys).scatter_(5, places, by_tile).flatten(2, 3)


def _places(rows: Axis, cols: Axis, kernel: tuple[int, int], border: Border, device: torch.device) -> torch.Tensor:
    """Keys of the windows within the blocks, `[classes of rows, C c, Q, kh * kw]`."""

    def along(axis: Axis, size: int) -> torch.Tensor:  # classes Q k
        starts = []
        for before, after in axis.classes:
            for query in range(axis.side):
                start = query - size // 2
                if border == "shift":  # queries that fill up the last tile have weights of zero, whatever their keys
                    start = min(max(start, -before), after - size) if query < after else -axis.front
                starts.append(start + axis.front)
        return torch.tensor(starts, device=device).view(len(axis.classes), axis.side, 1) + torch.arange(size, device=device)

    row, col = along(rows, kernel[0]), along(cols, kernel[1])[list(cols.members)]
    places = row[:, None, :, None, :, None] * cols.keys + col[:, None, :, None]
    return places.flatten(4).flatten(2, 3)


def cut(length: int, kernel: int, dilation: int, border: Border, halo: bool = False) -> Axis:
    """Divide one axis of the map into tiles; `halo` for a block larger than the map around a single tile too."""
    length = len(range(length))  # a plain int; in traced code this makes the size a constant of the graph
    steps, half = -(-length // dilation), kernel // 2
    side = cheapest_side(steps, kernel)
    tiles = -(-steps // side)
    counts = [max(0, -(-(length - residue) // dilation)) for residue in range(dilation)]  # positions of the residue class

    front, back = half, max(side + half, kernel)  # reach of the windows of a tile
    members, classes = [], {}  # type: list[int], dict[tuple[int, int], int]
    for begin in range(0, tiles * side, side):
        for count in counts:
            ends = min(begin, half), min(max(count - begin, 0), back)
            members.append(classes.setdefault(ends, len(classes)))
    if tiles == 1 and not halo:
        front, back = 0, steps
    elif border == "shift" and tiles > 1:  # the windows of a short last tile start further ahead of it
        front = max(front, *((count - 1) // side * side - (count - kernel) for count in counts))
    return Axis(dilation, tiles, side, front, front + back, tuple(classes), tuple(members))


def cheapest_side(steps: int, kernel: int) -> int:
    """Choose the number of queries per tile along an axis.

    The cost of a tile is its number of scores plus 36 per key for moving it (measured); the square root turns this into a product
    over two axes.
    """
    return min((*range(4, 9), steps), key=lambda side: -(-steps // side) * min(side + kernel - 1, steps) * math.hypot(side, 6))


def needs_gradient(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def bake(bias: torch.Tensor, rows: Axis, cols: Axis, border: Border) -> torch.Tensor:
    """Expand a bias `[h, 2 * kh - 1, 2 * kw - 1]` to the tables added to the scores, `[classes, h, Q, K]`."""
    row_hot, row_wall = _pairs(rows, bias.shape[1], border, bias)
    alike = rows == cols and bias.shape[1] == bias.shape[2]
    col_hot, col_wall = (row_hot, row_wall) if alike else _pairs(cols, bias.shape[2], border, bias)
    # A product copies the entries of the bias exactly and sums their gradients in a fixed order.
    table = row_hot @ bias @ col_hot.transpose(0, 1) + (row_wall[:, None] + col_wall)
    table = table.view(-1, len(rows.classes), rows.side, rows.keys, len(cols.classes), cols.side, cols.keys).permute(1, 4, 0, 2, 5, 3, 6)
    return table.reshape(len(rows.classes) * len(cols.classes), -1, rows.side * cols.side, rows.keys * cols.keys)


def _pairs(axis: Axis, size: int, border: Border, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For pairs of query and key along an axis: their offset, one-hot over `size` offsets, and their mask, 0 or -inf."""
    kernel = (size + 1) // 2
    queries = []  # first key, end of the keys, and key at offset 0, counted within the block
    for before, after in axis.classes:
        for query in range(axis.side):
            start = query - kernel // 2
            if border == "shift":
                start = min(max(start, -before), after - kernel)
            end, start = min(start + kernel, after), max(start, -before if border == "mask" else start)
            # Queries that fill up the last tile see every key without bias, because an empty softmax is NaN.
            queries.append((start, end, query - kernel + 1) if query < after else (-axis.front, axis.keys, axis.keys))
    first, behind, origin = (torch.tensor(queries, device=like.device).transpose(0, 1)[:, :, None]).unbind(0)
    key = torch.arange(-axis.front, axis.keys - axis.front, device=like.device)
    hot = (key - origin).flatten()[:, None] == torch.arange(size, device=like.device)
    wall = torch.where((key >= first) & (key < behind), 0.0, -torch.inf).flatten()
    return hot.to(like.dtype), wall.to(like.dtype)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, scale: float) -> torch.Tensor:
    """Compute the attention of rows of tiles that share a table, `[rows, B, tiles x h, Q or K, d]`."""
    shape, table = q.shape, table.to(q.dtype)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if needs_gradient(q, k, v, table):
        out = attend(q, k, v, table, scale)  # on a GPU, SDPA would sum the gradient of the table in no fixed order
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=table[None], scale=scale)
    return out.view(shape)


def _tile(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:  # B H W h d -> (R r) B (C c h) Q d
    batch, _, _, heads, dim = x.shape
    x = _pad(x, (0, rows.tiles * rows.side * rows.dilation), (0, cols.tiles * cols.side * cols.dilation))
    x = x.unflatten(2, (cols.tiles, cols.side, cols.dilation)).unflatten(1, (rows.tiles, rows.side, rows.dilation))
    x = x.permute(1, 3, 0, 4, 6, 7, 2, 5, 8)
    return x.reshape(len(rows.members), batch, len(cols.members) * heads, rows.side * cols.side, dim)


def _untile(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:  # (R r) B (C c h) Q d -> B H W h d, with the padding
    _, batch, places, _, dim = x.shape
    heads = places // len(cols.members)
    x = x.view(rows.tiles, rows.dilation, batch, cols.tiles, cols.dilation, heads, rows.side, cols.side, dim)
    x = x.permute(2, 0, 6, 1, 3, 7, 4, 5, 8)
    return x.reshape(batch, rows.tiles * rows.side * rows.dilation, cols.tiles * cols.side * cols.dilation, heads, dim)


def _blocks(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:  # B H W h d -> B (R r C c) h K d
    if (rows.keys, cols.keys) == (rows.side, cols.side):
        return _tile(x, rows, cols)
    if needs_gradient(x):
        return _Blocks.apply(x, rows, cols)  # type: ignore[no-any-return]
    return _copy_blocks(x, rows, cols)


def _copy_blocks(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:
    batch, _, _, heads, dim = x.shape
    before = rows.front * rows.dilation, cols.front * cols.dilation
    after = (((axis.tiles - 1) * axis.side + axis.keys) * axis.dilation for axis in (rows, cols))
    x = x.permute(0, 3, 1, 2, 4)  # the padding copies anyway; with heads first, rows of blocks are copied whole
    x = _pad(x, (before[0], next(after)), (before[1], next(after)), 2)
    x = x.unflatten(3, (-1, cols.dilation)).unflatten(2, (-1, rows.dilation))  # B h steps r steps c d
    x = x.unfold(2, rows.keys, rows.side).unfold(4, cols.keys, cols.side)  # B h R r C c d keys keys
    x = x.permute(2, 3, 0, 4, 5, 1, 7, 8, 6)
    return x.reshape(len(rows.members), batch, len(cols.members) * heads, rows.keys * cols.keys, dim)


def _pad(x: torch.Tensor, height: tuple[int, int], width: tuple[int, int], axis: int = 1) -> torch.Tensor:
    """Pad a map with zeros, given the number before it and the final side; `axis` is that of its rows."""
    pad = (width[0], width[1] - width[0] - x.shape[axis + 1], height[0], height[1] - height[0] - x.shape[axis])
    return F.pad(x, (*(0,) * 2 * (x.dim() - axis - 2), *pad)) if any(pad) else x


def _runs(members: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs of equal members and their lengths; an index would sum its gradient in no fixed order on a GPU."""
    return [(member, len(list(group))) for member, group in groupby(members)]


def _split(x: torch.Tensor, size: int | list[int], dim: int) -> Sequence[torch.Tensor]:
    single = size >= x.shape[dim] if isinstance(size, int) else len(size) == 1
    return (x,) if single else x.split(size, dim)  # the gradient of split copies, even a single part


def _cat(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


class _Blocks(torch.autograd.Function):
    """`_copy_blocks` with a gradient that adds whole tiles: three times as fast as that of `unfold`, and in a fixed order."""

    @staticmethod
    def forward(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:
        return _copy_blocks(x, rows, cols)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, Axis, Axis], output: torch.Tensor) -> None:
        x, ctx.rows, ctx.cols = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows, cols, (batch, height, width, heads, dim) = ctx.rows, ctx.cols, ctx.shape
        grad = grad.reshape(rows.tiles, rows.dilation, batch, cols.tiles, cols.dilation, heads, rows.keys, cols.keys, dim)
        grad = grad.permute(2, 0, 6, 1, 3, 7, 4, 5, 8)  # B R keys r C keys c h d
        # A block spans several tiles: its part in each of them is added to the tiled map.
        reach = -(-rows.keys // rows.side), -(-cols.keys // cols.side)
        tiled = rows.tiles + reach[0] - 1, rows.side, rows.dilation, cols.tiles + reach[1] - 1, cols.side, cols.dilation
        out = grad.new_empty(batch, heads, *tiled, dim).movedim(1, 7)  # with heads first, rows of blocks are added whole
        out[:, rows.tiles :] = 0
        out[:, : rows.tiles, :, :, cols.tiles :] = 0
        for i in range(reach[0]):
            for j in range(reach[1]):
                part = grad[:, :, i * rows.side : (i + 1) * rows.side, :, :, j * cols.side : (j + 1) * cols.side]
                target = out[:, i : i + rows.tiles, : part.shape[2], :, j : j + cols.tiles, : part.shape[5]]
                if i or j:
                    target += part
                else:
                    target.copy_(part)  # a block is at least as large as a tile
        top, left = rows.front * rows.dilation, cols.front * cols.dilation
        out = out.flatten(4, 6).flatten(1, 3)
        return out[:, top : top + height, left : left + width], None, None

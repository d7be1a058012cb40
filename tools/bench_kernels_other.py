"""Routed, aggregated, window and channel attention and the dilated depthwise convolution against the usual ways to write them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import timm
import torch
import torch.nn.functional as F
from measure import Row, add_common, csv_path, finish, interleave, machine, paired, summary
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from visionattn.backbones.swin import WindowAttention
from visionattn.kernels import (
    aggregated_attention,
    channel_attention,
    dilated_depthwise_conv2d,
    region_routes,
    routed_attention,
    window_attention,
)
from visionattn.models.speed import milliseconds
from visionattn.training.build import fast_bf16

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # largest difference over largest value, before anything is timed
Call = Callable[..., Tensor]


class Bench:
    """Times a case in inference and training; `rows` collects the results."""

    def __init__(self, args: argparse.Namespace, device: torch.device, batch: int, rounds: int) -> None:
        self.args, self.device, self.batch, self.rounds = args, device, batch, rounds
        self.rows: list[Row] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def precisions(self, *tensors: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
        """The tensors in each precision, as leaves."""
        for name in self.args.precisions:
            yield name, [tensor.detach().to(PRECISIONS[name]).requires_grad_() for tensor in tensors]

    def compare(
        self, case: str, opponent: str, precision: str, tensors: Sequence[Tensor], ours: Call, theirs: Call, goals: tuple[float, float]
    ) -> None:
        """A row for inference and one for the training step (forward and backward pass); `goals` are ratios, 0 is none."""
        with torch.no_grad():
            one, two = ours(*tensors), theirs(*tensors)
        error = float((one - two).abs().max() / two.abs().max())
        if not error <= TOLERANCE[precision]:
            raise SystemExit(f"{case}, {precision}: ours and {opponent} differ by {error:.1e}")
        direction = torch.randn_like(two)
        for mode, goal in zip(("infer", "train"), goals, strict=True):
            if mode not in self.args.modes:
                continue
            calls = {name: partial(step, call, tensors, direction, mode) for name, call in (("ours", ours), ("theirs", theirs))}
            first = [milliseconds(call, self.device) for _ in range(2) for call in calls.values()]
            repeats = 1 if self.args.quick else max(1, min(20, int(100 / max(max(first[2:]), 0.1))))
            sides = {name: partial(milliseconds, call, self.device, repeats) for name, call in calls.items()}
            values = interleave(sides, self.rounds)
            ratio = summary("theirs/ours", paired(values["theirs"], values["ours"]))
            row = {"case": case, "opponent": opponent, "precision": precision, "mode": mode, "goal": goal or ""}
            self.rows.append({**row, **summary("ours_ms", values["ours"]), **summary("theirs_ms", values["theirs"]), **ratio})
            print(f"  {case}, {opponent}, {precision} {mode}: {ratio['theirs/ours']:.2f}x", flush=True)


def step(call: Call, tensors: Sequence[Tensor], direction: Tensor, mode: str) -> None:
    if mode == "infer":
        with torch.no_grad():
            call(*tensors)
    else:
        call(*tensors).backward(direction)
        for tensor in tensors:
            tensor.grad = None


# Each opponent is written as its authors' public code computes it.


def gather_routed(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: tuple[int, int], scale: float) -> Tensor:
    """BiFormer: keys and values of all heads gathered from a table that is expanded over the regions."""
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


def rolled_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, shift: int, mask: Tensor) -> Tensor:
    """Swin: roll, partition, product, bias and mask (kept, -100), softmax, product, and back; windows of 7 x 7."""
    batch, height, width, heads, dim = q.shape
    rows, cols = height // 7, width // 7

    def cut(x: Tensor) -> Tensor:  # (B windows) heads N d
        x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
        x = x.reshape(batch, rows, 7, cols, 7, heads, dim).transpose(2, 3)
        return x.reshape(batch * rows * cols, 49, heads, dim).transpose(1, 2)

    scores = (cut(q) * dim**-0.5) @ cut(k).transpose(-2, -1) + bias
    if shift:
        scores = (scores.view(batch, -1, heads, 49, 49) + mask[:, None].to(scores.dtype)).view(-1, heads, 49, 49)
    out = (scores.softmax(-1) @ cut(v)).transpose(1, 2).reshape(batch, rows, cols, 7, 7, heads, dim)
    out = out.transpose(2, 3).reshape(q.shape)
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out


def official_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """DaViT: heads first, products of the transposed keys with the values."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    weights = ((k * k.shape[-1] ** -0.5).transpose(-1, -2) @ v).softmax(-1)
    return (weights @ q.transpose(-1, -2)).transpose(-1, -2).transpose(1, 2)


# The cases, with the shapes of the smallest model of each family at 224 px.


def routed(bench: Bench) -> None:
    for side, heads, topk, goal in ((56, 2, 1, 6.0), (28, 4, 4, 4.0), (14, 8, 16, 6.0)):
        region, scale = (side // 7, side // 7), (32 * heads) ** -0.5
        for precision, (qkv,) in bench.precisions(bench.randn(bench.batch, side, side, 3, heads, 32)):
            routes = region_routes(*qkv.detach().unbind(3)[:2], region, topk)
            ours = partial(_from_qkv, partial(routed_attention, routes=routes, region=region, scale=scale))
            theirs = partial(_from_qkv, partial(gather_routed, routes=routes, region=region, scale=scale))
            bench.compare(f"routed {side}x{side} top {topk}", "gather", precision, [qkv], ours, theirs, (1.2, goal))


def aggregated(bench: Bench) -> None:
    for side, heads, goals in ((56, 3, (4.5, 3.5)), (28, 6, (0.0, 0.0)), (14, 12, (0.0, 0.0))):
        shapes = [(bench.batch, side, side, heads, 24), (bench.batch, side, side, 2, heads, 24), (bench.batch, 7, 7, 2, heads, 24)]
        shapes += [(heads, 9), (heads, side**2, 49), (bench.batch, side, side, heads, 9)]
        for precision, tensors in bench.precisions(*(bench.randn(*shape) for shape in shapes)):
            case = f"aggregated {side}x{side}"
            bench.compare(case, "unfold", precision, tensors, _ours_aggregated, _their_aggregated, goals)
            if side == 56 and precision == "fp32" and bench.args.compile:
                compiled = torch.compile(_ours_aggregated, fullgraph=True)
                bench.compare(f"{case} compiled", "unfold, eager", precision, tensors, compiled, _their_aggregated, (8.0, 8.0))


def windows(bench: Bench) -> None:
    for side, heads, shift in ((56, 3, 0), (56, 3, 3), (28, 6, 3), (14, 12, 3), (7, 24, 0)):
        block = SwinTransformerBlock(32 * heads, (side, side), heads, window_size=7, shift_size=shift).to(bench.device)
        mask = block.attn_mask if shift else torch.zeros(())
        tensors = [bench.randn(bench.batch, side, side, 3, heads, 32), bench.randn(heads, 49, 49)]
        case = f"window {side}x{side} shift {shift}"
        for precision, given in bench.precisions(*tensors):
            ours = partial(_from_qkv_bias, partial(window_attention, window_size=(7, 7), shift=(shift, shift)))
            theirs = partial(_from_qkv_bias, partial(rolled_windows, shift=shift, mask=mask))
            bench.compare(case, "roll and partition", precision, given, ours, theirs, (1.05, 0.97))
        for precision, given in bench.precisions(bench.randn(bench.batch, side, side, 32 * heads)):
            own = WindowAttention(32 * heads, heads, 7, shift, dense=False).to(bench.device)
            own.load_state_dict({key: value for key, value in block.attn.state_dict().items() if key != "relative_position_index"})
            own, theirs = own.to(PRECISIONS[precision]), block.to(PRECISIONS[precision])
            bench.compare(
                f"{case}, with projections", "timm", precision, given, _without_grads(own), _without_grads(theirs._attn), (1.0, 0.97)
            )


def channels(bench: Bench) -> None:
    for side, heads in ((56, 3), (14, 12)):
        for precision, given in bench.precisions(bench.randn(bench.batch, side, side, 3, heads, 32)):
            # Divided, so that the sum over positions does not saturate the softmax.
            ours, theirs = (partial(_from_qkv, call, factor=side**-1.0) for call in (channel_attention, _official_map))
            bench.compare(f"channel {side}x{side}", "official", precision, given, ours, theirs, (0.97, 0.97))


def depthwise(bench: Bench) -> None:
    for channels, side in ((64, 56), (128, 28), (320, 14), (512, 7)):
        conv = partial(F.conv2d, padding=9, dilation=3, groups=channels)
        tensors = [bench.randn(bench.batch, channels, side, side), bench.randn(channels, 1, 7, 7), bench.randn(channels)]
        for precision, given in bench.precisions(*tensors):
            ours = partial(dilated_depthwise_conv2d, dilation=3)
            bench.compare(f"depthwise 7x7 dilation 3, {side}x{side}x{channels}", "native", precision, given, ours, conv, (3.0, 1.3))


def _from_qkv(call: Call, qkv: Tensor, factor: float = 1.0) -> Tensor:
    q, k, v = qkv.unbind(3)
    return call(q, k if factor == 1.0 else k * factor, v)


def _from_qkv_bias(call: Call, qkv: Tensor, bias: Tensor) -> Tensor:
    return call(*qkv.unbind(3), bias=bias)


def _ours_aggregated(q: Tensor, kv: Tensor, pool: Tensor, local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor) -> Tensor:
    named = {"local_bias": local_bias, "pool_bias": pool_bias, "local_weight": local_weight}
    return aggregated_attention(q, *kv.unbind(3), *pool.unbind(3), **named)


def _their_aggregated(q: Tensor, kv: Tensor, pool: Tensor, *biases: Tensor) -> Tensor:
    return unfold_aggregated(q, *kv.unbind(3), *pool.unbind(3), *biases)


def _official_map(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return official_channels(q, k, v).reshape(q.shape)


def _without_grads(module: Callable[[Tensor], Tensor]) -> Call:
    """Gradients of the parameters are computed, and dropped by the next call."""
    owner = module if isinstance(module, nn.Module) else module.__self__

    def call(x: Tensor) -> Tensor:
        owner.zero_grad(set_to_none=True)
        return module(x)

    return call


CASES: dict[str, Callable[[Bench], None]] = {
    "routed": routed,
    "aggregated": aggregated,
    "window": windows,
    "channel": channels,
    "depthwise": depthwise,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "kernels_other", rounds=7)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--modes", nargs="+", choices=("infer", "train"), default=["infer", "train"])
    parser.add_argument("--batch", type=int, default=8, help="images per call (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of aggregated attention (minutes)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    batch, rounds = (1, 2) if args.quick else (args.batch, args.rounds)
    bench = Bench(args, device, batch, rounds)
    for name in args.cases:
        print(f"{name}:")
        CASES[name](bench)
    missed = [
        f"{row['case']}, {row['precision']} {row['mode']}: {row['theirs/ours']:.2f}x {row['opponent']}, goal {row['goal']}x"
        for row in bench.rows
        if row["goal"] and not row["theirs/ours"] >= row["goal"]
    ]
    clock = "CUDA events" if device.type == "cuda" else "thread CPU time" if args.threads == 1 else "wall"
    bf16 = "hardware" if fast_bf16(cpu=device.type == "cpu") else "emulated"
    facts = {**machine(device), "timm": timm.__version__, "clock": clock, "bf16": bf16, "batch": batch, "rounds": rounds}
    return finish("Attention operations, ms per call: median (min-max)", bench.rows, facts, csv_path(args, "kernels_other"), missed)


if __name__ == "__main__":
    sys.exit(main())

"""Attention operations against the usual ways to write them: time, memory, and growth with the image.

A file `docs/benchmarks/kernels_<operation>.csv` each, and a plot of the growth beside it.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measure import RESULTS, Row, add_common, csv_path, finish, interleave, machine, paired, summary
from torch import Tensor

from visionattn.kernels import neighborhood_attention
from visionattn.kernels.neighborhood import fast
from visionattn.kernels.neighborhood.reference import neighbors
from visionattn.models.speed import milliseconds
from visionattn.training.build import fast_bf16

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # largest difference over largest value, before anything is timed
Call = Callable[..., Tensor]
Goals = tuple[float, float]  # least ratio in inference and in training; 0 is none


class Bench:
    """Times cases; `rows` collects the results, one per opponent."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.batch, self.rounds = (1, 2) if args.quick else (args.batch, args.rounds)
        self.rows: list[Row] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def precisions(self, *tensors: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
        """The tensors in each precision, as leaves."""
        for name in self.args.precisions:
            yield name, [tensor.detach().to(PRECISIONS[name]).requires_grad_() for tensor in tensors]

    def compare(
        self, case: str, precision: str, tensors: Sequence[Tensor], ours: Call, opponents: Mapping[str, tuple[Call, Goals]]
    ) -> None:
        """Inference and the training step (forward and backward pass); an opponent may raise NotImplementedError in training."""
        with torch.no_grad():
            right = ours(*tensors)
            for name, (call, _) in opponents.items():
                self.agree(f"{case}, {precision}, {name}", precision, call(*tensors), right)
        for index, mode in enumerate(("infer", "train")):
            if mode not in self.args.modes:
                continue
            calls = {
                name: call for name, (call, _) in {"": (ours, None), **opponents}.items() if mode == "infer" or name not in FORWARD_ONLY
            }
            values = self.time(calls, tensors, mode)
            for name, theirs in values.items():
                if name:
                    self.add(case, name, precision, mode, "ms", opponents[name][1][index], values[""], theirs)

    def time(self, calls: Mapping[str, Call], tensors: Sequence[Tensor], mode: str) -> dict[str, list[float]]:
        """ms per call in each round."""
        steps = {name: partial(step, call, tensors, mode) for name, call in calls.items()}
        first = {name: min(milliseconds(call, self.device) for _ in range(2)) for name, call in steps.items()}
        repeats = {name: 1 if self.args.quick else max(1, min(20, int(100 / max(first[name], 0.1)))) for name in steps}
        return interleave({name: partial(milliseconds, call, self.device, repeats[name]) for name, call in steps.items()}, self.rounds)

    def add(
        self, case: str, opponent: str, precision: str, mode: str, unit: str, goal: float, ours: Sequence[float], theirs: Sequence[float]
    ) -> None:
        ratio = summary("theirs/ours", paired(theirs, ours))
        row = {"case": case, "opponent": opponent, "precision": precision, "mode": mode, "unit": unit, "goal": goal or ""}
        self.rows.append({**row, **summary("ours", ours), **summary("theirs", theirs), **ratio})
        print(f"  {case}, {precision} {mode}, {opponent}: {ratio['theirs/ours']:.2f}x", flush=True)

    def agree(self, what: str, precision: str, got: Tensor, right: Tensor) -> None:
        error = float((got - right).abs().max() / right.abs().max())
        if not error <= TOLERANCE[precision]:
            raise SystemExit(f"{what}: results differ by {error:.1e}")


def step(call: Call, tensors: Sequence[Tensor], mode: str) -> None:
    if mode == "infer":
        with torch.no_grad():
            call(*tensors)
    else:
        out = call(*tensors)
        out.backward(torch.ones_like(out))
        for tensor in tensors:
            tensor.grad = None


# Neighborhood attention. Opponents get their index tensors ready-made.

FORWARD_ONLY = {"FlexAttention, compiled"}  # on a CPU
SHAPES = [  # side of the map, heads, kernel, dilation; goals against gather; the stages of DiNAT-T at 224 px
    (56, 2, 7, 1, (8.0, 6.0), (0.0, 10.0)),
    (56, 2, 7, 8, (18.0, 15.0), (0.0, 15.0)),
    (28, 4, 7, 1, (0.0, 0.0), (0.0, 0.0)),
    (28, 4, 7, 4, (18.0, 0.0), (0.0, 0.0)),
    (14, 8, 7, 1, (0.0, 0.0), (0.0, 0.0)),
    (14, 8, 7, 2, (18.0, 0.0), (0.0, 0.0)),
    (7, 16, 7, 1, (0.0, 0.0), (0.0, 0.0)),
    (56, 2, 3, 1, (0.0, 0.0), (0.0, 0.0)),
]
WITHIN = 1 / 1.10  # of the speed of the best candidate
EXPONENT = 1.05  # of time in the number of pixels
MEMORY = 4.0  # gather's peak over ours
PIXELS = (224, 320, 448, 640, 768, 1024)


def neighborhood(bench: Bench) -> None:
    """Time of each shape, of the candidates that the choice of tiles could have taken, peak memory, and growth with the image."""
    for side, heads, kernel, dilation, goals_fp32, goals_bf16 in SHAPES:
        case = f"{side}x{side} k{kernel} d{dilation}"
        for precision, tensors in bench.precisions(*inputs(bench, bench.batch, side, heads, kernel)):
            ours = partial(_ours, kernel=kernel, dilation=dilation)
            plan = neighbors(side, side, (kernel, kernel), (dilation, dilation), "shift", bench.device)[:2]
            opponents = {
                "gather": (partial(gather, plan=plan), goals_fp32 if precision == "fp32" else goals_bf16),
                "shifts": (partial(shifts, plan=plan, kernel=kernel), (0.0, 0.0)),
            }
            if side <= 28:
                opponents["dense, masked"] = (partial(dense, plan=plan, fused=bench.device.type == "cuda"), (0.0, 0.0))
            if bench.args.flex and precision == "fp32":
                opponents["FlexAttention, compiled"] = (flex(side, kernel, dilation, bench.device), (8.0 if dilation == 1 else 0.0, 0.0))
            if (natten := _natten(kernel, dilation)) is not None:
                opponents["NATTEN"] = (natten, (1.2, 1.8) if dilation == 1 else (4.0, 7.0))
            bench.compare(case, precision, tensors, ours, opponents)
            candidates(bench, case, precision, tensors, ours, -(-side // dilation))
    if bench.device.type == "cpu" and not bench.args.quick:
        peak = [[_peak(name) for _ in range(3)] for name in ("ours", "gather")]
        bench.add("56x56 k7 d1, peak memory", "gather", "fp32", "train", "MB", MEMORY, *peak)
    growth(bench)


def inputs(bench: Bench, batch: int, side: int, heads: int, kernel: int) -> tuple[Tensor, Tensor]:
    return bench.randn(batch, side, side, 3, heads, 32), bench.randn(heads, 2 * kernel - 1, 2 * kernel - 1)


def candidates(bench: Bench, case: str, precision: str, tensors: Sequence[Tensor], ours: Call, steps: int) -> None:
    """Ours against the best of several tiles, each with separate products and with scaled_dot_product_attention."""
    calls: dict[str, Call] = {"": ours}
    for side in sorted({min(side, steps) for side in (4, 7, 8, 14)}):
        for name, separate in (("products", True), ("SDPA", False)):
            calls[f"tiles of {side}, {name}"] = partial(_candidate, ours, side, separate)
    for mode in bench.args.modes:
        values = bench.time(calls, tensors, mode)
        mine = values.pop("")
        name = min(values, key=lambda name: median(values[name]))
        bench.add(case, f"best: {name}", precision, mode, "ms", WITHIN if precision == "fp32" else 0.0, mine, values[name])


def growth(bench: Bench) -> None:
    """Time of one image against its pixels, first stage of DiNAT-T, kernel 7."""
    times: dict[str, list[float]] = {}
    sizes = PIXELS[:2] if bench.args.quick else PIXELS
    for pixels in sizes:
        side = pixels // 4
        tensors = [tensor.requires_grad_() for tensor in inputs(bench, 1, side, 2, 7)]
        plan = neighbors(side, side, (7, 7), (1, 1), "shift", bench.device)[:2]
        for mode in bench.args.modes:
            calls = {"": partial(_ours, kernel=7, dilation=1), "gather": partial(gather, plan=plan)}
            values = bench.time(calls, tensors, mode)
            bench.add(f"{pixels} px, k7 d1, 1 image", "gather", "fp32", mode, "ms", 0.0, values[""], values["gather"])
            for name, value in values.items():
                times.setdefault(f"{name or 'ours'}, {mode}", []).append(median(value))
    exponents = {name: fit([size**2 for size in sizes], values) for name, values in times.items()}
    for mode in bench.args.modes:
        mine, theirs = exponents[f"ours, {mode}"], exponents[f"gather, {mode}"]
        # The goal of a ratio is its least value, so the goal of an exponent is that of its reciprocal.
        row = {"case": "exponent of time in pixels", "opponent": f"the goal {EXPONENT}", "precision": "fp32", "mode": mode, "unit": ""}
        one = {**row, "goal": "" if bench.args.quick else 1.0, **summary("ours", [mine]), **summary("theirs", [EXPONENT])}
        bench.rows.append({**one, **summary("theirs/ours", [EXPONENT / mine])})
        print(f"  exponent of time in pixels, {mode}: ours {mine:.3f}, gather {theirs:.3f}", flush=True)
    if not bench.args.quick:
        plot(sizes, times, exponents, RESULTS / "kernels_neighborhood.png")


def fit(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of log(time) over log(size)."""
    x, y = [math.log(size) for size in sizes], [math.log(time) for time in times]
    centre = sum(x) / len(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def plot(sizes: Sequence[int], times: Mapping[str, Sequence[float]], exponents: Mapping[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for name, values in times.items():
        style = {"marker": "o" if name.startswith("ours") else "s", "linestyle": "-" if name.endswith("infer") else "--"}
        axes.loglog(sizes, values, label=f"{name}: pixels^{exponents[name]:.2f}", color="C0" if name.startswith("ours") else "C1", **style)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="side of the image, px", ylabel="ms per image", title="Neighborhood attention, 7x7, first stage of DiNAT-T")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"  plot: {path}")


def gather(qkv: Tensor, bias: Tensor, *, plan: tuple[Tensor, Tensor]) -> Tensor:
    """Each query's keys and values copied beside it."""
    (q, k, v), (index, offset) = _heads_first(qkv), plan
    scores = (k[:, :, index] @ (q * q.shape[-1] ** -0.5).unsqueeze(-1)).squeeze(-1) + bias.flatten(1)[:, offset]
    return _map((scores.softmax(-1).unsqueeze(-2) @ v[:, :, index]).squeeze(-2), qkv)


def shifts(qkv: Tensor, bias: Tensor, *, plan: tuple[Tensor, Tensor], kernel: int) -> Tensor:
    """A shifted map per offset of the kernel; the border moves whole rows and columns."""
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


def dense(qkv: Tensor, bias: Tensor, *, plan: tuple[Tensor, Tensor], fused: bool) -> Tensor:
    """Attention to the whole map, with the bias scattered into a mask."""
    (q, k, v), (index, offset) = _heads_first(qkv), plan
    count = index.shape[0]
    mask = bias.new_full((bias.shape[0], count, count), -torch.inf).scatter(
        2, index.expand(bias.shape[0], -1, -1), bias.flatten(1)[:, offset]
    )
    if fused or not torch.is_grad_enabled():
        return _map(F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None]), qkv)
    return _map(((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask).softmax(-1) @ v, qkv)


def flex(side: int, kernel: int, dilation: int, device: torch.device) -> Call:
    """FlexAttention with the neighborhood as block mask and the bias as score function."""
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

        return _map(compiled(*_heads_first(qkv), score_mod=add, block_mask=block_mask), qkv)

    return call


def _natten(kernel: int, dilation: int) -> Call | None:
    """NATTEN's kernels with bias; versions from 0.20 have none."""
    try:
        from natten.functional import natten2dav, natten2dqkrpb
    except ImportError:
        return None

    def call(qkv: Tensor, bias: Tensor) -> Tensor:  # heads first, B heads H W d
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
        weights = natten2dqkrpb(q * q.shape[-1] ** -0.5, k, bias, kernel, dilation).softmax(-1)
        return natten2dav(weights, v, kernel, dilation).permute(0, 2, 3, 1, 4)

    return call


def _ours(qkv: Tensor, bias: Tensor, *, kernel: int, dilation: int) -> Tensor:
    return neighborhood_attention(*qkv.unbind(3), kernel, dilation, bias=bias)


def _candidate(ours: Call, side: int, separate: bool, *tensors: Tensor) -> Tensor:
    """Ours with another choice of tiles."""

    def decided(*given: Tensor) -> bool:
        return separate if len(given) > 1 else needs_gradient(*given)

    needs_gradient = fast.needs_gradient
    with patch.object(fast, "cheapest_side", lambda steps, kernel: min(side, steps)), patch.object(fast, "needs_gradient", decided):
        return ours(*tensors)


def _heads_first(qkv: Tensor) -> Sequence[Tensor]:  # B H W 3 heads d -> B heads N d
    return qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)


def _map(x: Tensor, qkv: Tensor) -> Tensor:  # B heads N d -> B H W heads d
    return x.transpose(1, 2).reshape(*qkv.shape[:3], *qkv.shape[4:])


def _peak(name: str) -> float:
    """MB that a training step of 8 maps of 56 x 56 takes beyond its inputs, in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
    return float(run.stdout)


def peak(name: str) -> float:
    """As `_peak`, in this process."""
    torch.set_num_threads(1)
    tensors = [torch.randn(8, 56, 56, 3, 2, 32, requires_grad=True), torch.randn(2, 13, 13, requires_grad=True)]
    plan = neighbors(56, 56, (7, 7), (1, 1), "shift", torch.device("cpu"))[:2]
    call = partial(_ours, kernel=7, dilation=1) if name == "ours" else partial(gather, plan=plan)
    small = [torch.randn(1, 7, 7, 3, 2, 32, requires_grad=True), tensors[1]]
    step(partial(_ours, kernel=7, dilation=1), small, "train")  # libraries load their code
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(call, tensors, "train")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


CASES: dict[str, Callable[[Bench], None]] = {"neighborhood": neighborhood}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "kernels_<operation>", rounds=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--modes", nargs="+", choices=("infer", "train"), default=["infer", "train"])
    parser.add_argument("--batch", type=int, default=8, help="images per call (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--flex", action="store_true", help="also compiled FlexAttention (half a minute of compilation per shape)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", choices=("ours", "gather"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.peak))
        return 0
    if args.csv and len(args.cases) > 1:
        parser.error("--csv needs one of --cases")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    clock = "CUDA events" if device.type == "cuda" else "thread CPU time" if args.threads == 1 else "wall"
    bf16 = "hardware" if fast_bf16(cpu=device.type == "cpu") else "emulated"
    code = 0
    for name in args.cases:
        print(f"{name}:")
        torch.manual_seed(0)
        bench = Bench(args, device)
        CASES[name](bench)
        facts: dict[str, Any] = {**machine(device), "clock": clock, "bf16": bf16, "batch": bench.batch, "rounds": bench.rounds}
        missed = [
            f"{row['case']}, {row['precision']} {row['mode']}: {row['theirs/ours']:.2f}x {row['opponent']}, goal {row['goal']:.2f}x"
            for row in bench.rows
            if row["goal"] and not row["theirs/ours"] >= row["goal"]
        ]
        path = csv_path(args, f"kernels_{name}")
        code |= finish(f"{name}: median (min-max)", bench.rows, facts, path, missed)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Compare attention operations with the usual ways to write them: time, memory, and growth with the image.

All results are in `docs/benchmarks/kernels_<cpu or cuda>.csv`, with a plot of the growth beside it; `tools/bench_tables.py`
writes the tables of the documentation from it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import opponents
import torch
from kernel_cases import CASES, EXPONENT, GOALS, NA, PRECISIONS, Setting, Trial, neighborhood
from measure import RESULTS, Row, add_common, clock, csv_path, device_of, finish, paired, summary
from opponents import Call
from torch import Tensor

from visionattn.kernels.neighborhood import fast
from visionattn.kernels.neighborhood.reference import neighbors
from visionattn.models.speed import interleave, machine, milliseconds

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # largest difference relative to the largest value, checked before timing
PIXELS = (224, 320, 448, 640, 768, 1024)


class Bench:
    """Time cases; `rows` collects the results, one per opponent."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.op = args, device, ""
        self.batch, self.rounds = 1 if args.quick else args.batch, 2
        self.rates: dict[str, tuple[float, float]] = {}
        self.rows: list[Row] = []

    def setting(self, precision: str) -> Setting:
        return Setting(self.device, self.batch, precision, self.args.flex, self.args.compile)

    def goal(self, case: str, opponent: str, precision: str, mode: str) -> float:
        """Minimum ratio; 0 means none."""
        facts = self.device.type, self.op, case, opponent, precision, mode
        return next((goal[-1] for goal in GOALS if all(map(fnmatch, facts, goal[:-1]))), 0.0)

    def wanted(self, precision: str, trial: Trial) -> bool:
        """Whether to measure a case: bf16 on a CPU only if it has a goal or is requested, because emulated bf16 takes most of the time."""
        given = self.args.precisions is not None or self.device.type == "cuda" or precision == "fp32"
        return given or any(self.goal(trial.label, name, precision, mode) for name in trial.opponents for mode in self.args.modes)

    def run(self, op: str) -> None:
        self.op, self.rounds = op, 2 if self.args.quick else self.args.rounds
        for precision in self.args.precisions or (["bf16"] if self.device.type == "cuda" else ["fp32", "bf16"]):
            torch.manual_seed(0)
            self.rates.setdefault(precision, rates(PRECISIONS[precision], self.device))
            for index, trial in enumerate(CASES[op](self.setting(precision))):
                if self.wanted(precision, trial):
                    for name in trial.opponents:
                        self.apart(partial(self.compare, precision, trial, name))
                    if op == NA and precision == "fp32":
                        self.apart(partial(candidates, self, trial))
                    if self.device.type == "cuda":
                        on_gpu(self, precision, trial)
                if index == 0 and precision == "fp32" and self.device.type == "cpu" and not self.args.quick:
                    peaks(self, trial)
        if op == NA:
            self.apart(partial(growth, self))

    def apart(self, work: Callable[[], Any]) -> Any:
        """Do work that may add rows; on a CPU in a separate process.

        The heap left by earlier calls may or may not fit the large tensors of later ones, and allocating pages is half of
        the time of a gather: in one process its time would vary twofold with the earlier measurements.
        """
        if self.device.type == "cuda" or torch.get_num_threads() > 1:
            return work()
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=self._send, args=(work, theirs))
        process.start()
        theirs.close()
        try:
            result, rows = ours.recv()
        except EOFError:
            raise SystemExit(1) from None  # the other process reported the reason
        process.join()
        self.rows.extend(rows)
        return result

    def _send(self, work: Callable[[], Any], pipe: Connection) -> None:
        self.rows = []
        pipe.send((work(), self.rows))

    def compare(self, precision: str, trial: Trial, name: str) -> None:
        """Compare inference and the training step (forward and backward pass)."""
        right, floors = self.agree(precision, trial, name), {}
        moved = [sum(tensor.numel() * tensor.element_size() for tensor in given) for given in (trial.tensors, [right])]
        flops, bandwidth = self.rates[precision]
        # Each tensor is moved once: in training the inputs are read twice, and their gradients are written once.
        floors["infer"] = 1000 * max(trial.products / flops, sum(moved) / bandwidth)
        floors["train"] = 1000 * max(3 * trial.products / flops, (3 * moved[0] + 2 * moved[1]) / bandwidth)
        for mode in self.args.modes:
            if mode == "infer" or name != trial.forward_only:
                values = self.time({"": trial.ours, name: trial.opponents[name]}, trial.tensors, mode)
                self.add(trial.label, name, precision, mode, "ms", values[""], values[name], floors[mode])

    def agree(self, precision: str, trial: Trial, name: str) -> Tensor:
        """Exit if an opponent does not compute the same outputs and, in float32, gradients."""
        gradients = precision == "fp32" and name != trial.forward_only
        theirs, right = (results(call, trial.tensors, gradients) for call in (trial.opponents[name], trial.ours))
        for number, (one, two) in enumerate(zip(theirs, right, strict=True)):
            error = float((one - two).abs().max() / two.abs().max())
            if not error <= TOLERANCE[precision]:
                what = f"gradient {number}" if number else "results"
                raise SystemExit(f"{self.op} {trial.label}, {precision}, {name}: {what} differ by {error:.1e}")
        return right[0]

    def time(
        self, calls: Mapping[str, Callable[..., Any]], tensors: Sequence[Tensor], mode: str, rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Measure ms per call in each round."""
        steps = {name: partial(step, call, tensors, mode) for name, call in calls.items()}
        # On a GPU the first call may compile.
        first = {
            name: min(milliseconds(call, self.device) for _ in range(2 if self.device.type == "cuda" else 1))
            for name, call in steps.items()
        }
        repeats = {name: 1 if self.args.quick else max(1, min(20, int(100 / max(first[name], 0.1)))) for name in steps}
        sides = {name: partial(milliseconds, call, self.device, repeats[name]) for name, call in steps.items()}
        return interleave(sides, rounds or self.rounds)

    def add(
        self,
        case: str,
        opponent: str,
        precision: str,
        mode: str,
        unit: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        floor: float | str = "",
    ) -> None:
        ratio = summary("theirs/ours", paired(theirs, ours))
        least = 0.0 if self.args.quick else self.goal(case, opponent, precision, mode)
        row = {"op": self.op, "case": case, "opponent": opponent, "precision": precision, "mode": mode, "unit": unit, "goal": least or ""}
        self.rows.append({**row, **summary("ours", ours), **summary("theirs", theirs), "floor": floor, **ratio, "rounds": len(ours)})
        print(f"  {case}, {precision} {mode}, {opponent}: {ratio['theirs/ours']:.2f}x", flush=True)


def step(call: Call, tensors: Sequence[Tensor], mode: str) -> None:
    if mode == "infer":
        with torch.no_grad():
            call(*tensors)
    else:
        out = call(*tensors)
        out.backward(torch.ones_like(out))
        for tensor in tensors:
            tensor.grad = None


def results(call: Call, tensors: Sequence[Tensor], gradients: bool) -> list[Tensor]:
    """Return the output, and the gradients of `tensors` for a fixed gradient of the output."""
    if not gradients:
        with torch.no_grad():
            return [call(*tensors)]
    out = call(*tensors)
    direction = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, tensors, direction)]


def rates(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Measure the device: operations per second in a matrix product, bytes per second read and written in a copy."""
    side, size = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 25)
    a, x = torch.randn(side, side, device=device).to(dtype), torch.empty(size, device=device)
    y = torch.empty_like(x)
    product = min(milliseconds(partial(torch.mm, a, a), device) for _ in range(5))
    copy = min(milliseconds(partial(y.copy_, x), device) for _ in range(5))
    return 2 * side**3 / product * 1000, 2 * 4 * size / copy * 1000


# Beyond the time of a call


def candidates(bench: Bench, trial: Trial) -> None:
    """Compare ours with the best of several tilings, each with separate products and with scaled_dot_product_attention."""
    if bench.device.type == "cuda":  # Triton runs there
        return
    side, dilation = (int(part.strip("d")) for part in (trial.label.partition("x")[0], trial.label.rpartition(" ")[2]))
    calls: dict[str, Call] = {}
    for tile in sorted({min(tile, -(-side // dilation)) for tile in (4, 7, 8, 14)}):
        for name, separate in (("products", True), ("SDPA", False)):
            calls[f"tiles of {tile}, {name}"] = partial(_candidate, trial.ours, tile, separate)
    for mode in bench.args.modes:
        values = bench.time(calls, trial.tensors, mode, rounds=1)
        best = min(values, key=lambda name: min(values[name]))
        # Measured again: the minimum of many noisy numbers is biased.
        pair = bench.time({"": trial.ours, best: calls[best]}, trial.tensors, mode)
        bench.add(trial.label, f"best candidate: {best}", "fp32", mode, "ms", pair[""], pair[best])


def _candidate(ours: Call, side: int, separate: bool, *tensors: Tensor) -> Tensor:
    """Run ours with another tiling."""

    def decided(*given: Tensor) -> bool:
        return separate if len(given) > 1 else needs_gradient(*given)

    needs_gradient = fast.needs_gradient
    with patch.object(fast, "cheapest_side", lambda steps, kernel: min(side, steps)), patch.object(fast, "needs_gradient", decided):
        return ours(*tensors)


def on_gpu(bench: Bench, precision: str, trial: Trial) -> None:
    """Measure the cost of the bias gradient, peak memory, a floor, and whether two runs give the same bits."""
    one, two = (results(trial.ours, trial.tensors, True) for _ in range(2))
    bench.add(trial.label, "a second run", precision, "equal", "", [1.0], [float(all(map(torch.equal, one, two)))])
    if bench.op != NA:
        return
    qkv, bias = trial.tensors
    copies = [(torch.empty_like(x), x.detach()) for x in (qkv, one[0])]
    values = bench.time({"": trial.ours, "copy": partial(_copy, copies)}, trial.tensors, "infer")
    bench.add(trial.label, "copy of q, k, v and o", precision, "infer", "ms", values[""], values["copy"])
    sides = {}
    for name, leaves in (("ours", [qkv, bias]), ("theirs", [qkv])):
        out = trial.ours(qkv, bias if len(leaves) > 1 else bias.detach())
        backward = partial(torch.autograd.grad, out, leaves, torch.ones_like(out), retain_graph=True)
        milliseconds(backward, bench.device)
        sides[name] = partial(milliseconds, backward, bench.device, 20)
    values = interleave(sides, bench.rounds)
    bench.add(trial.label, "without the gradient of the bias", precision, "backward", "ms", values["ours"], values["theirs"])
    del one, two, copies, sides, out, backward  # frees their memory
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(trial.ours, trial.tensors, "train")
    used = torch.cuda.max_memory_allocated() - before
    size, lse = qkv.numel() // 3 * qkv.element_size(), qkv[..., 0, :, 0].numel() * 4
    given = 3 * size  # q, k and v were already allocated
    bench.add(trial.label, "all tensors once", precision, "memory", "MB", [(given + used) / 2**20], [(8 * size + lse) / 2**20])


def _copy(copies: Sequence[tuple[Tensor, Tensor]], *_: Tensor) -> None:
    for to, x in copies:
        to.copy_(x)


def peaks(bench: Bench, trial: Trial) -> None:
    """Measure the MB that a training step takes beyond its inputs; only on Linux."""
    if "train" not in bench.args.modes or not Path("/proc/self/status").is_file():
        return
    name = next(iter(trial.opponents))
    small = next(CASES[bench.op](bench.setting("fp32")._replace(batch=1)))
    ours, theirs = (bench.apart(partial(peak, small, trial, call)) for call in (trial.ours, trial.opponents[name]))
    bench.add(trial.label, name, "fp32", "memory", "MB", [ours], [theirs])


def peak(small: Trial, trial: Trial, call: Call) -> float:
    """Measure the peak of one side in this process, see `peaks`."""
    step(small.ours, small.tensors, "train")  # makes libraries load their code
    before = high_water()
    step(call, trial.tensors, "train")
    return high_water() - before


def high_water() -> float:
    """Peak memory of this process in MB; getrusage would include the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def growth(bench: Bench) -> None:
    """Measure the time of one image against its pixels, first stage of DiNAT-T, kernel 7."""
    precision = "bf16" if bench.device.type == "cuda" else "fp32"
    times: dict[str, list[float]] = {}
    sizes = PIXELS[:2] if bench.args.quick else PIXELS
    for pixels in sizes:
        side = pixels // 4
        tensors = bench.setting(precision).randn((1, side, side, 3, 2, 32), (2, 13, 13))
        plan = neighbors(side, side, (7, 7), (1, 1), "shift", bench.device)[:2]
        for mode in bench.args.modes:
            calls = {"": partial(neighborhood, kernel=7, dilation=1), "gather": partial(opponents.gather, plan=plan)}
            values = bench.time(calls, tensors, mode)
            bench.add(f"{pixels} px k7 d1, 1 image", "gather", precision, mode, "ms", values[""], values["gather"])
            for name, value in values.items():
                times.setdefault(f"{name or 'ours'}, {mode}", []).append(median(value))
    exponents = {name: fit([size**2 for size in sizes], values) for name, values in times.items()}
    for mode in bench.args.modes:
        # Goals are minimum ratios, so the goal of an exponent applies to its reciprocal.
        bench.add("exponent of time in pixels", f"at most {EXPONENT}", precision, mode, "", [exponents[f"ours, {mode}"]], [EXPONENT])
        bench.add("exponent of gather's time", f"at most {EXPONENT}", precision, mode, "", [exponents[f"gather, {mode}"]], [EXPONENT])
    if not bench.args.quick:
        plot(sizes, times, exponents, RESULTS / f"kernels_{bench.device.type}.png")


def fit(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Fit the slope of log(time) over log(size)."""
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "kernels_<device>", rounds=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="others keep their rows in the result file")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), help="default: on a GPU bf16, else fp32, and bf16 with a goal")
    parser.add_argument("--modes", nargs="+", choices=("infer", "train"), default=["infer", "train"])
    parser.add_argument("--batch", type=int, help="images per call (default 8, on a GPU 128)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--flex", action="store_true", help="on a CPU: also FlexAttention (half a minute of compilation per shape)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of aggregated attention (minutes)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_of(args.device)
    args.batch = args.batch or (128 if device.type == "cuda" else 8)
    bench = Bench(args, device)
    for op in args.cases:
        print(f"{op}:", flush=True)
        bench.run(op)
    facts: dict[str, Any] = {**machine(device), **clock(device), "batch": bench.batch}
    for precision, (flops, bandwidth) in bench.rates.items():
        print(f"{precision}: products at {flops / 1e9:.0f} GFLOP/s, copies at {bandwidth / 1e9:.1f} GB/s")
    missed = [
        f"{row['op']} {row['case']}, {row['precision']} {row['mode']}: {row['theirs/ours']:.2f}x {row['opponent']}, goal {row['goal']:.2f}x"
        for row in bench.rows
        if row["goal"] and not row["theirs/ours"] >= row["goal"]
    ]
    rows = [(device.type, row["op"], row["case"], row["opponent"], row["precision"], row["mode"]) for row in bench.rows]
    for goal in GOALS:
        if fnmatch(device.type, goal[0]) and goal[1] in (*args.cases, "*") and not any(all(map(fnmatch, row, goal[:-1])) for row in rows):
            print(f"goal without a row: {' '.join(goal[1:-1])}")
    path = csv_path(args, f"kernels_{device.type}")
    return finish("Attention operations: median (min-max)", bench.rows, facts, path, missed, key=("op", "precision"))


if __name__ == "__main__":
    sys.exit(main())

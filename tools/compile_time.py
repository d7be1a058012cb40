"""Measure the CPU time in which `torch.compile(fullgraph=True)` traces a model of each family, the smallest, and the size of its graph.

One image of the published size. Each model is traced in a process of its own, in which nothing has been compiled before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch._dynamo
import torch._functorch.aot_autograd
from measure import RESULTS, Row, finish

import visionattn as va
from visionattn.backbones.registry import get_variant
from visionattn.models.speed import machine

GOAL = 30.0  # seconds that dynamo takes


def smallest() -> list[str]:
    """Return the name of the smallest variant of each class of backbones; of equal ones, the first."""
    found: dict[type, tuple[int, str]] = {}
    for name in va.list_models():
        size, cls = (int(va.model_info(name)["params"]), name), get_variant(name).cls
        found[cls] = min(size, found.get(cls, size))
    return sorted(name for _, name in found.values())


def compile_model(name: str, train: bool, backend: str) -> Row:
    """Compile one model in this process: parts of the first call that the second does not have, and nodes of dynamo's graph."""
    torch.manual_seed(0)
    model, image = va.create_model(name).train(train), torch.randn(1, *get_variant(name).cfg["input_size"])
    found: Row = {"model": name, "mode": "train" if train else "infer"}

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        found["dynamo_s"] = process_time() - started
        found["nodes"] = len(graph.graph.nodes)
        found["operations"] = sum(node.op not in ("placeholder", "output") for node in graph.graph.nodes)  # others are weights
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend(backend)(graph, inputs)
        return compiled

    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=keep)

    def call() -> float:
        began = process_time()
        with torch.set_grad_enabled(train):
            out = compiled(image)
            if train and backend != "eager":  # the backward graph
                out.sum().backward()
        return process_time() - began

    started = process_time()
    first = call()
    found["backend_s"] = first - found["dynamo_s"] - call() if backend != "eager" else 0.0
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: the smallest of each family")
    parser.add_argument("--train", action="store_true", help="training mode with gradients instead of inference")
    parser.add_argument(
        "--backend",
        default="eager",
        choices=("eager", "aot_eager_decomp_partition"),
        help="what takes dynamo's graph: nothing, or AOTAutograd as before inductor (default %(default)s)",
    )
    parser.add_argument("--csv", type=Path, default=RESULTS / "compile.csv", metavar="PATH", help="result file (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows: list[Row] = []
    # Forked, so that imports and the list of models do not count.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(partial(compile_model, train=args.train, backend=args.backend), args.models or smallest()):
            rows.append({"model": row["model"], "mode": row["mode"], "backend": args.backend, **row})
            print("  ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()), flush=True)
    missed = [f"{row['model']}: {row['dynamo_s']:.0f} s, goal {GOAL:.0f} s" for row in rows if not row["dynamo_s"] <= GOAL]
    facts = machine(torch.device("cpu"))
    return finish("CPU time of compilation, s", rows, facts, args.csv, missed, key=("model", "mode", "backend"))


if __name__ == "__main__":
    sys.exit(main())

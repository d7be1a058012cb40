"""The Triton kernels against the definitions in float64; run as a module, in Triton's interpreter.

Not a test file: the interpreter must be chosen before Triton is imported, so test_triton.py starts it in a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from visionattn.kernels import aggregated_attention, neighborhood_attention, routed_attention

# Of the largest value of each result: forward, gradients.
TOLERANCES = {torch.float32: (5e-7, 2e-6), torch.float16: (1e-3, 1e-3), torch.bfloat16: (1e-2, 1e-2)}

Draw = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor | None]


class Neighborhood(NamedTuple):
    """Arguments of one call of neighborhood_attention."""

    batch: int
    height: int
    width: int
    heads: int
    dim: int
    kernel: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    border: str = "shift"
    bias: bool = True
    layout: str = "qkv"  # how q, k, v lie in memory: "qkv" in one projection, "cropped" from larger maps, "vector" elements apart

    def inputs(self, draw: Draw) -> Tensors:
        table = draw(self.heads, 2 * self.kernel[0] - 1, 2 * self.kernel[1] - 1)
        return {**{name: draw(*self[:5]) for name in "qkv"}, "bias": table if self.bias else None}

    def definition(self, q, k, v, bias) -> torch.Tensor:
        return neighborhood_attention(q, k, v, self.kernel, self.dilation, bias=bias, border=self.border, backend="reference")

    def triton(self, q, k, v, bias) -> torch.Tensor:
        from visionattn.kernels.neighborhood.triton import neighborhood_attention_triton

        return neighborhood_attention_triton(q, k, v, self.kernel, self.dilation, bias, self.dim**-0.5, self.border)

    def operators(self) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        """The module of the operators; what both take after the tensors; and the backward operator after that."""
        from visionattn.kernels.neighborhood import triton

        return triton, (list(self.kernel), list(self.dilation), self.dim**-0.5, self.border == "shift"), (self.bias,)


class Routed(NamedTuple):
    """Arguments of one call of routed_attention."""

    batch: int
    height: int
    width: int
    heads: int
    dim: int
    region: tuple[int, int]
    topk: int
    layout: str = "qkv"

    def inputs(self, draw: Draw) -> Tensors:
        count = self.height // self.region[0] * (self.width // self.region[1])
        routes = draw(self.batch, count, max(count, self.topk)).argsort(-1)[..., : self.topk] % count
        routes[:, 0, -1] = routes[:, 0, 0]  # a region named twice
        return {**{name: draw(*self[:5]) for name in "qkv"}, "routes": routes}

    def definition(self, q, k, v, routes) -> torch.Tensor:
        return routed_attention(q, k, v, routes, self.region, backend="reference")

    def triton(self, q, k, v, routes) -> torch.Tensor:
        from visionattn.kernels.routing.triton import routed_attention_triton

        return routed_attention_triton(q, k, v, routes, self.region, self.dim**-0.5)

    def operators(self) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        from visionattn.kernels.routing import triton

        return triton, (list(self.region), self.dim**-0.5), ()


class Aggregated(NamedTuple):
    """Arguments of one call of aggregated_attention."""

    batch: int
    height: int
    width: int
    heads: int
    dim: int
    kernel: int
    pooled: int
    layout: str = "qkv"
    wide: str = ""  # names of what stays in float32, as under autocast

    def inputs(self, draw: Draw) -> Tensors:
        pool, area = (self.batch, self.pooled, self.heads, self.dim), self.kernel**2
        shapes = {
            "k_pool": pool,
            "v_pool": pool,
            "local_bias": (self.heads, area),
            "pool_bias": (self.heads, self.height * self.width, self.pooled),
            "local_weight": (*self[:4], area),
        }
        return {**{name: draw(*self[:5]) for name in "qkv"}, **{name: draw(*shape) for name, shape in shapes.items()}}

    def definition(self, q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight) -> torch.Tensor:
        biases = {"local_bias": local_bias, "pool_bias": pool_bias, "local_weight": local_weight}
        return aggregated_attention(q * self.dim**-0.5, k, v, k_pool, v_pool, **biases, kernel_size=self.kernel, backend="reference")

    def triton(self, q, *others) -> torch.Tensor:
        from visionattn.kernels.aggregated.triton import aggregated_attention_triton

        return aggregated_attention_triton(q * self.dim**-0.5, *others, self.kernel)

    def operators(self) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        from visionattn.kernels.aggregated import triton

        return triton, (self.kernel,), ()


Case = Neighborhood | Routed | Aggregated
MIXED = "q k k_pool local_bias pool_bias local_weight"  # float32 in TransNeXt under autocast

# Few and small: a step of the interpreter (a block of a tile) takes five milliseconds.
SMALL: dict[str, Case] = {
    "3x3": Neighborhood(2, 5, 7, 1, 8, (3, 3)),
    "5x5, two images, two heads": Neighborhood(2, 7, 9, 2, 16, (5, 5)),
    "7x7, dilation 2 with remainders": Neighborhood(1, 17, 15, 1, 8, (7, 7), (2, 2)),
    "3x3, dilation 3 with remainders": Neighborhood(1, 10, 11, 1, 8, (3, 3), (3, 3)),
    "7x5, dim 24": Neighborhood(1, 13, 9, 1, 24, (7, 5)),
    "13x3": Neighborhood(1, 15, 5, 1, 8, (13, 3)),
    "5x7 without bias": Neighborhood(1, 9, 11, 1, 8, (5, 7), bias=False),
    "mask": Neighborhood(1, 10, 9, 1, 24, (5, 5), border="mask"),
    "mask, 3x5, dilation 3x2": Neighborhood(1, 10, 11, 1, 8, (3, 5), (3, 2), "mask"),
    "mask, map smaller than the window": Neighborhood(1, 5, 6, 1, 8, (7, 7), border="mask"),
    "cropped": Neighborhood(2, 6, 8, 1, 8, (3, 5), layout="cropped"),
    "elements apart": Neighborhood(1, 6, 8, 2, 8, (3, 5), layout="vector"),
    "regions of 4": Routed(2, 4, 4, 1, 8, (2, 2), 3),
    "regions of 5x7, dim 24, two heads": Routed(1, 10, 7, 2, 24, (5, 7), 2, "vector"),
    "regions larger than a tile": Routed(1, 9, 16, 1, 8, (9, 8), 1, "cropped"),
    "regions of 1, named often": Routed(1, 2, 3, 1, 8, (1, 1), 18),
    "aggregated, three images": Aggregated(3, 4, 5, 1, 24, 3, 6),
    "aggregated, two tiles, 35 pooled": Aggregated(1, 9, 8, 1, 8, 3, 35, "cropped"),
    "aggregated, 5x5": Aggregated(1, 4, 6, 1, 8, 5, 3, "vector"),
    "aggregated, a map of one, two heads": Aggregated(1, 1, 1, 2, 24, 3, 1),
    "aggregated, mixed": Aggregated(1, 5, 7, 1, 8, 3, 6, wide=MIXED),
}
HALF = (
    "3x3",
    "7x7, dilation 2 with remainders",
    "7x5, dim 24",
    "mask, 3x5, dilation 3x2",
    "regions of 4",
    "regions of 5x7, dim 24, two heads",
    "aggregated, three images",
    "aggregated, two tiles, 35 pooled",
    "aggregated, mixed",
)
# The interpreter only shows that the code runs: it multiplies in float32.
BF16 = ("mask, map smaller than the window", "regions larger than a tile", "aggregated, 5x5")
CHECKED = (
    Neighborhood(1, 4, 5, 1, 8, (3, 3)),
    Neighborhood(1, 4, 5, 1, 8, (3, 3), bias=False),
    Routed(1, 2, 4, 1, 8, (2, 2), 1),
    Aggregated(1, 2, 3, 1, 8, 3, 2),
)


def inputs(case: Case, dtype: torch.dtype) -> tuple[Tensors, torch.Tensor]:
    """The tensors and the gradient of the output; rounded to a dtype, as float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).double()

    return case.inputs(draw), draw(*case[:5])


def cast(case: Case, tensors: Tensors, dtype: torch.dtype, device: str) -> Tensors:
    """The tensors as a call takes them: in a dtype, lying in memory as told."""
    wide = case.wide.split() if isinstance(case, Aggregated) and dtype != torch.float64 else ()
    given = {
        name: x if x is None else x.to(device, (torch.float32 if name in wide else dtype) if x.is_floating_point() else x.dtype)
        for name, x in tensors.items()
    }
    return {**given, **dict(zip("qkv", placed([given[name] for name in "qkv"], case.layout), strict=True))}


def placed(tensors: list[torch.Tensor], layout: str) -> list[torch.Tensor]:
    """The same values, lying in memory as told."""
    if len({x.dtype for x in tensors}) > 1:
        return tensors
    if layout == "qkv":
        return list(torch.stack(tensors, 3).unbind(3))
    if layout == "cropped":
        return [torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 2, 2, 1), value=torch.nan)[:, 2:-1, 1:-2] for x in tensors]
    return [torch.stack([x, x], -1)[..., 0] for x in tensors]


def results(case: Case, dtype: torch.dtype, device: str, rounded: torch.dtype, fast: bool) -> dict[str, torch.Tensor]:
    """Output and gradients by Triton, or by the definition, of inputs rounded to a dtype."""
    tensors, do = inputs(case, rounded)
    leaves = {
        name: x.detach().requires_grad_() if x is not None and x.is_floating_point() else x
        for name, x in cast(case, tensors, dtype, device).items()
    }
    o = (case.triton if fast else case.definition)(*leaves.values())
    wanted = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    gradients = torch.autograd.grad(o, list(wanted.values()), do.to(device, o.dtype))
    assert o.dtype == wanted["q"].dtype and all(x.dtype == y.dtype for x, y in zip(gradients, wanted.values(), strict=True))
    return {"o": o.detach(), **{f"d{name}": x for name, x in zip(wanted, gradients, strict=True)}}


def errors(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Largest difference to the definition in float64, per result, as a fraction of its largest value."""
    want = results(case, torch.float64, device, rounded=dtype, fast=False)
    with empties_are_nan():
        got = results(case, dtype, device, rounded=dtype, fast=True)
    return {name: float((got[name].double() - x).abs().max() / x.abs().max()) for name, x in want.items()}


def two_runs_agree(case: Case, dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether two runs give the same bits."""
    first, second = (results(case, dtype, device, rounded=dtype, fast=True) for _ in range(2))
    return all(torch.equal(first[name], second[name]) for name in first)


def opcheck(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, str]:
    """What torch.library.opcheck says of the two operators."""
    module, how, more = case.operators()
    tensors, do = inputs(case, dtype)
    given = list(cast(case, tensors, dtype, device).values())
    *_, summary, lse = module.forward(*given, *how)
    leaves = [x.detach().requires_grad_() if x is not None and x.is_floating_point() else x for x in given]
    said = torch.library.opcheck(module.forward, (*leaves, *how))
    backward = torch.library.opcheck(module.backward, (*given, summary, lse, do.to(device, dtype), *how, *more))
    return {**said, **{f"backward, {name}": verdict for name, verdict in backward.items()}}


@contextmanager
def empties_are_nan() -> Iterator[None]:
    """torch.empty gives NaN, so that what is left unwritten shows."""
    empty = torch.empty

    def filled(*args: Any, **options: Any) -> torch.Tensor:
        return empty(*args, **options).fill_(torch.nan)

    torch.empty = filled
    try:
        yield
    finally:
        torch.empty = empty


def main() -> None:
    """Arguments: names of operations; all by default."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.set_num_threads(1)
    from visionattn.kernels import tiles

    tiles.PROGRAMS = 2  # so that programs add up several pieces, and some fewer
    ops = sys.argv[1:] or ["Neighborhood", "Routed", "Aggregated"]
    plan = [(name, torch.float32) for name in SMALL] + [(name, torch.float16) for name in HALF] + [(name, torch.bfloat16) for name in BF16]
    for name, dtype in plan:
        if type(SMALL[name]).__name__ in ops:
            print(json.dumps({"case": name, "dtype": str(dtype), "errors": errors(SMALL[name], dtype)}), flush=True)
    for case in CHECKED:
        if type(case).__name__ in ops:
            print(json.dumps({"two runs agree": two_runs_agree(case, torch.float32), "opcheck": opcheck(case, torch.float32)}), flush=True)


if __name__ == "__main__":
    main()

"""Triton's neighborhood attention against the definition in float64; run as a module, in Triton's interpreter.

Not a test file: the interpreter must be chosen before Triton is imported, so test_neighborhood_triton.py starts it in a process of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from visionattn.kernels import neighborhood_attention

NAMES = ("o", "dq", "dk", "dv", "dbias")
# Of the largest value of each result: forward, gradients.
TOLERANCES = {torch.float32: (5e-7, 2e-6), torch.float16: (1e-3, 1e-3), torch.bfloat16: (1e-2, 1e-2)}


class Case(NamedTuple):
    """Arguments of one call."""

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


# Few and small: a step of the interpreter (a block of a tile) takes five milliseconds.
SMALL = {
    "3x3": Case(2, 5, 7, 1, 8, (3, 3)),
    "5x5, two images, two heads": Case(2, 7, 9, 2, 16, (5, 5)),
    "7x7, dilation 2 with remainders": Case(1, 17, 15, 1, 8, (7, 7), (2, 2)),
    "3x3, dilation 3 with remainders": Case(1, 10, 11, 1, 8, (3, 3), (3, 3)),
    "7x5, dim 24": Case(1, 13, 9, 1, 24, (7, 5)),
    "13x3": Case(1, 15, 5, 1, 8, (13, 3)),
    "5x7 without bias": Case(1, 9, 11, 1, 8, (5, 7), bias=False),
    "mask": Case(1, 10, 9, 1, 24, (5, 5), border="mask"),
    "mask, 3x5, dilation 3x2": Case(1, 10, 11, 1, 8, (3, 5), (3, 2), "mask"),
    "mask, map smaller than the window": Case(1, 5, 6, 1, 8, (7, 7), border="mask"),
    "cropped": Case(2, 6, 8, 1, 8, (3, 5), layout="cropped"),
    "elements apart": Case(1, 6, 8, 2, 8, (3, 5), layout="vector"),
}
HALF = ("3x3", "7x7, dilation 2 with remainders", "7x5, dim 24", "mask, 3x5, dilation 3x2")
BF16 = ("mask, map smaller than the window",)  # the interpreter only shows that the code runs: it multiplies in float32


def inputs(case: Case, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """q, k, v, bias, gradient of the output; rounded to a dtype, as float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).double()

    shape = (case.batch, case.height, case.width, case.heads, case.dim)
    table = draw(case.heads, 2 * case.kernel[0] - 1, 2 * case.kernel[1] - 1)
    return [draw(*shape), draw(*shape), draw(*shape), table if case.bias else None, draw(*shape)]


def placed(tensors: list[torch.Tensor], layout: str) -> list[torch.Tensor]:
    """The same values, lying in memory as told."""
    if layout == "qkv":
        return list(torch.stack(tensors, 3).unbind(3))
    if layout == "cropped":
        return [torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 2, 2, 1), value=torch.nan)[:, 2:-1, 1:-2] for x in tensors]
    return [torch.stack([x, x], -1)[..., 0] for x in tensors]


def results(case: Case, tensors: list[torch.Tensor | None], dtype: torch.dtype, device: str, fast: bool) -> list[torch.Tensor]:
    """Output and gradients by Triton, or by the definition."""
    q, k, v, bias, do = (None if x is None else x.to(device, dtype) for x in tensors)
    leaves = [x.detach().requires_grad_() for x in (*placed([q, k, v], case.layout), bias) if x is not None]
    q, k, v, bias = (*leaves, None)[:4]
    if fast:
        from visionattn.kernels.neighborhood.triton import neighborhood_attention_triton

        o = neighborhood_attention_triton(q, k, v, case.kernel, case.dilation, bias, case.dim**-0.5, case.border)
    else:
        o = neighborhood_attention(q, k, v, case.kernel, case.dilation, bias=bias, border=case.border)
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def errors(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Largest difference to the definition in float64, per result, as a fraction of its largest value; and whether a second run differs."""
    tensors = inputs(case, dtype)
    want = results(case, tensors, torch.float64, device, fast=False)
    with empties_are_nan():
        got = results(case, tensors, dtype, device, fast=True)
    assert all(x.dtype == dtype and x.shape == y.shape for x, y in zip(got, want, strict=True))
    return {name: float((x.double() - y).abs().max() / y.abs().max()) for name, x, y in zip(NAMES, got, want, strict=False)}


def two_runs_agree(case: Case, dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether two runs give the same bits."""
    tensors = inputs(case, dtype)
    first, second = (results(case, tensors, dtype, device, fast=True) for _ in range(2))
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def opcheck(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, str]:
    """What torch.library.opcheck says of the two operators."""
    from visionattn.kernels.neighborhood import triton

    q, k, v, bias, do = (None if x is None else x.to(device, dtype) for x in inputs(case, dtype))
    how = (list(case.kernel), list(case.dilation), case.dim**-0.5, case.border == "shift")
    o, lse = triton.forward(q, k, v, bias, *how)
    leaves = [None if x is None else x.detach().requires_grad_() for x in (q, k, v, bias)]
    said = torch.library.opcheck(triton.forward, (*leaves, *how))
    backward = torch.library.opcheck(triton.backward, (q, k, v, bias, o, lse, do, *how, case.bias))
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
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.set_num_threads(1)
    plan = [(name, torch.float32) for name in SMALL] + [(name, torch.float16) for name in HALF] + [(name, torch.bfloat16) for name in BF16]
    for name, dtype in plan:
        print(json.dumps({"case": name, "dtype": str(dtype), "errors": errors(SMALL[name], dtype)}), flush=True)
    print(json.dumps({"two runs agree": two_runs_agree(SMALL["3x3"], torch.float32)}), flush=True)
    print(json.dumps({"opcheck": [opcheck(Case(1, 4, 5, 1, 8, (3, 3), bias=bias), torch.float32) for bias in (True, False)]}))


if __name__ == "__main__":
    main()

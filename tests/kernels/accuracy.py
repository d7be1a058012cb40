"""How exact a backend must be: the definition in float64 is the measure, in forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

LIMITS = {torch.float64: (1e-13, 1e-12), torch.float32: (5e-7, 2e-6), torch.bfloat16: (1e-2, 1e-2)}  # forward, gradients


def check_accuracy(
    call: Callable[..., torch.Tensor],
    tensors: Sequence[torch.Tensor],
    backends: Sequence[str] = ("torch",),
    dtypes: Sequence[torch.dtype] = tuple(LIMITS),
) -> None:
    """`call(*tensors, backend=...)` in each dtype, with gradients and without, by largest difference over largest value."""
    for dtype in dtypes:
        given = [tensor.detach().to(dtype) for tensor in tensors]  # rounding the inputs is no error of the operation
        exact = _run(call, [tensor.double() for tensor in given], "reference")
        forward, backward = LIMITS[dtype]
        for backend in backends:
            with torch.no_grad():
                alone = call(*given, backend=backend)
            results = [alone, *_run(call, given, backend)]
            errors = [relative(one, two) for one, two in zip(results, [exact[0], *exact], strict=True)]
            limits = [forward, forward] + [backward] * len(given)
            assert all(error <= limit for error, limit in zip(errors, limits, strict=True)), (backend, dtype, errors)
            assert {result.dtype for result in results} == {dtype}


def draw_qkv(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values for which the limits can be held: the output is a sum, whose condition is that of the numbers added.

    Values of both signs cancel, so they lie around 1. Rounding a score changes its weight by as many bits as the score has
    before the point, which bf16 lacks; with half as large queries few scores are above 2.
    """
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    return [q / 2, k, v + 1]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-300))


def check_traced(call: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], batched: Sequence[int]) -> None:
    """`torch.compile(fullgraph=True)`, with gradients, and `torch.export` with any batch give what eager gives.

    `batched` are the numbers of the tensors whose first axis is the batch, of two images or more.
    """

    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return call(*given, backend="torch")

    module = Module()
    batch = torch.export.Dim("batch", min=1, max=8)
    shapes = (tuple({0: batch} if index in batched else None for index in range(len(tensors))),)
    exported = torch.export.export(module, tuple(tensors), dynamic_shapes=shapes).module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for images in (1, 2):
        given = [tensor[:images] if index in batched else tensor for index, tensor in enumerate(tensors)]
        want = call(*given, backend="torch")
        assert torch.allclose(exported(*given), want, atol=1e-5)
        leaves = [[x.clone().requires_grad_() if x.is_floating_point() else x for x in given] for _ in range(2)]
        outs = [run(*leaf) for run, leaf in zip((compiled, module), leaves, strict=True)]
        assert torch.allclose(*outs, atol=1e-5)
        for out in outs:
            out.square().sum().backward()
        assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4) for a, b in zip(*leaves, strict=True) if a.is_floating_point())


def _run(call: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], backend: str) -> list[torch.Tensor]:
    """The output, then the gradients, of the output times numbers that are the same in each dtype."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = call(*leaves, backend=backend)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * factors).sum(), leaves)]

"""How exact a backend must be: the definition in float64 is the measure, in forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from visionattn.kernels.selftest import errors, limits_for, run

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def check_accuracy(
    call: Callable[..., torch.Tensor],
    tensors: Sequence[torch.Tensor],
    backends: Sequence[str] = ("torch",),
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> None:
    """`call(*tensors, backend=...)` in each dtype, with gradients and without, by largest difference over largest value."""
    for dtype in dtypes:
        given = [tensor.detach().to(dtype) for tensor in tensors]  # rounding the inputs is no error of the operation
        exact = run(call, [tensor.double() for tensor in given], "reference")
        for backend in backends:
            found = errors(call, given, backend, exact)
            limits = limits_for(found, dtype, partial(errors, call, given, "reference", exact))
            assert found[0] <= limits[0] and found[1] <= limits[1], (backend, dtype, found, limits)
            assert {result.dtype for result in run(call, given, backend)} == {dtype}


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
    torch._dynamo.reset()  # the limit of recompilations counts those of other tests
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

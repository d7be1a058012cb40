"""Compare every backend with the definition on this machine: `visionattn kernels selftest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from visionattn.kernels.agent import agent_attention
from visionattn.kernels.aggregated import aggregated_attention
from visionattn.kernels.available import available_backends
from visionattn.kernels.channel import channel_attention
from visionattn.kernels.decay import Along, decayed_attention
from visionattn.kernels.dense import dense_attention
from visionattn.kernels.depthwise import dilated_depthwise_conv2d
from visionattn.kernels.gate import channel_gate, strip_gate
from visionattn.kernels.linear import inline_attention, rank_augmented_attention
from visionattn.kernels.neighborhood import neighborhood_aggregate, neighborhood_attention
from visionattn.kernels.neighborhood.reference import Border
from visionattn.kernels.routing import routed_attention
from visionattn.kernels.strided import strided_attention
from visionattn.kernels.window import window_attention

# Limits of the largest difference relative to the largest value, for output and gradients.
LIMITS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (5e-7, 2e-6),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1e-2, 1e-2),
}
Call = Callable[..., torch.Tensor]


class Case(NamedTuple):
    """A call of an operation, `call(*tensors, backend=...)`."""

    op: str
    name: str
    tensors: list[torch.Tensor]
    call: Call


class Result(NamedTuple):
    """Error of a backend relative to the definition; errors are None if it failed, for the reason in `fault`."""

    op: str
    case: str
    backend: str
    dtype: str
    forward: float | None
    gradients: float | None
    limits: tuple[float, float]
    fault: str

    def figures(self) -> list[str]:
        """Format the errors of output and gradients, each with its limit."""
        found = zip((self.forward, self.gradients), self.limits, strict=True)
        return ["-" if error is None else f"{error:.1e} ({limit:.0e})" for error, limit in found]

    @property
    def ok(self) -> bool:
        return (
            self.forward is not None and self.gradients is not None and self.forward <= self.limits[0] and self.gradients <= self.limits[1]
        )


def choose_dtypes(device: torch.device, name: str | None) -> list[torch.dtype]:
    """Return the dtype of a name, or by default those that networks use on a device.

    Raises:
        ValueError: unknown dtype.
    """
    by_name = {str(dtype).removeprefix("torch."): dtype for dtype in LIMITS}
    if name is not None and name not in by_name:
        raise ValueError(f"dtype: expected one of {', '.join(by_name)}, got {name!r}")
    usual = ["float32", "bfloat16"] if device.type == "cpu" else ["float32", "float16", "bfloat16"]
    return [by_name[chosen] for chosen in ([name] if name else usual)]


def list_backends(device: torch.device) -> dict[str, dict[str, str]]:
    """Return `available_backends` of each operation for small float32 tensors on a device."""
    found: dict[str, dict[str, str]] = {}
    for case in cases():
        found.setdefault(case.op, available_backends(case.op, *(tensor.float().to(device) for tensor in case.tensors)))
    return found


def selftest(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Result]:
    """Compare every available backend, except the definition itself, with the definition in float64 on the CPU."""
    for case in cases():
        for dtype in dtypes:
            given = [tensor.to(dtype) for tensor in case.tensors]  # rounding of the inputs is not an error of the operation
            exact = run(case.call, [tensor.double() for tensor in given], "reference")
            given = [tensor.to(device) for tensor in given]
            for backend, reason in available_backends(case.op, *given).items():
                if reason or backend == "reference":
                    continue
                forward, gradients, fault, limits = None, None, "", LIMITS[dtype]
                try:
                    forward, gradients = errors(case.call, given, backend, exact)
                    limits = limits_for((forward, gradients), dtype, partial(errors, case.call, given, "reference", exact))
                except Exception as error:  # continue, to report every failure
                    fault = f"{type(error).__name__}: {error}"
                yield Result(case.op, case.name, backend, str(dtype).removeprefix("torch."), forward, gradients, limits, fault)


def limits_for(found: tuple[float, float], dtype: torch.dtype, own: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return the limits that errors of output and gradients are held against.

    CPUs sum in different orders. Where the definition itself, computed in the dtype, comes near a limit or misses it, a backend may be a
    quarter further off than the definition is.

    Args:
        own: computes the errors of the definition; called if a limit is exceeded.
    """
    limits = LIMITS[dtype]
    if found[0] <= limits[0] and found[1] <= limits[1]:
        return limits
    forward, gradients = own()
    return max(limits[0], 1.25 * forward), max(limits[1], 1.25 * gradients)


def errors(call: Call, tensors: Sequence[torch.Tensor], backend: str, exact: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Return the larger error of the output with and without gradients, and the largest error of the gradients."""
    with torch.no_grad():
        alone = call(*tensors, backend=backend)
    out, *gradients = run(call, tensors, backend)
    forward = max(relative(alone, exact[0]), relative(out, exact[0]))
    return forward, max(relative(one, two) for one, two in zip(gradients, exact[1:], strict=True))


def run(call: Call, tensors: Sequence[torch.Tensor], backend: str) -> list[torch.Tensor]:
    """Return the output and the gradients of its sum weighted by factors that are equal in all dtypes."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = call(*leaves, backend=backend)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)
    return [out.detach(), *torch.autograd.grad((out * factors).sum(), leaves)]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference relative to the largest value; infinite if a value is NaN."""
    error = float((got.detach().cpu().double() - want.detach()).abs().max() / want.detach().abs().max().clamp(min=1e-300))
    return error if error == error else float("inf")


def draw_qkv(shape: tuple[int, ...], generator: torch.Generator) -> list[torch.Tensor]:
    """Draw queries, keys and values for which the limits are attainable: the output is a sum, as well conditioned as its terms.

    Values of both signs would cancel, so values are centred at 1. Rounding a score changes its weight by as many bits as the score
    has before the point, which bf16 lacks; halving the queries leaves few scores above 2.
    """
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return [q / 2, k, v + 1]


def rank_augmented(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, angle: torch.Tensor, *, backend: str) -> torch.Tensor:
    """Call rank-augmented attention with the rotation of angles, `[H, W, dim / 2]`."""
    return rank_augmented_attention(q, k, v, rotation=(angle.cos(), angle.sin()), backend=backend)


def cases() -> Iterator[Case]:
    """Yield small calls of every operation: sizes that no tile divides, and every path of the fast form."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def table(*shape: int) -> torch.Tensor:  # biases, as wide as trained ones
        return torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5

    def neighborhood(kernel: tuple[int, int], dilation: tuple[int, int], border: Border) -> Call:
        return lambda q, k, v, bias, backend: neighborhood_attention(q, k, v, kernel, dilation, bias=bias, border=border, backend=backend)

    def window(shift: tuple[int, int]) -> Call:
        return lambda q, k, v, bias, backend: window_attention(q, k, v, window_size=(7, 7), shift=shift, bias=bias, backend=backend)

    def routed(routes: torch.Tensor) -> Call:
        return lambda q, k, v, backend: routed_attention(q, k, v, routes.to(q.device), (2, 3), backend=backend)

    maps: list[tuple[int, int, tuple[int, int], tuple[int, int], Border]] = [
        (23, 17, (7, 7), (1, 1), "shift"),
        (17, 15, (5, 3), (2, 3), "shift"),
        (11, 14, (5, 5), (1, 1), "mask"),
    ]
    for height, width, kernel, dilation, border in maps:
        tensors = [*draw_qkv((2, height, width, 2, 24), generator), table(2, 2 * kernel[0] - 1, 2 * kernel[1] - 1)]
        name = f"{height}x{width}, kernel {kernel[0]}x{kernel[1]}, dilation {dilation[0]}x{dilation[1]}, {border}"
        yield Case("neighborhood_attention", name, tensors, neighborhood(kernel, dilation, border))
    for shift in ((0, 0), (3, 3)):
        tensors = [*draw_qkv((2, 14, 21, 2, 32), generator), table(2, 49, 49)]
        yield Case("window_attention", f"14x21, window 7x7, shift {shift[0]}x{shift[1]}", tensors, window(shift))
    for topk in (2, 16):
        routes = torch.rand(2, 35, 35, generator=generator).argsort(-1)[..., :topk]
        yield Case("routed_attention", f"10x21, region 2x3, {topk} of 35", draw_qkv((2, 10, 21, 2, 16), generator), routed(routes))
    q, k, v = draw_qkv((2, 9, 13, 2, 24), generator)
    pooled = [draw(2, 3, 4, 2, 24), 1 + draw(2, 3, 4, 2, 24), table(2, 9), table(2, 117, 12), draw(2, 9, 13, 2, 9)]

    def aggregated(*given: torch.Tensor, backend: str) -> torch.Tensor:
        q, k, v, k_pool, v_pool, local_bias, pool_bias, local_weight = given
        return aggregated_attention(
            q, k, v, k_pool, v_pool, local_bias=local_bias, pool_bias=pool_bias, local_weight=local_weight, backend=backend
        )

    yield Case("aggregated_attention", "9x13, kernel 3x3, pool 3x4", [q * 24**-0.5, k, v, *pooled], aggregated)
    q, k, v = draw(2, 7, 9, 2, 32), draw(2, 7, 9, 2, 32), draw(2, 7, 9, 2, 32)
    # The sum over positions is not divided by their number; keys of this scale keep the softmax from saturating.
    yield Case("channel_attention", "7x9", [q, k / 63**0.5, v], channel_attention)
    q, k, v = draw_qkv((2, 5, 7, 2, 24), generator)
    yield Case(
        "dense_attention",
        "5x7, bias",
        [q, k, v, table(2, 35, 35)],
        lambda q, k, v, bias, backend: dense_attention(q, k, v, bias=bias, backend=backend),
    )
    q, k, v = draw_qkv((2, 5, 7, 16), generator)
    yield Case("dense_attention", "5x7, one head", [q, k, v], dense_attention)
    q, k, v = draw_qkv((2, 5, 7, 2, 24), generator)
    # Agents that gather from few positions differ; of nearly equal ones bf16 would lose the difference, and with it the gradient.
    agents, of_agents, of_queries = draw(2, 2, 3, 2, 24) / 2, 8 * table(2, 6, 35), table(2, 35, 6)
    yield Case(
        "agent_attention",
        "5x7, 2x3 agents",
        [q, k, v, agents, of_agents, of_queries],
        lambda q, k, v, agents, one, two, backend: agent_attention(q, k, v, agents, agent_bias=one, query_bias=two, backend=backend),
    )

    def decayed(along: Along) -> Call:
        return lambda *given, backend: decayed_attention(*given, along=along, backend=backend)

    lines: list[Along] = ["map", "rows", "columns"]
    for along in lines:
        tensors = [*draw_qkv((2, 5, 7, 2, 24), generator), -draw(2).abs()]
        yield Case("decayed_attention", f"5x7, {along}", tensors, decayed(along))
    q, k, v = draw_qkv((2, 5, 7, 2, 24), generator)
    yield Case("rank_augmented_attention", "5x7", [q, k / 2, v, table(5, 7, 12)], rank_augmented)
    weight = draw(8, 1, 7, 7) / 7
    yield Case(
        "dilated_depthwise_conv2d",
        "14x11, kernel 7x7, dilation 3",
        [draw(2, 8, 14, 11), weight, draw(8)],
        lambda *given, backend: dilated_depthwise_conv2d(*given, dilation=3, backend=backend),
    )
    yield Case("channel_gate", "7x5", [draw(2, 16, 7, 5), draw(1, 1, 3)], channel_gate)
    yield Case(
        "strip_gate",
        "7x5",
        [draw(2, 16, 7, 5), draw(16, 1, 7), draw(16), draw(16)],
        lambda *given, backend: strip_gate(*given, num_groups=4, backend=backend),
    )

    def aggregate(kernel: tuple[int, int], dilation: tuple[int, int], border: Border) -> Call:
        return lambda weights, v, backend: neighborhood_aggregate(weights, v, kernel, dilation, border=border, backend=backend)

    for height, width, kernel, dilation, border in maps:
        weights = torch.rand(2, height, width, 2, kernel[0] * kernel[1], generator=generator, dtype=torch.float64)
        name = f"{height}x{width}, kernel {kernel[0]}x{kernel[1]}, dilation {dilation[0]}x{dilation[1]}, {border}"
        yield Case("neighborhood_aggregate", name, [weights, 1 + draw(2, height, width, 2, 24)], aggregate(kernel, dilation, border))

    def strided(interval: tuple[int, int]) -> Call:
        return lambda *given, backend: strided_attention(*given[:3], group_size=(3, 4), interval=interval, bias=given[3], backend=backend)

    for interval in ((1, 1), (2, 3)):
        tensors = [*draw_qkv((2, 8, 13, 2, 24), generator), table(2, 12, 12)]
        yield Case("strided_attention", f"8x13, group 3x4, interval {interval[0]}x{interval[1]}", tensors, strided(interval))
    yield Case("inline_attention", "5x7", draw_qkv((2, 5, 7, 2, 24), generator), inline_attention)

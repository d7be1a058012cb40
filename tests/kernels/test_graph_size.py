"""Operations that `torch.compile` sees: tracing takes milliseconds for each, so their number must not follow the size of the map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import visionattn as va
import visionattn.kernels as kernels
from tests.tiny import TINY


def operations(call: Callable[..., torch.Tensor], *given: torch.Tensor) -> int:
    """Trace a call, and count what its graph computes."""
    counts = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        counts.append(sum(node.op not in ("placeholder", "output") for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(call, fullgraph=True, dynamic=False, backend=backend)(*given)
    (count,) = counts
    return count


CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "neighborhood": lambda x: kernels.neighborhood_attention(x, x, x, 7, bias=x[0, 0, 0, 0, 0].expand(2, 13, 13)),
    "dilated neighborhood": lambda x: kernels.neighborhood_attention(x, x, x, 7, 2),
    "aggregate": lambda x: kernels.neighborhood_aggregate(torch.ones(*x.shape[:4], 49), x, 7),
    "bias": lambda x: kernels.neighborhood_bias(x[0, 0, 0, 0, 0].expand(2, 13, 13), x.shape[1], x.shape[2]),
    "window": lambda x: kernels.window_attention(x, x, x, window_size=(7, 7), shift=(3, 3)),
    "strided": lambda x: kernels.strided_attention(x, x, x, group_size=(7, 7), interval=(4, 4)),
    "routed": lambda x: kernels.routed_attention(x, x, x, kernels.region_routes(x, x, (4, 4), 4), (4, 4)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_larger_map_has_no_more_operations(name: str) -> None:
    small, large = (operations(CALLS[name], torch.ones(1, side, side, 2, 8)) for side in (56, 112))
    assert large <= small


# Operations of a network of few blocks, as counted, and a tenth more.
MOST = {"OverLoCK": 727, "TransNeXt": 1026}


@pytest.mark.parametrize("family", MOST)
def test_a_network_has_few_operations(family: str) -> None:
    name, arguments = TINY[family]
    assert operations(va.create_model(name, **arguments).eval(), torch.ones(1, 3, 64, 64)) <= MOST[family]

"""The channel gate against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from visionattn.kernels import channel_gate


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_equals_the_definition(taps: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 5, 3, dtype=torch.float64), torch.randn(1, 1, taps, dtype=torch.float64)
    got = channel_gate(x, weight)
    for image in range(2):
        means = [float(x[image, channel].mean()) for channel in range(7)]
        for channel in range(7):
            near = [(tap, channel + tap - taps // 2) for tap in range(taps)]
            score = sum(float(weight[0, 0, tap]) * means[other] for tap, other in near if 0 <= other < 7)
            assert torch.allclose(got[image, channel], x[image, channel] / (1 + math.exp(-score)), atol=1e-12)


def test_gradients_dtype_and_errors() -> None:
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(channel_gate, [x, torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)])
    assert channel_gate(torch.randn(1, 4, 3, 3).bfloat16(), torch.randn(1, 1, 3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="k odd"):
        channel_gate(x, torch.randn(1, 1, 4, dtype=torch.float64))

"""The gates against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.accuracy import check_accuracy
from visionattn.kernels import channel_gate, strip_gate


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_channel_gate_equals_the_definition(taps: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 5, 3, dtype=torch.float64), torch.randn(1, 1, taps, dtype=torch.float64)
    got = channel_gate(x, weight)
    for image in range(2):
        means = [float(x[image, channel].mean()) for channel in range(7)]
        for channel in range(7):
            near = [(tap, channel + tap - taps // 2) for tap in range(taps)]
            score = sum(float(weight[0, 0, tap]) * means[other] for tap, other in near if 0 <= other < 7)
            assert torch.allclose(got[image, channel], x[image, channel] / (1 + math.exp(-score)), atol=1e-12)


def test_channel_gate_gradients_dtype_and_errors() -> None:
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(channel_gate, [x, torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)])
    assert channel_gate(torch.randn(1, 4, 3, 3).bfloat16(), torch.randn(1, 1, 3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="k odd"):
        channel_gate(x, torch.randn(1, 1, 4, dtype=torch.float64))


def strip_inputs(shape: tuple[int, int, int, int], groups: int, taps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    shapes = (shape, (channels, channels // groups, taps), (channels,), (channels,))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in shapes]


def gates_by_hand(strips: list[list[float]], weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, num_groups: int):
    """Gates of one image, `[C][length]`, from the means of its rows or columns."""
    channels, width, taps = weight.shape
    length = len(strips[0])
    mixed = [[0.0] * length for _ in range(channels)]
    for channel in range(channels):
        first = channel // width * width  # of the group that the channel reads
        for place in range(length):
            for offset in range(width):
                for tap in range(taps):
                    other = place + tap - taps // 2
                    if 0 <= other < length:
                        mixed[channel][place] += float(weight[channel, offset, tap]) * strips[first + offset][other]
    gates = []
    for channel in range(channels):
        size = channels // num_groups
        together = [value for row in mixed[channel // size * size : (channel // size + 1) * size] for value in row]
        mean = sum(together) / len(together)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in together) / len(together) + 1e-5)
        scores = [(value - mean) / deviation * float(scale[channel]) + float(shift[channel]) for value in mixed[channel]]
        gates.append([1 / (1 + math.exp(-score)) for score in scores])
    return gates


@pytest.mark.parametrize(
    ("shape", "groups", "taps", "num_groups"),
    [((2, 8, 5, 3), 8, 5, 4), ((1, 8, 4, 6), 2, 7, 2), ((1, 4, 1, 3), 1, 3, 1), ((1, 6, 2, 2), 6, 5, 3)],
)
def test_strip_gate_equals_the_definition(shape, groups, taps, num_groups) -> None:
    x, *weights = strip_inputs(shape, groups, taps)
    got = strip_gate(x, *weights, num_groups=num_groups)
    for image in range(shape[0]):
        rows = gates_by_hand(x[image].mean(2).tolist(), *weights, num_groups)
        columns = gates_by_hand(x[image].mean(1).tolist(), *weights, num_groups)
        factor = torch.tensor(rows, dtype=x.dtype)[:, :, None] * torch.tensor(columns, dtype=x.dtype)[:, None, :]
        assert torch.allclose(got[image], x[image] * factor, atol=1e-12)
    turned = strip_gate(x.transpose(2, 3), *weights, num_groups=num_groups)  # rows and columns are treated alike
    assert torch.allclose(turned.transpose(2, 3), got, atol=1e-12)


def test_strip_gate_gradients_dtype_meta_and_errors() -> None:
    tensors = [tensor.requires_grad_() for tensor in strip_inputs((1, 4, 3, 5), 2, 3)]
    assert torch.autograd.gradcheck(lambda *given: strip_gate(*given, num_groups=2), tensors)
    x, *weights = (tensor.detach() for tensor in tensors)
    assert strip_gate(x.bfloat16(), *(weight.bfloat16() for weight in weights), num_groups=2).dtype == torch.bfloat16
    assert strip_gate(x.to("meta"), *(weight.to("meta") for weight in weights), num_groups=2).shape == x.shape
    for wrong in (torch.zeros(4, 2, 4), torch.zeros(4, 3, 3), torch.zeros(8, 2, 3), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match="k odd"):
            strip_gate(x, wrong.double(), *weights[1:], num_groups=2)
    with pytest.raises(ValueError, match="3 groups of the norm do not divide 4 channels"):
        strip_gate(x, *weights, num_groups=3)


def test_accuracy() -> None:
    x, *weights = strip_inputs((2, 8, 7, 5), 4, 3)
    check_accuracy(lambda *given, backend: strip_gate(*given, num_groups=4, backend=backend), [x, *weights])
    check_accuracy(lambda *given, backend: channel_gate(*given, backend=backend), [x, weights[0][:1, :1]])
    for backend, problem in (("triton", "it has no such backend"), ("fast", "expected one of")):
        with pytest.raises((RuntimeError, ValueError), match=problem):
            channel_gate(x, weights[0][:1, :1], backend=backend)

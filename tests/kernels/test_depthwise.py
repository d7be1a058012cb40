"""The dilated depthwise convolution against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.accuracy import check_accuracy, check_traced
from visionattn.kernels import dilated_depthwise_conv2d
from visionattn.kernels.depthwise import fast


def definition(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    out = torch.zeros_like(x) if bias is None else bias[None, :, None, None].expand(x.shape).clone()
    kernel, (height, width) = weight.shape[2:], x.shape[2:]
    for row in range(height):
        for column in range(width):
            for u in range(kernel[0]):
                for v in range(kernel[1]):
                    other = row + dilation * (u - kernel[0] // 2), column + dilation * (v - kernel[1] // 2)
                    if 0 <= other[0] < height and 0 <= other[1] < width:
                        out[:, :, row, column] += weight[:, 0, u, v] * x[:, :, other[0], other[1]]
    return out


CASES = [  # batch, channels, height, width, kernel, dilation
    (2, 3, 14, 11, (7, 7), 3),
    (1, 4, 7, 7, (7, 7), 3),
    (1, 2, 2, 3, (7, 7), 3),  # most taps stand outside
    (1, 1, 1, 1, (7, 7), 3),
    (3, 2, 9, 6, (5, 3), 2),
    (2, 5, 6, 8, (3, 3), 1),
]


@pytest.mark.parametrize(("batch", "channels", "height", "width", "kernel", "dilation"), CASES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_definition(batch, channels, height, width, kernel, dilation, with_bias, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((batch, channels, height, width), (channels, 1, *kernel), (channels,))
    )
    given = bias if with_bias else None
    want = definition(x, weight, given, dilation)
    layouts = (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3))
    for backend in ("torch", "reference"):
        for view in layouts:
            assert torch.allclose(dilated_depthwise_conv2d(view, weight, given, dilation=dilation, backend=backend), want, atol=1e-12)
    monkeypatch.setattr(fast, "_LEAST_IN_TRAINING", 0)
    check_accuracy(
        lambda *tensors, backend: dilated_depthwise_conv2d(*tensors, dilation=dilation, backend=backend),
        [x, weight, bias] if with_bias else [x, weight],
    )


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 3), ((5, 3), 2), ((3, 3), 1)])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_in_float64(kernel: tuple[int, int], dilation: int, backend: str, monkeypatch) -> None:
    monkeypatch.setattr(fast, "_LEAST_IN_TRAINING", 0)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((2, 2, 5, 4), (2, 1, *kernel), (2,))
    ]
    assert torch.autograd.gradcheck(lambda *given: dilated_depthwise_conv2d(*given, dilation=dilation, backend=backend), tensors)


def test_compiles_and_exports_with_any_batch_and_size() -> None:
    tensors = [torch.randn(2, 4, 14, 13), torch.randn(4, 1, 5, 5), torch.randn(4)]  # more positions than the least in training
    check_traced(lambda *given, backend: dilated_depthwise_conv2d(*given, dilation=3, backend=backend), tensors, (0,))

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return dilated_depthwise_conv2d(x, tensors[1], tensors[2], dilation=3)

    sides = {2: torch.export.Dim("height", min=2, max=99), 3: torch.export.Dim("width", min=2, max=99)}
    exported = torch.export.export(Module(), (tensors[0],), dynamic_shapes=(sides,)).module()
    for shape in ((2, 4, 9, 12), (2, 4, 5, 10)):
        x = torch.randn(shape)
        assert torch.allclose(exported(x), Module()(x), atol=1e-5)


def test_training_in_half_precision_computes_in_float32() -> None:
    """And gives what the convolution would: bf16, also of float32 under autocast."""
    x, weight = torch.randn(2, 4, 14, 13).requires_grad_(), torch.randn(4, 1, 5, 5)
    want = dilated_depthwise_conv2d(x, weight, dilation=3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = dilated_depthwise_conv2d(x, weight, dilation=3)
        native = dilated_depthwise_conv2d(x, weight, dilation=3, backend="reference")
    assert got.dtype == native.dtype == torch.bfloat16 and torch.equal(got, want)


def test_dtype_meta_and_errors() -> None:
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 7, 7)
    assert dilated_depthwise_conv2d(x.bfloat16(), weight.bfloat16(), dilation=3).dtype == torch.bfloat16
    assert dilated_depthwise_conv2d(x.to("meta"), weight.to("meta"), dilation=3).shape == x.shape
    for wrong in (torch.randn(4, 1, 6, 7), torch.randn(4, 2, 7, 7), torch.randn(3, 1, 7, 7), torch.randn(4, 7, 7)):
        with pytest.raises(ValueError, match=r"weight must be \[4, 1, kh, kw\] with kh and kw odd"):
            dilated_depthwise_conv2d(x, wrong, dilation=3)
    with pytest.raises(ValueError, match="dilation must be 1 or more, got 0"):
        dilated_depthwise_conv2d(x, weight, dilation=0)

"""ContMix against its record, and where its parts meet."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.parity import Record
from visionattn.attention import ContMix, build_attention
from visionattn.attention.contmix import convolve_within
from visionattn.kernels.dispatch import use_backend


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("name", ["contmix_block_k7__28x20", "contmix_block_k7__4x6"])
def test_recorded_outputs(name: str, backend: str) -> None:
    """From the authors' names of tensors; on the smaller map the kernels are larger than it."""
    record = Record("contmix", name)
    module = build_attention("contmix", 64).eval()
    module.load_state_dict(record.state())
    assert sum(parameter.numel() for parameter in module.parameters()) == record.facts["params"]
    with torch.no_grad(), use_backend(backend):
        assert record.stage_error(0, module(record.image())) < 5e-5
        flat = module.double()(record.image().double()).flatten().numpy()
    points = flat[(np.arange(64) * (flat.size - 1)) // 63]
    assert np.abs(points - record.arrays["stage0_sample64"]).max() / record.facts["stages"][0]["std"] < 1e-6


def test_kernels_of_other_sizes_and_few_channels() -> None:
    module = build_attention("contmix", 12, kernel_size=9, small_kernel=3, num_heads=2)
    assert isinstance(module, ContMix) and module.num_groups == 2  # 2 heads do not divide 3
    assert module.rpb1.shape == (2, 5, 5) and module.rpb2.shape == (2, 17, 17)
    assert module(torch.randn(2, 12, 5, 8)).shape == (2, 12, 5, 8)


@pytest.mark.parametrize(("kernel", "dilation"), [(13, 1), (7, 2), (3, 4), (5, 1)])
@pytest.mark.parametrize("size", [(1, 2), (4, 5), (9, 3)])
def test_taps_outside_a_small_map_change_nothing(kernel: int, dilation: int, size: tuple[int, int]) -> None:
    conv = nn.Conv2d(4, 4, kernel, padding=(kernel - 1) * dilation // 2, dilation=dilation, groups=4).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (conv, partial(convolve_within, conv)):
        y = run(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, conv.weight, conv.bias])])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*results, strict=True))

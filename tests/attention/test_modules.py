"""The contract of every attention module in the table, and the table itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import visionattn as va
from tests.parity import Record, record_names
from visionattn.attention import ATTENTION, ECA, ELA, build_attention, register_attention
from visionattn.errors import UserError

NAMES = list(ATTENTION)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return str(request.param)


@pytest.mark.parametrize("case", record_names("modules"))
def test_recorded_outputs(case: str) -> None:
    record = Record("modules", case)
    module = build_attention(record.facts["module"], 64, **record.facts["args"]).eval()
    module.load_state_dict(record.state())
    assert sum(parameter.numel() for parameter in module.parameters()) == record.facts["params"]
    image = record.image()
    with torch.no_grad():
        assert record.stage_error(0, module(image)) < 1e-5
        exact = module.double()(image.double()).flatten()
    points = exact[(torch.arange(64) * (exact.numel() - 1)) // 63].numpy()
    wanted = record.arrays["stage0_sample64"]
    assert np.abs(points - wanted).max() / record.facts["stages"][0]["std"] < 1e-6


@pytest.mark.parametrize("shape", [(2, 64, 14, 14), (1, 48, 7, 13), (1, 20, 1, 5), (3, 12, 9, 4), (1, 1, 2, 3)])
def test_the_shape_is_kept(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    if name == "contmix" and shape[1] % 4:
        with pytest.raises(UserError, match=f"takes multiples of 4 channels, not {shape[1]}"):
            build_attention(name, shape[1])
        return
    y = build_attention(name, shape[1])(x)
    assert y.shape == x.shape and torch.isfinite(y).all()
    assert shape[1] < 2 or not torch.equal(y, x)


def test_images_do_not_see_each_other(name: str) -> None:
    module, x = build_attention(name, 32).eval(), torch.randn(3, 32, 7, 5)
    with torch.no_grad():
        alone = torch.cat([module(one[None]) for one in x])
        assert torch.allclose(module(x), alone, atol=1e-6)


def test_bfloat16_and_channels_last(name: str) -> None:
    module, x = build_attention(name, 32).eval(), torch.randn(2, 32, 7, 5)
    with torch.no_grad():
        exact = module(x)
        assert torch.allclose(module(x.to(memory_format=torch.channels_last)), exact, atol=1e-6)
        low = module.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_gradients_reach_every_parameter(name: str) -> None:
    module, x = build_attention(name, 32), torch.randn(2, 32, 7, 5, requires_grad=True)
    module(x).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert x.grad is not None and (x.grad != 0).all()


def test_gradients_are_right(name: str) -> None:
    module, x = build_attention(name, 8).double(), torch.randn(2, 8, 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())
    keys, values = list(parameters), list(parameters.values())

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(keys, parameters, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


def test_members_are_those_of_the_papers() -> None:
    taps = {8: 3, 64: 3, 128: 5, 256: 5, 512: 5, 2048: 7}  # eq. 12 of ECA-Net, rounded up to an odd number
    for channels, count in taps.items():
        module = build_attention("eca", channels)
        assert isinstance(module, ECA) and module.conv.kernel_size == (count,)
    assert build_attention("eca", 64, kernel_size=9).conv.kernel_size == (9,)  # type: ignore[union-attr]
    for gate, taps_groups in {"t": (5, 64), "b": (7, 64), "s": (5, 8), "l": (7, 8)}.items():
        gate_module = build_attention(f"ela_{gate}", 64)
        assert isinstance(gate_module, ELA) and (*gate_module.conv.kernel_size, gate_module.conv.groups) == taps_groups


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(UserError, match='unknown attention "ela_bb"') as caught:
        build_attention("ela_bb", 8)
    assert caught.value.code == "VA-M002" and caught.value.exit_code == 2
    assert caught.value.fix.startswith("Did you mean ela_b")
    assert all(name in caught.value.fix for name in NAMES)
    with pytest.raises(TypeError):
        build_attention("eca", 8, taps=3)


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for taken in ("eca", "none"):
        with pytest.raises(ValueError, match="registered already"):
            register_attention(taken, nn.Identity)
    monkeypatch.setattr("visionattn.attention.registry.ATTENTION", dict(ATTENTION))
    va.register_attention("identity", nn.Identity)
    assert isinstance(build_attention("identity", 8), nn.Identity)
    with pytest.raises(ValueError, match="'identity' is registered already"):
        va.register_attention("identity", nn.Identity)

"""Networks for volumes: sizes, gradients, what the gates and the attention see."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from visionattn.errors import UserError
from visionattn.models.volumes import POSITIONS, VOLUME_NETS, AGUNet3d, DualAttention, Gate, Level


def tiny(name: str = "agunet3d", **args: Any) -> AGUNet3d:
    torch.manual_seed(0)
    return VOLUME_NETS[name](2, 3, **{"width": 4, "depth": 3, **args})


@pytest.mark.parametrize("args", [{}, {"gate": "add"}, {"norm": "batch"}], ids=str)
@pytest.mark.parametrize("name", VOLUME_NETS)
def test_every_network_trains(name: str, args: dict[str, Any]) -> None:
    model = tiny(name, **args)
    volume, label = torch.randn(2, 2, 16, 16, 8), torch.randint(0, 3, (2, 16, 16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        outputs = model.train()(volume)
        assert [tuple(output.shape) for output in outputs] == [(2, 3, 16, 16, 8), (2, 3, 8, 8, 4), (2, 3, 4, 4, 4)]
        loss = torch.stack([F.cross_entropy(F.interpolate(output, size=(16, 16, 8)), label) for output in outputs]).sum()
        optimizer.zero_grad()
        loss.backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("size", [(33, 17, 9), (5, 40, 6), (1, 12, 7), (2, 2, 2)])
@pytest.mark.parametrize("name", VOLUME_NETS)
def test_any_size(name: str, size: tuple[int, int, int]) -> None:
    model = tiny(name, depth=4)
    outputs = model.train()(torch.randn(1, 2, *size))
    assert outputs[0].shape == (1, 3, *size) and len(outputs) == 4
    for finer, coarser in pairwise(outputs):
        wanted = [side if side <= 4 else -(-side // 2) for side in finer.shape[2:]]
        assert list(coarser.shape[2:]) == wanted
    assert len(tiny(name, deep_supervision=False).train()(torch.randn(1, 2, *size))) == 1
    with torch.no_grad():
        assert [output.shape for output in model.eval()(torch.randn(1, 2, *size))] == [(1, 3, *size)]


def test_upsampling_is_that_of_torch() -> None:
    level = Level(6, 4, "add", "instance").double()
    usual = torch.nn.ConvTranspose3d(6, 4, 3, 2, padding=1).double()
    usual.load_state_dict(level.up.state_dict())
    x = torch.randn(1, 6, 5, 4, 3, dtype=torch.double)
    assert torch.allclose(level.upsample(x, torch.Size((10, 7, 6))), F.relu(usual(x, output_size=(10, 7, 6))))
    assert level.upsample(x, torch.Size((9, 4, 3))).shape == (1, 4, 9, 4, 3)


def test_gates_by_hand() -> None:
    torch.manual_seed(0)
    skip, x = torch.randn(1, 4, 2, 3, 4).double(), torch.randn(1, 6, 2, 3, 4).double()
    for combine in ("add", "concat"):
        gate = Gate(4, 6, combine).double()
        state = {key: value.squeeze((2, 3, 4)) if value.dim() == 5 else value for key, value in gate.state_dict().items()}
        for z, y, w in ((0, 0, 0), (1, 2, 3)):
            ours = state["skip_project.weight"] @ skip[0, :, z, y, w] + state["skip_project.bias"]
            theirs = state["project.weight"] @ x[0, :, z, y, w] + state["project.bias"]
            both = torch.cat([ours, theirs]) if combine == "concat" else ours + theirs
            factor = (state["psi.weight"] @ both.relu() + state["psi.bias"]).sigmoid()
            assert torch.allclose(gate(skip, x)[0, :, z, y, w], skip[0, :, z, y, w] * factor)


def test_dual_attention_by_hand() -> None:
    torch.manual_seed(0)
    module = DualAttention(8).double()
    torch.nn.init.constant_(module.positions.gamma.scale, 0.7)
    torch.nn.init.constant_(module.channels.gamma.scale, 0.3)
    x = torch.randn(1, 8, 2, 3, 4).double()
    flat = x[0].flatten(1)  # C N
    q, k, v = (
        getattr(module.positions, f"{kind}_project").weight.squeeze((2, 3)) @ flat
        + getattr(module.positions, f"{kind}_project").bias[:, None]
        for kind in ("query", "key", "value")
    )
    positions = flat + 0.7 * v @ (q.T @ k).softmax(1).T
    channels = flat + 0.3 * (-(flat @ flat.T)).softmax(1) @ flat
    assert torch.allclose(module(x)[0].flatten(1), (positions + channels) / 2)


def test_dual_attention_sees_everything_and_plain_convolutions_do_not() -> None:
    volume = torch.randn(1, 1, 4, 4, 256)
    seen = {}
    for name in VOLUME_NETS:
        torch.manual_seed(0)
        model = VOLUME_NETS[name](1, 1, width=4, depth=2, norm="batch").eval()
        if isinstance(model.dual, DualAttention):
            torch.nn.init.ones_(model.dual.positions.gamma.scale)
        given = volume.clone().requires_grad_()
        model(given)[0][..., 0].sum().backward()
        assert given.grad is not None
        seen[name] = bool(given.grad[..., -1].any())
    assert seen == {"agunet3d": False, "daunet3d": True}


def test_position_attention_is_refused_where_it_is_too_large() -> None:
    module = DualAttention(2)
    module(torch.zeros(1, 2, 1, 64, POSITIONS // 64))
    with pytest.raises(UserError, match="at most 4096 voxels at the coarsest level, got 17 x 16 x 16 = 4352") as caught:
        module(torch.zeros(1, 2, 17, 16, 16))
    assert caught.value.code == "VA-M002"


@pytest.mark.parametrize(("argument", "known"), [("gate", "concat or add"), ("norm", "instance or batch")])
def test_unknown_choices(argument: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected {known}, got 'group'"):
        tiny(**{argument: "group"})


def test_meta_device() -> None:
    for name in VOLUME_NETS:
        with torch.device("meta"):
            model = tiny(name, norm="batch")
        model.to_empty(device="cpu")
        for value in model.parameters():
            torch.nn.init.constant_(value, float("nan"))
        model.init_weights()
        assert all(value.isfinite().all() for value in model.state_dict().values())

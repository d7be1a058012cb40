"""Which backend runs, and what is said when it cannot."""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch

from visionattn import kernels
from visionattn.kernels import available_backends, dispatch, neighborhood_attention
from visionattn.kernels.available import REASONS
from visionattn.kernels.dispatch import choose, triton_reason, use_backend
from visionattn.kernels.selftest import cases

ALL = {"triton": "", "torch": "", "reference": ""}
CPU = {"triton": "it needs a CUDA device", "torch": "", "reference": ""}


def test_the_fastest_that_can_run() -> None:
    assert choose("op", None, ALL) == "triton"
    assert choose("op", "auto", CPU) == "torch"
    assert choose("op", None, {"reference": ""}) == "reference"


def test_argument_before_context_before_environment(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_asked", "reference")  # as read from the environment
    assert choose("op", None, ALL) == "reference"
    with use_backend("torch"):
        assert choose("op", None, ALL) == choose("op", "auto", ALL) == "torch"
        assert choose("op", "triton", ALL) == "triton"
        with use_backend("auto"):
            assert choose("op", None, ALL) == "triton"
        assert choose("op", None, ALL) == "torch"
    assert choose("op", None, ALL) == "reference"


def test_the_context_ends_with_an_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert choose("op", None, ALL) == "triton"


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("visionattn.kernels.dispatch")
    assert spec is not None and spec.loader is not None
    for value, chosen in (("reference", "reference"), ("", "torch"), ("tritn", "")):
        monkeypatch.setenv("VISIONATTN_BACKEND", value)
        started = importlib.util.module_from_spec(spec)  # read once, at import
        spec.loader.exec_module(started)
        if chosen:
            assert started.choose("op", None, {"torch": "", "reference": ""}) == chosen
        else:
            with pytest.raises(ValueError, match="got 'tritn'"):
                started.choose("op", None, {"torch": "", "reference": ""})


def test_reasons_and_unknown_names() -> None:
    with pytest.raises(RuntimeError, match="op: backend 'triton' cannot run: it needs a CUDA device"):
        choose("op", "triton", CPU)
    with pytest.raises(RuntimeError, match="op: backend 'torch' cannot run: it has no such backend"):
        choose("op", "torch", {"reference": ""})
    with use_backend("triton"), pytest.raises(RuntimeError, match="it needs a CUDA device"):
        choose("op", None, CPU)
    with pytest.raises(ValueError, match="one of triton, torch, reference or auto, got 'cuda'"):
        choose("op", "cuda", ALL)
    with pytest.raises(ValueError, match="got 'cuda'"), use_backend("cuda"):
        pass


def test_available_backends() -> None:
    x = torch.randn(1, 7, 7, 1, 8)
    found = available_backends("neighborhood_attention", x, x, x)
    assert list(found) == ["triton", "torch", "reference"] and found["triton"] == triton_reason(x) != ""
    assert found["torch"] == found["reference"] == ""
    assert available_backends("strip_gate", x)["triton"] == "it has no such backend"
    with pytest.raises(ValueError, match=r"expected one of agent_attention, .*, got 'neighborhood_scores'"):
        available_backends("neighborhood_scores", x)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.op}, {case.name}")
def test_what_is_available_runs_and_nothing_else_does(case) -> None:
    tensors = [tensor.float() for tensor in case.tensors]
    for backend, reason in available_backends(case.op, *tensors).items():
        if reason:
            with pytest.raises(RuntimeError, match=f"^{case.op}: backend '{backend}' cannot run: {reason}"):
                case.call(*tensors, backend=backend)
        else:
            case.call(*tensors, backend=backend)


def test_every_choice_of_a_backend_can_be_asked_for() -> None:
    with_choice = {name for name in kernels.__all__ if "backend" in inspect.signature(getattr(kernels, name)).parameters}
    assert with_choice == set(REASONS) == {case.op for case in cases()}


def test_an_operation_says_why() -> None:
    assert triton_reason(torch.zeros(1)) == "it needs a CUDA device, the tensors are on cpu"
    x = torch.randn(1, 7, 7, 1, 8)
    with pytest.raises(RuntimeError, match=r"neighborhood_attention: backend 'triton' cannot run: it needs a CUDA device, .* on cpu"):
        neighborhood_attention(x, x, x, 7, backend="triton")

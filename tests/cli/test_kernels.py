"""`visionattn kernels` and `doctor`."""

from __future__ import annotations

import json

import pytest
import torch

from tests.commands import done, va
from visionattn import __version__
from visionattn.jobs import doctor
from visionattn.kernels.available import REASONS
from visionattn.kernels.routing import fast as routing
from visionattn.kernels.window import fast as window


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several threads wait for each other in tensors of this size: the check of every family then takes minutes.
    create, used = doctor.create_model, []
    monkeypatch.setattr(doctor, "create_model", lambda name: used.append(torch.get_num_threads()) or create(name))
    torch.set_num_threads(2)
    try:
        report = json.loads(done("doctor", "--json").stdout)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert used == [1] * len(report["families"])
    assert report["problems"] == [] and set(report["families"].values()) == {"ok"} and {"swin", "eca"} <= set(report["families"])
    assert report["devices"]["cpu"] and report["versions"]["visionattn"] == __version__
    assert report["kernels"]["window_attention"].startswith("torch (ok)")


def test_kernels_list() -> None:
    found = json.loads(done("kernels", "list", "--device", "cpu", "--json").stdout)
    assert found["backends"]["window_attention"]["torch"] == "" and "CUDA" in found["backends"]["neighborhood_attention"]["triton"]
    shown = done("kernels", "list", "--device", "cpu").stdout
    assert all(op in shown for op in found["backends"]) and "it needs a CUDA device" in shown
    assert 'no device "tpu"' in va("kernels", "list", "--device", "tpu").stderr


def test_kernels_selftest(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.loads(done("kernels", "selftest", "--device", "cpu", "--json").stdout)
    assert answer["failed"] == 0 and all(item["ok"] and item["forward"] <= item["limits"][0] for item in answer["results"])
    assert {item["dtype"] for item in answer["results"]} == {"float32", "bfloat16"}
    assert {item["op"] for item in answer["results"]} == set(REASONS)
    refusal = va("kernels", "selftest", "--dtype", "int8")
    assert refusal.exit_code == 2 and "float64, float32, float16, bfloat16, got 'int8'" in refusal.stderr

    wrong, raises = window.window_attention, routing.routed_attention
    monkeypatch.setattr(window, "window_attention", lambda *given, scale, **named: wrong(*given, scale=1.001 * scale, **named))
    monkeypatch.setattr(routing, "routed_attention", lambda *given, **named: raises(*given))
    failing = va("kernels", "selftest", "--device", "cpu", "--dtype", "float32")
    count = sum(item["dtype"] == "float32" for item in answer["results"])
    assert failing.exit_code == 7 and failing.stdout.count("FAILED") == 4 and f"4 of {count} failed" in failing.stdout
    assert "routed_attention, 10x21, region 2x3, 2 of 35, torch, float32: TypeError: " in " ".join(failing.stdout.split())
    assert {"window_attention", "routed_attention"} <= {problem.split(",")[0] for problem in doctor.diagnose()["problems"]}

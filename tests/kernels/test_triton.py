"""Triton's neighborhood attention: in Triton's interpreter, compiled for GPUs that are not here, and on a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.neighborhood_triton import BF16, HALF, NAMES, SMALL, TOLERANCES, Case, errors, opcheck, two_runs_agree
from visionattn.kernels.neighborhood.reference import axis_table

pytest.importorskip("triton", reason="Triton has no wheel for this system")

ROOT = Path(__file__).parents[2]
# dim, kernel, dtype, architecture: every kernel, both products (tensor cores and IEEE float32), both tiles, the longest vectors.
VARIANTS = ("32,7,bf16,80", "32,7,bf16,90", "32,7,fp32,80", "32,7,fp32,90", "128,7,bf16,90", "24,3,fp16,80")
SHARED_LIMITS = {"80": 99 * 1024, "90": 227 * 1024}  # sm_86 and sm_89 run sm_80's code, and have less than its 163 KB


def lines_of(module: str, *args: str, **environment: str) -> list[dict[str, Any]]:
    """What a module prints, as JSON lines; it runs in a process of its own, since Triton reads the environment when imported."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.kernels.{module}", *args]
    done = subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: dict[str, float], dtype: torch.dtype) -> None:
    """The errors are within the tolerances; a NaN is not."""
    forward, backward = TOLERANCES[dtype]
    wrong = {name: error for name, error in found.items() if not error <= (forward if name == "o" else backward)}
    assert not wrong, f"{dtype}: {wrong}"


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    lines = lines_of("neighborhood_triton", TRITON_INTERPRET="1")
    cases = [line for line in lines if "case" in line]
    assert len(cases) == len(SMALL) + len(HALF) + len(BF16)
    for line in cases:
        expected = NAMES if SMALL[line["case"]].bias else NAMES[:-1]
        assert tuple(line["errors"]) == expected, line["case"]
        check(line["errors"], getattr(torch, line["dtype"].removeprefix("torch.")))
    assert lines[-2] == {"two runs agree": True}
    assert [set(verdicts.values()) for verdicts in lines[-1]["opcheck"]] == [{"SUCCESS"}, {"SUCCESS"}]


@pytest.mark.slow
def test_compiled_code() -> None:
    pytest.importorskip("triton", minversion="3.6", reason="older compilers need a few registers more")
    lines = lines_of("compile_neighborhood", *VARIANTS)
    assert len(lines) == 4 * len(VARIANTS)
    for line in lines:
        _, kernel, dtype, arch = line["variant"].split(",")
        assert line["spilled"] == 0, line
        assert line["shared"] <= SHARED_LIMITS[arch], line
        if dtype == "fp32":
            assert line["mma"] == line["wgmma"] == 0, line
        elif arch == "90" and kernel == "7":  # a small tile has too few rows for wgmma
            assert line["wgmma"] > 0, line
        else:
            assert line["mma"] > 0, line


@pytest.mark.parametrize("shift", [True, False])
def test_the_frame_of_the_bias_gradient(shift: bool) -> None:
    from visionattn.kernels.neighborhood.triton import _frame

    for kernel in (1, 3, 7, 13):
        for dilation in (1, 3):
            for length in range(kernel * dilation if shift else 1, 60):
                keys, _, exist = axis_table(length, kernel, dilation, "shift" if shift else "mask", torch.device("cpu"))
                step = torch.arange(length)[:, None] // dilation
                places = (keys // dilation - step // 8 * 8)[exist]
                assert _frame(length, kernel, dilation, 8, shift) == (int(places.min()), int(places.max()) + 1), (length, kernel, dilation)


def test_what_it_cannot_run() -> None:
    from visionattn.kernels.neighborhood.triton import reason

    q = torch.empty(1, 7, 7, 1, 136)
    assert reason(q[..., :128], q[..., :128], q[..., :128]) == ""
    assert reason(q, q, q) == "the head dim must be at most 128, got 136"
    assert "must all be" in reason(q.double(), q.double(), q.double())
    assert "must all be" in reason(q, q.half(), q)


LARGE = {
    "DiNAT-T, stage 1": Case(4, 56, 56, 2, 32, (7, 7)),
    "DiNAT-T, stage 1, dilated": Case(4, 56, 56, 2, 32, (7, 7), (8, 8)),
    "uneven, dilated": Case(2, 61, 47, 3, 64, (5, 9), (3, 2)),
    "3x3": Case(2, 64, 48, 4, 24, (3, 3), border="mask"),
    "13x13, dim 128": Case(1, 33, 40, 2, 128, (13, 13)),
    "without bias": Case(2, 28, 28, 4, 32, (7, 7), bias=False),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnTheGpu:
    @pytest.mark.parametrize("name", [*SMALL, *LARGE])
    @pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
    def test_equals_the_definition(self, name: str, dtype: torch.dtype) -> None:
        check(errors({**SMALL, **LARGE}[name], dtype, "cuda"), dtype)

    @pytest.mark.parametrize("name", list(LARGE))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_two_runs_agree(self, name: str, dtype: torch.dtype) -> None:
        assert two_runs_agree(LARGE[name], dtype, "cuda")

    def test_opcheck(self) -> None:
        assert set(opcheck(LARGE["uneven, dilated"], torch.float32, "cuda").values()) == {"SUCCESS"}

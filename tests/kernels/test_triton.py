"""The Triton kernels: in Triton's interpreter, compiled for GPUs that are not here, and on a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.interpreted import (
    BF16,
    CHECKED,
    HALF,
    MIXED,
    SMALL,
    TOLERANCES,
    Aggregated,
    Case,
    Neighborhood,
    Routed,
    cast,
    errors,
    opcheck,
    two_runs_agree,
)
from visionattn.kernels import aggregated_attention, neighborhood_attention, routed_attention
from visionattn.kernels.neighborhood.reference import axis_table

pytest.importorskip("triton", reason="Triton has no wheel for this system")

ROOT = Path(__file__).parents[2]
# Case, dtype, architecture: every kernel, both products (tensor cores and IEEE float32), all tiles, the longest vectors.
# Per operation, with the number of its kernels.
COMPILED = {
    "neighborhood": (
        4,
        ("DiNAT/bf16/80", "DiNAT/bf16/90", "DiNAT/fp32/80", "DiNAT/fp32/90", "7x7, dim 128/bf16/90", "3x3, dim 24/fp16/80"),
    ),
    "routed": (
        3,
        (
            "BiFormer, stage 1/bf16/90",
            "BiFormer, stage 1/fp32/80",
            "BiFormer, stage 3/bf16/80",
            "BiFormer, stage 2/fp32/90",
            "routed, dim 64/fp16/80",
        ),
    ),
    "aggregated": (
        5,
        ("TransNeXt/bf16/80", "TransNeXt/fp32/90", "TransNeXt, autocast/bf16/90", "aggregated, dim 64/fp16/80"),
    ),
}
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
@pytest.mark.parametrize("kind", [Neighborhood, Routed, Aggregated])
def test_in_the_interpreter(kind: type[Case]) -> None:
    lines = lines_of("interpreted", kind.__name__, TRITON_INTERPRET="1")
    cases, checked = [line for line in lines if "case" in line], [line for line in lines if "opcheck" in line]
    assert len(cases) == sum(isinstance(SMALL[name], kind) for name in (*SMALL, *HALF, *BF16))
    assert len(checked) == sum(isinstance(case, kind) for case in CHECKED) > 0
    for line in cases:
        case = SMALL[line["case"]]
        tensors = case.inputs(torch.zeros)
        assert set(line["errors"]) == {"o", *(f"d{name}" for name, x in tensors.items() if x is not None and x.is_floating_point())}
        check(line["errors"], getattr(torch, line["dtype"].removeprefix("torch.")))
    for line in checked:
        assert line["two runs agree"] and set(line["opcheck"].values()) == {"SUCCESS"}, line


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_code(kind: str) -> None:
    pytest.importorskip("triton", minversion="3.6", reason="older compilers need a few registers more")
    kernels, variants = COMPILED[kind]
    lines = lines_of("compiled", *variants)
    assert len(lines) == kernels * len(variants)
    for line in lines:
        arch = line["variant"].rpartition("/")[2]
        assert line["spilled"] == 0, line
        assert line["shared"] <= SHARED_LIMITS[arch], line
        assert bool(line["mma"] or line["wgmma"]) == bool(line["rows"]), line  # tensor cores for every product but those in float32
        assert bool(line["wgmma"]) == (arch == "90" and any(rows >= 64 for rows in line["rows"])), line  # which takes 64 rows
        products = "fp32" not in line["variant"] and (kind, line["kernel"]) != ("aggregated", "_dk_dv_kernel")  # which has none
        assert bool(line["rows"]) == products, line


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


def test_what_they_cannot_run() -> None:
    from visionattn.kernels.aggregated import triton as aggregated
    from visionattn.kernels.neighborhood import triton as neighborhood
    from visionattn.kernels.routing import triton as routing

    q = torch.empty(1, 7, 7, 1, 136)
    for reason in (neighborhood.reason, routing.reason, aggregated.reason):
        assert reason(q[..., :128], q[..., :128], q[..., :128]) == ""
        assert reason(q, q, q) == "the head dim must be at most 128, got 136"
        assert "must all be" in reason(q.double(), q.double(), q.double())
    q = q[..., :8]
    assert "must all be" in neighborhood.reason(q, q.half(), q) and "must all be" in routing.reason(q, q.half(), q)
    assert aggregated.reason(q, q.half(), q) == ""


def test_the_operations_choose_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were CUDA: float32 is launched, float64 is not."""
    for name in ("neighborhood", "routing", "aggregated"):
        monkeypatch.setattr(f"visionattn.kernels.{name}.triton_reason", lambda x: "")
    for case in CHECKED:
        monkeypatch.setattr(case.operators()[0], "forward", lambda q, *_: (q,))
        for dtype in (torch.float32, torch.float64):
            given = list(cast(case, case.inputs(torch.zeros), dtype, "cpu").values())
            assert (operation(case, given) is given[0]) == (dtype == torch.float32)


def operation(case: Case, given: list[Any]) -> torch.Tensor:
    """A call of the public operation."""
    if isinstance(case, Neighborhood):
        return neighborhood_attention(*given[:3], case.kernel, case.dilation, bias=given[3], border=case.border)
    if isinstance(case, Routed):
        return routed_attention(*given, case.region)
    biases = dict(zip(("local_bias", "pool_bias", "local_weight"), given[5:], strict=True))
    return aggregated_attention(*given[:5], **biases, kernel_size=case.kernel)


LARGE: dict[str, Case] = {
    "DiNAT-T, stage 1": Neighborhood(4, 56, 56, 2, 32, (7, 7)),
    "DiNAT-T, stage 1, dilated": Neighborhood(4, 56, 56, 2, 32, (7, 7), (8, 8)),
    "uneven, dilated": Neighborhood(2, 61, 47, 3, 64, (5, 9), (3, 2)),
    "large 3x3": Neighborhood(2, 64, 48, 4, 24, (3, 3), border="mask"),
    "13x13, dim 128": Neighborhood(1, 33, 40, 2, 128, (13, 13)),
    "without bias": Neighborhood(2, 28, 28, 4, 32, (7, 7), bias=False),
    "BiFormer, stage 1": Routed(4, 56, 56, 2, 32, (8, 8), 1),
    "BiFormer, stage 2": Routed(4, 28, 28, 4, 32, (4, 4), 4),
    "BiFormer, stage 3": Routed(4, 14, 14, 8, 32, (2, 2), 16),
    "routed, uneven, dim 128": Routed(1, 45, 55, 2, 128, (9, 11), 7),
    "TransNeXt, stage 1": Aggregated(4, 56, 56, 3, 24, 3, 49),
    "TransNeXt, stage 3, mixed": Aggregated(4, 14, 14, 12, 24, 3, 49, wide=MIXED),
    "aggregated, uneven, dim 128": Aggregated(2, 33, 47, 2, 128, 5, 100),
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

    @pytest.mark.parametrize("name", ["uneven, dilated", "BiFormer, stage 3", "TransNeXt, stage 1"])
    def test_opcheck(self, name: str) -> None:
        assert set(opcheck(LARGE[name], torch.float32, "cuda").values()) == {"SUCCESS"}

"""Which implementation of an operation runs, and why.

An operation has up to three: `reference`, its definition; `torch`, the fast form in plain PyTorch; and
`triton`, for CUDA. It tells for the tensors at hand which of them it cannot run and for what reason;
the fastest of the others runs, unless one is asked for by the argument `backend=`, by `use_backend`,
or by the environment variable VISIONATTN_BACKEND, in this order of precedence. Inside `record_attention`
it is always `reference`, whose weights are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from visionattn.kernels.record import recording

BACKENDS = ("triton", "torch", "reference")  # the fastest first
NONE_SUCH = "it has no such backend"

_asked: str | None = os.environ.get("VISIONATTN_BACKEND") or None  # read once: traced code cannot look at the environment

_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
_cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
_EMULATED = {dtype for dtype, names in _INSTRUCTIONS.items() if _cpu.get("architecture") == "x86_64" and not any(map(_cpu.get, names))}


class BackendError(RuntimeError, ValueError):
    """A backend was asked for that does not exist, or that cannot run with these tensors."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """All operations run on this backend, or raise with the reason why they cannot; "auto" chooses freely.

    Raises:
        ValueError: no such backend.
    """
    global _asked
    before, _asked = _asked, _known(name)
    try:
        yield
    finally:
        _asked = before


def choose(op: str, backend: str | None, reasons: Mapping[str, str]) -> str:
    """The backend that runs.

    Args:
        op: name of the operation, for messages.
        backend: the one asked for; None or "auto" leaves it to `use_backend`, the environment, or speed.
        reasons: per backend that the operation has: why it cannot run with these tensors, empty if it can.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend asked for cannot run, with the reason.
    """
    asked = _known(backend) if backend not in (None, "auto") else _known(_asked or "auto")
    if recording():
        return "reference"
    if asked == "auto":
        return next(name for name in BACKENDS if reasons.get(name) == "")
    reason = reasons.get(asked, NONE_SUCH)
    if reason:
        raise BackendError(f"{op}: backend {asked!r} cannot run: {reason}")
    return asked


def torch_only(*tensors: torch.Tensor) -> dict[str, str]:
    """`reasons` of an operation without a Triton kernel: plain PyTorch runs with all tensors."""
    return {"torch": "", "reference": ""}


def triton_reason(x: torch.Tensor) -> str:
    """Why a Triton kernel cannot run on a tensor; empty if it can. Triton itself is imported only on CUDA."""
    if x.device.type != "cuda":
        return f"it needs a CUDA device, the tensors are on {x.device.type}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return ""


def emulated(x: torch.Tensor) -> bool:
    """Whether the CPU that a tensor is on has no instructions for products of its dtype; in float32 they are faster then."""
    return x.device.type == "cpu" and x.dtype in _EMULATED


def _known(name: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise BackendError(f"backend: expected one of {', '.join(BACKENDS)} or auto, got {name!r}")
    return name

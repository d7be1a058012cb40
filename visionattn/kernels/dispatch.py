"""Choose the backend of an operation.

An operation has up to three backends: `reference`, its definition; `torch`, a fast form in plain PyTorch; and
`triton`, for CUDA. It determines which of them cannot run with the given tensors, and why;
the fastest of the others runs, unless one is requested by the argument `backend=`, by `use_backend`,
or by the environment variable VISIONATTN_BACKEND, in this order of precedence. Inside `record_attention`
`reference` always runs, because it can record its weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from visionattn.kernels.record import recording

BACKENDS = ("triton", "torch", "reference")  # fastest first
NONE_SUCH = "it has no such backend"

_asked: str | None = os.environ.get("VISIONATTN_BACKEND") or None  # read once: traced code cannot read the environment

_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
_cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
_EMULATED = {dtype for dtype, names in _INSTRUCTIONS.items() if _cpu.get("architecture") == "x86_64" and not any(map(_cpu.get, names))}


class BackendError(RuntimeError, ValueError):
    """The requested backend does not exist, or cannot run with these tensors."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run all operations with this backend, or raise with the reason if one cannot; "auto" uses the default choice.

    Raises:
        ValueError: unknown backend.
    """
    global _asked
    before, _asked = _asked, _known(name)
    try:
        yield
    finally:
        _asked = before


def choose(op: str, backend: str | None, reasons: Mapping[str, str]) -> str:
    """Choose the backend to run.

    Args:
        op: name of the operation, for messages.
        backend: requested backend; None or "auto" defers to `use_backend`, the environment, or speed.
        reasons: for each backend of the operation, the reason it cannot run with these tensors, empty if it can.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the requested backend cannot run; the message gives the reason.
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
    """Return the `reasons` of an operation without a Triton kernel: plain PyTorch runs with all tensors."""
    return {"torch": "", "reference": ""}


def triton_reason(x: torch.Tensor) -> str:
    """Return the reason that Triton kernels cannot run on a tensor, empty if they can. Triton is imported only on CUDA."""
    if x.device.type != "cuda":
        return f"it needs a CUDA device, the tensors are on {x.device.type}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return ""


def emulated(x: torch.Tensor) -> bool:
    """Whether a tensor is on a CPU without instructions for products of its dtype, where float32 is faster."""
    return x.device.type == "cpu" and x.dtype in _EMULATED


def _known(name: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise BackendError(f"backend: expected one of {', '.join(BACKENDS)} or auto, got {name!r}")
    return name

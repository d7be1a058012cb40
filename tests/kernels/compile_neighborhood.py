"""Compiles the Triton kernels of neighborhood attention for GPUs that are not here; run as a module.

Prints a line of JSON per kernel and architecture: registers spilled, shared memory, tensor core instructions.
What is compiled is what the launcher launches: the arguments of each launch are caught, for tensors without data.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visionattn.kernels.neighborhood import triton as ours

KERNELS = {name: getattr(ours, f"_{name}_kernel") for name in ("forward", "dq", "dk_dv", "dbias")}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def launches(dim: int, kernel: int, dtype: torch.dtype) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of the four launches of a training step: two images of 56x56, two heads, q, k, v in one projection, with bias."""
    caught: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    for name, function in KERNELS.items():

        def catch(*args: Any, name: str = name, grid: Any = None, warmup: bool = False, **options: Any) -> None:
            caught[name] = args, options

        function.run = catch
    q, k, v = torch.empty(2, 56, 56, 3, 2, dim, dtype=dtype, device="meta").unbind(3)
    bias = torch.empty(2, 2 * kernel - 1, 2 * kernel - 1, device="meta")
    lse = torch.empty(q.shape[:4], device="meta")
    call = ours._Call(q, k, v, bias, (kernel, kernel), (2, 2), dim**-0.5, True)
    call.run("forward", KERNELS["forward"], q, lse)
    call.run("dq", KERNELS["dq"], q, lse, q, q, lse)
    call.run("dk_dv", KERNELS["dk_dv"], lse, lse, q, q, q)
    call.run_dbias(lse, lse, q)
    return caught


def compiled(function: Any, args: tuple[Any, ...], options: dict[str, Any], arch: int) -> Any:
    """The kernel, specialised as Triton's launcher would: on 1, and on multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, (name, value) in enumerate(zip(function.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[(index,)] = "constexpr", 1
        else:
            signature[name] = "i32"
        if isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    for index, name in enumerate(function.arg_names):
        if name in options:
            signature[name], constants[(index,)] = "constexpr", options.pop(name)
    assert list(signature) == function.arg_names
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def facts(kernel: Any) -> dict[str, int]:
    """What the machine code uses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"\b{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    code = kernel.asm["ptx"]
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": kernel.metadata.shared,
        "mma": code.count("mma.sync"),
        "wgmma": code.count("wgmma.mma_async"),
    }


def main() -> None:
    """Arguments: dim,kernel,dtype,arch; repeated."""
    dtypes = {name: dtype for dtype, name in TYPES.items()}
    for variant in sys.argv[1:]:
        dim, kernel, dtype, arch = variant.split(",")
        for name, (args, options) in launches(int(dim), int(kernel), dtypes[dtype]).items():
            found = facts(compiled(KERNELS[name], args, options, int(arch)))
            print(json.dumps({"variant": variant, "kernel": name, **found}), flush=True)


if __name__ == "__main__":
    main()

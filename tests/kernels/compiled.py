"""Compiles the Triton kernels for GPUs that are not here; run as a module.

Prints a line of JSON per kernel and architecture: registers spilled, shared memory, tensor core instructions.
What is compiled is what the operators launch in a training step: the arguments of each launch are caught, for tensors without data.
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

from tests.kernels.interpreted import MIXED, Aggregated, Case, Neighborhood, Routed, cast, inputs

CASES: dict[str, Case] = {
    "DiNAT": Neighborhood(1, 56, 56, 2, 32, (7, 7), (2, 2)),
    "7x7, dim 128": Neighborhood(1, 56, 56, 2, 128, (7, 7), (2, 2)),
    "3x3, dim 24": Neighborhood(1, 56, 56, 2, 24, (3, 3), (2, 2)),
    "BiFormer, stage 1": Routed(1, 56, 56, 2, 32, (8, 8), 1),
    "BiFormer, stage 2": Routed(1, 28, 28, 4, 32, (4, 4), 4),
    "BiFormer, stage 3": Routed(1, 14, 14, 8, 32, (2, 2), 16),
    "routed, dim 64": Routed(1, 56, 56, 2, 64, (8, 8), 4),
    "TransNeXt": Aggregated(1, 56, 56, 3, 24, 3, 49),
    "TransNeXt, autocast": Aggregated(1, 56, 56, 3, 24, 3, 49, wide=MIXED),
    "aggregated, dim 64": Aggregated(1, 56, 56, 2, 64, 3, 49),
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def launches(case: Case, dtype: torch.dtype) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The kernels of a training step and the arguments of their launches."""
    module, how, more = case.operators()
    kernels = {name: kernel for name, kernel in vars(module).items() if name.endswith("_kernel")}
    caught: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
    for name, kernel in kernels.items():

        def catch(*args: Any, name: str = name, grid: Any = None, warmup: bool = False, **options: Any) -> None:
            caught[name] = kernels[name], args, options

        kernel.run = catch
    tensors, _ = inputs(case, dtype)
    given = list(cast(case, tensors, dtype, "meta").values())
    o, *others = module.forward._init_fn(*given, *how)
    module.backward._init_fn(*given, *(others if len(others) > 1 else (o, *others)), o, *how, *more)
    assert list(caught) and set(caught) == set(kernels)
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


def facts(kernel: Any) -> dict[str, Any]:
    """What the machine code uses, and of the matrix products their rows and whether they are of half precision."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"\b{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    products = re.findall(r"tt\.dot .*: tensor<(\d+)x\d+x(\w+)> \* ", kernel.asm["ttir"])
    assert len(products) == len(re.findall(r"tt\.dot ", kernel.asm["ttir"]))
    code = kernel.asm["ptx"]
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": kernel.metadata.shared,
        "rows": [int(rows) for rows, dtype in products if dtype != "f32"],
        "mma": code.count("mma.sync"),
        "wgmma": code.count("wgmma.mma_async"),
    }


def main() -> None:
    """Arguments: case/dtype/arch; repeated."""
    dtypes = {name: dtype for dtype, name in TYPES.items()}
    for variant in sys.argv[1:]:
        name, dtype, arch = variant.split("/")
        for kernel, launched in launches(CASES[name], dtypes[dtype]).items():
            print(json.dumps({"variant": variant, "kernel": kernel, **facts(compiled(*launched, int(arch)))}), flush=True)


if __name__ == "__main__":
    main()

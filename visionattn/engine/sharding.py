"""Weights, gradients and optimizer state shared out among processes (torch's FSDP2), with checkpoints as those of any other run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, device: torch.device, world: int) -> None:
    """Leave each process its share of every parameter; a block of the backbone is whole only while it computes.

    Args:
        model: on `device`, before its optimizer is built.
        world: number of processes.
    """
    mesh = init_device_mesh(device.type, (world,))
    lists = [module for module in model.backbone.modules() if isinstance(module, nn.ModuleList)]  # type: ignore[union-attr]
    for block in [block for blocks in lists for block in blocks if not any(isinstance(part, nn.ModuleList) for part in block.modules())]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: Any) -> Any:
    """A value with its shared tensors put together on the CPU, in dicts and lists too; all processes call this."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def load_model(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load whole tensors; all processes call this with the same ones."""
    own = model.state_dict()
    model.load_state_dict({name: _share(tensor, own[name]) if name in own else tensor for name, tensor in state.items()})


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a state of whole tensors; all processes call this with the same one."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    shared = {index: {name: _share(value, params[index]) for name, value in values.items()} for index, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": shared})


def _share(value: Any, like: torch.Tensor) -> Any:
    """This process' part of a tensor, if `like` is shared out and has its shape."""
    if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

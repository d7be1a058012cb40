"""What 3D networks share: how the weights of another run are loaded into them, as `load_checkpoint` asks backbones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from visionattn.layers import recomputed


class Network3d(nn.Module):
    """A network that takes volumes `[B, C, x, y, z]`; its last layers have `num_classes` outputs."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.grad_checkpointing = False

    @property
    def first_conv(self) -> str:
        """Name of the first convolution."""
        return next(name for name, module in self.named_modules() if isinstance(module, nn.Conv3d))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn the recomputation of activations in the backward pass on or off."""
        self.grad_checkpointing = enable

    def run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """Call a block, whose activations are computed again in the backward pass if that is asked for."""
        found: Any = recomputed(block, *inputs) if self.grad_checkpointing and self.training else block(*inputs)
        return found

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the keys of a file; there are none in other layouts."""
        return state

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Keep the own values of the last layers if the file has them for another number of classes, in place."""
        own, changed = self.state_dict(), 0
        for key, value in state.items():
            wanted = own.get(key)
            if wanted is not None and value.shape[1:] == wanted.shape[1:] and len(wanted) == self.num_classes != len(value):
                state[key], changed = wanted, changed + 1
        return [f"{changed} tensors of the last layers are for another number of classes: they start anew"] if changed else []

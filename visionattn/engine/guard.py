"""What a step leaves in a model if it must not count, and losses that stand out."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

import torch
from torch import nn

WINDOW = 100  # steps that a loss is compared with
SPIKE = 6.0  # standard deviations above their mean
_ENOUGH = 20  # losses before any is compared


class LossWatch:
    """Finds losses far above those of the steps before."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def spike(self, loss: float) -> str | None:
        """Describe a loss that stands out, and start over, so that a plateau of them is said once; None for any other."""
        mean = fmean(self.recent) if self.recent else 0.0
        spread = max(pstdev(self.recent), 0.01 * abs(mean)) if self.recent else 0.0
        high = len(self.recent) >= _ENOUGH and loss > mean + SPIKE * spread
        if high:
            self.recent.clear()
        self.recent.append(loss)
        return f"loss {loss:.3f}, {(loss - mean) / spread:.0f} standard deviations above its recent mean {mean:.3f}" if high else None


def copy_buffers(model: nn.Module) -> list[torch.Tensor]:
    """The buffers of a model: batch statistics take in every input, also that of a step that is left out."""
    return [buffer.clone() for buffer in model.buffers()]


def restore_buffers(model: nn.Module, saved: list[torch.Tensor]) -> None:
    """Return to the buffers of `copy_buffers`."""
    for buffer, before in zip(model.buffers(), saved, strict=True):
        buffer.copy_(before)

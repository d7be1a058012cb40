"""Which images come when: a pure function of the seed, the epoch, the step and the process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from visionattn.errors import UserError

_MASK = 2**64 - 1


def mix(*numbers: int) -> int:
    """A hash of integers in 0..2**32 - 1 that depends on their order (splitmix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = ((state ^ (number & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` keys in a new order each epoch; what does not fill a batch is left out.

    Args:
        size: images in the training set.
        batch_size: images per batch and process.
        rank: this process, which gets its own part of each global batch of `batch_size * world`.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch, self.step = 0, 0

    def set_position(self, epoch: int, step: int) -> None:
        """Where the next iteration starts: batches before `step` of `epoch` are left out."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Batches in a full epoch."""
        return self.size // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng(mix(self.seed, epoch)).permutation(self.size)
        for step in range(self.step, len(self)):
            start = (step * self.world + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


def require_batches(size: int, batch_size: int, world: int = 1) -> None:
    """Stop where an epoch would have no batch.

    Raises:
        UserError: VA-C011.
    """
    if size >= batch_size * world:
        return
    processes = f" on {world} processes" if world > 1 else ""
    raise UserError(
        "VA-C011",
        f"drop_last would leave 0 batches: {size} images, batch size {batch_size}{processes}",
        why="incomplete batches are dropped in training",
        fix=f"train.batch_size={max(1, size // world)}",
    )


def eval_indices(size: int, rank: int, world: int) -> range:
    """The images of one process in evaluation: every image once over all of them, none twice."""
    return range(rank, size, world)

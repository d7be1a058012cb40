"""Order of samples: a pure function of seed, epoch, step and process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from visionattn.errors import UserError

_MASK = 2**64 - 1
REPEAT = 2**32  # added to the epoch in the key of a sample that occurs again, which augments it anew


def derive_seed(*numbers: int) -> int:
    """Hash integers, in order, to a seed in 0..2**32 - 1 (splitmix64, Steele et al. 2014).

    numpy's SeedSequence would change the order and augmentation behind every published figure, and runs could no longer be
    resumed bit for bit.
    """
    state = 0
    for number in numbers:
        state = ((state ^ (number & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` keys in a new order each epoch; an incomplete last batch is dropped.

    Args:
        size: samples in the training set.
        batch_size: samples per batch and process.
        rank: number of this process, which receives its part of each global batch of `batch_size * world`.
        classes: class of each sample, to show each class equally often; samples of a small one occur several times in an epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, classes: Sequence[int] | None = None) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.members = None if classes is None else _by_class(np.asarray(classes))
        self.epoch, self.step = 0, 0

    def set_position(self, epoch: int, step: int) -> None:
        """Start the next iteration at batch `step` of `epoch`."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Batches in a full epoch."""
        return self.size // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        passes, order = self._order(np.random.default_rng(derive_seed(self.seed, self.epoch)))
        for step in range(self.step, len(self)):
            start = (step * self.world + self.rank) * self.batch_size
            yield [(int(passes[place]), int(order[place])) for place in range(start, start + self.batch_size)]

    def _order(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """First and second part of the keys of an epoch."""
        if self.members is None:
            return np.full(self.size, self.epoch), rng.permutation(self.size)
        count = len(self.members)
        turns = rng.permutation((np.arange(self.size) + rng.integers(count)) % count)  # classes: as many of each, or one more
        passes, order = np.empty(self.size, np.int64), np.empty(self.size, np.int64)
        for members, places in zip(self.members, _by_class(turns), strict=True):
            repeats = np.arange(len(places)) // len(members)
            order[places] = np.concatenate([rng.permutation(members) for _ in range(repeats[-1] + 1)])[: len(places)]
            passes[places] = self.epoch + repeats * REPEAT
        return passes, order


def _by_class(classes: np.ndarray) -> list[np.ndarray]:
    """The positions of each class that occurs, by its number."""
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def require_batches(size: int, batch_size: int, world: int = 1) -> None:
    """Stop if an epoch would have no batches.

    Raises:
        UserError: VA-C011.
    """
    if size >= batch_size * world:
        return
    processes = f" on {world} processes" if world > 1 else ""
    raise UserError(
        "VA-C011",
        f"drop_last would leave 0 batches: {size} samples, batch size {batch_size}{processes}",
        why="incomplete batches are dropped in training",
        fix=f"train.batch_size={max(1, size // world)}",
    )


def eval_indices(size: int, rank: int, world: int) -> range:
    """The samples that one process evaluates; across processes each sample occurs exactly once."""
    return range(rank, size, world)

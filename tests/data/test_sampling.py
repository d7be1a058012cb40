from collections import Counter

import numpy as np
import pytest
import torch

from visionattn.data.sampling import TrainSampler, derive_seed, eval_indices, require_batches
from visionattn.errors import UserError


def test_derived_seeds_are_fixed_ordered_and_spread() -> None:
    # the first is the first output of splitmix64 from state 0
    assert [derive_seed(0), derive_seed(0, 0), derive_seed(1, 2, 3)] == [0xE220A839, 2802244911, 3497215824]
    assert [derive_seed(7, 3, 11), derive_seed(2**40, 5), derive_seed(-1, 2)] == [1875506908, 690480434, 1370496339]
    assert derive_seed(1, 2) != derive_seed(2, 1) and derive_seed(0, 1) != derive_seed(1, 0) and derive_seed(5) != derive_seed(5, 0)
    values = np.array([derive_seed(0, epoch, index) for epoch in range(20) for index in range(500)])
    assert len(set(values.tolist())) == len(values) and values.min() >= 0 and values.max() < 2**32
    assert abs(values.mean() / 2**31 - 1) < 0.03
    assert derive_seed(-1) == derive_seed(2**64 - 1)


def epoch_of(sampler: TrainSampler, epoch: int, step: int = 0) -> list[list[tuple[int, int]]]:
    sampler.set_position(epoch, step)
    return list(sampler)


def test_an_epoch_is_a_permutation_without_the_rest() -> None:
    sampler = TrainSampler(23, 5, seed=3)
    batches = epoch_of(sampler, 0)
    assert len(sampler) == len(batches) == 4 and all(len(batch) == 5 for batch in batches)
    keys = [key for batch in batches for key in batch]
    assert {epoch for epoch, _ in keys} == {0}
    assert len({index for _, index in keys}) == 20 and all(type(index) is int and 0 <= index < 23 for _, index in keys)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sampler = TrainSampler(23, 5, seed=3)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert [[index for _, index in batch] for batch in first] != [[index for _, index in batch] for batch in second]
    torch.manual_seed(9), np.random.seed(9)
    assert epoch_of(TrainSampler(23, 5, seed=3), 1) == second
    assert epoch_of(TrainSampler(23, 5, seed=4), 1) != second


CLASSES = [0] * 40 + [3] * 8 + [7] * 2


def test_balanced_classes_are_equally_frequent_and_repeated_samples_differ() -> None:
    sampler, seen = TrainSampler(50, 5, 3, classes=CLASSES), Counter[int]()
    for epoch in range(6):
        keys = [key for batch in epoch_of(sampler, epoch) for key in batch]
        counts = Counter(CLASSES[index] for _, index in keys)
        assert len(keys) == 50 and set(counts.values()) <= {16, 17}
        assert len(set(keys)) == 50 and all(type(part) is int for key in keys for part in key)  # each is augmented in its own way
        by_index = Counter(index for _, index in keys)
        for number in (0, 3, 7):  # within a class, samples take turns
            own = [by_index[index] for index in range(50) if CLASSES[index] == number]
            assert max(own) - min(own) <= 1
        assert {number % 2**32 for number, _ in keys} == {epoch}
        seen += Counter(index for _, index in keys)
    assert len(seen) == 50  # large classes are seen in turns too


def test_a_class_per_sample_is_a_plain_epoch() -> None:
    keys = [key for batch in epoch_of(TrainSampler(8, 2, 0, classes=range(8)), 1) for key in batch]
    assert sorted(keys) == [(1, index) for index in range(8)]


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_resuming_within_an_epoch(classes: list[int] | None) -> None:
    whole = epoch_of(TrainSampler(50, 4, 0, classes=classes), 2)
    assert (
        epoch_of(TrainSampler(50, 4, 0, classes=classes), 2, 5) == whole[5:]
        and epoch_of(TrainSampler(50, 4, 1, classes=classes), 2) != whole
    )


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(world: int, classes: list[int] | None) -> None:
    single = epoch_of(TrainSampler(50, 4 * world, seed=1, classes=classes), 5)
    ranks = [epoch_of(TrainSampler(50, 4, 1, rank, world, classes), 5) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(single)}
    for step, batch in enumerate(single):
        assert [key for rank in ranks for key in rank[step]] == batch


@pytest.mark.parametrize(("size", "batch", "world", "proposed"), [(10, 32, 1, 10), (10, 6, 2, 5), (1, 4, 2, 1)])
def test_no_batch_left(size: int, batch: int, world: int, proposed: int) -> None:
    with pytest.raises(UserError) as caught:
        require_batches(size, batch, world)
    assert caught.value.code == "VA-C011" and caught.value.exit_code == 2
    assert f"drop_last would leave 0 batches: {size} samples, batch size {batch}" in caught.value.what
    assert caught.value.fix == f"train.batch_size={proposed}"
    require_batches(batch * world, batch, world)


@pytest.mark.parametrize("size", [0, 1, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_covers_every_image_once(size: int, world: int) -> None:
    parts = [eval_indices(size, rank, world) for rank in range(world)]
    assert sorted(index for part in parts for index in part) == list(range(size))

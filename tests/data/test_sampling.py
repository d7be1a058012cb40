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


def test_resuming_gives_the_remaining_batches() -> None:
    sampler = TrainSampler(40, 4, seed=0)
    whole = epoch_of(sampler, 2)
    for step in (0, 1, 9, 10):
        assert epoch_of(TrainSampler(40, 4, seed=0), 2, step) == whole[step:]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(world: int) -> None:
    single = epoch_of(TrainSampler(50, 4 * world, seed=1), 5)
    ranks = [epoch_of(TrainSampler(50, 4, 1, rank, world), 5) for rank in range(world)]
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

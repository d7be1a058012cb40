"""Batches: what the engine may do with them without knowing what is inside."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from visionattn.data.readers import UnreadableFile
from visionattn.data.sampling import TrainSampler, derive_seed
from visionattn.tasks.batch import Batch, SampleDataset, collate


def batch(count: int = 5) -> Batch:
    data = {"image": torch.arange(count * 2.0).reshape(count, 2), "names": [f"n{index}" for index in range(count)], "spacing": 0.5}
    numbers = range(10, 10 + count)
    return Batch(data, list(numbers), [f"{n}.png" for n in numbers], [f"patient {n // 2}" for n in numbers], [("x.png", "broken")])


def test_take_cuts_tensors_and_lists() -> None:
    part = batch().take(1, 3)
    assert len(part) == 2 and part["image"].tolist() == [[2, 3], [4, 5]] and part["names"] == ["n1", "n2"] and part["spacing"] == 0.5
    assert (part.indices, part.ids, part.cases) == ([11, 12], ["11.png", "12.png"], ["patient 5", "patient 6"])
    assert part.unreadable == []  # they belong to no part, and are reported once


@pytest.mark.parametrize(("count", "parts", "sizes"), [(5, 2, [3, 2]), (5, 5, [1] * 5), (5, 1, [5]), (2, 4, [1, 1]), (7, 3, [3, 2, 2])])
def test_split_into_nearly_equal_parts(count: int, parts: int, sizes: list[int]) -> None:
    whole = batch(count)
    found = whole.split(parts)
    assert [len(part) for part in found] == [len(part["image"]) for part in found] == sizes
    assert [name for part in found for name in part.ids] == whole.ids
    assert torch.equal(torch.cat([part["image"] for part in found]), whole["image"])


def test_other_values_for_the_same_samples() -> None:
    given = batch()
    other = given.with_data(label=torch.zeros(5), names=None)
    assert set(other.data) == {"image", "names", "spacing", "label"} and other["names"] is None and other.unreadable == given.unreadable
    assert (other.indices, other.ids, other.cases) == (given.indices, given.ids, given.cases)
    assert "label" not in given.data and given["names"] is not None


def test_to_a_device_moves_tensors_only() -> None:
    given = batch()
    moved = given.to(torch.device("meta"))
    assert moved["image"].device.type == "meta" and moved["names"] == given["names"] and moved.ids == given.ids
    assert given["image"].device.type == "cpu" and moved.unreadable == given.unreadable


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_memory() -> None:
    pinned = batch().pin_memory()
    assert pinned["image"].is_pinned() and pinned["names"] == batch()["names"] and torch.equal(pinned["image"], batch()["image"])
    on_gpu = pinned.to(torch.device("cuda"))
    assert on_gpu["image"].is_cuda and torch.equal(on_gpu["image"].cpu(), batch()["image"])


def test_the_loader_pins_batches_by_their_own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)  # without a GPU there is no such memory
    pinned = batch().pin_memory()
    assert torch.equal(pinned["image"], batch()["image"] + 1) and pinned["spacing"] == 0.5 and pinned.ids == batch().ids


def test_a_batch_crosses_processes() -> None:
    given = batch()
    again = pickle.loads(pickle.dumps(given))
    assert torch.equal(again["image"], given["image"])
    assert (again.indices, again.ids, again.cases, again.unreadable) == (given.indices, given.ids, given.cases, given.unreadable)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_finite(value: float) -> None:
    assert batch().finite()
    assert batch().with_data(label=torch.tensor([1, 2])).finite()
    assert not batch().with_data(depth=torch.tensor([1.0, value])).finite()


# ---------------------------------------------------------------- samples


def sample(index: int, **values: Any) -> dict[str, Any]:
    return {"index": index, "id": f"{index}.png", "case": f"case {index // 2}", **values}


def test_samples_are_stacked_by_their_kind() -> None:
    found = collate(
        [
            sample(
                index,
                image=torch.full((3, 2, 2), float(index)),
                label=np.int64(index),
                several=np.array([index, 1], np.float32),
                age=index / 2,
                count=index,
                name=f"n{index}",
            )
            for index in (3, 4)
        ]
    )
    assert (found.indices, found.ids, found.cases) == ([3, 4], ["3.png", "4.png"], ["case 1", "case 2"])
    assert set(found.data) == {"image", "label", "several", "age", "count", "name"}
    assert found["image"].shape == (2, 3, 2, 2) and found["image"][1, 0, 0, 0] == 4
    assert found["label"].dtype == torch.int64 and found["label"].tolist() == [3, 4] and found["several"].dtype == torch.float32
    assert found["several"].tolist() == [[3, 1], [4, 1]] and found["age"].tolist() == [1.5, 2] and found["count"].tolist() == [3, 4]
    assert found["name"] == ["n3", "n4"]


@pytest.mark.parametrize("broken", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
def test_unreadable_samples_are_left_out_and_reported(broken: set[int]) -> None:
    samples = [sample(index, **({"unreadable": f"reason {index}"} if index in broken else {"image": torch.ones(2)})) for index in range(3)]
    found = collate(samples)
    read = [index for index in range(3) if index not in broken]
    assert found.indices == read and found.ids == [f"{index}.png" for index in read] and len(found.cases) == len(read)
    assert found.unreadable == [(f"{index}.png", f"reason {index}") for index in sorted(broken)]
    assert found.data == {} if not read else found["image"].shape == (len(read), 2)
    assert found.finite() and found.to(torch.device("cpu")).indices == read


class Seeds(SampleDataset):
    """Samples that hold their seed; number 2 cannot be read."""

    def load(self, index: int, seed: int | None) -> dict[str, Any]:
        if index == 2:
            raise UnreadableFile(f"/data/{index}.png", "cut off")
        return {"seed": -1 if seed is None else seed}


def test_the_seed_of_a_sample_is_a_function_of_its_key() -> None:
    names = [f"{index}.png" for index in range(4)]
    training = Seeds(names, seed=7)
    assert training[(3, 1)] == {"index": 1, "id": "1.png", "case": "1.png", "seed": derive_seed(7, 3, 1)}
    assert training[(3, 1)] == training[(3, 1)] != training[(4, 1)]
    assert training[(0, 2)] == {"index": 2, "id": "2.png", "case": "2.png", "unreadable": "cut off"}
    evaluation = Seeds(names, cases=["a", "a", "b", "b"])
    assert evaluation[1] == {"index": 1, "id": "1.png", "case": "a", "seed": -1} and len(evaluation) == 4
    with pytest.raises(NotImplementedError):
        SampleDataset(names)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_batches(workers: int) -> None:
    dataset = Seeds([f"{index}.png" for index in range(8)], seed=7)
    sampler = TrainSampler(8, 4, seed=0)
    sampler.set_position(5, 0)
    found = list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=dataset.collate))
    assert sorted(index for part in found for index in part.indices) == [0, 1, 3, 4, 5, 6, 7]
    assert [entry for part in found for entry in part.unreadable] == [("2.png", "cut off")]
    for part in found:
        assert part["seed"].tolist() == [derive_seed(7, 5, index) for index in part.indices]

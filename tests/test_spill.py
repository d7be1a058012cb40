"""Rows and tables that leave the memory."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from visionattn import spill
from visionattn.spill import Rows, Table, blocks, npy_pieces, room


@pytest.fixture(params=["in memory", "on the disk"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "on the disk":
        monkeypatch.setattr(spill, "HELD_BYTES", 50)


def test_rows_are_a_sequence(limit: None) -> None:
    wanted = [{"number": number, "text": "x" * number} for number in range(20)]
    rows: Rows[dict[str, object]] = Rows(wanted[:5])
    assert rows[2] == wanted[2]
    rows.extend(wanted[5:])  # also after something was loaded
    assert len(rows) == 20 and list(rows) == wanted and rows == wanted and rows != wanted[1:]
    assert rows[-1] == wanted[-1] and rows[3:6] == wanted[3:6] and rows[:0] == []
    with pytest.raises(IndexError):
        rows[20]
    assert list(rows.reordered([3, 1])) == [wanted[3], wanted[1]] and rows[0] == wanted[0]
    assert pickle.loads(pickle.dumps(rows)) == wanted


def test_tables_join_arrays(limit: None) -> None:
    wanted = np.random.default_rng(0).random((10, 4, 2))
    table = Table([wanted[:3], wanted[3:3]])
    table.append(wanted[3:])
    for _ in range(2):
        assert isinstance(table.array(), np.memmap) == (spill.HELD_BYTES == 50)
        np.testing.assert_array_equal(table.array(), wanted)
    order = np.arange(10)[::-1]
    np.testing.assert_array_equal(table.ordered(order), wanted[::-1])
    np.testing.assert_array_equal(table.ordered(np.arange(10)), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(table)).array(), wanted)


def test_memory_does_not_grow_with_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "HELD_BYTES", 2**16)
    content = np.zeros((20, 1000))
    tracemalloc.start()
    try:
        rows, table = Rows[bytes](), Table()
        for _ in range(50):
            rows.append(content.tobytes())
            table.append(content)
        assert table.array().shape == (1000, 1000) and sum(len(row) for row in rows) == 50 * content.nbytes
        assert tracemalloc.get_traced_memory()[0] < 2 * content.nbytes < 2**23
    finally:
        tracemalloc.stop()


def test_blocks_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "BLOCK", 10)
    assert [(part.start, part.stop) for part in blocks(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert len(list(blocks(3, 100))) == 3 and list(blocks(0, 3)) == [] and len(list(blocks(5, 0))) == 1


def test_room_and_files_of_arrays(limit: None, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 3, 5)).astype(np.float16)
    held = room(values.shape, np.float16)
    assert isinstance(held, np.memmap) == (spill.HELD_BYTES == 50) and not held.any()
    held[...] = values
    for array in (held, values[:0], values.transpose(2, 0, 1)):
        (tmp_path / "a.npy").write_bytes(b"".join(npy_pieces(array)))
        found = np.load(tmp_path / "a.npy", allow_pickle=False)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, array)

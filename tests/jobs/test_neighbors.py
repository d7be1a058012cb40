"""The search for neighbours against a slow, obvious version."""

from __future__ import annotations

import numpy as np
import pytest

from visionattn.jobs.neighbors import nearest, vote


def slow(queries: np.ndarray, references: np.ndarray, k: int, itself: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    rows, cosines = [], []
    for query, skipped in zip(queries, itself, strict=True):
        found = [(float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)), number) for number, one in enumerate(references)]
        found = sorted((item for item in found if item[1] != skipped), reverse=True)[:k]
        rows.append([number for _, number in found])
        cosines.append([cosine for cosine, _ in found])
    return rows, cosines


@pytest.mark.parametrize("block", [1, 30, 2**22])
def test_nearest(block: int) -> None:
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(11, 5)).astype(np.float32)
    for itself in ([-1] * 7, [0, 3, -1, 10, 3, 6, -1]):
        given = None if max(itself) < 0 else np.array(itself)
        cosines, rows = nearest(queries, references, 4, itself=given, block=block)
        want, similar = slow(queries, references, 4, itself)
        assert rows.tolist() == want
        np.testing.assert_allclose(cosines, similar, atol=1e-5)
    assert nearest(queries, references, 50, block=block)[1].shape == (7, 11)
    alone = nearest(references, references, 50, itself=np.arange(11), block=block)[1]
    assert alone.shape == (11, 10) and all(number not in row for number, row in enumerate(alone.tolist()))
    assert nearest(references[:1], references[:1], 3, itself=np.array([0]), block=block)[1].shape == (1, 0)


def test_vote() -> None:
    """The nearest decides among equally many."""
    assert vote(np.array([[1, 2, 2], [3, 1, 2], [2, 1, 1], [0, 0, 5]])).tolist() == [2, 3, 1, 0]
    assert vote(np.array([[4, 1, 1, 4]])).tolist() == [4]

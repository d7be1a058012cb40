"""A few of the damaged files that `tools/fuzz_weights.py` makes by the thousand."""

from __future__ import annotations

import random
from pathlib import Path

from tools.fuzz_weights import damaged, fuzz, originals, small_models


def test_damaged_files_are_loaded_or_refused(tmp_path: Path) -> None:
    outcomes, faults = fuzz(0, iter(range(20)), 60, tmp_path / "faults")
    texts = [(tmp_path / "faults" / f"{name}.txt").read_text() for name in faults]
    assert not faults, "\n".join(texts)
    assert sum(outcomes.values()) == 20 and {"imported", "VA-W003", "VA-W005"} <= outcomes.keys()


def test_a_seed_gives_a_file() -> None:
    with small_models():
        states = originals()
        assert damaged(random.Random("0 3"), states) == damaged(random.Random("0 3"), states)

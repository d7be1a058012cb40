"""The global random generators, saved and restored."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from visionattn.engine.random_state import random_state, set_random_state


def test_random_state_round_trip(tmp_path: Path) -> None:
    state = random_state()
    torch.save(state, tmp_path / "state.pt")
    drawn = (random.random(), np.random.rand(), torch.rand(1))
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn

"""Fixtures for tests of whole networks."""

from __future__ import annotations

import pytest

from visionattn import layers


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest as a network is built, where every weight is loaded afterwards."""
    monkeypatch.setattr(layers, "trunc_normal_", lambda tensor, std: tensor)

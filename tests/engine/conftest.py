"""The toy task, registered for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.toy import Pressure
from visionattn.tasks import TASKS, register_task


@pytest.fixture
def task() -> Iterator[Pressure]:
    own = Pressure()
    register_task(own)
    yield own
    del TASKS[own.name]

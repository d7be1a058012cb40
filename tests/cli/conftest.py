"""A run that the tests of many commands look at."""

from __future__ import annotations

import pytest

from tests.commands import CLASSES, Trained, done, only_run, picture, settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "flowers"
    for split, count, start in (("train", 8, 0), ("val", 4, 100), ("test", 2, 200)):
        for index, name in enumerate(CLASSES):
            for number in range(count):
                picture(data / split / name / f"{number}.png", index, start + 30 * index + number)
    with pytest.MonkeyPatch.context() as patch:  # the fixture that isolates the cache comes later
        patch.setenv("VISIONATTN_CACHE", str(folder / "cache"))
        result = done("train", "--data", data, *settings(folder, "train.epochs=2"), "--json")
    return Trained(only_run(folder), data, result)

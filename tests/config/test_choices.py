"""What `auto` stands for."""

from __future__ import annotations

from visionattn.config.choices import Facts, choices
from visionattn.config.schema import FROM_SCRATCH
from visionattn.tasks import load_config

FACTS = Facts(pretrained=True, samples=500, batch=32, layers=11, params=28_000_000, cnn=False)


def chosen(facts: Facts, *settings: str) -> dict[str, object]:
    return {choice.key: choice.value for choice in choices(load_config(None, settings), facts)}


def test_from_scratch_nothing_depends_on_anything() -> None:
    few, many = (chosen(FACTS._replace(pretrained=False, samples=samples)) for samples in (5, 10**6))
    assert few == many == FROM_SCRATCH

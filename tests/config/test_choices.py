"""Values for `auto`: fixed defaults from scratch, the fine-tuning rule from weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from visionattn.config.choices import Facts, apply_choices
from visionattn.config.read import shipped_names
from visionattn.config.schema import FROM_SCRATCH
from visionattn.tasks import load_config, task_of

FACTS = Facts(pretrained=True, samples=500, batch=32, layers=11, params=28_000_000, cnn=False)
CNN = replace(FACTS, params=3_000_000, cnn=True)


def values(facts: Facts, *settings: str) -> dict[str, Any]:
    config = load_config(None, settings)
    return {choice.key: choice.value for choice in task_of(config).choices(config, facts, None)}


def test_from_scratch_nothing_depends_on_anything() -> None:
    scratch = replace(FACTS, pretrained=False)
    assert values(scratch) == values(replace(scratch, samples=10**6, cnn=True)) == FROM_SCRATCH


def test_epochs_follow_the_number_of_samples() -> None:
    assert [values(replace(FACTS, samples=samples))["train.epochs"] for samples in (3, 500, 1000, 10**6)] == [40, 40, 20, 10]
    assert values(FACTS)["schedule.warmup_epochs"] == 4 and values(FACTS, "train.epochs=5")["schedule.warmup_epochs"] == 0.5
    assert values(FACTS, "train.steps=500")["schedule.warmup_epochs"] == 3.2  # 500 steps of 32 are 32 epochs of 500


def test_rate_follows_network_and_batch() -> None:
    assert values(CNN)["optim.lr"] == 2e-3 and values(FACTS)["optim.lr"] == 3.3e-4
    assert values(replace(CNN, batch=8))["optim.lr"] == 1e-3 and values(replace(CNN, batch=128))["optim.lr"] == 4e-3
    assert values(replace(CNN, batch=128), "optim.lr_batch=32")["optim.lr"] == 1e-3  # which is multiplied by 4 again
    assert values(CNN, "optim.name=sgd")["optim.lr"] == 0.04


def test_what_depends_on_the_family() -> None:
    assert values(CNN)["optim.layer_decay"] is None and values(CNN)["model.drop_path_rate"] == 0
    assert values(replace(FACTS, params=4_000_000))["optim.layer_decay"] is None
    assert values(FACTS)["optim.layer_decay"] ** 10 == pytest.approx(0.3, rel=0.1)
    rates = [values(replace(FACTS, params=params))["model.drop_path_rate"] for params in (4_000_000, 28_000_000, 90_000_000)]
    assert rates == [0, 0.1, 0.2]


def test_augmentation_is_moderate() -> None:
    assert values(FACTS)["loss.label_smoothing"] == 0.1 and values(FACTS)["augment.random_resized_crop.scale"] == (0.35, 1)
    policies = [values(facts)["augment.rand_augment"] for facts in (FACTS, CNN)]
    assert policies == ["rand-m4-n1-mstd0.5-inc1", "rand-m6-mstd0.5-inc1"]


def test_segmentation_has_rules_of_its_own() -> None:
    found = values(replace(CNN, batch=8), "task=segment")
    assert found["optim.lr"] == 2e-3 and found["augment.scale"] == (0.75, 1.5)  # a rate for its own usual batch


@pytest.mark.parametrize("setting", ["augment.rotate=10", "augment.color_jitter=0.2", "model.in_chans=1", "data.preview=[4, 3, 2]"])
def test_rand_augment_stays_off_where_it_cannot_be(setting: str) -> None:
    assert values(CNN, setting)["augment.rand_augment"] == ""


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_nothing_stays_open_and_what_is_given_stays(task: str) -> None:
    given = load_config(None, [f"task={task}", "optim.lr=0.5", "model.drop_path_rate=0.3", "model.img_size=64", "model.weights=none"])
    found, used = apply_choices(given, task_of(given).choices(given, FACTS, None))
    assert found.optim.lr == 0.5 and found.model.drop_path_rate == 0.3
    assert not {choice.key for choice in used} & {"optim.lr", "model.drop_path_rate"}
    again, more = apply_choices(found, task_of(found).choices(found, FACTS, None))
    assert again == found and not more
    rest = [key for key, value in flat(found.model_dump()) if value == "auto"]
    assert {key for key in rest if not key.startswith(("data.", "eval."))} <= {
        "train.precision",
        "train.device",
        "train.channels_last",
        "model.head.aux.enabled",
        "model.in_chans",  # follows the first image
    }


def test_published_recipes_leave_nothing_to_the_rule() -> None:
    """They turn off explicitly whatever their authors did not use."""
    for name in shipped_names():
        config = load_config(name)
        _, used = apply_choices(config, task_of(config).choices(config, FACTS, None))
        open_keys = {choice.key for choice in used}
        if config.train.steps is not None:
            open_keys -= {"train.epochs"}
        if config.schedule.warmup_steps is not None:
            open_keys -= {"schedule.warmup_epochs"}
        assert config.model.weights == "none" or not open_keys, (name, open_keys)


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found

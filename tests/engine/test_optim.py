"""Learning rates and weight decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn

import visionattn as va
from visionattn.config.schema import OptimConfig, ScheduleConfig
from visionattn.engine.optim import REFUSED, SHARDABLE, build_optimizer, build_schedule, require_optimizer, scaled_lr
from visionattn.engine.sharding import load_optimizer, whole
from visionattn.errors import UserError
from visionattn.runs.checkpoint import read_checkpoint, save_checkpoint
from visionattn.tasks import load_config


def test_no_weight_decay_layer_decay_and_rate(flowers: Path) -> None:
    model = va.create_model("swin_tiny", depths=(1, 1, 1, 1), num_classes=3)
    given = load_config(None, ["optim.lr=1e-3", "optim.lr_batch=256", "optim.layer_decay=0.5", "schedule.warmup_epochs=1"])
    assert scaled_lr(given.optim, 64) == pytest.approx(2.5e-4)
    optimizer = build_optimizer(model, given.optim, 64)
    table = model.backbone.stages[0].blocks[0].attn.relative_position_bias_table
    group = next(group for group in optimizer.param_groups if any(table is p for p in group["params"]))
    assert group["weight_decay"] == 0
    schedule = build_schedule(optimizer, given.schedule, steps=100, steps_per_epoch=10)
    rates = []
    for step in range(101):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[-1]["lr"])
    assert rates[0] == pytest.approx(2.5e-7) and max(rates) == pytest.approx(2.5e-4, rel=0.05) and rates[-1] == pytest.approx(1e-6)
    assert rates[:11] == sorted(rates[:11]) and rates[11:] == sorted(rates[11:], reverse=True)


@pytest.mark.parametrize("name", ["poly", "step", "constant"])
def test_other_schedules(name: str) -> None:
    model = torch.nn.Linear(2, 2)
    given = load_config(None, [f"schedule.name={name}", "schedule.step_epochs=3", "schedule.warmup_epochs=0", "optim.lr=1.0"])
    optimizer = build_optimizer(model, given.optim, 1)
    schedule = build_schedule(optimizer, given.schedule, steps=100, steps_per_epoch=10)
    schedule.step_update(60)
    expected = {"poly": 1e-6 + (1 - 1e-6) * 0.4**0.9, "step": 0.01, "constant": 1.0}[name]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def usable() -> list[str]:
    """A name for each class of timm's that training takes, and every name that is documented."""
    own = [name for name in list_optimizers() if not isinstance(get_optimizer_info(name).opt_class, str)]
    by_class = {get_optimizer_class(name, bind_defaults=False).__name__: name for name in own}
    return sorted({name for kind, name in by_class.items() if kind not in REFUSED} | {"adamw", "sgd", "lamb", "lion", "adan", "nadamw"})


class Short:
    """Steps of an optimizer on a small network."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
        self.optimizer = build_optimizer(self.model, OptimConfig(name=name), 4)
        self.schedule = build_schedule(self.optimizer, ScheduleConfig(), steps=6, steps_per_epoch=3)

    def train(self, first: int, last: int) -> dict[str, Any]:
        for step in range(first, last):
            torch.manual_seed(100 + step)
            nn.functional.cross_entropy(self.model(torch.randn(4, 3, 4, 4)), torch.arange(4)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.schedule.step_update(step + 1)
        return self.model.state_dict()


@pytest.mark.parametrize("name", usable())
def test_the_state_of_each_optimizer_comes_back_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    require_optimizer(OptimConfig(name=name))
    expected, first, second = Short(name).train(0, 6), Short(name), Short(name)
    begun = {key: value.clone() for key, value in first.model.state_dict().items()}
    first.train(0, 3)
    state = {"optimizer": whole(first.optimizer.state_dict())}
    save_checkpoint(tmp_path, model=first.model.state_dict(), ema=None, state=state, meta={"step": 3})
    weights, _, state = read_checkpoint(tmp_path / "last")
    second.model.load_state_dict(weights)
    load_optimizer(second.optimizer, state["optimizer"])
    second.schedule.step_update(3)
    resumed = second.train(3, 6)
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())
    assert not torch.equal(expected["3.weight"], begun["3.weight"])


@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ({"name": "adamm"}, 'timm has no optimizer "adamm"', "adam"),
        ({"name": "AdamW"}, 'timm has no optimizer "AdamW"', "adamw"),
        ({"name": "lookahead_adam"}, 'timm has no optimizer "lookahead_adam"', "list_optimizers"),
        ({"name": "adahessian"}, "adahessian needs second derivatives", "optim.name=adamw"),
        ({"name": "kron"}, "kron needs a C++ compiler", "optim.name=adamw"),
        ({"name": "bnblion8bit"}, "bnblion8bit is part of bitsandbytes", "optim.name=lion"),
        ({"name": "fusedlamb"}, "fusedlamb is part of apex", "optim.name=lamb"),
        ({"betas": [0.9]}, "optim.betas: adamw takes 2, got [0.9]", "optim.betas=null"),
        ({"name": "adan", "betas": [0.9, 0.99]}, "optim.betas: adan takes 3", "optim.betas=null"),
        ({"name": "sgd", "betas": [0.9, 0.99]}, "optim.betas: sgd has none", "optim.betas=null"),
        ({"name": "lion", "momentum": 0.9}, "optim.momentum: lion has none", "optim.momentum=null"),
        ({"name": "lion", "shard": True}, "train.shard: lion is not known to compute the same", ", ".join(SHARDABLE)),
    ],
)
def test_optimizers_that_are_refused(given: dict[str, Any], what: str, fix: str) -> None:
    settings = {key: value for key, value in given.items() if key != "shard"}
    with pytest.raises(UserError) as caught:
        require_optimizer(OptimConfig(**settings), shard="shard" in given)
    assert caught.value.code == "VA-C002" and what in caught.value.what and fix in caught.value.fix


def test_betas_and_momentum_of_the_optimizer_unless_given() -> None:
    model = nn.Linear(2, 2)
    for name, own in (("adamw", {"betas": (0.9, 0.999)}), ("lion", {"betas": (0.9, 0.99)}), ("sgd", {"momentum": 0.9, "nesterov": True})):
        group = build_optimizer(model, OptimConfig(name=name), 1).param_groups[0]
        assert {key: group[key] for key in own} == own
    group = build_optimizer(model, OptimConfig(name="adan", betas=[0.9, 0.8, 0.7]), 1).param_groups[0]
    assert list(group["betas"]) == [0.9, 0.8, 0.7]
    assert build_optimizer(model, OptimConfig(name="sgd", momentum=0.5), 1).param_groups[0]["momentum"] == 0.5

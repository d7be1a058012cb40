"""Learning rates and weight decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import visionattn as va
from visionattn.engine.optim import build_optimizer, build_schedule, scaled_lr
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

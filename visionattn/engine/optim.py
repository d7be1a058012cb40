"""Optimizer and learning-rate schedule, both timm's."""

from __future__ import annotations

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from visionattn.config.schema import OptimConfig, ScheduleConfig, chosen


def scaled_lr(config: OptimConfig, samples_per_step: int) -> float:
    """The learning rate for a step of this many samples: `lr * samples / lr_batch`, or `lr` unscaled."""
    lr: float = chosen(config.lr, "optim.lr")
    return lr if config.lr_batch is None else lr * samples_per_step / config.lr_batch


def build_optimizer(model: nn.Module, config: OptimConfig, samples_per_step: int) -> Optimizer:
    """AdamW, or SGD with Nesterov momentum; norms, biases and `model.no_weight_decay()` are not decayed."""
    own = {"betas": config.betas} if config.name == "adamw" else {"momentum": config.momentum}
    optimizer: Optimizer = create_optimizer_v2(
        model,
        opt=config.name,
        lr=scaled_lr(config, samples_per_step),
        weight_decay=chosen(config.weight_decay, "optim.weight_decay"),
        layer_decay=chosen(config.layer_decay, "optim.layer_decay"),
        **own,
    )
    return optimizer


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, *, steps: int, steps_per_epoch: int) -> Scheduler:
    """The learning rate as a pure function of the optimizer step: call `step_update(step)`.

    Args:
        optimizer: the rates of its groups are the peak.
        config: shape of the schedule.
        steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of an epoch.
    """
    peak = max(group["lr"] for group in optimizer.param_groups)
    warmup_steps = (
        round(chosen(config.warmup_epochs, "schedule.warmup_epochs") * steps_per_epoch)
        if config.warmup_steps is None
        else config.warmup_steps
    )
    warmup = {
        "warmup_t": min(warmup_steps, steps // 2),
        "warmup_lr_init": peak / 1000,
        "t_in_epochs": False,
    }
    if config.name == "cosine":
        return CosineLRScheduler(optimizer, t_initial=steps, lr_min=min(config.min_lr, peak), **warmup)
    if config.name == "poly":
        return PolyLRScheduler(optimizer, t_initial=steps, power=config.power, lr_min=min(config.min_lr, peak), **warmup)
    decay_t = max(1, round(config.step_epochs * steps_per_epoch))
    return StepLRScheduler(optimizer, decay_t=decay_t, decay_rate=config.gamma if config.name == "step" else 1.0, **warmup)

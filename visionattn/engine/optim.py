"""Optimizer and learning-rate schedule, both timm's."""

from __future__ import annotations

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from visionattn.config.schema import OptimConfig, ScheduleConfig, chosen
from visionattn.errors import UserError, did_you_mean
from visionattn.names import shown

# Classes that training does without, and why.
REFUSED = {"Adahessian": "needs second derivatives, which training does not compute", "Kron": "needs a C++ compiler for its steps"}

# Tried with train.shard: the weights are those of one process, also after a resumption.
SHARDABLE = ("adamw", "sgd", "adam", "adan", "adanw", "lamb", "lars", "madgrad", "momentum", "nadam", "nadamw", "nesterov", "radam", "sgdw")


def scaled_lr(config: OptimConfig, samples_per_step: int) -> float:
    """The learning rate for a step of this many samples: `lr * samples / lr_batch`, or `lr` unscaled."""
    lr: float = chosen(config.lr, "optim.lr")
    return lr if config.lr_batch is None else lr * samples_per_step / config.lr_batch


def require_optimizer(config: OptimConfig, *, shard: bool = False) -> None:
    """Stop at an optimizer that cannot be built, or would not resume exactly.

    Args:
        shard: weights are shared out among the processes.

    Raises:
        UserError: VA-C002.
    """
    name, names = config.name, list_optimizers()
    if name not in names:
        fix = did_you_mean(name.lower(), names) or 'all names are listed by: python -c "import timm; print(timm.optim.list_optimizers())"'
        raise UserError("VA-C002", f'optim.name: timm has no optimizer "{shown(name)}"', fix=fix)
    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):
        what = f"optim.name: {name} is part of {info.opt_class.partition('.')[0]}; only those of torch and timm are used"
        raise UserError("VA-C002", what, fix=f"optim.name={_own_name(name, names)}")
    if info.opt_class.__name__ in REFUSED:
        raise UserError("VA-C002", f"optim.name: {name} {REFUSED[info.opt_class.__name__]}", fix="optim.name=adamw")
    if shard and name not in SHARDABLE:
        what = f"train.shard: {name} is not known to compute the same on weights that are shared out"
        raise UserError("VA-C002", what, fix=f"train.shard=false, or optim.name one of {', '.join(SHARDABLE)}")
    if config.betas is not None and (not info.has_betas or len(config.betas) != info.num_betas):
        takes = f"takes {info.num_betas}" if info.has_betas else "has none"
        raise UserError("VA-C002", f"optim.betas: {name} {takes}, got {list(config.betas)}", fix="optim.betas=null for its own")
    if config.momentum is not None and not info.has_momentum:
        raise UserError("VA-C002", f"optim.momentum: {name} has none, got {config.momentum:g}", fix="optim.momentum=null")


def _own_name(name: str, names: list[str]) -> str:
    """The optimizer of torch or timm that another package also has."""
    plain = name.removeprefix("bnb").removeprefix("fused").removesuffix("8bit")
    return plain if plain in names else "adamw"


def build_optimizer(model: nn.Module, config: OptimConfig, samples_per_step: int) -> Optimizer:
    """One of timm's optimizers, by its name; norms, biases and `model.no_weight_decay()` are not decayed."""
    own = {"betas": config.betas, "momentum": config.momentum}
    optimizer: Optimizer = create_optimizer_v2(
        model,
        opt=config.name,
        lr=scaled_lr(config, samples_per_step),
        weight_decay=chosen(config.weight_decay, "optim.weight_decay"),
        layer_decay=chosen(config.layer_decay, "optim.layer_decay"),
        **{name: value for name, value in own.items() if value is not None},
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

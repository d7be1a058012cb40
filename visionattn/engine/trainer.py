"""The training loop: one optimizer step per batch of the loader, exact resumption from any step."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from visionattn.config.schema import RunConfig
from visionattn.console import Console, duration
from visionattn.data.check import too_many_unreadable
from visionattn.data.loading import eval_loader, train_loader, worker_count
from visionattn.data.sampling import TrainSampler
from visionattn.engine.diagnosis import diverged, first_bad_gradient, first_bad_module, out_of_memory, single_value_norm
from visionattn.engine.evaluate import evaluate_model
from visionattn.engine.interrupts import first_signal
from visionattn.engine.optim import build_optimizer, build_schedule
from visionattn.engine.processes import Processes
from visionattn.engine.random_state import random_state, set_random_state
from visionattn.errors import Interrupted, UserError
from visionattn.files import atomic_write
from visionattn.names import shown
from visionattn.report.tensorboard import TensorBoard
from visionattn.runs.checkpoint import keep_best, read_checkpoint, save_checkpoint
from visionattn.runs.folder import RunFolder
from visionattn.tasks.base import Dataset, Evaluation, Objective, Target, Task
from visionattn.tasks.batch import Batch


@dataclass(frozen=True)
class Setup:
    """Everything a run trains with, built from its config.

    Attributes:
        config: of the run.
        task: its task.
        target: meaning of the outputs.
        model: a backbone with a head, on the CPU.
        objective: the loss.
        train_set, val_set: checked samples.
    """

    config: RunConfig
    task: Task
    target: Target
    model: nn.Module
    objective: Objective
    train_set: Dataset
    val_set: Dataset


class Trainer:
    """A run in progress: `fit`, `resume` and what they share.

    One batch of the loader is one optimizer step; with `train.accum` it is cut into that many parts whose gradients are added.
    The position of a run is therefore its step alone: order, augmentation and learning rate are functions of (seed, step), the
    rest of the state is in the checkpoint.

    Args:
        setup: what is trained.
        run: locked run folder.
        accelerator: device and precision.
        processes: the processes of this run.
        console: where progress is printed.
    """

    def __init__(self, setup: Setup, run: RunFolder, accelerator: Accelerator, processes: Processes, console: Console) -> None:
        config, model = setup.config, setup.model
        self.setup, self.config, self.task, self.run = setup, config, setup.task, run
        self.accelerator, self.processes, self.console = accelerator, processes, console
        rank, world = processes.rank, processes.world
        self.batch_size = config.train.batch_size * config.train.accum  # per process and step
        self.sampler = TrainSampler(len(setup.train_set), self.batch_size, config.seed, rank, world)
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = config.train.steps or config.train.epochs * self.steps_per_epoch
        self.epochs = -(-self.total_steps // self.steps_per_epoch)  # the last one may be cut off by train.steps

        backbone: Any = model.backbone
        channels_last = getattr(backbone, "cnn", False) if config.train.channels_last == "auto" else config.train.channels_last
        if config.train.freeze == "backbone":
            backbone.requires_grad_(False)
        model.set_grad_checkpointing(config.model.grad_checkpointing)  # type: ignore[operator]
        model.to(accelerator.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        if self.task.synchronises_norms and world > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # torch has none for the CPU
        optimizer = build_optimizer(model, config.optim, self.batch_size * world)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.schedule = build_schedule(optimizer, config.schedule, steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        self.ema = ModelEmaV3(model, decay=config.train.ema, use_warmup=True) if config.train.ema else None

        workers = worker_count(config.data)
        self.train_loader = train_loader(setup.train_set, self.sampler, workers, pin_memory=accelerator.device.type == "cuda")
        self.val_loader = eval_loader(setup.val_set, self.task.eval_batch_size(config), workers, rank, world)
        self.step = 0
        self.best: dict[str, Any] | None = None  # metric, value, epoch
        self.unreadable: set[str] = set()
        self.monitor = self.task.monitor(config) if config.eval.best == "auto" else config.eval.best
        self._interrupted = False
        self.tensorboard: TensorBoard | None = None

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper for several processes."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    def fit(self) -> None:
        """Train to the last epoch.

        Raises:
            UserError: VA-R001, out of memory; VA-R002, diverged; VA-R004, disk full; VA-D010, unreadable samples.
            Interrupted: after Ctrl-C or SIGTERM and a save.
        """
        if self.processes.is_main and self.config.log.tensorboard:
            pictures = self.task.pictures(self.setup.target)
            self.tensorboard = TensorBoard(self.run.path / "tb", self.task.display, pictures, self.config.log.images, purge_step=self.step)
        try:
            with first_signal(self._interrupt):
                while self.step < self.total_steps:
                    self._epoch()
                    if self.step < self.total_steps and self.processes.any_of(self._interrupted)[0]:
                        raise Interrupted(f"after epoch {self.step // self.steps_per_epoch}")
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.config, self.step, self.accelerator.mixed_precision, error) from error
        finally:
            if self.tensorboard is not None:
                self.tensorboard.close()

    def _interrupt(self) -> None:
        self._interrupted = True
        self.console.field("interrupt", "finishing this step, saving ... press again to stop at once")

    def _epoch(self) -> None:
        config, unit = self.config, self.task.unit
        epoch, first = divmod(self.step, self.steps_per_epoch)
        last = self._end(epoch + 1)
        self.sampler.set_position(epoch, first)
        self.model.train()
        if config.train.freeze == "backbone":
            self.bare_model.backbone.eval()  # type: ignore[union-attr, operator]  # its statistics stay unchanged too
        label = f"epoch {epoch + 1:>3}/{self.epochs}"
        losses, samples, started, window = [], 0, time.perf_counter(), (time.perf_counter(), 0)
        with self.console.progress(label, last - epoch * self.steps_per_epoch, first) as bar:
            for batch in self.train_loader:
                if self.tensorboard is not None and self.step == 0:
                    self.tensorboard.show_batch(self.bare_model, batch)
                loss, grad_norm, stop = self.train_step(batch)
                self.step += 1
                losses.append(loss)
                samples += len(batch) * self.processes.world
                lr = self.optimizer.param_groups[-1]["lr"]
                if self.step % config.log.every_steps == 0 or self.step == last:
                    now = time.perf_counter()
                    speed = (samples - window[1]) / (now - window[0])
                    window = (now, samples)
                    self._log_step(epoch, loss, lr, grad_norm, speed)
                rate = f"{unit}s/s {samples / (time.perf_counter() - started):.0f}"
                bar.update(self.step - epoch * self.steps_per_epoch, f"loss {loss:.3f}  lr {lr:.1e}  gnorm {grad_norm:.2f}  {rate}")
                self.schedule.step_update(self.step)
                if self.step == last:
                    break  # its evaluation belongs to the epoch: an interrupt waits for it
                if stop or (config.train.save_every and self.step % config.train.save_every == 0):
                    self.save()
                if stop:
                    raise Interrupted(f"epoch {epoch + 1}, step {self.step - epoch * self.steps_per_epoch}/{self.steps_per_epoch}")
        seconds, mean_loss = time.perf_counter() - started, float(np.mean(losses))
        summary = f"loss {mean_loss:.3f}  lr {lr:.1e}  gnorm {grad_norm:.2f}  {unit}s/s {samples / seconds:.0f}"
        self.console.line(f"{label}  {duration(seconds):>5}  {summary}")
        self._end_of_epoch(epoch + 1, mean_loss, lr, seconds)

    def train_step(self, batch: Batch) -> tuple[float, float, bool]:
        """Forward, backward and update.

        Returns:
            The loss, the gradient norm before clipping, and whether the run is to stop after this step.

        Raises:
            UserError: VA-R002, a loss or a gradient that is not finite; VA-D010, too many unreadable samples.
        """
        config, accelerator, processes = self.config, self.accelerator, self.processes
        mixed = self.setup.objective.mix(batch.to(accelerator.device))
        empty, unreadable = processes.any_of(not len(mixed), bool(batch.unreadable))
        if unreadable:
            self._count_unreadable(batch.unreadable)
        if empty:  # on one process: the step updates nothing on any
            return 0.0, 0.0, processes.any_of(self._interrupted)[0]
        parts = self.task.split(mixed, config.train.accum)
        total = 0.0
        for index, part in enumerate(parts):
            with accelerator.autocast():
                outputs = self._forward(part)
            loss = self.setup.objective.loss(outputs, part)["loss"] / len(parts)
            total += float(loss.detach())
            if index == len(parts) - 1:
                accelerator.backward(loss)
            else:
                with accelerator.no_sync(self.model):
                    accelerator.backward(loss)
        if config.optim.clip_grad is not None:
            norm = float(accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad))
        else:
            accelerator.unscale_gradients()
            norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        # fp16: the scaler skips a step with a gradient that is not finite, and lowers its scale
        bad_norm = not math.isfinite(norm) and accelerator.mixed_precision != "fp16"
        bad_loss, bad_norm, stop = processes.any_of(not math.isfinite(total), bad_norm, self._interrupted)
        if bad_loss or bad_norm:
            raise self._diverged(mixed, total, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare_model, step=self.step)
        return total, norm, stop

    def _forward(self, part: Batch) -> Any:
        try:
            return self.task.forward(self.model, part)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise single_value_norm(self.config, len(part), error) from error

    def evaluate(self) -> Evaluation:
        """Metrics on the validation set, of the moving average if there is one."""
        model = self.ema.module if self.ema is not None else self.bare_model
        self.processes.share_buffers(model)
        return evaluate_model(
            self.task,
            self.config,
            self.setup.target,
            model,
            self.setup.objective,
            self.val_loader,
            split="val",
            device=self.accelerator.device,
            autocast=self.accelerator.autocast,
            processes=self.processes,
            console=self.console,
        )

    def save(self) -> None:
        """Write `checkpoints/last`; every process contributes its random state."""
        randoms = self.processes.gather(random_state())
        if self.processes.is_main:
            state = {
                "step": self.step,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "random": randoms,
            }
            meta = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "best": self.best,
                "target": self.setup.target,
                "config": self.config.model_dump(mode="json"),
            }
            ema = self.ema.module.state_dict() if self.ema is not None else None
            save_checkpoint(self.run.checkpoints, model=self.bare_model.state_dict(), ema=ema, state=state, meta=meta)
            if self.tensorboard is not None:
                self.tensorboard.flush()
        self.processes.wait()

    def resume(self, checkpoint: Any) -> None:
        """Continue from a checkpoint folder, bit for bit."""
        model, ema, state = read_checkpoint(checkpoint)
        self.bare_model.load_state_dict(model)
        if self.ema is not None and ema is not None:
            self.ema.module.load_state_dict(ema)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], state["best"]
        self.schedule.step_update(self.step)
        set_random_state(state["random"][self.processes.rank])
        if self.processes.is_main and self.best is not None and self._end(self.best["epoch"]) == self.step:
            keep_best(self.run.checkpoints)  # the kill may have come between the save and this

    def _end_of_epoch(self, epoch: int, train_loss: float, lr: float, seconds: float) -> None:
        evaluation = None
        line: dict[str, Any] = {"kind": "epoch", "step": self.step, "epoch": epoch, "train_loss": train_loss, "lr": lr, "seconds": seconds}
        better = False
        if epoch % self.config.eval.every == 0 or epoch == self.epochs:
            evaluation = self.evaluate()
            value = evaluation.metrics[self.monitor]
            better = value is not None and (self.best is None or value > self.best["value"])
            if better:
                self.best = {"metric": self.monitor, "value": value, "epoch": epoch}
            line |= {f"val_{name}": metric for name, metric in evaluation.metrics.items()}
            self._print_evaluation(evaluation, better, (self.epochs - epoch) * seconds)
        if self.processes.is_main:
            self.run.append_metrics(line)  # before the save: a run killed in between goes back and writes it again
            self.run.write_epoch_table()
        self.save()
        if self.processes.is_main:
            if better:
                keep_best(self.run.checkpoints)
            if self.tensorboard is not None and evaluation is not None:
                self.tensorboard.show_scores(evaluation, self.step)
                if better or epoch == self.epochs:
                    self.tensorboard.show_evaluation(evaluation, self.setup.val_set, self.run.read_metrics())

    def _print_evaluation(self, evaluation: Evaluation, better: bool, seconds_left: float) -> None:
        display, metrics = self.task.display, evaluation.metrics
        names = [name for name in dict.fromkeys((self.monitor, *display.metrics)) if name in metrics]
        texts = [f"{name} {display.text(name, metrics[name], 2)}" for name in names]
        eta = f"eta {duration(seconds_left)}" if seconds_left else ""
        texts += [f"loss {metrics['loss']:.3f}", "best -> saved" if better else "", eta]
        self.console.field("   val", "  ".join(filter(None, texts)))

    def _end(self, epoch: int) -> int:
        """The step at which an epoch, counted from 1, is over."""
        return min(epoch * self.steps_per_epoch, self.total_steps)

    def _log_step(self, epoch: int, loss: float, lr: float, grad_norm: float, speed: float) -> None:
        if not self.processes.is_main:
            return
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, f"{self.task.unit}s_per_second": round(speed, 1)}
        self.run.append_metrics({"kind": "step", "step": self.step, "epoch": epoch + 1, **values})
        if self.tensorboard is not None:
            self.tensorboard.scalars("train", values, self.step)

    def _count_unreadable(self, unreadable: list[tuple[str, str]]) -> None:
        """Samples that became unreadable since the check: left out, counted once, and fatal above the limit of data.on_error."""
        found = [item for share in self.processes.gather(unreadable) for item in share]
        for name, reason in found:
            self.console.warn(f"unreadable, left out: {shown(name)} ({shown(reason)})")
        self.unreadable |= {name for name, _ in found}
        if too_many_unreadable(len(self.unreadable), len(self.setup.train_set), self.config.data.on_error):
            raise UserError(
                "VA-D010",
                f"{len(self.unreadable)} {self.task.unit}s became unreadable during training",
                where=shown(found[-1][0]),
                fix="repair or remove them and resume, or data.on_error=skip",
            )

    def _diverged(self, batch: Batch, loss: float, norm: float) -> UserError:
        """VA-R002; all processes call this, and the record holds the samples of those that diverged, or of all if only together."""
        bad_loss = not math.isfinite(loss)
        module = first_bad_module(self.task, self.bare_model, batch, self.accelerator)
        if not bad_loss:
            module = first_bad_gradient(self.bare_model)
        shares = self.processes.gather((bad_loss, loss, module, batch.ids))
        guilty = [share for share in shares if share[0]] or shares
        what = f"loss is {guilty[0][1]}" if guilty[0][0] else f"gradient norm is {norm}"
        lr = self.optimizer.param_groups[-1]["lr"]
        ids = [name for share in guilty for name in share[3]]
        record = {"step": self.step, "what": what, "lr": lr, "module": guilty[0][2] or "the loss itself", "samples": ids}
        path = self.run.path / "diverged.json"
        if self.processes.is_main:
            atomic_write(path, json.dumps(record, indent=1))
        place = f"step {self.step + 1} (epoch {self.step // self.steps_per_epoch + 1})"
        return diverged(self.config, record, place, self.accelerator.mixed_precision, str(path))

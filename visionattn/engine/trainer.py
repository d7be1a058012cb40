"""The training loop: one optimizer step per batch of the loader, exact resumption from any step."""

from __future__ import annotations

import copy
import json
import math
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import nn

from visionattn.config.schema import chosen
from visionattn.console import Console, duration
from visionattn.data.check import too_many_unreadable
from visionattn.data.loading import eval_loader, train_loader, worker_count
from visionattn.data.sampling import TrainSampler, derive_seed
from visionattn.engine.diagnosis import (
    diverged,
    first_bad_gradient,
    first_bad_module,
    forward,
    memory_explained,
    out_of_memory_in_training,
)
from visionattn.engine.evaluate import evaluate_model
from visionattn.engine.freezing import freeze, keep_frozen
from visionattn.engine.guard import LossWatch, copy_buffers, restore_buffers
from visionattn.engine.optim import build_optimizer, build_schedule
from visionattn.engine.processes import Processes
from visionattn.engine.progress import Progress, why_enough
from visionattn.engine.random_state import random_state, set_random_state
from visionattn.engine.setup import Setup
from visionattn.engine.sharding import load_model, load_optimizer, shard, whole
from visionattn.errors import Interrupted, UserError
from visionattn.files import atomic_write
from visionattn.layers import mean_regularizer
from visionattn.names import shown, typed
from visionattn.report.trackers import Trackers
from visionattn.runs.checkpoint import keep_best, latest_checkpoint, read_checkpoint, save_checkpoint
from visionattn.runs.folder import RunFolder
from visionattn.runs.interrupts import first_signal, stop_signals
from visionattn.tasks.base import Evaluation
from visionattn.tasks.batch import Batch


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
        self.batch_size = int(config.train.batch_size) * config.train.accum  # per process and step
        self.sampler = TrainSampler(len(setup.train_set), self.batch_size, config.seed, rank, world, setup.classes)
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = config.train.steps or chosen(config.train.epochs, "train.epochs") * self.steps_per_epoch
        self.epochs = -(-self.total_steps // self.steps_per_epoch)  # the last one may be cut off by train.steps

        backbone: Any = model.backbone
        shared = config.train.shard and world > 1
        channels_last = getattr(backbone, "cnn", False) if config.train.channels_last == "auto" else config.train.channels_last
        channels_last = channels_last and not shared  # torch shares out contiguous tensors only
        self.frozen = freeze(model, config.train.frozen)
        model.set_grad_checkpointing(config.model.grad_checkpointing)  # type: ignore[operator]
        model.to(accelerator.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        if self.task.synchronises_norms and world > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # torch has none for the CPU
        # Processes evaluate different numbers of batches, which a model in parts cannot.
        self.replica = copy.deepcopy(model) if shared else None
        self.model: Any = model
        if shared:
            shard(model, accelerator.device, world)
        optimizer = build_optimizer(model, config.optim, self.batch_size * world)
        if shared:
            self.optimizer = accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.schedule = build_schedule(optimizer, config.schedule, steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        ema = config.train.ema
        self.ema = ModelEmaV3(model, decay=ema, use_warmup=True) if ema else None

        workers = worker_count(config.data)
        pin_memory = accelerator.device.type == "cuda"
        self.train_loader = train_loader(setup.train_set, self.sampler, workers, pin_memory=pin_memory, warn=console.warn)
        self.val_loader = eval_loader(setup.val_set, self.task.eval_batch_size(config), workers, rank, world, warn=console.warn)
        self.progress, self.ended = Progress(), ""  # why the run ends before its last step
        self._began = time.perf_counter()  # less the time before it was resumed
        self.unreadable: set[str] = set()
        self.monitor = self.task.monitor(config) if config.eval.best == "auto" else config.eval.best
        self.watch = LossWatch()
        self._interrupted = False
        self.trackers: Trackers | None = None  # of the first process

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def best(self) -> dict[str, Any] | None:
        """Metric, value and epoch of the best evaluation so far."""
        return self.progress.best

    @property
    def samples_per_step(self) -> int:
        """Samples of a step on all processes."""
        return self.batch_size * self.processes.world

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper for several processes."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    def fit(self) -> None:
        """Train to the last epoch, or until `train.patience` or `train.max_time` end the run.

        Raises:
            UserError: VA-R001, out of memory; VA-R002, diverged; VA-R004, disk full; VA-R009, a loader process ended; VA-D010,
                unreadable samples.
            Interrupted: after a stop signal and a save.
        """
        train, progress = self.config.train, self.progress
        self._began = time.perf_counter() - progress.elapsed
        self.ended = self._why_ended(progress.elapsed)
        with first_signal(stop_signals(train.save_signal), self._interrupt), memory_explained(self._out_of_memory):
            if self.step > progress.closed and progress.updates and (self._epoch_is_over or progress.elapsed >= train.max_seconds):
                self._end_of_epoch()
            while self.step < self.total_steps and not self.ended:
                self._epoch()
                self._end_of_epoch()
                if self.step < self.total_steps and not self.ended and self.processes.any_of(self._interrupted)[0]:
                    raise Interrupted(f"after epoch {self.step // self.steps_per_epoch}")
        if self.ended:
            rate = f"the learning rate was {progress.lr:.1e}, its schedule is over all {self.epochs}"
            more = f"to go on:  visionattn train --resume {self.run.path} {self.ended.partition('=')[0]}=null"
            self.console.field("ended", f"{self.ended}, after {self.trained}; {rate}\n{more}")

    def _out_of_memory(self, error: Exception) -> UserError:
        return out_of_memory_in_training(self.config, self.step, self.accelerator.mixed_precision, error)

    def _interrupt(self) -> None:
        self._interrupted = True
        with suppress(RuntimeError):  # the signal may have come while a line was printed
            self.console.field("interrupt", "finishing this step, saving ... press again to stop at once")

    def _epoch(self) -> None:
        """Train to the end of the current epoch."""
        config, unit, progress = self.config, self.task.unit, self.progress
        epoch, first = divmod(self.step, self.steps_per_epoch)
        last = self._end(epoch + 1)
        self.sampler.set_position(epoch, first)
        self.model.train()
        keep_frozen(self.bare_model, self.frozen)
        label = self._label(epoch + 1)
        samples, started, window, earlier = 0, time.perf_counter(), (time.perf_counter(), 0), progress.seconds
        with self.console.progress(label, last - epoch * self.steps_per_epoch, first) as bar:
            for batch in self.train_loader:
                if self.trackers is not None and self.step == 0:
                    self.trackers.show_batch(self.bare_model, batch)
                loss, grad_norm, stop = self.train_step(batch)
                now = time.perf_counter()
                progress.step, progress.lr = progress.step + 1, self._lr
                progress.seconds = earlier + now - started
                samples += len(batch) * self.processes.world
                if loss is not None:
                    progress.losses, progress.updates = progress.losses + loss, progress.updates + 1
                    self._look_at(loss)
                if self.step % config.log.every_steps == 0 or self.step == last:
                    speed = (samples - window[1]) / (now - window[0])
                    window = (now, samples)
                    self._log_step(epoch, loss, progress.lr, grad_norm, speed)
                rate = f"{unit}s/s {samples / (now - started):.0f}"
                shown = "-" if loss is None else f"{loss:.3f}"
                bar.update(self.step - epoch * self.steps_per_epoch, f"loss {shown}  lr {progress.lr:.1e}  gnorm {grad_norm:.2f}  {rate}")
                self.schedule.step_update(self.step)
                if self.step == last:
                    break  # its evaluation belongs to the epoch: an interrupt waits for it to begin
                if stop and not self.processes.any_of(self._interrupted)[0]:
                    label = f"{label} to step {self.step - epoch * self.steps_per_epoch}/{self.steps_per_epoch}"
                    break  # train.max_time is over: what was trained of the epoch is evaluated
                if stop or (config.train.save_every and self.step % config.train.save_every == 0):
                    self.save()
                if stop:
                    raise Interrupted(f"epoch {epoch + 1}, step {self.step - epoch * self.steps_per_epoch}/{self.steps_per_epoch}")
        self._require_updates(epoch + 1)
        mean_loss, seconds = progress.losses / progress.updates, progress.seconds
        summary = f"loss {mean_loss:.3f}  lr {progress.lr:.1e}  gnorm {grad_norm:.2f}  {unit}s/s {samples / (now - started):.0f}"
        self.console.line(f"{label}  {duration(seconds):>5}  {summary}")

    def _require_updates(self, epoch: int) -> None:
        if not self.progress.updates:
            raise UserError(
                "VA-D010",
                f"epoch {epoch} trained on nothing: its {self.task.unit}s cannot be read, or each of its steps was left out",
                where=shown(", ".join(sorted(self.unreadable)[:3])),
                fix=f"restore the files, then visionattn train --resume {typed(self.run.path)}",
            )

    def _label(self, epoch: int) -> str:
        return f"epoch {epoch:>3}/{self.epochs}"

    @property
    def trained(self) -> str:
        """How many epochs the run has trained, and of how many if it did not train all."""
        done = "" if self.step == self.total_steps else f"{self.step / self.steps_per_epoch:.1f}".removesuffix(".0") + " of "
        return f"{done}{self.epochs} epoch{'s' * (self.epochs != 1)}"

    def _why_ended(self, elapsed: float) -> str:
        """Why the run ends before its last step; empty if it does not."""
        return why_enough(self.config.train, self.progress.values, elapsed, self.monitor) if self.step < self.total_steps else ""

    @property
    def _epoch_is_over(self) -> bool:
        return self.step == self._end(math.ceil(self.step / self.steps_per_epoch))

    @property
    def _elapsed(self) -> float:
        """Time of the run, evaluations and saves included, over all resumptions."""
        return time.perf_counter() - self._began

    @property
    def _lr(self) -> float:
        return float(self.optimizer.param_groups[-1]["lr"])

    def train_step(self, batch: Batch) -> tuple[float | None, float, bool]:
        """Forward, backward and update.

        Returns:
            The loss, or None if the step updated nothing; the gradient norm before clipping; whether the run is to stop afterwards.

        Raises:
            UserError: VA-R002, a loss or a gradient that is not finite; VA-D010, too many unreadable samples.
        """
        config, accelerator, processes = self.config, self.accelerator, self.processes
        mixed = self.setup.objective.mix(batch.to(accelerator.device))
        empty, unreadable = processes.any_of(not len(mixed), bool(batch.unreadable))
        if unreadable:
            self._count_unreadable([item for share in processes.gather(batch.unreadable) for item in share])
        if empty:  # on one process: the step updates nothing on any
            return None, 0.0, processes.any_of(self._is_to_stop())[0]
        buffers = [] if config.train.on_nan == "stop" else copy_buffers(self.bare_model)
        parts = self.task.split(mixed, config.train.accum)
        total = 0.0
        for index, part in enumerate(parts):
            with accelerator.autocast():
                outputs = forward(self.task, config, self.model, part)
            loss = (self.setup.objective.loss(outputs, part)["loss"] + mean_regularizer(self.bare_model)) / len(parts)
            total += float(loss.detach())
            if index == len(parts) - 1:
                accelerator.backward(loss)
            else:
                with accelerator.no_sync(self.model):
                    accelerator.backward(loss)
        if config.optim.clip_grad is not None:
            norm = float(whole(accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad)))
        else:
            accelerator.unscale_gradients()
            norm = float(whole(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])))
        # fp16: the scaler skips a step with a gradient that is not finite, and lowers its scale
        bad_norm = not math.isfinite(norm) and accelerator.mixed_precision != "fp16"
        bad_loss, bad_norm, stop = processes.any_of(not math.isfinite(total), bad_norm, self._is_to_stop())
        if bad_loss or bad_norm:
            self._leave_out(self._diverged(mixed, total, norm), buffers)
            return None, norm, stop
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare_model, step=self.step)
        self.progress.skipped = 0
        return total, norm, stop

    def _is_to_stop(self) -> bool:
        """Whether a signal came, or the first process has run out of time, with something to evaluate."""
        out_of_time = self.processes.is_main and self._elapsed >= self.config.train.max_seconds
        return self._interrupted or (out_of_time and self.progress.updates > 0)

    def _leave_out(self, error: UserError, buffers: list[torch.Tensor]) -> None:
        """Undo what a step that is not finite did, as far as `train.on_nan` allows it.

        Raises:
            UserError: the error, if the run stops.
        """
        train, progress = self.config.train, self.progress
        if train.on_nan == "stop":
            raise error
        if self.accelerator.scaler is not None:
            self.optimizer.step()  # the scaler leaves it out, and lowers its scale
        self.optimizer.zero_grad(set_to_none=True)
        if train.on_nan == "skip":
            progress.skipped += 1
            if progress.skipped > train.nan_limit:
                raise error
            restore_buffers(self.bare_model, buffers)
            self.console.warn(f"VA-R002 {error.what}: the step is left out ({progress.skipped} of {train.nan_limit} in a row); {error.why}")
            return
        progress.rollbacks += 1
        checkpoint = self.processes.from_main(latest_checkpoint(self.run.checkpoints) if self.processes.is_main else None)
        if checkpoint is None or progress.rollbacks > train.nan_limit:
            raise error
        state = self._load(checkpoint)
        self.schedule.step_update(self.step)
        back = f"the weights are those of step {state['progress']['step']} again ({progress.rollbacks} of {train.nan_limit} times)"
        self.console.warn(f"VA-R002 {error.what}: {back}; {error.why}")

    def _look_at(self, loss: float) -> None:
        spike = self.watch.spike(loss)
        if spike is not None:
            self.console.warn(f"step {self.step}: {spike}")

    def evaluate(self) -> Evaluation:
        """Metrics on the validation set, of the moving average if there is one."""
        model = self.ema.module if self.ema is not None else self.bare_model
        self.processes.share_buffers(model)
        if self.replica is not None:
            self.replica.load_state_dict(whole(model.state_dict()))
            model = self.replica
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
            stopped=lambda: self._interrupted,
        )

    def save(self) -> None:
        """Write `checkpoints/last`; every process contributes its random state."""
        self.progress.elapsed = self._elapsed
        randoms = self.processes.gather(random_state())
        model, optimizer = whole(self.bare_model.state_dict()), whole(self.optimizer.state_dict())
        if self.processes.is_main:
            state = {
                "progress": asdict(self.progress),
                "optimizer": optimizer,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "random": randoms,
            }
            meta = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "processes": self.processes.world,
                "samples_per_step": self.samples_per_step,
                "best": self.best,
                "target": self.setup.target,
                "config": self.config.model_dump(mode="json"),
            }
            ema = self.ema.module.state_dict() if self.ema is not None else None
            save_checkpoint(self.run.checkpoints, model=model, ema=ema, state=state, meta=meta)
        self.processes.wait()

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint folder, bit for bit if it is of as many processes.

        Raises:
            UserError: VA-W003, VA-W005, a checkpoint that is not of this run.
        """
        state = self._load(checkpoint)
        self.progress = Progress(**state["progress"])
        before = self._lr
        self.schedule.step_update(self.step)
        if not math.isclose(before, self._lr, rel_tol=1e-6) and self.step < self.total_steps:
            why = f"the schedule is now over {self.total_steps} steps"
            self.console.field("", f"learning rate {before:.2e} -> {self._lr:.2e} at this step: {why}")
        randoms = state["random"]
        if len(randoms) == self.processes.world:
            set_random_state(randoms[self.processes.rank])
        else:
            set_seed(derive_seed(self.config.seed, 1 + self.processes.rank, self.step))
            world = f"{len(randoms)} -> {self.processes.world} processes"
            self.console.field("", f"{world}: order and learning rate go on; dropout and batch statistics differ from here on")
        if self.processes.is_main and self.best is not None and self._end(self.best["epoch"]) == self.step:
            keep_best(checkpoint)  # the kill may have come between the save and this

    def _load(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights, optimizer and scaler; returns the rest of the state."""
        model, ema, state = read_checkpoint(checkpoint)
        try:
            load_model(self.bare_model, model)
            if self.ema is not None and ema is not None:
                self.ema.module.load_state_dict(ema)
            load_optimizer(self.optimizer, state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error).split("\n")[0]
            fix = "use the version in env.txt of the run, or start a new run"
            raise UserError("VA-W003", "the checkpoint does not fit the run", where=str(checkpoint), why=why, fix=fix) from error
        return state

    def _end_of_epoch(self) -> None:
        """Evaluate what was just trained, an epoch or the part of one that there was time for, write its line and save."""
        progress, train, over = self.progress, self.config.train, self._epoch_is_over
        number = math.ceil(self.step / self.steps_per_epoch)
        epoch = number if over else self.step / self.steps_per_epoch
        train_loss, seconds = progress.losses / progress.updates, progress.seconds
        line: dict[str, Any] = {"kind": "epoch", "step": self.step, "epoch": epoch}
        line |= {"train_loss": train_loss, "lr": progress.lr, "seconds": seconds}
        elapsed = self.processes.from_main(self._elapsed)
        due = over and (number % self.config.eval.every == 0 or number == self.epochs)
        evaluation, better = None, False
        if due or elapsed >= train.max_seconds:
            evaluation = self._evaluate_or_stop(epoch)
            elapsed = self.processes.from_main(self._elapsed)
            self._count_unreadable(evaluation.unreadable)
            value = evaluation.metrics[self.monitor]
            # Of equals the later is kept: it has trained for longer, at a lower rate. On few images many epochs score alike.
            better = value is not None and (self.best is None or value >= self.best["value"])
            if better:
                progress.best = {"metric": self.monitor, "value": value, "epoch": epoch}
            if due:
                progress.values.append(value)
            line |= {f"val_{name}": metric for name, metric in evaluation.metrics.items()} | {"val_count": evaluation.count}
            self._print_evaluation(evaluation, better, max(0.0, min((self.epochs - number) * seconds, train.max_seconds - elapsed)))
        if over:
            progress.losses, progress.updates, progress.seconds = 0.0, 0, 0.0
        progress.closed = self.step
        self.ended = self._why_ended(elapsed)
        if number == 1 and over and elapsed * self.epochs > train.max_seconds:
            self.console.warn(
                f"train.max_time={train.max_time} is enough for about {train.max_seconds / elapsed:.2g} of {self.epochs} epochs"
            )
        if self.processes.is_main:
            # Before the save: a run killed in between goes back and writes them again.
            self._log(line)
            self.run.write_epoch_table()
            if self.trackers is not None and evaluation is not None:
                self.trackers.show_classes(evaluation, self.step)
        self.save()
        if self.processes.is_main:
            if better:
                keep_best(self.run.checkpoints / "last")
            if self.trackers is not None and evaluation is not None and (better or number == self.epochs or self.ended):
                self.trackers.show_evaluation(evaluation, self.setup.val_set, self.run.read_metrics())

    def _evaluate_or_stop(self, epoch: float) -> Evaluation:
        try:
            return self.evaluate()
        except Interrupted:
            self.save()
            raise Interrupted(f"epoch {epoch:.4g}, before its evaluation") from None

    def _print_evaluation(self, evaluation: Evaluation, better: bool, seconds_left: float) -> None:
        display, metrics = self.task.display, evaluation.metrics
        names = [name for name in dict.fromkeys((self.monitor, *display.metrics)) if name in metrics]
        texts = [f"{name} {display.text(name, metrics[name], 2)}" for name in names]
        eta = f"eta {duration(seconds_left)}" if seconds_left else ""
        part = f"of {evaluation.count} of {len(self.setup.val_set)} {self.task.unit}s" if evaluation.unreadable else ""
        texts += [f"loss {metrics['loss']:.3f}", part, "best -> saved" if better else "", eta]
        self.console.field("   val", "  ".join(filter(None, texts)))

    def _end(self, epoch: float) -> int:
        """The step at which an epoch, counted from 1, is over; of 2.5 that at which half of the third one is."""
        return min(round(epoch * self.steps_per_epoch), self.total_steps)

    def _log_step(self, epoch: int, loss: float | None, lr: float, grad_norm: float, speed: float) -> None:
        if not self.processes.is_main:
            return
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, f"{self.task.unit}s_per_second": round(speed, 1)}
        self._log({"kind": "step", "step": self.step, "epoch": epoch + 1, **values})

    def _log(self, line: dict[str, Any]) -> None:
        self.run.append_metrics(line)
        if self.trackers is not None:
            self.trackers.log(line)

    def _count_unreadable(self, found: list[tuple[str, str]]) -> None:
        """Samples that became unreadable since the check: left out, counted once, and fatal above the limit of data.on_error."""
        new = {name: reason for name, reason in found if name not in self.unreadable}
        if not new:
            return
        for name, reason in new.items():
            self.console.warn(f"unreadable, left out: {shown(name)} ({shown(reason)})")
        self.unreadable |= new.keys()
        if self.processes.is_main:  # the run may be resumed without them
            self.run.write_state("running", unreadable=sorted(self.unreadable))
        if too_many_unreadable(len(self.unreadable), len(self.setup.train_set) + len(self.setup.val_set), self.config.data.on_error):
            raise UserError(
                "VA-D010",
                f"{len(self.unreadable)} {self.task.unit}s became unreadable during training",
                where=shown(", ".join(list(new)[:3])),
                fix="repair or remove them and resume, or resume with data.on_error=skip",
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
        ids = [name for share in guilty for name in share[3]]
        record = {"step": self.step, "what": what, "lr": self._lr, "module": guilty[0][2] or "the loss itself", "samples": ids}
        path = self.run.path / "diverged.json"
        if self.processes.is_main:
            atomic_write(path, json.dumps(record, indent=1))
        place = f"step {self.step + 1} (epoch {self.step // self.steps_per_epoch + 1})"
        return diverged(self.config, record, place, self.accelerator.mixed_precision, str(path))

"""The training loop: one optimizer step per batch of the loader, exact resumption from any step."""

from __future__ import annotations

import json
import math
import random
import signal
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset

from visionattn.config import AnyConfig
from visionattn.data.check import too_many_unreadable
from visionattn.data.sampling import TrainSampler
from visionattn.data.sets import Samples
from visionattn.errors import EXIT_DIVERGED, EXIT_OUT_OF_MEMORY, Interrupted, UserError
from visionattn.files import atomic_write
from visionattn.models import Segmenter
from visionattn.tasks import Task
from visionattn.tasks.base import Batch
from visionattn.training.build import Model, eval_batch_size, worker_count
from visionattn.training.checkpoint import keep_best, read_checkpoint, save_checkpoint
from visionattn.training.console import Console, duration, percent
from visionattn.training.evaluation import Evaluation, eval_loader, evaluate_model, to_device
from visionattn.training.optim import build_optimizer, build_schedule
from visionattn.training.pictures import TensorBoard
from visionattn.training.run import RunFolder
from visionattn.training.view import show_batch, show_evaluation, show_scores


class Trainer:
    """Everything a run needs, and `fit`.

    One batch of the loader is one optimizer step; with `train.accum` it is cut into that many parts
    whose gradients are added. The position of a run is therefore its step alone: order, augmentation
    and learning rate are functions of (seed, step), the rest of the state is in the checkpoint.

    Args:
        config: of the run.
        model: a backbone with a head.
        task: loss and metrics.
        train_set, val_set: checked images with their transforms.
        run: locked run folder, where this process writes.
        accelerator: device, precision and processes.
        console: where a person reads.
    """

    def __init__(
        self,
        config: AnyConfig,
        model: Model,
        task: Task,
        train_set: Samples,
        val_set: Samples,
        run: RunFolder,
        accelerator: Accelerator,
        console: Console,
    ) -> None:
        self.config, self.task, self.run = config, task, run
        self.train_set, self.val_set = train_set, val_set
        self.accelerator, self.console = accelerator, console
        rank, world = accelerator.process_index, accelerator.num_processes
        self.batch_size = config.train.batch_size * config.train.accum  # per process and step
        self.sampler = TrainSampler(len(train_set), self.batch_size, config.seed, rank, world)
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = config.train.steps or config.train.epochs * self.steps_per_epoch
        self.epochs = -(-self.total_steps // self.steps_per_epoch)  # the last one may be cut off by train.steps

        self.channels_last = model.backbone.cnn if config.train.channels_last == "auto" else config.train.channels_last
        if config.train.freeze == "backbone":
            model.backbone.requires_grad_(False)
        model.set_grad_checkpointing(config.model.grad_checkpointing)
        model.to(accelerator.device, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        model = with_synchronised_norms(model, accelerator)
        samples = self.batch_size * world
        optimizer = build_optimizer(model, config.optim, samples)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.schedule = build_schedule(optimizer, config.schedule, steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        self.ema = ModelEmaV3(model, decay=config.train.ema, use_warmup=True) if config.train.ema else None

        workers = worker_count(config)
        self.train_loader: DataLoader[Any] = DataLoader(
            typing.cast("Dataset[Any]", train_set),
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=train_set.collate,
            generator=torch.Generator(),  # its own: making an iterator would draw from the stream dropout uses
            persistent_workers=workers > 0,
            worker_init_fn=ignore_interrupt,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.val_loader = eval_loader(val_set, eval_batch_size(config), workers, rank, world)
        self.step = 0
        self.best: dict[str, Any] | None = None  # epoch, metric, value
        self.unreadable = 0
        self._interrupted = False
        self.tensorboard: TensorBoard | None = None

    @property
    def monitor(self) -> str:
        return self.task.monitor if self.config.eval.best == "auto" else self.config.eval.best

    @property
    def bare_model(self) -> Model:
        model: Model = self.accelerator.unwrap_model(self.model)
        return model

    def fit(self) -> Evaluation | None:
        """Train to the last epoch; returns the last evaluation.

        Raises:
            UserError: VA-R001 out of memory, VA-R002 diverged, VA-R004 disk full, VA-D010 unreadable images.
            Interrupted: after Ctrl-C or SIGTERM and a save.
        """
        if self.accelerator.is_main_process and self.config.log.tensorboard:
            self.tensorboard = TensorBoard(self.run.path / "tb", purge_step=self.step)
        evaluation = None
        try:
            with self._signals():
                while self.step < self.total_steps:
                    evaluation = self._epoch() or evaluation
                    if self._interrupted and self.step < self.total_steps:
                        raise Interrupted(f"after epoch {self.step // self.steps_per_epoch}")
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error) from error
        finally:
            if self.tensorboard is not None:
                self.tensorboard.close()
        return evaluation

    def _epoch(self) -> Evaluation | None:
        config = self.config
        epoch, first = divmod(self.step, self.steps_per_epoch)
        last = self._end(epoch + 1)
        self.sampler.set_position(epoch, first)
        self.model.train()
        if config.train.freeze == "backbone":
            self.bare_model.backbone.eval()  # its statistics stay as they are too
        label = f"epoch {epoch + 1:>3}/{self.epochs}"
        losses, images, started, window = [], 0, time.perf_counter(), (time.perf_counter(), 0)
        with self.console.progress(label, last - epoch * self.steps_per_epoch, first) as bar:
            for batch in self.train_loader:
                self._count_unreadable(batch["unreadable"])
                if self.tensorboard is not None and self.step == 0:
                    show_batch(self.tensorboard, self.task, batch, self.bare_model.pretrained_cfg, config.log.images)
                loss, grad_norm = self.train_step(batch)
                self.step += 1
                losses.append(loss)
                images += len(batch["index"]) * self.accelerator.num_processes
                lr = self.optimizer.param_groups[-1]["lr"]
                if self.step % config.log.every_steps == 0 or self.step == last:
                    now = time.perf_counter()
                    speed = (images - window[1]) / (now - window[0])
                    window = (now, images)
                    self._log_step(epoch, loss, lr, grad_norm, speed)
                text = f"loss {loss:.3f}  lr {lr:.1e}  gnorm {grad_norm:.2f}  img/s {images / (time.perf_counter() - started):.0f}"
                bar.update(self.step - epoch * self.steps_per_epoch, text)
                self.schedule.step_update(self.step)
                if self.step == last:
                    break  # its evaluation belongs to the epoch: an interrupt waits for it
                if self._interrupted or (config.train.save_every and self.step % config.train.save_every == 0):
                    self.save()
                if self._interrupted:
                    raise Interrupted(f"epoch {epoch + 1}, step {self.step - epoch * self.steps_per_epoch}/{self.steps_per_epoch}")
        seconds = time.perf_counter() - started
        self.console.line(
            f"{label}  {duration(seconds):>5}  loss {np.mean(losses):.3f}  lr {lr:.1e}  gnorm {grad_norm:.2f}  img/s {images / seconds:.0f}"
        )
        return self._end_of_epoch(epoch + 1, float(np.mean(losses)), lr, seconds)

    def train_step(self, batch: dict[str, Any]) -> tuple[float, float]:
        """Forward, backward and update; returns the loss and the gradient norm before clipping.

        Raises:
            UserError: VA-R002, a loss or a gradient that is not finite.
        """
        config, accelerator = self.config, self.accelerator
        if not len(batch["index"]):
            return 0.0, 0.0  # nothing of the batch could be read: no update
        mixed = self.task.mix(to_device(batch, accelerator.device))
        if not len(mixed["image"]):
            return 0.0, 0.0  # a single image, which cannot be mixed with another
        parts = split_batch(mixed, config.train.accum)
        total = 0.0
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            image = part["image"].contiguous(memory_format=torch.channels_last) if self.channels_last else part["image"]
            with accelerator.autocast():
                output = self._forward(image)
            loss = self.task.loss(output, part)["loss"] / len(parts)
            total += float(loss.detach())
            if not math.isfinite(total):
                raise self._diverged(f"loss is {total}", batch, first_bad_module(self.bare_model, image, accelerator))
            if last:
                accelerator.backward(loss)
            else:
                with accelerator.no_sync(self.model):
                    accelerator.backward(loss)
        if config.optim.clip_grad is not None:
            norm = float(accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad))
        else:
            accelerator.unscale_gradients()
            norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        if not math.isfinite(norm) and accelerator.mixed_precision != "fp16":  # fp16: the scaler skips the step and lowers its scale
            raise self._diverged(f"gradient norm is {norm}", batch, first_bad_gradient(self.bare_model))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare_model, step=self.step)
        return total, norm

    def _forward(self, image: torch.Tensor) -> Any:
        try:
            return self.model(image)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "VA-C011",
                f"batch norm over a single value: {len(image)} image in a batch, {self.config.model.name} pools it to one pixel",
                fix="train.batch_size=2 or more, or a larger model.img_size where the last map is one pixel",
            ) from error

    def evaluate(self) -> Evaluation:
        """Metrics on the validation set, of the moving average where there is one."""
        model = self.ema.module if self.ema is not None else self.bare_model
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():  # batch statistics of the last step are each process' own: those of the first count
                broadcast(buffer)
        return evaluate_model(
            model,
            self.task,
            self.val_loader,
            split="val",
            device=self.accelerator.device,
            autocast=self.accelerator.autocast,
            gather=True,
            console=self.console,
        )

    def save(self) -> None:
        """Write `checkpoints/last`; every process contributes its random state."""
        randoms = gather_object([random_state()])
        if self.accelerator.is_main_process:
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
                "classes": self.task.classes,
                **self.task.meta,
                "config": self.config.model_dump(mode="json"),
            }
            ema = self.ema.module.state_dict() if self.ema is not None else None
            save_checkpoint(self.run.checkpoints, model=self.bare_model.state_dict(), ema=ema, state=state, meta=meta)
            if self.tensorboard is not None:
                self.tensorboard.flush()
        self.accelerator.wait_for_everyone()

    def resume(self, checkpoint: Any) -> None:
        """Go on from a checkpoint folder, bit for bit."""
        model, ema, state = read_checkpoint(checkpoint)
        self.bare_model.load_state_dict(model)
        if self.ema is not None and ema is not None:
            self.ema.module.load_state_dict(ema)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], state["best"]
        self.schedule.step_update(self.step)
        set_random_state(state["random"][self.accelerator.process_index])
        if self.accelerator.is_main_process and self.best is not None and self._end(self.best["epoch"]) == self.step:
            keep_best(self.run.checkpoints)  # the kill may have come between the save and this

    def _end_of_epoch(self, epoch: int, train_loss: float, lr: float, seconds: float) -> Evaluation | None:
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
            left = (self.epochs - epoch) * seconds
            shown = [
                f"{name} {percent(evaluation.metrics[name])}"
                for name in dict.fromkeys((self.monitor, *self.task.shown))
                if name in evaluation.metrics
            ]
            note = "best -> saved" if better else ""
            eta = f"eta {duration(left)}" if left else ""
            self.console.say("   val", "  ".join(filter(None, [*shown, f"loss {evaluation.metrics['loss']:.3f}", note, eta])))
        if self.accelerator.is_main_process:
            self.run.append_metrics(line)  # before the save: a run killed in between goes back and writes it again
            self.run.write_epoch_table()
        self.save()
        if self.accelerator.is_main_process:
            if better:
                keep_best(self.run.checkpoints)
            if self.tensorboard is not None and evaluation is not None:
                show_scores(self.tensorboard, evaluation, self.step)
                if better or epoch == self.epochs:
                    show_evaluation(self.tensorboard, self.task, evaluation, self.val_set, self.run.read_metrics(), self.config.log.images)
        return evaluation

    def _end(self, epoch: int) -> int:
        """The step at which an epoch, counted from 1, is over."""
        return min(epoch * self.steps_per_epoch, self.total_steps)

    def _log_step(self, epoch: int, loss: float, lr: float, grad_norm: float, speed: float) -> None:
        if not self.accelerator.is_main_process:
            return
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "images_per_second": round(speed, 1)}
        self.run.append_metrics({"kind": "step", "step": self.step, "epoch": epoch + 1, **values})
        if self.tensorboard is not None:
            self.tensorboard.scalars("train", values, self.step)

    def _count_unreadable(self, unreadable: list[tuple[int, str]]) -> None:
        """Images that became unreadable since the check: left out, counted, and fatal above the policy's limit."""
        if not unreadable:
            return
        for index, reason in unreadable:
            self.console.warn(f"unreadable, left out: {self.train_set.ids[index]} ({reason})")
        self.unreadable += len(unreadable)
        if too_many_unreadable(self.unreadable, len(self.train_set.ids), self.config.data.on_error):
            raise UserError(
                "VA-D010",
                f"{self.unreadable} images became unreadable during training",
                where=self.train_set.ids[unreadable[-1][0]],
                fix="repair or remove them and resume, or data.on_error=skip",
            )

    def _diverged(self, what: str, batch: dict[str, Any], module: str) -> UserError:
        lr = self.optimizer.param_groups[-1]["lr"]
        ids = [self.train_set.ids[index] for index in batch["index"]]
        record = {"step": self.step, "what": what, "lr": lr, "module": module, "images": ids}
        atomic_write(self.run.path / "diverged.json", json.dumps(record, indent=1))
        hint = "train.precision=bf16 or fp32, " if self.accelerator.mixed_precision == "fp16" else ""
        return UserError(
            "VA-R002",
            f"{what} at step {self.step + 1} (epoch {self.step // self.steps_per_epoch + 1})",
            where=f"first module that is not finite: {module}",
            why=f"lr {lr:.2e}; the batch is listed in {self.run.path / 'diverged.json'}; the last checkpoint is intact",
            fix=f"{hint}a lower optim.lr (now {self.config.optim.lr:g}), a longer schedule.warmup_epochs, or optim.clip_grad=1",
            exit_code=EXIT_DIVERGED,
        )

    def _out_of_memory(self, error: Exception) -> UserError:
        train, (height, width) = self.config.train, self.config.model.size
        setting = f"batch {train.batch_size}, {height}x{width} px, {self.accelerator.mixed_precision}"
        return UserError(
            "VA-R001",
            f"out of memory at step {self.step + 1}: {setting}",
            why=str(error).splitlines()[0],
            fix=f"in this order: train.batch_size={max(1, train.batch_size // 2)} train.accum={train.accum * 2} (same effective batch)\n"
            "model.grad_checkpointing=true\ntrain.precision=bf16\na smaller model.img_size; then resume with a new run",
            exit_code=EXIT_OUT_OF_MEMORY,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after this step and a save, the second at once."""

        def stop(number: int, frame: Any) -> None:
            self._interrupted = True
            self.console.say("interrupt", "finishing this step, saving ... press again to stop at once")
            for name, handler in before.items():
                signal.signal(name, handler)

        try:
            before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller handles signals
            before = {}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def with_synchronised_norms(model: Model, accelerator: Accelerator) -> Model:
    """The model of segmentation with batch norms over the images of all GPUs, as its published recipes have them: one GPU holds few.

    Parameters stay the same objects, and keys the same. torch has no such norm on the CPU, where each process uses its own images.
    """
    if accelerator.num_processes == 1 or accelerator.device.type != "cuda" or not isinstance(model, Segmenter):
        return model
    return typing.cast("Segmenter", nn.SyncBatchNorm.convert_sync_batchnorm(model))


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut all tensors of a batch into parts; into fewer where images could not be read."""
    count = min(parts, len(batch["image"]))
    cut = {key: value.tensor_split(count) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    return [{key: pieces[index] for key, pieces in cut.items()} for index in range(count)]


def ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal: loaders go on, so that the step and the save can finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def random_state() -> dict[str, Any]:
    """The global generators of python, numpy and torch as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = typing.cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state(legacy=True))
    return {
        "python": (version, list(words), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo what was drawn since `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def first_bad_module(model: nn.Module, image: torch.Tensor, accelerator: Accelerator) -> str:
    """Name of the first module whose output is not finite, found by running the batch once more."""
    bad: list[str] = []

    def check(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and not bad and not torch.isfinite(output).all():
            bad.append(name)

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(partial(check, name)) for name, module in leaves]
    try:
        if not torch.isfinite(image).all():
            return "the input image"
        with torch.no_grad(), accelerator.autocast():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return bad[0] if bad else "the loss itself"


def first_bad_gradient(model: nn.Module) -> str:
    """The backward pass goes from the last layer to the first: the last parameter that is not finite broke first."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    return bad[-1].rpartition(".")[0] if bad else "unknown"

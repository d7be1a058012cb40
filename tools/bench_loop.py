"""Measure the time per training step: the trainer against a bare PyTorch loop with the same model, data and settings."""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from measure import add_common, csv_path, finish, paired, summary
from rich.console import Console as RichConsole
from torch import nn
from torch.utils.data import DataLoader

from visionattn.config.choices import Choice, apply_choices
from visionattn.config.schema import FROM_SCRATCH
from visionattn.console import Console
from visionattn.data.check import CheckReport
from visionattn.data.images.sets import ImageSet, LabelledData
from visionattn.data.sampling import TrainSampler
from visionattn.data.sources import ArrayImages
from visionattn.engine.devices import open_accelerator
from visionattn.engine.processes import Processes
from visionattn.engine.setup import Setup
from visionattn.engine.trainer import Trainer
from visionattn.models.speed import interleave, machine
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config, task_of
from visionattn.tasks.batch import collate

GOAL = 0.03
CLASSES = 100


class LoopTrainer(Trainer):
    """The trainer without evaluation and checkpoints after an epoch."""

    def epoch(self) -> float:
        """Train an epoch and return its mean loss."""
        self._epoch()
        progress = self.progress
        loss = progress.losses / progress.updates
        progress.losses, progress.updates, progress.seconds = 0.0, 0, 0.0
        return loss


class BareLoop:
    """A hand-written loop with only loader, model and AdamW.

    Args:
        loader: returns the batches of the trainer's loader.
        channels_last: memory layout chosen by the trainer.
    """

    def __init__(self, config: Any, model: Any, loader: DataLoader[Any], device: torch.device, channels_last: bool, autocast: bool) -> None:
        self.loader, self.device, self.channels_last, self.autocast = loader, device, channels_last, autocast
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        undecayed = model.no_weight_decay()
        plain = [p for name, p in model.named_parameters() if p.ndim <= 1 or name in undecayed]
        decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in undecayed]
        groups: list[dict[str, Any]] = [{"params": plain, "weight_decay": 0.0}, {"params": decayed}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.optim.lr, betas=config.optim.betas or (0.9, 0.999), weight_decay=config.optim.weight_decay
        )
        self.clip_grad = config.optim.clip_grad
        self.passes = 0

    def epoch(self) -> float:
        """Train on all batches of the loader once and return the mean loss."""
        self.loader.batch_sampler.set_position(self.passes, 0)  # type: ignore[union-attr]
        self.passes += 1
        losses = []
        for batch in self.loader:
            image = batch["image"].to(self.device, non_blocking=True)
            if self.channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            label = batch["label"].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                logits = self.model(image)
            loss = F.cross_entropy(logits.float(), label)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return float(np.mean(losses))


def synthetic_data(config: Any, number: int) -> LabelledData:
    """Create arrays a quarter larger than the model's input: decoding would hide the overhead of the loop."""
    generator = np.random.default_rng(config.seed)
    height, width = (side * 5 // 4 for side in config.model.size)

    def split(name: str, count: int) -> ImageSet:
        pixels = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        images = ArrayImages(pixels, config.data, config.model.in_chans)
        labels = generator.integers(0, CLASSES, count, dtype=np.int64)
        return ImageSet(name, images, labels, [f"{name}[{index}]" for index in range(count)], None)

    return LabelledData("synthetic", split("train", number), split("val", 8), None, [], [str(index) for index in range(CLASSES)])


def build(config: Any, steps: int, folder: Path, accelerator: Accelerator) -> tuple[LoopTrainer, BareLoop]:
    """Build both sides with the same weights, data, augmentation and loader settings."""
    data = synthetic_data(config, steps * config.train.batch_size)
    set_seed(config.seed)
    task = task_of(config)
    target = task.target(config, data)
    model: Any = task.build_model(config, target)
    twin = copy.deepcopy(model)
    train_set: Any = task.train_dataset(config, model, data, CheckReport([], {}, {}, {}, {}))
    val_set = task.eval_dataset(config, model, data.val)
    console = Console()
    # The progress bar does all its work, as on a terminal, but draws to a file.
    console.rich = RichConsole(file=(folder / "terminal.txt").open("w"), force_terminal=True, width=120, highlight=False, soft_wrap=True)
    console.log_to(folder / "log.txt")
    setup = Setup(config, task, target, model, task.objective(config, target, train_set), train_set, val_set)
    trainer = LoopTrainer(setup, RunFolder(folder), accelerator, Processes(accelerator, 60), console)
    workers = config.data.workers
    loader: DataLoader[Any] = DataLoader(
        train_set,
        batch_sampler=TrainSampler(len(train_set), config.train.batch_size, config.seed),
        num_workers=int(workers),
        collate_fn=collate,
        persistent_workers=int(workers) > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    return trainer, BareLoop(config, twin, loader, accelerator.device, model.backbone.cnn, accelerator.mixed_precision == "bf16")


def timed(epoch: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Measure the milliseconds per step of one epoch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    epoch()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started) / steps


def without_bar(trainer: LoopTrainer, steps: int) -> float:
    """Run the trainer as without a terminal."""
    terminal = trainer.console.rich
    trainer.console.rich = RichConsole(file=terminal.file, force_terminal=False, width=120, highlight=False, soft_wrap=True)
    milliseconds = timed(trainer.epoch, steps, trainer.accelerator.device)
    trainer.console.rich = terminal
    return milliseconds


def deterministic(trainer: LoopTrainer, steps: int) -> float:
    """Run the trainer with torch's deterministic operations, the default of `visionattn train`."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    milliseconds = timed(trainer.epoch, steps, trainer.accelerator.device)
    torch.use_deterministic_algorithms(False)
    return milliseconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "loop", rounds=15)
    parser.add_argument("--model", default="eca_resnet18", help="backbone (default %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps per block (default %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0 has the least noise on a CPU (default %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own)")
    args = parser.parse_args()
    rounds, steps, batch = (2, 2, 4) if args.quick else (args.rounds, args.steps, args.batch)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the deterministic row; read once, so set for both sides
    given = load_config(
        None,
        [
            f"model.name={args.model}",
            "model.in_chans=3",
            f"model.img_size={args.size}",
            f"data.workers={args.workers}",
            f"train.batch_size={batch}",
            f"train.epochs={3 * rounds + 1}",
            f"train.precision={args.precision}",
            f"train.device={args.device}",
            "schedule.name=constant",  # computed at each step, and not needed by the bare loop
            "log.to=[]",
        ],
    )
    config, _ = apply_choices(given, [Choice(key, value, "") for key, value in FROM_SCRATCH.items()])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, open_accelerator(config.train) as accelerator:
        trainer, bare = build(config, steps, Path(folder), accelerator)
        device = trainer.accelerator.device
        # Warm-up, and a check that both do the same work.
        bare_loss, loss = bare.epoch(), trainer.epoch()
        if not math.isclose(bare_loss, loss, rel_tol=1e-4):
            print(f"the sides do not compute the same: mean loss {loss:.6f}, bare loop {bare_loss:.6f}")
            return 1
        print(f"mean loss of the first {steps} steps: trainer {loss:.6f}, bare loop {bare_loss:.6f}")
        values = interleave(
            {
                "bare loop": lambda: timed(bare.epoch, steps, device),
                "trainer": lambda: timed(trainer.epoch, steps, device),
                "trainer without bar": lambda: without_bar(trainer, steps),
                "trainer, deterministic": lambda: deterministic(trainer, steps),
            },
            rounds,
        )
        trainer.console.rich.file.close()

    rows = []
    for side, times in values.items():
        overheads = [100 * (ratio - 1) for ratio in paired(times, values["bare loop"])]
        rows.append({"side": side, **summary("ms_per_step", times), **summary("overhead_percent", overheads)})
    overhead = rows[1]["overhead_percent"]  # the trainer with its progress bar; the rows after it have no goal
    missed = [] if overhead <= 100 * GOAL else [f"overhead {overhead:.2f} %, goal at most {100 * GOAL:.0f} %"]
    setting = {"model": args.model, "size": args.size, "batch": batch, "precision": args.precision, "workers": args.workers}
    facts = {**machine(device), **setting, "rounds": rounds, "steps per block": steps}
    title = "Training step, wall ms: median (min-max); overhead over the bare loop of the same round"
    return finish(title, rows, facts, csv_path(args, "loop"), missed)


if __name__ == "__main__":
    sys.exit(main())

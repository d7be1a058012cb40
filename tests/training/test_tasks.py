"""A toy task with masks and two outputs goes through the trainer, the evaluation and the checkpoints that classification uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from visionattn.data.sets import collate
from visionattn.training.build import make_accelerator
from visionattn.training.checkpoint import latest_checkpoint, read_weights
from visionattn.training.console import Console
from visionattn.training.evaluation import eval_loader, evaluate_model
from visionattn.training.run import RunFolder
from visionattn.training.trainer import Trainer, split_batch

from visionattn.config import AnyConfig, load_config
from visionattn.data.sampling import mix
from visionattn.errors import UserError
from visionattn.tasks import Meter, Scores, Task

IGNORE = 255


class Aux(NamedTuple):
    name: str
    logits: torch.Tensor
    weight: float


class Output(NamedTuple):
    logits: torch.Tensor
    aux: tuple[Aux, ...] = ()


class Backbone(nn.Conv2d):
    cnn = False


class Toy(nn.Module):
    """Per-pixel logits, with an auxiliary output at half the size in training; dropout, so that random state matters."""

    pretrained_cfg: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(3, 8, 3, padding=1)
        self.drop = nn.Dropout2d(0.1)
        self.head, self.side = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> Output | torch.Tensor:
        features = self.drop(F.relu(self.backbone(image)))
        if not self.training:
            return self.head(features)
        return Output(self.head(features), (Aux("side", self.side(F.avg_pool2d(features, 2)), 0.4),))

    def set_grad_checkpointing(self, enable: bool) -> None:
        assert not enable


class Pixels:
    """Share of right pixels, per image and over all."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []

    def update(self, prediction: torch.Tensor, batch: dict[str, Any]) -> None:
        for guess, label, index in zip(prediction.argmax(1), batch["label"], batch["index"].tolist(), strict=True):
            valid = label != IGNORE
            self.rows.append((index, int((guess == label)[valid].sum()), int(valid.sum())))

    def state(self) -> Any:
        return self.rows

    def merge(self, states: list[Any]) -> None:
        self.rows += [row for state in states for row in state]

    def result(self) -> Scores:
        rows = sorted(self.rows)
        right, count = (sum(row[column] for row in rows) for column in (1, 2))
        per_image = [{"index": index, "aacc": hits / pixels} for index, hits, pixels in rows]
        return Scores({"aacc": right / count, "empty": None}, [{"class": "all", "pixels": count}], per_image)


class ToyTask:
    name, classes, shown, monitor = "segment", ["dark", "light"], ("aacc", "empty"), "aacc"
    meta: dict[str, Any] = {}

    def mix(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        logits, aux = output if isinstance(output, Output) else (output, ())
        parts = [F.cross_entropy(logits.float(), batch["label"], ignore_index=IGNORE)]
        for item in aux:
            larger = F.interpolate(item.logits.float(), batch["label"].shape[1:], mode="bilinear")
            parts.append(item.weight * F.cross_entropy(larger, batch["label"], ignore_index=IGNORE))
        return {"loss": torch.stack(parts).sum(), "main": parts[0]}

    def predict(self, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return model(image)

    def meter(self) -> Meter:
        return Pixels()


class Noise:
    """Images of a size each in evaluation, crops in training; the mask says where red is strong. The last one cannot be read."""

    collate = staticmethod(collate)

    def __init__(self, count: int, seed: int | None = None, broken: bool = False) -> None:
        self.ids = [f"{number}.png" for number in range(count)]
        self.seed, self.broken = seed, broken

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key if self.seed is None else key[1]
        if self.broken and index == len(self) - 1:
            return {"index": index, "unreadable": "truncated"}
        generator = np.random.default_rng(index if self.seed is None else mix(self.seed, *key))
        height, width = (16, 16) if self.seed is not None else (11 + index, 17)
        image = generator.random((3, height, width), dtype=np.float32)
        label = (image[0] > 0.5).astype(np.int64)
        label[0, 0] = IGNORE
        return {"image": torch.from_numpy(image), "label": label, "index": index}


def settings(folder: Path, *overrides: str) -> AnyConfig:
    common = ["task=segment", "data.workers=0", "train.device=cpu", "log.tensorboard=false", "log.every_steps=1", "train.batch_size=2"]
    return load_config(None, [*common, "optim.lr=0.05", "train.accum=2", f"output.dir={folder}", *overrides])


def trainer(run: Path, config: AnyConfig) -> Trainer:
    torch.manual_seed(0)
    model, task = Toy(), ToyTask()
    checked: Task = task  # the protocol as mypy and a reader see it
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    console = Console(quiet=True)
    sets = Noise(8, seed=config.seed), Noise(3, broken=True)
    return Trainer(config, model, checked, *sets, RunFolder(run), make_accelerator(config), console)  # type: ignore[arg-type]


def test_trains_evaluates_saves_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = settings(tmp_path, "train.epochs=4", "train.save_every=1", "train.ema=0.9")
    straight = trainer(tmp_path / "straight", config)
    evaluation = straight.fit()
    assert evaluation is not None and (evaluation.task, evaluation.count) == ("segment", 2)
    assert evaluation.unreadable == [(2, "truncated")] and evaluation.metrics["empty"] is None
    assert [row["index"] for row in evaluation.scores.per_image] == [0, 1]

    class Stopped(Exception):
        pass

    first = trainer(tmp_path / "stopped", config)
    take = first.train_step

    def stop_before_the_sixth(batch: Any) -> tuple[float, float]:
        if first.step == 5:
            raise Stopped
        return take(batch)

    first.train_step = stop_before_the_sixth  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        first.fit()
    second = trainer(tmp_path / "stopped", config)
    torch.manual_seed(123)  # what resumption must undo
    checkpoint = latest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert checkpoint is not None
    second.resume(checkpoint)
    assert second.step == 5
    second.fit()
    for name, tensor in straight.bare_model.state_dict().items():
        assert torch.equal(tensor, second.bare_model.state_dict()[name]), name
    assert straight.best == second.best and straight.best is not None and straight.best["metric"] == "aacc"
    weights = read_weights(tmp_path / "stopped" / "checkpoints" / "best")
    assert weights.keys() == straight.bare_model.state_dict().keys()


def test_it_learns_and_the_best_value_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    done = trainer(tmp_path / "run", settings(tmp_path, "train.epochs=20"))
    done.fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert epochs[-1]["train_loss"] < 0.8 * epochs[0]["train_loss"] and done.best is not None and done.best["value"] > 0.85
    model = Toy()
    model.load_state_dict(read_weights(tmp_path / "run" / "checkpoints" / "best"))
    again = evaluate_model(model, ToyTask(), eval_loader(Noise(3, broken=True), 1, 0), split="val", device=torch.device("cpu"))
    assert again.metrics["aacc"] == done.best["value"]
    losses = []
    for index in range(2):  # per image, not per pixel
        sample = Noise(3)[index]
        with torch.no_grad():
            logits = model.eval()(sample["image"][None])
        losses.append(float(ToyTask().loss(logits, {"label": torch.from_numpy(sample["label"])[None]})["loss"]))
    assert again.metrics["loss"] == pytest.approx(sum(losses) / 2)


def test_steps_instead_of_epochs(tmp_path: Path) -> None:
    done = trainer(tmp_path / "run", settings(tmp_path, "train.steps=5", "train.epochs=1", "schedule.warmup_steps=2"))
    done.fit()  # two steps an epoch
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines if line["kind"] == "epoch"] == [(1, 2), (2, 4), (3, 5)]
    rates = [line["lr"] for line in lines if line["kind"] == "step"]
    assert rates[0] < rates[1] < rates[2] and len(rates) == 5 and done.step == 5
    again = trainer(tmp_path / "run", settings(tmp_path, "train.steps=5", "train.epochs=1", "schedule.warmup_steps=2"))
    again.resume(tmp_path / "run" / "checkpoints" / "last")
    assert again.fit() is None and again.step == 5


def test_a_split_without_readable_images() -> None:
    only_broken = Noise(1, broken=True)
    with pytest.raises(UserError) as caught:
        evaluate_model(Toy(), ToyTask(), eval_loader(only_broken, 1, 0), split="val", device=torch.device("cpu"))
    assert caught.value.code == "VA-D010" and caught.value.why == "truncated"


def test_split_batch_cuts_every_tensor_and_nothing_else() -> None:
    batch = {"image": torch.arange(5), "label": torch.arange(10).view(5, 2), "unreadable": [(7, "x")]}
    parts = split_batch(batch, 2)
    assert [part["image"].tolist() for part in parts] == [[0, 1, 2], [3, 4]] and parts[1]["label"].tolist() == [[6, 7], [8, 9]]
    assert all(set(part) == {"image", "label"} for part in parts) and len(split_batch(batch, 9)) == 5

"""train.batch_size=auto: the largest batch that fits, and the accumulation that keeps the samples of a step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import visionattn as va
from tests.engine.toy import Pressure, ToyObjective, settings, trainer
from visionattn.console import Console
from visionattn.engine import batch_size
from visionattn.engine.batch_size import available_memory, fit_batch, samples_per_step
from visionattn.errors import UserError
from visionattn.runs.checkpoint import read_weights
from visionattn.tasks import load_config

TINY = (
    "model.name=eca_resnet18",
    "model.args={width: 8}",
    "model.img_size=32",
    "train.epochs=2",
    "data.workers=0",
    "log.to=[]",
)


@pytest.mark.parametrize(
    ("lr_batch", "size", "world", "samples"),
    [(None, 1000, 1, 32), (None, 1000, 4, 32), (256, 1000, 1, 256), (256, 1000, 4, 64), (None, 24, 1, 16), (256, 100, 2, 32), (2, 9, 4, 1)],
)
def test_samples_of_a_step(lr_batch: int | None, size: int, world: int, samples: int) -> None:
    config = load_config(None, [f"optim.lr_batch={'null' if lr_batch is None else lr_batch}", "train.batch_size=auto"])
    assert samples_per_step(config, size, world) == samples


class Starved(ToyObjective):
    """A device that has memory for a loss of so many readings."""

    most = 0

    def loss(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(outputs, batch)


@pytest.mark.parametrize(("most", "found"), [(7, (4, 2)), (0, None)])
def test_steps_are_tried_until_one_fits(
    task: Pressure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, found: tuple[int, int] | None
) -> None:
    """As on a GPU: real steps, whose lack of memory is caught."""
    config = settings(tmp_path, "train.batch_size=8", "train.accum=1")
    monkeypatch.setattr(Starved, "most", most)
    with trainer(task, tmp_path / "run", config, Starved) as run:
        device = SimpleNamespace(device=SimpleNamespace(type="tried"), autocast=run.accelerator.autocast, mixed_precision="no")
        monkeypatch.setattr(run.setup.model, "to", lambda device: run.setup.model)
        monkeypatch.setattr("visionattn.tasks.batch.Batch.to", lambda batch, device: batch)
        if found is None:
            with pytest.raises(UserError) as caught:
                fit_batch(run.setup, device, run.processes)  # type: ignore[arg-type]
            assert caught.value.code == "VA-R001" and "batch 1" in caught.value.what and "train.batch_size" not in caught.value.fix
        else:
            fitted = fit_batch(run.setup, device, run.processes).train  # type: ignore[arg-type]
            assert (fitted.batch_size, fitted.accum) == found


def test_the_numbers_are_those_of_the_run_and_it_resumes_exactly(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials do not change the weights, and a resumed run makes none."""

    def trained(*overrides: str, **arguments: Any) -> Any:
        data = [f"data.root={flowers}", f"output.dir={flowers.parent / 'runs'}"]
        result = va.train(load_config(None, [*TINY, *data, *overrides]), console=Console(quiet=True), **arguments)
        assert result is not None
        return result.run

    model = va.create_model("eca_resnet18", num_classes=3, width=8)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    room = 2 * (4 * size + 6 * 2**20)  # half of it is for the weights, gradients and moments, and 6 MiB of activations
    monkeypatch.setattr(batch_size, "available_memory", lambda: room)
    auto = trained("train.batch_size=auto")
    found = load_config(auto / "config.yaml").train
    assert found.batch_size * found.accum == 16 and found.accum > 1  # type: ignore[operator]
    numbers = f"train.batch_size={found.batch_size} train.accum={found.accum}"
    assert f"auto: {numbers} fits cpu: 16 samples per step, the default" in (auto / "log.txt").read_text()
    monkeypatch.setattr("visionattn.jobs.train.fit_batch", None)
    assert trained("train.batch_size=auto", "train.epochs=2", resume=auto) == auto
    given = trained(*numbers.split(), "train.epochs=2")
    weights = [read_weights(run / "checkpoints" / "last") for run in (auto, given)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert load_config(auto / "config.yaml").train == load_config(given / "config.yaml").train


def test_available_memory_is_within_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = available_memory()
    assert 2**20 < machine < 2**50
    monkeypatch.setattr(batch_size, "Path", lambda path: tmp_path)
    for name, text in (("current", f"{6 * 2**20}\n"), ("stat", f"anon 5\ninactive_file {2**20}\n"), ("max", f"{8 * 2**20}\n")):
        assert available_memory() > 3 * 2**20  # as long as a file is missing
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory() == 3 * 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 3 * 2**20

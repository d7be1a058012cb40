"""Batch norms on several GPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import visionattn as va
from visionattn.console import Console
from visionattn.engine.setup import Setup
from visionattn.engine.trainer import Trainer
from visionattn.runs.folder import RunFolder
from visionattn.tasks import TASKS, load_config
from visionattn.tasks.batch import collate


class Samples(list[str]):
    """Names without contents: nothing is loaded here."""

    ids, collate = property(list), staticmethod(collate)


def network() -> Any:
    return va.create_segmenter("eca_resnet18", "fcn", 3, width=8, backbone_args={"width": 8})


def trained_norms(task: str, device: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model that a trainer optimizes on two devices of a kind, none of which has to be there."""
    model = network()
    place, samples = SimpleNamespace(type=device), Samples("abcd")
    monkeypatch.setattr(model, "to", lambda *given, **named: model)
    accelerator: Any = SimpleNamespace(device=place, prepare=lambda *parts: parts)
    processes: Any = SimpleNamespace(rank=0, world=2)
    config = load_config(None, [f"task={task}", "train.batch_size=1", "data.workers=0"])
    setup: Any = Setup(config, TASKS[task], {}, model, SimpleNamespace(), samples, samples)  # type: ignore[arg-type]
    return Trainer(setup, RunFolder(folder), accelerator, processes, Console(quiet=True)).model


def test_batch_norm_of_several_gpus_sees_the_images_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the class of the norms changes, and only there: torch has no such norm on the CPU."""
    for task, device in (("segment", "cpu"), ("classify", "cuda")):
        model = trained_norms(task, device, tmp_path, monkeypatch)
        assert not any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in network().modules())
    torch.manual_seed(0)
    before = network()
    torch.manual_seed(0)
    model = trained_norms("segment", "cuda", tmp_path, monkeypatch)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in model.modules()) == norms > 0
    state, after = before.state_dict(), model.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in state.items())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(image), before.eval()(image))

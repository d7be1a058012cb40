"""A job leaves the process as it found it, whether it ends well or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import visionattn as va
from visionattn.console import Console
from visionattn.engine import devices
from visionattn.engine.devices import ACCELERATE_DEVICE, deterministic, inference_settings, open_accelerator
from visionattn.errors import UserError
from visionattn.tasks import load_config

TINY = (
    "model.name=eca_resnet18",
    "model.args={width: 8}",
    "model.img_size=32",
    "train.steps=1",
    "train.batch_size=6",
    "train.precision=fp32",
    "data.workers=0",
    "log.to=[]",
)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def settings_of_torch() -> tuple[Any, ...]:
    memory: Any = torch.utils.deterministic
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return *mode, memory.fill_uninitialized_memory, os.environ.get(WORKSPACE)


@pytest.fixture(params=["plain", "changed"])
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    """The settings of a process, its own or those of torch."""
    memory: Any = torch.utils.deterministic
    was = settings_of_torch()
    monkeypatch.delenv(WORKSPACE, raising=False)
    if request.param == "changed":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
        monkeypatch.setenv(WORKSPACE, ":16:8")
    yield settings_of_torch()
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
    memory.fill_uninitialized_memory = was[2]


def precision_of_a_new_accelerator() -> str:
    try:
        return str(Accelerator(cpu=True, mixed_precision="bf16").mixed_precision)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("error", ["", "VA-R002", "VA-C011"])
def test_training_puts_everything_back(flowers: Path, tmp_path: Path, before: tuple[Any, ...], error: str) -> None:
    """VA-R002 comes from the first step, VA-C011 before the run exists."""
    more = {"": [], "VA-R002": ["optim.lr=1e30", "optim.clip_grad=null", "train.steps=8"], "VA-C011": ["train.batch_size=25"]}[error]
    config = load_config(None, [*TINY, f"data.root={flowers}", f"output.dir={tmp_path / 'runs'}", *more])
    if error:
        with pytest.raises(UserError, match=error):
            va.train(config, console=Console(quiet=True))
    else:
        assert va.train(config, console=Console(quiet=True)) is not None
    assert settings_of_torch() == before
    assert not PartialState._shared_state and not AcceleratorState._shared_state
    assert precision_of_a_new_accelerator() == "bf16"


def test_inside_a_job_operations_are_deterministic_and_memory_is_not_filled(before: tuple[Any, ...]) -> None:
    memory: Any = torch.utils.deterministic
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and not memory.fill_uninitialized_memory
        assert os.environ[WORKSPACE] == (before[3] or ":4096:8")
    assert settings_of_torch() == before
    with deterministic(False):
        assert settings_of_torch() == before


def test_the_precision_of_a_job_is_its_own() -> None:
    """Also after an accelerator that somebody else left in this process."""
    Accelerator(cpu=True, mixed_precision="bf16")
    for name, wanted in (("fp32", "no"), ("bf16", "bf16")):
        with open_accelerator(load_config(None, [f"train.precision={name}", "train.device=cpu"]).train) as accelerator:
            assert accelerator.mixed_precision == wanted
    with pytest.raises(UserError, match="VA-C002"), open_accelerator(load_config(None, ["train.precision=fp16", "train.device=cpu"]).train):
        raise AssertionError("fp16 on a CPU")
    assert precision_of_a_new_accelerator() == "bf16"


def test_a_model_trained_in_fp16_is_used_on_a_cpu() -> None:
    lines: list[str] = []
    trained = load_config(None, ["train.precision=fp16", "train.device=cpu"]).train
    with open_accelerator(inference_settings(trained, lines.append)) as accelerator:
        assert accelerator.mixed_precision in ("no", "bf16")
    assert len(lines) == 1 and "fp16" in lines[0]
    other = trained.model_copy(update={"precision": "bf16"})
    assert inference_settings(other, lines.append) == other and len(lines) == 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_devices", lambda: ["cpu", "cuda", "cuda:0", "cuda:1"])


@pytest.mark.parametrize("device", ["cuda:2", "mps"])
def test_a_device_that_is_not_there(two_gpus: None, device: str) -> None:
    config = load_config(None, [f"train.device={device}"]).train
    with pytest.raises(UserError) as caught, open_accelerator(config):
        raise AssertionError(device)
    assert caught.value.what == f"train.device: {device} is not there" and caught.value.why == "found: cpu, cuda, cuda:0, cuda:1"
    lines: list[str] = []
    assert inference_settings(config, lines.append).device == "auto" and f"trained on {device}" in lines[0]


def test_one_gpu_is_not_for_several_processes(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UserError, match="cuda:1 is one GPU, and 2 processes"),
        open_accelerator(load_config(None, ["train.device=cuda:1"]).train),
    ):
        raise AssertionError("a device for two")


def test_a_gpu_by_its_number_is_the_current_one_inside_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: chosen.append(device) or nullcontext())
    for before in (None, "cuda:0"):
        if before is not None:
            monkeypatch.setenv(ACCELERATE_DEVICE, before)
        with devices._one_gpu("cuda:1"):
            assert os.environ[ACCELERATE_DEVICE] == "cuda:1"
        assert os.environ.get(ACCELERATE_DEVICE) == before
    assert chosen == ["cuda:1", "cuda:1"]
    with devices._one_gpu("auto"):
        assert len(chosen) == 2

"""`visionattn bench` and the measurements that `models compare` shares with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import done, refused, va
from visionattn import figures
from visionattn.figures import Point, scatter_figure
from visionattn.models import speed
from visionattn.models.speed import Candidate, Speed, Workload, interleave, measure_models, step_count

SMALL = ("--size", 32, "--batch", 2, "--rounds", 2)


def tiny(name: str) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))


def test_a_table_as_json() -> None:
    """A real model, with its memory measured in a process of its own."""
    result = done("bench", "eca_mobilenetv2", *SMALL, "--json")
    found = json.loads(result.stdout)
    (model,) = found["models"]
    assert 0 < model["ms_min"] <= model["ms"] <= model["ms_max"] and model["images_per_second"] == pytest.approx(2000 / model["ms"])
    assert 14e6 < model["peak_bytes"] < 400e6  # 3.5 M parameters of 4 bytes, at least
    assert found["torch"] == torch.__version__ and found["threads"] == 1 and found["clock"] == "thread CPU time"
    assert (found["size"], found["batch"], found["rounds"], found["train"], found["precision"]) == (32, 2, 2, False, "fp32")


def test_a_failure_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **args: str) -> torch.nn.Module:
        if name == "eca_resnet18":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        if name == "eca_resnet34":
            raise ValueError("sides of 32 px do not go")
        return tiny(name)

    monkeypatch.setattr(speed, "create_model", create)
    monkeypatch.setattr(speed, "_peak_of_process", lambda candidate, workload: 3 * 2**20)
    result = done("bench", "eca_mobilenetv2", "eca_resnet18", "eca_resnet34", *SMALL)
    lines = result.stdout.splitlines()
    assert any(line.startswith("eca_resnet18") and "failed" in line for line in lines)
    assert "! eca_resnet18: out of memory: DefaultCPUAllocator" in result.stdout
    assert "! eca_resnet34: ValueError: sides of 32 px do not go" in result.stdout
    assert any(line.startswith("eca_mobilenetv2") and line.split()[-1] == "3" for line in lines)
    assert "1 thread" in result.stdout and torch.__version__ in result.stdout
    alone = va("bench", "eca_resnet34", *SMALL, "--json")
    assert alone.exit_code == 2 and "none of the models could be measured" in alone.stderr
    assert json.loads(alone.stdout)["models"] == [{"name": "eca_resnet34", "reason": "ValueError: sides of 32 px do not go"}]


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "reason"),
    [
        (-9, "", "", "out of memory: the system ended the process in which its memory was measured"),
        (0, '{"reason": "a size that it does not take"}\n', "", "a size that it does not take"),
        (1, "", "Traceback ...\nImportError: no torch\n", "ImportError: no torch"),
    ],
)
def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, stderr: str, reason: str) -> None:
    """A model that ends the process in which its memory is measured does not end this one."""
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: subprocess.CompletedProcess([], code, stdout, stderr))
    monkeypatch.setattr(speed, "create_model", lambda name, **args: pytest.fail("it is computed here"))
    steps: list[str] = []
    candidates, workload = [Candidate("eca_resnet18")], Workload(32, 1)
    assert measure_models(candidates, workload, rounds=2, memory=True, tick=steps.append) == [Speed("eca_resnet18", 1, reason=reason)]
    assert len(steps) == step_count(candidates, workload, 2, True) == 4


def test_models_take_turns() -> None:
    calls: list[str] = []
    values = interleave({name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abccbaabc" and values == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_changes_the_weights(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    made: list[torch.nn.Module] = []
    seen: list[torch.dtype] = []

    def create(name: str, **args: str) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1000))
        model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        made.append(model)
        return model

    monkeypatch.setattr(speed, "create_model", create)
    call = speed._call(Candidate("eca_resnet18"), Workload(32, 2, train=True, precision=precision))
    before = made[0][1].weight.clone()  # type: ignore[union-attr, operator]
    call()
    assert made[0].training and not torch.equal(before, made[0][1].weight)  # type: ignore[arg-type, union-attr]
    assert seen == [speed.PRECISIONS[precision] or torch.float32]
    infer = speed._call(Candidate("eca_resnet18"), Workload(32, 2))
    assert not made[1].training and not infer().requires_grad


def test_mistakes(tmp_path: Path) -> None:
    assert "expected fp32, bf16, fp16" in refused(tmp_path, "VA-C002", 2, "bench", "swin_tiny", "--precision", "fp8")
    assert "--device auto" in refused(tmp_path, "VA-C002", 2, "bench", "swin_tiny", "--device", "cuda:99")
    assert "Did you mean swin_tiny" in refused(tmp_path, "VA-M001", 2, "bench", "swin_tinny")
    if not torch.cuda.is_available():
        assert "--precision bf16" in refused(tmp_path, "VA-C002", 2, "bench", "swin_tiny", "--precision", "fp16")
    text = refused(tmp_path, "VA-C002", 2, "models", "compare", "swin_tiny", "--plot", tmp_path / "models.jpg")
    assert "--plot models.png" in text


def test_accuracy_over_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "create_model", tiny)
    drawn: list[list[Point]] = []
    real = figures.scatter_figure
    monkeypatch.setattr(figures, "scatter_figure", lambda points, *given: drawn.append(list(points)) or real(points, *given))
    names = ("eca_resnet18", "eca_resnet50", "ela_resnet18")  # of ELA no weights are published
    result = done("models", "compare", *names, "--size", 224, "--batch", 1, "--rounds", 1, "--plot", tmp_path / "a.png", "--json")
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == list(names) and rows[2]["top1_published"] is None
    assert [(point.name, point.y, point.filled) for point in drawn[0]] == [(row["name"], row["top1_published"], True) for row in rows[:2]]
    assert [point.x for point in drawn[0]] == [row["images_per_second"] for row in rows[:2]]
    assert "2 models (1 left out" in result.stderr
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert min(picture.shape) > 400 and picture.std() > 5
    shown = done("models", "compare", names[2], "--batch", 1, "--rounds", 1, "--plot", tmp_path / "b.png").stdout
    assert "no figure" in shown and not (tmp_path / "b.png").exists()


def test_names_in_the_figure_cover_no_other() -> None:
    rng = np.random.default_rng(0)
    points = [Point(f"model_number_{n}", f"family{n % 5}", float(10 ** rng.uniform(0.5, 2)), float(rng.uniform(78, 84))) for n in range(24)]
    points += [Point("one_more$", "odd", points[0].x, points[0].y, False)]
    figure = scatter_figure(points, "title", "x", "y", "note")
    canvas: Any = figure.canvas
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 25
    shared = [figures._shared(a, b) / (a.width * a.height) for n, a in enumerate(boxes) for b in boxes[:n]]
    assert max(shared) < 0.1

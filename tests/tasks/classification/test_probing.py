"""Probing a frozen backbone from the command line: train, resume, evaluate, predict."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.commands import done, flower_pictures, only_run, refused, settings
from visionattn.tasks import load_config
from visionattn.tasks.classification.settings import ClassifyConfig

PROBE = (
    "model.classifier.name=ep",
    "model.classifier.queries=4",
    "model.img_size=64",
    "train.freeze=[backbone, head.norm]",
    "optim.weight_decay=0",
    "optim.name=lars",
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def test_train_resume_evaluate_predict(tmp_path: Path) -> None:
    data = flower_pictures(tmp_path)
    done("train", "--data", data, *settings(tmp_path, *PROBE, "schedule.name=constant"))
    run = only_run(tmp_path)
    one = weights(run)
    done("train", "--resume", run, "train.epochs=2")
    two = weights(run)
    moved = {key for key in one if not torch.equal(one[key], two[key])}
    assert {"head.queries", "head.value.weight", "head.fc.weight", "head.pooled_norm.running_var"} <= moved
    assert not [key for key in moved if not key.startswith("head.")]
    assert "top1" in done("eval", run).output
    done("predict", run, "--source", data / "val" / "rose", "--out", tmp_path / "out")
    assert "rose" in (tmp_path / "out" / "predictions.csv").read_text()


def test_settings_of_the_probe_need_it(tmp_path: Path) -> None:
    text = refused(tmp_path, "VA-C002", 2, "train", "--data", "flowers", "model.classifier.queries=4")
    assert "set model.classifier.name=ep" in text
    config = load_config(None, ["model.classifier.name=ep", "model.classifier.queries=4"])
    assert isinstance(config, ClassifyConfig) and config.model.classifier.queries == 4


def test_queries_that_do_not_fit_are_refused_with_some_that_do(tmp_path: Path) -> None:
    data = flower_pictures(tmp_path)
    text = refused(
        tmp_path, "VA-M002", 2, "train", "--data", data, *settings(tmp_path, "model.classifier.name=ep", "model.classifier.queries=7")
    )
    assert "7 queries cannot share 64 channels" in text and "model.classifier.queries=4" in text

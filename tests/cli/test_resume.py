"""`visionattn train --resume`: what may change, and runs that are in use."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Trained, done, lockable, refused, truncate
from visionattn.errors import UserError
from visionattn.jobs.resume import require_same_target
from visionattn.runs.folder import RunFolder
from visionattn.tasks import load_config


def test_r003_no_run_folder(trained: Trained, tmp_path: Path) -> None:
    for command in (("eval", tmp_path), ("predict", tmp_path, "--source", trained.data), ("train", "--resume", tmp_path / "gone")):
        text = refused(tmp_path, "VA-R003", 2, *command)
        assert "is not a run folder" in text and "runs/<name>/<nnn>" in text
    assert f"Did you mean {trained.run}?" in refused(trained.run, "VA-R003", 2, "eval", trained.run.parent)


@pytest.mark.parametrize("command", ["predict", "eval", "serve", "explain", "export", "features", "neighbors"])
def test_r003_every_command_names_the_weights_that_were_meant(command: str, trained: Trained, tmp_path: Path) -> None:
    rest = {
        "predict": [trained.data],
        "eval": ["--data", trained.data],
        "explain": ["--image", next(trained.data.rglob("*.png"))],
        "features": [trained.data, "--out", tmp_path / "f"],
        "neighbors": [trained.data],
    }.get(command, [])
    text = refused(tmp_path, "VA-R003", 2, command, "swin_tny.in1k", *rest)
    assert '"swin_tny.in1k" is not a run folder, nor the name of weights' in text and "Did you mean swin_tiny.in1k" in text


def test_c010_resume_with_other_settings(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    text = refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "optim.lr=0.5", "model.args.width=16", "train.epochs=3")
    assert "optim.lr: 0.001 -> 0.5" in text and "model.args.width: 8 -> 16" in text and "train.epochs: " not in text
    assert "train.epochs" in text.partition("these may change")[2]
    refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "--model", "swin_tiny")


def test_resume_for_more_epochs(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    result = done("train", "--resume", run, "train.epochs=3", "data.workers=0", "--json")
    assert json.loads(result.stdout)["run"] == str(run) and "resume      last: epoch 3 step 0/3" in result.stderr
    assert [row["epoch"] for row in csv.DictReader((run / "metrics.csv").open())] == ["1", "2", "3"]
    assert load_config(run / "config.yaml").train.epochs == 3 and lockable(run)


def test_c010_resume_with_other_data(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.data, tmp_path / "flowers")
    run = trained.copy(tmp_path)
    for name in ("config.yaml", "config.changed.yaml"):
        (run / name).write_text((run / name).read_text().replace(str(trained.data), str(tmp_path / "flowers")))
    (tmp_path / "flowers/train/rose/0.png").unlink()
    text = refused(tmp_path, "VA-C010", 2, "train", "--resume", run)
    assert "the data changed since the run started" in text and "manifest" in text and "- train/rose/0.png" in text


def test_resume_after_the_data_moved(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.data, tmp_path / "elsewhere")
    run = trained.copy(tmp_path)
    done("train", "--resume", run, "train.epochs=3", f"data.root={tmp_path / 'elsewhere'}")
    assert load_config(run / "config.yaml").data.root == str(tmp_path / "elsewhere")


def test_resume_without_a_file_that_the_run_listed_as_unreadable(trained: Trained, tmp_path: Path) -> None:
    """The others keep their place in the order, so the weights are those of a run that meets the file as it is."""
    weights = []
    for name in ("broken", "removed"):
        data, run = tmp_path / name, trained.copy(tmp_path / f"{name}-run")
        shutil.copytree(trained.data, data)
        settings = ("train.epochs=3", f"data.root={data}", "data.on_error=skip")
        state = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**state, "unreadable": ["train/rose/0.png"]}))
        truncate(data / "train/rose/0.png")
        if name == "removed":
            (data / "train/rose/0.png").unlink()
        done("train", "--resume", run, *settings)
        weights.append((run / "checkpoints/last/model.safetensors").read_bytes())
        assert "became unreadable" not in (run / "log.txt").read_text()
    assert weights[0] == weights[1]


def test_c010_resume_with_the_classes_in_another_order(trained: Trained, tmp_path: Path) -> None:
    data, run = tmp_path / "flowers", trained.copy(tmp_path)
    shutil.copytree(trained.data, data)
    (data / "classes.txt").write_text("rose\ndaisy\ntulip\n")
    text = refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "train.epochs=3", f"data.root={data}")
    assert "the order of the classes changed since the run started: daisy, rose, tulip -> rose, daisy, tulip" in text


def test_a_target_is_compared_as_it_was_saved(tmp_path: Path) -> None:
    """JSON has no tuples; colours are often given as such."""
    run = RunFolder.create(tmp_path)
    run.write_state("running", target={"classes": ["road"], "palette": [(1, 2, 3)]})
    require_same_target(run, {"classes": ["road"], "palette": [(1, 2, 3)]})
    with pytest.raises(UserError, match="the meaning of the outputs changed"):
        require_same_target(run, {"classes": ["road"], "palette": [(3, 2, 1)]})


def test_c010_resume_with_another_number_of_samples_in_a_step(trained: Trained, tmp_path: Path) -> None:
    """The position of a run is counted in steps; the same number in other parts is fine."""
    run = trained.copy(tmp_path)
    text = refused(tmp_path, "VA-C010", 2, "train", "--resume", run, "train.accum=2")
    assert "a step of the run has 8 samples, now it would have 16" in text and "fix   train.batch_size=4" in text
    done("train", "--resume", run, "train.epochs=3", "train.accum=2", "train.batch_size=4")


def test_w005_all_checkpoints_damaged(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    for name in ("last", "prev"):
        truncate(run / "checkpoints" / name / "model.safetensors")
    shutil.copytree(run, tmp_path / "without")
    shutil.rmtree(tmp_path / "without" / "checkpoints" / "best")
    assert "every checkpoint of the run is damaged" in refused(tmp_path, "VA-W005", 4, "eval", tmp_path / "without")
    text = refused(tmp_path, "VA-W005", 4, "train", "--resume", run, "train.epochs=3")
    assert "every checkpoint of the run is damaged" in text and f"visionattn eval {run / 'checkpoints' / 'best'}" in text


def test_r005_a_run_in_use(trained: Trained, tmp_path: Path) -> None:
    """The system holds the lock: it ends with the process that has it, however that ends, and a file left behind locks nothing."""
    run = trained.copy(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from visionattn.runs.folder import RunFolder, process_facts\n"
        "run = RunFolder(Path(sys.argv[1]))\n"
        "with run.locked():\n"
        "    run.write_state('running', **process_facts())\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        text = refused(tmp_path, "VA-R005", 7, "train", "--resume", run)
        assert f"in use by process {holder.pid} on {socket.gethostname()}" in text and str(run) in text
    finally:
        holder.kill()
        holder.wait()
    (run / ".lock").write_text("left behind")
    done("train", "--resume", run)
    assert lockable(run) and json.loads((run / "run.json").read_text())["state"] == "done"

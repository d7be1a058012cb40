"""`visionattn push`: folders and models of the hub that do what the run does, and keep to themselves what is private."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import visionattn
from tests.commands import Trained, done, refused, tree, va
from tests.hub import Hub, hub_server
from visionattn.files import sha256_of
from visionattn.integrations.timm import register
from visionattn.models.weights.hub import RUN
from visionattn.report.card import markdown
from visionattn.runs.load import LoadedModel
from visionattn.runs.shareable import shareable
from visionattn.tasks import TASKS

FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when the library was imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the older of the hub's two protocols for large files
    with hub_server() as server:
        server.token = "hf_secret"
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def outputs(*args: object) -> str:
    return done("predict", *args, "--json").stdout


def test_a_folder_does_what_the_run_does(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = done("push", trained.run, "./model", "--license", "MIT")
    assert "next        visionattn predict model --source FILE_OR_FOLDER" in result.stdout.replace("./", "")
    made = tmp_path / "model"
    assert {path.name for path in made.iterdir()} == FILES
    photos = trained.data / "val"
    assert outputs("model", photos) == outputs(trained.run, photos)
    evaluated = [json.loads(done("eval", source, "--data", trained.data, "--json").stdout) for source in ("model", trained.run)]
    assert evaluated[0] == evaluated[1]
    assert "--data FOLDER" in va("eval", "model").stderr

    config = json.loads((made / "config.json").read_text())
    private = (str(trained.data), str(trained.run.parent.parent), "output.dir")
    assert not any(text in (made / name).read_text() for text in private for name in ("config.json", "README.md"))
    assert config["architecture"] == "va_eca_resnet18" and config["label_names"] == ["daisy", "rose", "tulip"]
    assert config[RUN]["config"]["data"]["root"] == "" and config[RUN]["config"]["model"]["args"] == {"width": 8}

    register()
    ours, theirs = (create(f"local-dir:{made}", pretrained=True) for create in (visionattn.create_model, timm.create_model))
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert timm.data.resolve_data_config(model=theirs)["input_size"] == (3, 32, 32)

    small = ("model.img_size=32", "train.batch_size=8", "data.workers=0", "log.to=[]", "--dry-run")
    done("train", "--data", trained.data, "--model", "eca_resnet18", "--weights", "model", *small)  # with width 8 of its own

    refused(made, "VA-R007", 7, "push", trained.run, "./model")
    refused(made, "VA-R003", 2, "push", "nothing", "./other")
    (made / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:-4] + b"abcd")
    assert va("predict", "model", photos).stderr.startswith("error VA-W005: model.safetensors of the checkpoint was changed or damaged")


def test_the_card_states_what_is_known(trained: Trained, tmp_path: Path) -> None:
    done("push", trained.run, tmp_path / "flower_model", "--license", "MIT")
    _, head, body = (tmp_path / "flower_model/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["license"] == "mit" and facts["pipeline_tag"] == "image-classification" and "timm" in facts["tags"]
    metrics = json.loads((trained.run / "eval/val/metrics.json").read_text())["metrics"]
    listed = {item["name"]: item["value"] for item in facts["model-index"][0]["results"][0]["metrics"]}
    assert listed["top1"] == round(metrics["top1"], 5)
    assert f"| top1 | {100 * metrics['top1']:.2f} |" in body and "12 images of the validation split" in body
    for text in (
        "# flower\\_model",
        "size: 32 px",
        "0.485, 0.456, 0.406",
        "these weights: MIT",
        "3: daisy, rose, tulip",
        "visionattn predict",
    ):
        assert text in body, text
    assert markdown("<b>a_b|c\n") == "\\<b\\>a\\_b\\|c\\\\n"


def test_commands_of_the_card_for_a_folder_with_a_space(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done("push", trained.run, "~/my flowers")  # a shell does not expand it in quotes
    card = (tmp_path / "my flowers/README.md").read_text()
    assert "visionattn predict 'my flowers' --source" in card and card.count('create_model("local-dir:my flowers", pretrained=True)') == 2
    assert str(tmp_path) not in card, "where the folder was made is private"


def test_figures_are_of_the_weights_beside_them(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    last = run / "checkpoints" / "last"
    meta, weights = json.loads((last / "meta.json").read_text()), last / "model.safetensors"
    save_file({name: value + 1 if value.is_floating_point() else value for name, value in load_file(weights).items()}, weights)
    (last / "meta.json").write_text(json.dumps({**meta, "sha256": {**meta["sha256"], weights.name: sha256_of(weights)}}))
    before = tree(run / "eval")
    done("eval", last)
    assert tree(run / "eval") == before, "the evaluation of the best checkpoint"
    done("push", last, tmp_path / "other")
    assert "Not evaluated." in (tmp_path / "other/README.md").read_text()
    (run / "checkpoints" / "best").rename(run / "best")  # another one is the best from now on
    assert json.loads(done("compare", run, trained.run, "--json").stdout)["runs"][0]["interval"] == {}
    done("push", run, tmp_path / "later")
    assert "Not evaluated." in (tmp_path / "later/README.md").read_text()


@pytest.mark.parametrize("name", list(TASKS))
def test_no_task_shares_where_its_data_were(name: str) -> None:
    """Every free text of the sections data, eval, output and log is left out, and the rest is a config."""
    task, secret = TASKS[name], "/home/someone/patients"
    config = task.config()
    texts = [key for key, field in type(config.data).model_fields.items() if field.annotation is str]
    data = config.data.model_copy(update={**dict.fromkeys(texts, secret), "exclude": [secret]})
    if hasattr(data, "patches"):
        patches = data.patches.model_copy(update={"cache": secret, "backbone": "van_b0", "weights": f"{secret}/mine.pth"})
        data = data.model_copy(update={"patches": patches})
    update = {
        "data": data,
        "output": config.output.model_copy(update={"dir": secret}),
        "train": config.train.model_copy(update={"device": "cuda:1"}),
    }
    if hasattr(config.eval, "thumbnails"):
        update["eval"] = config.eval.model_copy(update={"thumbnails": secret})
    shared = shareable(LoadedModel(task, config.model_copy(update=update), None, {}))
    assert "someone" not in shared.model_dump_json() and shared.train.device == "auto"
    if hasattr(data, "patches"):
        assert (shared.data.patches.backbone, shared.data.patches.weights) == ("van_b0", "mine.pth")


def test_a_model_is_uploaded_and_used(trained: Trained, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = json.loads(done("push", trained.run, "me/flowers", "--json").stdout)
    assert result["source"] == "hf-hub:me/flowers" and result["files"].keys() == FILES
    assert result["address"] == f"{hub.address}/me/flowers"
    assert len(hub.created) == 1 and "private" in json.dumps(hub.created[0])  # the name of the key differs between versions
    (commit,) = hub.models["me/flowers"].values()
    assert commit.keys() == FILES and b"hf-hub:me/flowers" in commit["README.md"]
    photos = trained.data / "val"
    assert outputs("hf-hub:me/flowers", photos) == outputs(trained.run, photos)
    model = visionattn.create_model("hf-hub:me/flowers", pretrained=True)
    assert model.num_classes == 3
    done("push", trained.run, "hf-hub:me/flowers", "--public")  # unchanged weights are another commit, or none


def test_uploads_that_fail_say_why(trained: Trained, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub.token = "another"
    assert "401" in refused(trained.run, "VA-W008", 4, "push", trained.run, "me/flowers")
    monkeypatch.setenv("VISIONATTN_OFFLINE", "1")
    assert "visionattn push RUN ./me/flowers" in refused(trained.run, "VA-W008", 4, "push", trained.run, "me/flowers")
    refused(trained.run, "VA-W007", 4, "push", trained.run, "hf-hub:flowers")
    (tmp_path / "me").mkdir()  # then it is a folder
    done("push", trained.run, "me/flowers")
    assert {path.name for path in (tmp_path / "me/flowers").iterdir()} == FILES and not hub.models

"""MedViTV2: sizes of all variants, files as its authors save them, what is kept and not trained, its recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import visionattn as va
from tests.commands import done, only_run
from tests.data.images.folders import save_npz
from tests.parity import Record
from tests.tiny import TINY
from visionattn.models.weights.recognise import Recognised, recognise

# Of the authors' code, with 1000 and with 9 classes.
PARAMETERS = {
    "medvitv2_tiny": (11_719_845, 11_338_310),
    "medvitv2_small": (30_087_295, 29_578_912),
    "medvitv2_base": (66_995_571, 66_233_492),
    "medvitv2_large": (118_291_477, 117_275_702),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        models = [va.create_model(name, num_classes=count) for count in (1000, 9)]
    assert tuple(sum(parameter.numel() for parameter in model.parameters()) for model in models) == PARAMETERS[name]
    assert va.list_models(family="medvit") == sorted(PARAMETERS)


def test_a_file_as_its_authors_training_saves_it(tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape in Record("medvit", "MedViT_tiny__128x128").keys}
    state |= {"proj_head.0.weight": torch.ones(9, 384), "proj_head.0.bias": torch.ones(9)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    file = tmp_path / "MedViT_tiny_pathmnist.pth"
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "lr_scheduler": {}, "acc": np.float64(0.99), "epoch": 7}, file)
    model = va.create_model("medvitv2_tiny", num_classes=9)
    assert va.load_checkpoint(model, file, allow=()).skipped == []
    assert all(not value.any() for key, value in model.state_dict().items() if key.startswith("backbone."))
    assert recognise(state) == Recognised(("medvitv2_tiny",), {}, 9, 3, 1.0)


def test_knots_and_the_unused_branch_stay_as_they_are() -> None:
    name, args = TINY["MedViTV2"]
    model = va.create_model(name, num_classes=2, **args).train()
    before = {key: value.clone() for key, value in model.state_dict().items() if key.endswith(".grid") or ".unused." in key}
    assert len(before) == 2 * (2 + 22)  # two global blocks
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert torch.allclose(before["backbone.stages.1.0.kan.0.grid"], torch.linspace(-2, 2, 8))


@pytest.mark.parametrize("dims", [(32, 64, 128, 128), (48, 128, 128, 128), (32, 128, 130, 128)])
def test_channels_that_leave_nothing_to_convolve(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="embed_dims: expected multiples of 32, from 128 after the first stage"):
        va.create_model("medvitv2_tiny", embed_dims=dims)


def test_its_recipe_trains(tmp_path: Path) -> None:
    given = ["model.args={depths: [1, 1, 1, 1], embed_dims: [32, 128, 128, 128]}", "model.img_size=32", "train.steps=2"]
    given += ["train.batch_size=4", "data.workers=0", "log.to=[]", f"output.dir={tmp_path / 'runs'}"]
    done("train", "--config", "classification/medmnist_medvit", f"data.root={save_npz(tmp_path / 'set.npz')}", *given)
    assert "auroc" in (only_run(tmp_path) / "metrics.csv").read_text()

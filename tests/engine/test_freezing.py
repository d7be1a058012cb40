"""Parts of a model that are not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import visionattn as va
from visionattn.engine.freezing import freeze, frozen_text, keep_frozen
from visionattn.errors import UserError

SWIN = {"patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


def swin() -> nn.Module:
    return va.create_model("swin_tiny", num_classes=3, img_size=32, **SWIN)


def frozen_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_names_and_patterns_with_everything_below_them() -> None:
    model = swin()
    freeze(model, ["stem", "stages.0", "*.norm1*"])
    names = frozen_names(model)
    for name, _ in model.named_parameters():
        chosen = name.startswith(("backbone.patch_embed.", "backbone.stages.0.")) or ".norm1." in name
        assert (name in names) == chosen, name
    assert any(".stages.1." in name for name in names) and any(".stages.1." not in name for name in names)
    for pattern in ("backbone", "backbone.*"):
        whole = swin()
        freeze(whole, [pattern])
        assert frozen_names(whole) == {name for name, _ in whole.named_parameters() if name.startswith("backbone.")}
    free = swin()
    assert freeze(free, []) == [] and not frozen_names(free)


@pytest.mark.parametrize("name", ["eca_resnet18", "van_b0", "dinat_mini"])
def test_the_stem_has_the_same_name_in_each_family(name: str) -> None:
    model = va.create_model(name, num_classes=3)
    freeze(model, ["stem"])
    count = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    first = dict(model.named_parameters())[f"backbone.{model.backbone.first_conv}.weight"]
    assert not first.requires_grad and 0 < count < 0.05 * sum(parameter.numel() for parameter in model.parameters())
    assert frozen_text(model, ["stem"]).startswith(f"{count:,} of ")


def test_frozen_norms_keep_their_statistics() -> None:
    model = va.create_model("eca_resnet18", num_classes=3, width=8)
    frozen = freeze(model, ["stages.0", "*.bn2"])
    before = {name: value.clone() for name, value in model.named_buffers()}
    for _ in range(2):
        model.train()
        keep_frozen(model, frozen)
        model(torch.randn(4, 3, 32, 32))
    changed = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    kept = {name for name in before if ".stages.0." in name or ".bn2." in name}
    assert changed == before.keys() - kept and kept and changed


def test_a_frozen_parameter_leaves_what_is_beside_it_in_training() -> None:
    model = swin()
    frozen = freeze(model, ["*.relative_position_bias_table"])
    keep_frozen(model.train(), frozen)
    assert len(frozen_names(model)) == 2 and all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("pattern", "what", "fix"),
    [
        ("stages.9", 'nothing in the model is called "stages.9"', "stages.1"),
        ("haed", 'nothing in the model is called "haed"', "head"),
        ("*.xyzzy*", 'nothing in the model is called "*.xyzzy*"', "* stands for any text"),
        ("*", "nothing is left to train", "leave the head out"),
    ],
)
def test_patterns_that_name_nothing_or_everything(pattern: str, what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        freeze(swin(), [pattern])
    assert caught.value.code == "VA-C002" and what in caught.value.what and fix in caught.value.fix
    if "nothing in" in what:
        assert "stages.0, stages.1, head" in caught.value.why

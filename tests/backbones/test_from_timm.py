"""timm as a source: `timm:NAME` computes what timm's network computes, under the interface of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay
from torch import nn

import visionattn as va
from tests.commands import done, only_run
from visionattn.errors import UserError
from visionattn.integrations.timm import register
from visionattn.models import create_segmenter
from visionattn.models.weights.download import cached_path, weights_folder
from visionattn.models.weights.records import find_record, records_of

# Networks and the size of their images; of the first alone everything is tested in the default run.
NETWORKS = {
    "resnest14d": 64,
    "ghostnetv2_100": 64,
    "focalnet_tiny_srf": 64,
    "nextvit_small": 64,
    "halonet26t": 256,
    "efficientformer_l1": 224,
}
CLASSIFIERS = {"crossvit_tiny_240": 240, "tnt_s_legacy_patch16_224": 224, "volo_d1_224": 224}
HEADS_OF_MAPS: dict[str, dict[str, Any]] = {"upernet": {"width": 16}, "unet": {"max_channels": 16}, "segformer": {"width": 16}}
ZOO = [pytest.mark.slow, pytest.mark.zoo]


def params(names: dict[str, int]) -> list[Any]:
    return [pytest.param(name, size, marks=[] if name == "resnest14d" else ZOO) for name, size in names.items()]


def shaken(network: nn.Module) -> nn.Module:
    """The network with statistics and scales that its initialisation leaves at 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.uniform_(0.5, 1.0) if "var" in name or "weight" in name else tensor.uniform_(-0.2, 0.2)
    return network.eval()


@pytest.mark.parametrize(("name", "size"), params({**NETWORKS, **CLASSIFIERS}))
def test_a_classifier_computes_timms_logits(name: str, size: int) -> None:
    theirs: Any = shaken(timm.create_model(name, num_classes=5))
    ours = va.create_model(f"timm:{name}", num_classes=5).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("aux_head.")}
    va.load_checkpoint(ours, state, allow=())
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted = theirs.head(theirs.forward_head(theirs.forward_features(image), pre_logits=True)) if "volo" in name else theirs(image)
        assert torch.allclose(ours(image), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert ours.pretrained_cfg["input_size"] == (3, *timm.get_pretrained_cfg(name).input_size[1:])
    assert ours.pretrained_cfg["mean"] == timm.get_pretrained_cfg(name).mean and ours.pretrained_cfg["classifier"] == "head.fc"
    assert {key.partition(".")[0] for key in ours.state_dict()} == {"backbone", "head"}
    again = va.create_model(f"timm:{name}", num_classes=5).eval()
    va.load_checkpoint(again, ours.state_dict(), allow=())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(("name", "size"), params(NETWORKS))
def test_a_pyramid_has_timms_maps(name: str, size: int) -> None:
    theirs: Any = shaken(timm.create_model(name, num_classes=5))
    ours = va.create_model(f"timm:{name}", features_only=True).eval()
    report = va.load_checkpoint(ours, theirs.state_dict())
    assert report.skipped == [] and ours.strides == (4, 8, 16, 32)
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        maps, wanted = ours(image), theirs.forward_intermediates(image, intermediates_only=True)[-4:]
    assert [tuple(one.shape[1:]) for one in maps] == [(c, size // s, size // s) for c, s in zip(ours.channels, ours.strides, strict=True)]
    assert all(torch.allclose(one, other, atol=1e-4 * float(other.abs().max())) for one, other in zip(maps, wanted, strict=True))
    torch.manual_seed(0)
    image = torch.randn(2, 3, size, size)
    sum(one.square().mean() for one in ours.train()(image)).backward()
    assert [key for key, parameter in ours.named_parameters() if parameter.grad is None] == []
    if ours.only_size is None:
        with torch.no_grad():
            assert [one.shape[2:] for one in ours.eval()(torch.randn(1, 3, 65, 97))] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    part = va.create_model(f"timm:{name}", features_only=True, out_indices=(1, 2)).eval()
    assert part.channels == ours.channels[1:3] and len(part.state_dict()) < len(ours.state_dict())
    va.load_checkpoint(part, {key: value for key, value in ours.state_dict().items() if key in part.state_dict()}, allow=())


def test_names_that_are_not_timms_own() -> None:
    register()  # ours in timm's registry
    for name, advice in (
        ("resnest14", "Did you mean resnest14d"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm.list_models()"),
        ("local-dir:folder", "timm.list_models()"),
        ("va_swin_tiny", "Did you mean swin_tiny?"),
    ):
        with pytest.raises(UserError, match="timm has no model") as caught:
            va.create_model(f"timm:{name}")
        assert caught.value.code == "VA-M001" and advice in caught.value.fix


def test_what_a_network_does_not_do() -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match="volo_d1_224 is not a pyramid") as caught:
            va.create_model("timm:volo_d1_224", features_only=True)
        assert "strides 8, 16" in caught.value.why
        with pytest.raises(UserError, match="takes images of 224x224 px here, not of 64x64 px") as caught:
            va.create_model("timm:efficientformer_l1", img_size=64)
        assert caught.value.fix == "model.img_size=224"
        with pytest.raises(UserError, match="takes images of 256x256 px here, not of 224x224 px"):
            va.create_model("timm:halonet26t", img_size=224)
        with pytest.raises(UserError, match="takes images of 224x224 px here, not of 32x32 px"):
            va.create_model("timm:ghostnetv2_100", img_size=32)  # whose attention halves a map of one position
        with pytest.raises(UserError, match="has no stochastic depth"):
            va.create_model("timm:ghostnetv2_100", drop_path_rate=0.1)
        model = va.create_model("timm:vit_tiny_patch16_224", img_size=(32, 64), num_classes=3)  # one that is built for its size
    assert model(torch.randn(1, 3, 32, 64, device="meta")).shape == (1, 3)
    with pytest.raises(UserError, match="takes images of 32x64 px here, not of 64x32 px"):
        model(torch.randn(1, 3, 64, 32, device="meta"))


def test_layer_decay_and_weight_decay_are_timms() -> None:
    with torch.device("meta"):
        ours: Any = va.create_model("timm:resnest14d", num_classes=3)
        theirs = timm.create_model("resnest14d", num_classes=3)

    def scales(model: nn.Module, strip: str) -> dict[str, tuple[float, float]]:
        names = {id(parameter): name.removeprefix(strip).replace("head.fc.", "fc.") for name, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(
            model, 0.05, model.no_weight_decay() if hasattr(model, "no_weight_decay") else (), layer_decay=0.5
        )
        return {names[id(parameter)]: (group["lr_scale"], group["weight_decay"]) for group in groups for parameter in group["params"]}

    assert scales(ours, "backbone.network.") == scales(theirs, "")


def test_published_weights_are_downloaded_by_us() -> None:
    record = find_record("timm:resnest14d")
    assert record.name == "timm:resnest14d.gluon_in1k" and record.label_set == "imagenet-1k" and record.code_license == "Apache-2.0"
    assert record.sources[0].url == "https://huggingface.co/timm/resnest14d.gluon_in1k/resolve/main/model.safetensors"
    with pytest.raises(UserError, match="cannot be downloaded") as caught:  # the tests are offline
        va.create_model("timm:resnest14d", pretrained=True)
    assert caught.value.code == "VA-W001" and "model.weights=FILE" in caught.value.fix

    theirs = timm.create_model("resnest14d")
    weights_folder().mkdir(parents=True)
    save_file(theirs.state_dict(), weights_folder() / "timm-resnest14d.gluon_in1k.safetensors")
    assert cached_path(record) is not None
    ours = va.create_model("timm:resnest14d.gluon_in1k", pretrained=True, in_chans=1, num_classes=3)
    assert torch.equal(ours.backbone.network.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight)  # type: ignore[union-attr]
    summed = theirs.conv1[0].weight.sum(1, keepdim=True)  # type: ignore[index]
    assert torch.allclose(ours.backbone.network.conv1[0].weight, summed)  # type: ignore[index]
    with pytest.raises(UserError, match='has no weights "nothing"'):
        va.create_model("timm:resnest14d.nothing", pretrained=True)
    assert [record.tag for record in records_of("timm:halonet26t")] == ["a1h_in1k"]


TINY = (
    "model.img_size=32",
    "train.steps=2",
    "train.batch_size=8",
    "data.workers=0",
    "log.to=[]",
    "train.device=cpu",
    "train.precision=fp32",
)


@pytest.mark.slow
def test_train_resume_evaluate_and_export(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("train", "--data", flowers, "--model", "timm:resnest14d", "model.weights=none", "eval.every=1", *TINY)
    run = only_run(tmp_path)
    assert ":" not in run.parent.name
    done("train", "--resume", run, "train.steps=3")
    answer = json.loads(done("eval", run, "--json").stdout)
    assert answer["count"] == 12 and 0 <= answer["metrics"]["top1"] <= 1
    done("predict", run, "--source", flowers / "test", "--out", tmp_path / "predictions")
    exported = json.loads(done("export", run, "--format", "pt2", "--verify", "1,2", "--json").stdout)
    assert all(check["difference"] < 1e-4 for check in exported["checks"])
    loaded = va.load_checkpoint(va.create_model("timm:resnest14d", features_only=True), next((run / "checkpoints/last").glob("model*")))
    assert loaded.skipped == []


def test_segmentation_on_a_pyramid_of_timm() -> None:
    model = create_segmenter("timm:resnest14d", "upernet", 3, img_size=64, width=16)
    assert model.pretrained_cfg["architecture"] == "timm:resnest14d"
    output: Any = model.train()(torch.randn(2, 3, 50, 65))
    assert output.logits.shape == (2, 3, 50, 65)
    (output.logits.square().mean() + sum(aux.logits.square().mean() for aux in output.aux)).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    with pytest.raises(UserError, match="not a pyramid"):
        create_segmenter("timm:vit_tiny_patch16_224", "upernet", 3)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", [*NETWORKS, *CLASSIFIERS])
def test_a_step_of_training_with_our_heads(name: str) -> None:
    """At 96 px, or the one size that the network takes."""
    torch.manual_seed(0)
    size = {**NETWORKS, **CLASSIFIERS}[name] if name in ("halonet26t", "efficientformer_l1", "crossvit_tiny_240") else 96
    models: list[Any] = [va.create_model(f"timm:{name}", num_classes=3, img_size=size)]
    if name in NETWORKS:
        models += [create_segmenter(f"timm:{name}", head, 3, img_size=size, **args) for head, args in HEADS_OF_MAPS.items()]
    for model in models:
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3, weight_decay=0)
        output = model(torch.randn(2, 3, size, size))
        logits = [output] if isinstance(output, torch.Tensor) else [output.logits, *(aux.logits for aux in output.aux)]
        assert all(one.shape[:2] == (2, 3) for one in logits)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        sum(nn.functional.cross_entropy(one, torch.ones(2, *one.shape[2:], dtype=torch.int64)) for one in logits).backward()
        assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        changed = [not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True)]
        assert changed[0] and changed[-1] and sum(changed) > 0.3 * len(changed)  # branches of ResNets begin at 0, and get no gradient

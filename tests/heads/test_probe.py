"""Efficient probing: the authors' pooling, on every family, from any classifier's file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visionattn as va
from tests.heads.test_semantic_parity import FOLDER, TOLERANCE, error, inputs_of, weights_of
from tests.tiny import TINY
from visionattn.engine.freezing import freeze, keep_frozen
from visionattn.errors import ArgumentError
from visionattn.heads import EfficientProbe
from visionattn.kernels import record_attention, use_backend

RECORDS: dict[str, Any] = json.loads((FOLDER / "probe.json").read_text())
RENAMED = {"0.cls_token": "queries", "0.v.": "value.", "1.": "pooled_norm.", "2.": "fc."}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", list(RECORDS))
@torch.no_grad()
def test_recorded_outputs(name: str, dtype: torch.dtype, backend: str) -> None:
    record, state = RECORDS[name], {}
    for key, value in weights_of(record).items():
        theirs, ours = next(pair for pair in RENAMED.items() if key.startswith(pair[0]))
        state[key.replace(theirs, ours)] = value[0] if ours == "queries" else value
    given = record["kwargs"]
    head = EfficientProbe((given["dim"],), given["nb_classes"], queries=given["num_queries"], reduction=given["d_out"]).eval()
    head.load_state_dict({**state, "pooled_norm.num_batches_tracked": torch.tensor(0)})  # every key, and no other
    tokens = 8 * inputs_of(record)[0]
    x = tokens.to(dtype).transpose(1, 2).unflatten(2, (4, 5))  # B C H W: the order of positions has no effect
    with use_backend(backend):
        pooled, logits = head.to(dtype).pool(x), head([x])
    assert error(pooled, np.array(record["outputs"]["pooled"])) < TOLERANCE[dtype]
    assert error(logits, np.array(record["outputs"]["logits"])) < TOLERANCE[dtype]


@pytest.mark.parametrize("family", TINY)
def test_only_the_probe_is_trained_on_a_frozen_backbone_of_every_family(family: str) -> None:
    name, args = TINY[family]
    torch.manual_seed(0)
    model = va.create_model(name, num_classes=3, classifier="ep", classifier_args={"queries": 4}, **args)
    frozen = freeze(model, ["backbone", "head.norm"])
    keep_frozen(model.train(), frozen)
    before = {key: value.clone() for key, value in model.named_buffers()}
    nn.functional.cross_entropy(model(torch.randn(3, 3, 64, 96)), torch.tensor([0, 1, 2])).backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()} == {
        f"head.{key}" for key in ("queries", "value.weight", "fc.weight", "fc.bias")
    }
    statistics = {f"head.pooled_norm.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert {key for key, value in model.named_buffers() if not torch.equal(value, before[key])} == statistics


def tiny(num_classes: int = 3, head: str = "ep", **args: Any) -> Any:
    name, small = TINY["Swin"]
    return va.create_model(
        name, num_classes=num_classes, classifier=head, classifier_args={"queries": 4, **args} if head == "ep" else {}, **small
    )


def test_files_of_either_head_start_the_other() -> None:
    for source, target in (("linear", "ep"), ("ep", "linear")):
        theirs, ours = tiny(head=source), tiny(head=target)
        fresh = {key: value.clone() for key, value in ours.state_dict().items()}
        report = va.load_checkpoint(ours, theirs.state_dict())
        assert report.skipped == ["the file has another kind of head: head re-initialised"]
        for key, value in ours.state_dict().items():
            known = key.startswith(("backbone.", "head.norm."))
            assert torch.equal(value, theirs.state_dict()[key] if known else fresh[key]), key
    more = tiny(num_classes=7)
    report = va.load_checkpoint(more, tiny().state_dict())
    assert report.skipped == ["checkpoint head has 3 classes, the model 7: head re-initialised"]
    assert va.load_checkpoint(tiny(), tiny().state_dict(), allow=()).skipped == []
    wider = va.load_checkpoint(tiny(reduction=2), tiny().state_dict())
    assert wider.skipped == ["the file has another kind of head: head re-initialised"]


def test_features_queries_and_weights() -> None:
    model = tiny(reduction=2).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), record_attention() as records:
        logits = model(image)
    seen = records[-1]
    assert seen.op == "dense_attention" and seen.geometry["size"] == (1, 4) and seen.geometry["key_size"] == (2, 2)
    assert logits.shape == (2, 3) and model.head_hidden_size == 32
    model.reset_classifier(0)
    assert model(image).shape == (2, 32)
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(5, "")
    with pytest.raises(ValueError, match="the last of the 4 stages"):
        model.prune_intermediate_layers([1])
    assert model.prune_intermediate_layers([3]) == [3]


def test_export_of_any_batch_and_bfloat16() -> None:
    head, x = EfficientProbe((16,), 3, queries=4).eval(), torch.randn(2, 16, 3, 5)
    exported = torch.export.export(head, ([x],), dynamic_shapes=([{0: torch.export.Dim("batch", min=1, max=16)}],)).module()
    x = torch.randn(5, 16, 3, 5)
    exact = head([x])
    assert torch.allclose(exported([x]), exact, atol=1e-6)
    low = head.to(torch.bfloat16)([x.to(torch.bfloat16)])
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), exact, atol=0.05)


def test_wrong_heads_and_queries() -> None:
    with pytest.raises(ArgumentError) as caught:
        tiny(queries=12)
    assert caught.value.code == "VA-M002" and caught.value.fix == "model.classifier.queries=8 model.classifier.reduction=1"
    with pytest.raises(ArgumentError, match="unknown classifier"):
        va.create_model("swin_tiny", classifier="mlp")

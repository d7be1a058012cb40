"""The figures that are shipped and printed are those of the models."""

from __future__ import annotations

import pytest
import torch

import visionattn as va
from tests.tiny import ZOO
from visionattn.backbones.registry import get_variant
from visionattn.models.factory import computed_facts
from visionattn.models.weights.records import records, shipped_facts

NEWER = {get_variant(name).family for name in ZOO.values()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.zoo] if family in NEWER else [])
        for family in sorted({get_variant(name).family for name in va.list_models()})
    ],
)
def test_shipped_facts_are_those_of_the_models(family: str) -> None:
    """All of the smallest and the largest model of a family; of those between, which differ in width and depth, what needs no count."""
    names = sorted(va.list_models(family=family), key=lambda name: shipped_facts()[name]["gmacs"])
    for name in {names[0], names[-1]}:
        assert computed_facts(name) == shipped_facts()[name]
    for name in names[1:-1]:
        with torch.device("meta"):
            model = va.create_model(name)
        backbone, facts = model.backbone, shipped_facts()[name]
        found = (sum(parameter.numel() for parameter in model.parameters()), list(backbone.channels), list(backbone.strides))
        assert found == (facts["params"], facts["channels"], facts["strides"]), name


def test_counts_agree_with_the_published_figures() -> None:
    """Parameters exactly; operations within 6 percent, because authors count different things."""
    for record in records():
        counted = shipped_facts()[record.model]
        if record.params is not None and record.num_classes == 1000:
            assert counted["params"] == record.params, record.name
        if record.gflops is not None and record.input_size == get_variant(record.model).cfg["input_size"]:
            unit = 2**30 / 1e9 if record.model.startswith(("eca_", "ravlt_", "rmt_")) else 1  # their authors count in 2^30
            assert counted["gmacs"] == pytest.approx(unit * record.gflops, rel=0.06, abs=0.06), record.name

"""RMT and RAVLT: files of the dense backbone, the projection before the classifier, maps that are wide and low."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visionattn as va
from tests.parity import Record
from tests.tiny import TINY
from visionattn.backbones.rmt import sequence_rotation

# Decays of the third stage, as upstream stores them.
RECORDED = [-0.28768206, -0.16093299, -0.09254117, -0.05398749, -0.0317487, -0.01875619, -0.01111004, -0.00659118]
FAMILIES = pytest.mark.parametrize("family", ["RMT", "RAVLT"])


def tiny(family: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    name, args = TINY[family]
    return va.create_model(name, **args, **arguments).eval()


def test_the_authors_dense_backbone_has_norms_of_its_outputs() -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in Record("rmt", "RMT_T3__96x96").keys}
    dense = {key: value for key, value in state.items() if not key.startswith(("proj.", "norm.", "head."))}
    for index, dim in enumerate((64, 128, 256, 512)):
        dense |= {f"extra_norms.{index}.{name}": torch.empty(dim, device="meta") for name in ("weight", "bias")}
    with torch.device("meta"):
        model = va.create_model("rmt_tiny", features_only=True, out_norm=True)
        renamed = model.from_upstream(dense)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    assert {key.removeprefix("backbone.") for key in renamed} | counters == set(model.state_dict())


@FAMILIES
def test_the_classifier_averages_projected_features(family: str) -> None:
    model = tiny(family, num_classes=5)
    image = torch.randn(2, 3, 40, 72)
    with torch.no_grad():
        features = model.forward_features(image)
        assert features.shape == (2, 32, 2, 3) and (model.num_features, model.head_hidden_size) == (32, 1024)
        projected = model.head.norm(features)
        assert projected.shape == (2, 1024, 2, 3)
        assert torch.allclose(model(image), model.head.fc(projected.mean((2, 3))), atol=1e-6)
        final, maps = model.forward_intermediates(image, norm=True)
        assert maps[-1].shape == final.shape  # not projected
        assert model.prune_intermediate_layers([3], prune_norm=True) == [3] and model.head_hidden_size == 32
        assert torch.equal(model(image), features.mean((2, 3)))
        model.reset_classifier(4)
        assert model(image).shape == (2, 4)


def test_a_probe_needs_the_projection() -> None:
    model = tiny("RMT", classifier="ep", classifier_args={"queries": 4}, num_classes=5)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="has to stay with its norm"):
        model.prune_intermediate_layers([3], prune_norm=True)


def test_positions_and_decays_are_those_of_the_record() -> None:
    """Angles of the flattened index, of which the last is the index / 10000; decays per head."""
    attn = va.create_model("rmt_tiny", depths=(1, 1, 1, 1)).backbone.stages[2].blocks[0].attn
    decay = attn.decay(torch.empty(0))
    assert decay.tolist() == pytest.approx(RECORDED, rel=1e-5)
    cos, sin = sequence_rotation(3, 5, 8, torch.empty(0, dtype=torch.float64))
    assert cos[1, 2].tolist() == pytest.approx([torch.tensor(7 * 10000 ** (-m / 3)).cos().item() for m in range(4)], abs=1e-6)
    assert float(sin[2, 4, 3]) == pytest.approx(14e-4, rel=1e-5)

"""OverLoCK: the maps inside it, merged convolutions, files of both forms, predicted kernels on small maps."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from timm.utils import reparameterize_model

import visionattn as va
from tests.parity import Record
from tests.tiny import TINY
from visionattn.attention.contmix import BRANCHES, DilatedReparam, enlarged_size
from visionattn.errors import UserError
from visionattn.kernels import record_attention


def tiny(**arguments: Any) -> Any:
    torch.manual_seed(0)
    name, args = TINY["OverLoCK"]
    return va.create_model(name, num_classes=5, **{**args, **arguments}).eval()


def unlike_at_the_start(model: torch.nn.Module) -> None:
    """Give batch norms statistics and factors as after a training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight, 0.5), (module.bias, -0.2)):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", ["overlock_xt__96x96", "overlock_xt__96x128", "overlock_xt_reparam__96x96"])
def test_maps_between_the_stages_are_those_of_the_record(name: str) -> None:
    """The base, the overview, and the two parts of the third map."""
    record, found = Record("overlock", name), {}
    model = va.create_model(record.facts["model"], **record.facts["args"]).eval()
    va.load_checkpoint(model, record.state(), allow=("position",))
    stage = model.backbone.stages[2]
    for index, module in enumerate((stage.base[-1], stage.overview.blocks)):
        module.register_forward_hook(lambda module, given, output, index=index: found.update({index: output}))
    with torch.no_grad():
        maps = model.backbone(record.image())
    found |= dict(enumerate(maps[2].split(stage.blocks[0].dims, 1), 2))
    for index, part in enumerate(record.facts["parts"]):
        feature = found[index].contiguous()
        assert list(feature.shape) == part["shape"]
        flat = feature.flatten().numpy()
        points = flat[(np.arange(64) * (flat.size - 1)) // 63]
        assert np.abs(points - record.arrays[f"part{index}_sample"]).max() / part["std"] < 5e-4


@pytest.mark.parametrize("kernel_size", BRANCHES)
def test_one_convolution_for_many(kernel_size: int) -> None:
    torch.manual_seed(0)
    module, image = DilatedReparam(3, kernel_size).double().eval(), torch.randn(2, 3, 19, 23, dtype=torch.float64)
    unlike_at_the_start(module)
    with torch.no_grad():
        want = module(image)
        module.reparameterize()
        assert torch.allclose(module(image), want, atol=1e-12)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == {
        "lk_origin.weight": (3, 1, kernel_size, kernel_size),
        "lk_origin.bias": (3,),
    }
    module.reparameterize()  # nothing is left to do
    with torch.no_grad():
        assert torch.allclose(module(image), want, atol=1e-12)


def test_a_reparameterised_network_computes_the_same(tmp_path: Any) -> None:
    model, image = tiny(), torch.randn(2, 3, 70, 100)
    unlike_at_the_start(model)
    with torch.no_grad():
        want = model(image)
        merged = reparameterize_model(model)  # timm's
        assert model.backbone.stages[0].blocks[0].proj[1].deploy is False and merged.backbone.deploy
        assert (merged(image) - want).abs().max() < 1e-5 * want.std()
        torch.save(model.state_dict(), tmp_path / "trained.pth")
        torch.save(merged.state_dict(), tmp_path / "merged.pth")
        for file, lines in (("trained.pth", ["parallel convolutions merged (6 kernels)"]), ("merged.pth", [])):
            deployed = tiny(deploy=True)
            assert va.load_checkpoint(deployed, tmp_path / file).reshaped == lines
            assert (deployed(image) - want).abs().max() < 1e-5 * want.std()
        model.backbone.reparameterize()
        assert torch.equal(model(image), merged(image))
    with pytest.raises(UserError, match="re-parameterised for inference, the model is not") as caught:
        va.load_checkpoint(tiny(), tmp_path / "merged.pth")
    assert caught.value.code == "VA-W003" and "deploy=True" in caught.value.fix


@pytest.mark.slow
@pytest.mark.zoo
def test_a_file_of_either_form_is_recognised() -> None:
    from visionattn.models.weights.recognise import recognise

    for deploy in (False, True):
        with torch.device("meta"):
            state = va.create_model("overlock_xtiny", deploy=deploy).state_dict()
        found = recognise(state)
        assert found is not None and found.names == ("overlock_xtiny",) and found.args == ({"deploy": True} if deploy else {})


def test_the_authors_dense_backbone_has_norms_of_its_outputs() -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in Record("overlock", "overlock_xt_reparam__96x96").keys}
    dense = {key: value for key, value in state.items() if not key.startswith(("head.", "aux_head."))}
    for index, dim in enumerate((56, 112, 340, 420)):
        dense |= {f"extra_norm.{index}.{name}": torch.empty(dim, device="meta") for name in ("weight", "bias")}
    with torch.device("meta"):
        model = va.create_model("overlock_xtiny", features_only=True, out_norm=True, deploy=True)
        renamed = model.from_upstream(dense)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    assert {key.removeprefix("backbone.") for key in renamed} | counters == set(model.state_dict())


def test_small_maps_are_enlarged_in_proportion() -> None:
    assert enlarged_size(14, 14, 13) == (14, 14) and enlarged_size(13, 40, 13) == (13, 40)
    assert enlarged_size(6, 6, 13) == (13, 13) and enlarged_size(6, 8, 13) == (13, 17) and enlarged_size(8, 6, 13) == (17, 13)
    assert enlarged_size(1, 1, 7) == (7, 7) and enlarged_size(11, 11, 15) == (15, 15)  # 15 / 11 * 11 is a little less than 15


def test_attention_on_an_enlarged_map_is_placed_on_the_map() -> None:
    """What a position gives goes through the average, the kernel and the interpolation, as its value does."""
    backbone = tiny().backbone.double()
    share = torch.rand(3, 5, dtype=torch.float64)
    queries = backbone.to_queries(share, (7, 11))
    value = torch.randn(7, 11, dtype=torch.float64)
    averaged = torch.nn.functional.adaptive_avg_pool2d(value[None, None], (3, 5))[0, 0]
    assert torch.allclose((queries * value).sum(), (share * averaged).sum())
    keys, small = torch.rand(7, 11, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    enlarged = torch.nn.functional.interpolate(small[None, None], size=(7, 11), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose((backbone.to_places(keys, (3, 5)) * small).sum(), (keys * enlarged).sum())
    assert torch.equal(backbone.to_queries(share, (3, 5)), share) and torch.equal(backbone.to_places(share, (3, 5)), share)


def test_kernels_are_recorded_with_their_sizes() -> None:
    with torch.no_grad(), record_attention() as records:
        tiny()(torch.randn(1, 3, 64, 96))
    assert [record.geometry["kernel_size"] for record in records] == [(5, 5), (13, 13), (5, 5), (7, 7)]
    assert [record.geometry["size"] for record in records] == [(13, 19)] * 2 + [(7, 10)] * 2


def test_groups_of_layers_are_in_the_order_of_the_network() -> None:
    from timm.models import group_parameters

    model = tiny(focus_depths=(2, 1), depths=(1, 1, 2, 1))
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    order = ["stages.2.base.0", "stages.2.base.1", "stages.2.overview", "stages.2.blocks.0", "stages.2.blocks.1", "stages.3.blocks.0"]
    numbers = [{layer for key, layer in groups.items() if re.match(rf"backbone\.{part}\.", key)} for part in order]
    assert all(len(found) == 1 for found in numbers) and sorted(map(min, numbers)) == list(map(min, numbers))
    assert len(set(map(min, numbers))) == len(order)

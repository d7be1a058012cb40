"""Backbone and head as one model: shapes, training, messages, published files."""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import visionattn as va
from tests.parity import Record, record_names
from tests.tiny import TINY, ZOO
from visionattn.backbones import registry
from visionattn.backbones.registry import Variant, get_variant
from visionattn.errors import UserError
from visionattn.heads import HEADS, HeadOutput
from visionattn.models.segmenter import Segmenter
from visionattn.models.segmenter_factory import IMAGENET, classes_and_palette, segmenter_from_file
from visionattn.models.weights.recognise import recognise

SMALL: dict[str, dict[str, Any]] = {
    name: {"width": 8} for name in ("upernet", "segformer", "fcn", "psp", "deeplabv3plus", "ccnet", "danet")
}
SMALL["danet"]["reduced"] = 2
SMALL["unet"] = {"stem_channels": (4, 4), "max_channels": 8, "deep_supervision": True}
SMALL["att_swin"] = {"depth": 1, "head_dim": 4}
SMALL["dae"] = SMALL["trans_dae"] = {"depth": 1}
SMALL["ms_dual_guided"] = {"width": 4}
SMALL["semantic_fpn"] = {"width": 8, "neck_width": 8}
FAMILIES = pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.slow, pytest.mark.zoo] if family in ZOO else []) for family in TINY]
)
PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "heads" / "published_keys.json").read_text())


def tiny(family: str = "VAN", head: str = "upernet", num_classes: int = 3, **args: Any) -> Any:
    torch.manual_seed(0)
    name, cut = TINY[family]
    return va.create_segmenter(name, head, num_classes, backbone_args=cut, **{**SMALL[head], **args})


def test_a_family_is_missing_here() -> None:
    assert {get_variant(name).cls.__name__ for name in va.list_models()} == set(TINY)
    assert {get_variant(name).cls.__name__ for name, _ in TINY.values()} == set(TINY)


def test_a_head_is_missing_here() -> None:
    assert set(SMALL) == set(HEADS)


def require_step(model: Any, image: torch.Tensor, label: torch.Tensor, what: str) -> None:
    """A step of training gives every parameter a gradient, finite ones, and changes the classifier."""
    output = model.train()(image)
    assert output.logits.shape == (len(image), model.num_classes, *image.shape[2:]), what
    loss = F.cross_entropy(output.logits, label)
    for aux in output.aux:
        loss = loss + aux.weight * F.cross_entropy(F.interpolate(aux.logits, size=label.shape[1:]), label)
    loss.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.requires_grad and ".out_norms." not in key}
    assert not [key for key, value in gradients.items() if value is None or not value.isfinite().all()], what
    before = model.decode_head.conv_seg.weight.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert not torch.equal(before, model.decode_head.conv_seg.weight), what


@FAMILIES
def test_every_head_trains_on_every_family(family: str) -> None:
    name, cut = TINY[family]
    image, label = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    for head, args in SMALL.items():
        torch.manual_seed(0)
        require_step(va.create_segmenter(name, head, 3, backbone_args=cut, **args), image, label, head)


@FAMILIES
def test_every_skip_and_bottleneck_trains_on_every_family(family: str) -> None:
    name, cut = TINY[family]
    image, label = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    bottlenecks = cycle(("none", "aspp", "dual", "eca"))
    for skip in ("none", "gate", "eca", "ela_b", "dual", "cross_contextual"):
        torch.manual_seed(0)
        model = va.create_segmenter(
            name,
            "unet",
            2,
            backbone_args=cut,
            skip=skip,
            bottleneck=next(bottlenecks),
            stem_channels=(4, 8),
            max_channels=16,
            deep_supervision=skip == "gate",
        )
        require_step(model, image, label, skip)
        with torch.no_grad():
            assert model.eval()(image[:1, :, :50, :41]).shape == (1, 2, 50, 41), skip


@pytest.mark.parametrize("head", SMALL)
def test_sizes_of_the_logits(head: str) -> None:
    model = tiny(head=head, num_classes=1).eval()
    for size in ((65, 97), (32, 50)):
        with torch.no_grad():
            assert model(torch.randn(1, 3, *size)).shape == (1, 1, *size)
    output = model.train()(torch.randn(2, 3, 65, 97))
    assert isinstance(output, HeadOutput) and output.logits.shape == (2, 1, 65, 97)
    assert [(aux.name, aux.weight, *aux.logits.shape[2:]) for aux in output.aux] == {
        "danet": [("pam", 1.0, 3, 4), ("cam", 1.0, 3, 4)],
        "ms_dual_guided": [*[(f"second{i}", 1.0, 17, 25) for i in range(1, 4)], *[(f"first{i}", 1.0, 17, 25) for i in range(4)]],
        "unet": [("level1", 0.5, 33, 49), ("level2", 0.25, 17, 25), ("level3", 0.125, 9, 13), ("level4", 0.0625, 5, 7)],
    }.get(head, [("auxiliary_head", 0.4, 5, 7)] if HEADS[head].auxiliary else [])


def test_the_auxiliary_head_is_a_choice() -> None:
    assert tiny(aux=False).auxiliary_head is None
    assert tiny(head="segformer", aux=True).auxiliary_head is not None


def test_the_original_segformer_head_is_linear_and_begins_with_the_coarsest_map() -> None:
    head: Any = HEADS["segformer"]([4, 6], [4, 8], 3, width=5, style="original").eval()
    maps = [torch.randn(1, 4, 6, 6), torch.randn(1, 6, 3, 3)]
    state = head.state_dict()
    fine, coarse = (
        torch.einsum("bchw,oc->bohw", x, state[f"convs.{i}.proj.weight"]) + state[f"convs.{i}.proj.bias"].view(1, -1, 1, 1)
        for i, x in enumerate(maps)
    )
    coarse = F.interpolate(coarse, size=(6, 6), mode="bilinear", align_corners=False)
    with torch.no_grad():
        wanted = head.conv_seg(head.fusion_conv(torch.cat([coarse, fine], 1)))
        assert torch.allclose(head(maps).logits, wanted, atol=1e-6)
    theirs = {"linear_c1.proj.weight", "linear_c2.proj.bias", "linear_fuse.bn.weight", "linear_pred.weight"}
    assert head.from_upstream(dict.fromkeys(theirs, torch.zeros(1))).keys() <= state.keys()


def test_messages() -> None:
    with pytest.raises(UserError, match='VA-M001: unknown head "upernett"\n  fix   Did you mean upernet'):
        va.create_segmenter("van_b0", "upernett", 2)
    with pytest.raises(UserError, match=r'VA-M002: upernet has no argument "breadth"\n  fix '):
        va.create_segmenter("van_b0", "upernet", 2, breadth=3)
    with pytest.raises(UserError, match="VA-M002: num_classes"):
        va.create_segmenter("van_b0")
    with pytest.raises(UserError, match="VA-M001: unknown model"):
        va.create_segmenter("van_b00", num_classes=2)
    with pytest.raises(UserError, match='VA-M002: van_b0 has no argument "depth"'):
        va.create_segmenter("van_b0", num_classes=2, backbone_args={"depth": 3})


def test_layers_of_the_optimizer_and_meta_device() -> None:
    with torch.device("meta"):
        model = tiny("Swin")
    assert model.no_weight_decay() and all(name.startswith("backbone.") for name in model.no_weight_decay())
    assert model.group_matcher()["stem"].startswith(r"^backbone\.")
    model.to_empty(device="cpu").init_weights()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# Files


def authors_names(name: str, dense_norms: bool) -> dict[str, str]:
    """Our keys of a backbone -> the authors', from a record of their keys; dense models add a norm per map."""
    cls = get_variant(name).cls
    given = {key: torch.empty(shape, device="meta") for key, shape in longest_record(name).keys}
    if dense_norms:
        given |= {f"norm{i}.{kind}": torch.empty(1, device="meta") for i in range(4) for kind in ("weight", "bias")}
    theirs = {id(value): key for key, value in given.items()}
    return {key.removeprefix("backbone."): theirs[id(value)] for key, value in cls.from_upstream(given).items()}


def longest_record(name: str) -> Record:
    """The record with the most keys of a backbone's class, so that it has those of all blocks."""
    variant = get_variant(name)
    family = "dinat" if variant.family == "nat" else variant.family
    records = [Record(family, record) for record in record_names(family)]
    return max((record for record in records if get_variant(record.facts["model"]).cls is variant.cls), key=lambda record: len(record.keys))


def mmseg_state(model: Segmenter, names: dict[str, str]) -> OrderedDict[str, torch.Tensor]:
    """The model's tensors under the names of mmsegmentation's files."""
    state = OrderedDict()
    for key, value in model.state_dict().items():
        if key.startswith("backbone."):
            state[f"backbone.{names[key.removeprefix('backbone.')]}"] = value
        else:
            state[key.removeprefix("decode_head.") if key.startswith("decode_head.neck.") else key] = value
    return state


CASES = [
    ("Swin", "upernet", True),
    ("NAT", "upernet", True),
    ("DiNATS", "upernet", True),
    ("DaViT", "upernet", True),
    ("TransNeXt", "upernet", False),
    ("VAN", "upernet", False),
    ("VAN", "semantic_fpn", False),
]


@pytest.fixture
def small_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbones as registered ones, under their family's name."""
    for family, (name, cut) in TINY.items():
        variant = get_variant(name)
        monkeypatch.setitem(
            registry._VARIANTS, f"tiny_{family}", Variant(f"tiny_{family}", variant.cls, {**variant.args, **cut}, variant.cfg)
        )


@pytest.mark.usefixtures("small_variants")
@pytest.mark.parametrize(("family", "head", "norms"), CASES, ids=[f"{family}-{head}" for family, head, _ in CASES])
def test_files_of_mmsegmentation(family: str, head: str, norms: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = va.create_segmenter(f"tiny_{family}", head, 3, **SMALL[head])
    for parameter in model.parameters():  # also where weights begin as zeros or ones
        torch.nn.init.normal_(parameter, std=0.1)
    state = mmseg_state(model, authors_names(TINY[family][0], norms))
    meta = {"CLASSES": ("sky", "road", "tree"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "mmseg_version": "0.11.0", "iter": 160000}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "file.pth")
    read = segmenter_from_file(tmp_path / "file.pth")
    assert read.classes == ("sky", "road", "tree")
    assert read.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert read.model.pretrained_cfg["mean"] == IMAGENET["mean"]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = model.eval()(image)
        assert torch.equal(read.model.eval()(image), wanted)
        other = va.create_segmenter(f"tiny_{family}", head, 3, checkpoint_path=tmp_path / "file.pth", **SMALL[head]).eval()
        assert torch.equal(other(image), wanted)
        backbone = va.create_model(f"tiny_{family}", features_only=True, out_norm=True, checkpoint_path=tmp_path / "file.pth").eval()
        assert all(torch.equal(a, b) for a, b in zip(backbone(image), model.backbone(image), strict=True))


@pytest.mark.parametrize(
    ("name", "head", "record"), [("swin_tiny", "upernet", "upernet_swin_tiny_ade20k"), ("van_b2", "semantic_fpn", "semfpn_van_b2_ade20k")]
)
def test_published_key_lists(name: str, head: str, record: str) -> None:
    with torch.device("meta"):
        model = va.create_segmenter(name, head, 150)
    state = mmseg_state(model, authors_names(name, head == "upernet"))
    assert {key: list(value.shape) for key, value in state.items() if not key.startswith("backbone.")} == PUBLISHED[record]
    found = recognise(state)
    assert found is not None and found.decoder is not None
    assert (found.names, found.args, found.num_classes, found.fit) == ((name,), {}, 150, 1.0)
    assert (found.decoder.head, found.decoder.aux) == (head, head == "upernet")


@pytest.mark.parametrize("head", SMALL)
@pytest.mark.usefixtures("small_variants")
def test_our_own_files_tell_their_head(head: str) -> None:
    model = va.create_segmenter("tiny_VAN", head, 4, in_chans=2, **SMALL[head])
    found = recognise(model.state_dict())
    assert found is not None and found.decoder is not None
    assert (found.names, found.in_chans, found.num_classes, found.fit) == (("tiny_VAN",), 2, 4, 1.0)
    assert found.decoder.head == head
    rebuilt = va.create_segmenter("tiny_VAN", head, 4, in_chans=2, aux=found.decoder.aux, **found.decoder.args)
    assert va.load_checkpoint(rebuilt, model.state_dict(), allow=()).skipped == []


def test_what_may_differ_and_what_not() -> None:
    model = tiny("VAN")
    name, cut = TINY["VAN"]
    report = va.load_checkpoint(model, va.create_model(name, **cut).state_dict())
    assert report.skipped == ["the file has no segmentation head: it starts anew"]
    before = model.decode_head.conv_seg.weight.clone()
    report = va.load_checkpoint(model, tiny("VAN", num_classes=7).state_dict())
    assert report.skipped == ["checkpoint head has 7 classes, the model 3: last layer re-initialised"]
    assert torch.equal(model.decode_head.conv_seg.weight, before)
    assert va.load_checkpoint(tiny("VAN", aux=False), model.state_dict()).skipped == ["the file's auxiliary head left out"]
    assert va.load_checkpoint(model, tiny("VAN", aux=False).state_dict()).skipped == ["the file has no auxiliary head: it starts anew"]
    for source in (tiny("VAN", num_classes=7), tiny("VAN", aux=False)):
        with pytest.raises(UserError, match="VA-W003"):
            va.load_checkpoint(model, source.state_dict(), allow=())
    with pytest.raises(UserError, match="VA-W003"):
        va.load_checkpoint(model, tiny("VAN", "psp").state_dict())
    with pytest.raises(UserError, match="VA-W003"):
        va.load_checkpoint(va.create_model(name, **cut), model.state_dict())


@pytest.mark.parametrize("head", SMALL)
def test_every_head_takes_a_file_with_other_classes(head: str) -> None:
    given, model = tiny(head=head, num_classes=7).state_dict(), tiny(head=head)
    report = va.load_checkpoint(model, given)
    assert report.skipped == ["checkpoint head has 7 classes, the model 3: last layer re-initialised"]
    assert all(value.equal(given[key]) for key, value in model.state_dict().items() if value.shape == given[key].shape)


@pytest.mark.usefixtures("small_variants")
def test_the_error_names_the_other_head() -> None:
    given = va.create_segmenter("tiny_VAN", "psp", 3, **SMALL["psp"]).state_dict()
    with pytest.raises(UserError, match="looks like a segmentation model with psp - you asked for upernet"):
        va.load_checkpoint(va.create_segmenter("tiny_VAN", "upernet", 3, **SMALL["upernet"]), given)


@pytest.mark.usefixtures("small_variants")
def test_files_that_are_no_segmentation_models(tmp_path: Path) -> None:
    torch.save(va.create_model("tiny_VAN", num_classes=2).state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(UserError, match=r"VA-W003.*not recognised as a segmentation model(.|\n)*without a segmentation head"):
        segmenter_from_file(tmp_path / "classifier.pth")
    torch.save({"decode_head.pixel_decoder.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="VA-W003"):
        segmenter_from_file(tmp_path / "other.pth")


def test_classes_and_palette_are_taken_where_they_fit() -> None:
    colours = [[0, 0, 0], [255, 0, 9]]
    assert classes_and_palette({"meta": {"dataset_meta": {"classes": ("a", "b"), "palette": colours}}}, 2) == (
        ("a", "b"),
        ((0, 0, 0), (255, 0, 9)),
    )
    assert classes_and_palette({"meta": {"CLASSES": ["a"], "PALETTE": colours}}, 2) == (None, ((0, 0, 0), (255, 0, 9)))
    assert classes_and_palette({"meta": {"CLASSES": [1, 2], "PALETTE": [[0, 0, 0], [256, 0, 9]]}}, 2) == (None, None)
    assert classes_and_palette({"meta": "none", "state_dict": {}}, 2) == (None, None)


def test_a_narrow_unet_does_not_stay_with_the_background() -> None:
    """With logits that start at nearly 0, sixteen channels took hundreds of steps to predict a class of a few pixels."""
    torch.manual_seed(0)
    model = va.create_segmenter("eca_resnet18", "unet", 2, in_chans=1, backbone_args={"width": 8}, stem_channels=(16, 16), max_channels=16)
    label = torch.zeros(4, 32, 32, dtype=torch.int64)
    for index, (row, column) in enumerate(((4, 5), (20, 8), (11, 22), (2, 17))):
        label[index, row : row + 8, column : column + 7] = 1
    image = 2.0 * label.unsqueeze(1) + torch.randn(4, 1, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(20):
        logits = model.train()(image).logits
        optimizer.zero_grad()
        F.cross_entropy(logits, label).backward()
        optimizer.step()
    found = logits.argmax(1)
    assert float((found & label).sum() / (found | label).sum()) > 0.5

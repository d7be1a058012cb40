"""Heads of bags: the recorded outputs of ACMIL's and AEM's code, and what holds for every head."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fill
from visionattn.heads import BAG_HEADS, BagHead, BagOutput
from visionattn.heads.acmil import mask_top
from visionattn.heads.mil import ABSENT
from visionattn.models.bag_classifier import BagClassifier
from visionattn.tasks.bags.objective import branch_similarity, negative_entropy

FOLDER = Path(__file__).parents[1] / "fixtures" / "heads"
RECORDS: dict[str, Any] = json.loads((FOLDER / "mil.json").read_text())
ARRAYS = dict(np.load(FOLDER / "mil.npz"))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}  # of the largest value, as stated with the records
HEADS = {"acmil_ga": "acmil", "acmil_mha": "acmil_mha", "aem_abmil": "abmil", "aem_mha": "mha"}
NAMES = {"D_inner": "width", "D": "hidden", "n_token": "branches", "heads": "heads"}


def recorded_bag() -> torch.Tensor:
    """The input that all records share: `4 * x`."""
    drawn = np.random.RandomState(zlib.crc32(b"input:bag")).standard_normal((1, 37, 24)).astype(np.float32)
    return torch.from_numpy(4 * drawn)


def build(name: str, dtype: torch.dtype) -> BagHead:
    record = RECORDS[name]
    args = {NAMES[key]: value for key, value in record["kwargs"].items() if key in NAMES}
    cls = BAG_HEADS[HEADS[name]]
    head = cls(record["kwargs"]["D_feat"], record["kwargs"]["n_class"], **args)
    given = {key: torch.from_numpy(np.asarray(fill(key, tuple(shape)))) for key, shape in record["keys"].items()}
    state = cls.from_upstream(given)
    own = {f"embedding.{key}": value for key, value in head.embedding.named_buffers()}  # 0 and 1, which theirs does not have
    head.load_state_dict({**own, **state})  # every key, and no other
    return head.to(dtype).eval()


def error(got: torch.Tensor, name: str) -> float:
    want = ARRAYS[name].astype(np.float64)
    found = got.detach().double().numpy().reshape(want.shape)
    return float(np.abs(found - want).max() / np.abs(want).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("piece", [16_384, 10])
@pytest.mark.parametrize("name", HEADS)
def test_recorded_outputs(name: str, piece: int, dtype: torch.dtype) -> None:
    head = build(name, dtype)
    head.piece = piece
    output = head(recorded_bag().to(dtype))
    limit = TOLERANCE[dtype]
    assert error(output.logits, f"{name}/{'slide' if 'acmil' in name else 'logits'}") < limit
    assert error(output.scores[0] if "mha" in name else output.scores[:, 0], f"{name}/attn_logits") < limit
    if output.branches is not None:
        assert error(output.branches, f"{name}/sub") < limit
    if f"{name}/bag_attention" in ARRAYS:
        assert error(output.attention, f"{name}/bag_attention") < limit
    if f"{name}/neg_entropy" in ARRAYS:
        assert error(negative_entropy(output.scores), f"{name}/neg_entropy") < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_losses_of_acmil(dtype: torch.dtype) -> None:
    output, label = build("acmil_ga", dtype)(recorded_bag().to(dtype)), torch.tensor([2])
    assert output.branches is not None
    losses = {
        "diff": branch_similarity(output.scores),
        "sub": F.cross_entropy(output.branches[0], label.repeat(5)),
        "slide": F.cross_entropy(output.logits, label),
    }
    for name, value in losses.items():
        assert error(value, f"acmil_ga/loss_{name}") < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_masking_in_training(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    head = build("acmil_ga", dtype).train()
    drawn = torch.from_numpy(ARRAYS["acmil_ga_stkim_train/rand"])
    assert (head.top, head.mask_rate) == tuple(RECORDS["acmil_ga_stkim_train"]["kwargs"].values())
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: drawn.reshape(shape))
    output = head(recorded_bag().to(dtype))
    name = "acmil_ga_stkim_train"
    want = torch.from_numpy(ARRAYS[f"{name}/attn_logits_masked"])
    assert torch.equal(output.scores[:, 0] == ABSENT, want == ABSENT) and int((want == ABSENT).sum()) == 5 * 6
    kept = want != ABSENT
    difference = (output.scores[:, 0].detach().double() - want.double())[kept].abs().max() / want[kept].abs().max()
    assert float(difference) < TOLERANCE[dtype]
    assert output.branches is not None
    assert error(output.branches, f"{name}/sub") < TOLERANCE[dtype] and error(output.logits, f"{name}/slide") < TOLERANCE[dtype]


def head_of(name: str, **args: Any) -> BagHead:
    torch.manual_seed(0)
    head = BAG_HEADS[name](12, 3, width=16, **args)
    if hasattr(head, "query"):
        torch.nn.init.normal_(head.query)  # they start nearly equal
    return head


@pytest.mark.parametrize("name", BAG_HEADS)
def test_padding_and_the_order_of_instances_change_nothing(name: str) -> None:
    head = head_of(name).eval()
    bags = [torch.randn(count, 12) for count in (7, 3, 1)]
    together: BagOutput = head(torch.nn.utils.rnn.pad_sequence(bags, batch_first=True), [7, 3, 1])
    assert together.attention.shape == (3, 7) and together.attention[1, 3:].eq(0).all()
    assert torch.allclose(together.attention.sum(1), torch.ones(3))
    for number, bag in enumerate(bags):
        order = torch.randperm(len(bag))
        alone = head(bag[order][None])
        assert torch.allclose(alone.logits[0], together.logits[number], atol=1e-6)
        assert torch.allclose(alone.attention[0], together.attention[number, order], atol=1e-6)
        assert torch.allclose(negative_entropy(alone.scores), negative_entropy(together.scores[number : number + 1]), atol=1e-5)


@pytest.mark.parametrize("name", BAG_HEADS)
def test_pieces_change_no_gradient(name: str) -> None:
    whole, pieces = head_of(name), head_of(name)
    pieces.piece = 4
    bags = torch.randn(2, 11, 12)
    for head in (whole, pieces):
        output = head(bags, [11, 6], [1, 2])
        (output.logits.sum() + negative_entropy(output.scores)).backward()
    for (key, first), (_, second) in zip(whole.named_parameters(), pieces.named_parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None), key
        if first.grad is not None and second.grad is not None:
            assert torch.allclose(first.grad, second.grad, atol=1e-5), key


@pytest.mark.parametrize("name", ["acmil", "acmil_mha"])
def test_masking_belongs_to_the_sample(name: str) -> None:
    head = head_of(name).train()
    bags = torch.randn(2, 9, 12)
    first = head(bags, None, [5, 6])
    torch.rand(3)  # the global stream plays no part
    again = head(torch.cat([bags[1:], bags[:1]]), None, [6, 5])
    assert torch.equal(first.scores == ABSENT, (again.scores == ABSENT).flip(0)) and (first.scores == ABSENT).any()
    assert not torch.equal(first.scores == ABSENT, head(bags, None, [7, 8]).scores == ABSENT)
    small = head(torch.randn(1, 9, 12), [2], [1])
    assert (small.scores[..., :2] > ABSENT).any(-1).all(), "some of a small bag is always left"


def test_mask_top_by_hand() -> None:
    scores = torch.tensor([[3.0, 9.0, 1.0, 7.0, 5.0]])
    draws = torch.tensor([[0.9, 0.1, 0.2]])  # of 9, 7 and 5
    assert mask_top(scores, draws, 0.7).tolist() == [[3.0, 9.0, 1.0, ABSENT, ABSENT]]
    assert mask_top(scores, draws, 0.3).tolist() == scores.tolist(), "a share of less than one"


@pytest.mark.parametrize("name", BAG_HEADS)
def test_activations_of_a_long_bag_are_not_kept(name: str) -> None:
    """Memory kept for the backward pass grows with the number of scores, not with the width of embedded instances."""

    def kept(count: int) -> int:
        head = head_of(name, dropout=0.0)
        head.piece = 64
        held = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            held[tensor.data_ptr()] = tensor.numel()
            return tensor

        bag = torch.randn(1, count, 12)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = head(bag)
            output.logits.sum()
        return sum(held.values()) - bag.numel()

    sums = 8 if name == "mha" else 40 if name == "acmil_mha" else 5 if name == "acmil" else 1
    assert kept(1024) - kept(512) < 512 * (4 * sums + 3)


def test_the_model_standardises_and_recomputes() -> None:
    head = head_of("abmil").eval()
    model = BagClassifier(head_of("abmil"), 12, [2.0] * 12, [4.0] * 12).eval()
    bag = torch.randn(1, 5, 12)
    assert torch.allclose(model(bag * 4 + 2).logits, head(bag).logits, atol=1e-5)
    assert torch.equal(model((bag * 4 + 2).half()).logits, model((bag * 4 + 2).half().float()).logits), "in the type of the file"
    usual = model.head.piece
    model.set_grad_checkpointing(True)
    assert model.head.piece < usual
    model.set_grad_checkpointing(False)
    assert model.head.piece == usual

"""The attentions of the medical decoder are their authors': recorded outputs, weights filled by the rule of `tests.parity`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.heads.test_semantic_parity import FOLDER, TOLERANCE, error, inputs_of, weights_of
from visionattn.attention import TAP, attention_diversification
from visionattn.heads.danet import ChannelAttention, DANet, PositionAttention
from visionattn.heads.unet import AdditiveGate, CrossContextual

RECORDS: dict[str, Any] = json.loads((FOLDER / "attention.json").read_text())
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))

# Parts of the authors' names and ours.
RENAMED = {
    "msa": {"gamma": "gamma.scale", "query_conv": "query_project", "key_conv": "key_project", "value_conv": "value_project"},
    "attswin": {"fn.norm": "norm", "fn.fn.to_q": "q", "fn.fn.to_kv": "kv", "fn.fn.to_out.0": "proj"},
    "mpu": {"Wx": "skip_project", "Wg": "project"},
    "danet": {},
    "tap": {"dilation_predictor.proj.0": "conv1", "dilation_predictor.proj.1": "norm", "dilation_predictor.proj.2": "conv2"},
}


def recorded(name: str) -> np.ndarray:
    with np.load(FOLDER / "attention.npz") as arrays:
        return np.asarray(arrays[name])


def load(module: nn.Module, name: str, dtype: torch.dtype, missing: Sequence[str] = ()) -> nn.Module:
    """`module` in evaluation with the record's weights: every key of the record, all parameters but those in `missing`."""
    state = {}
    for key, value in weights_of(RECORDS[name]).items():
        for theirs, ours in RENAMED[name.partition("_")[0]].items():
            key = key.replace(theirs, ours)
        flat = value[..., 0] if value.dim() == 5 else value  # 1x1x1 convolutions
        state[key] = flat.reshape(()) if key.endswith("gamma.scale") else flat
    wrong = module.load_state_dict(state, strict=False)
    assert not wrong.unexpected_keys
    assert {key for key in wrong.missing_keys if not key.endswith("num_batches_tracked")} == set(missing)
    return module.eval().to(dtype)


@DTYPES
@torch.no_grad()
def test_position_and_channel_attention(dtype: torch.dtype) -> None:
    for name, module in (("msa_pam", PositionAttention(16, 2)), ("msa_cam", ChannelAttention())):
        (x,) = inputs_of(RECORDS[name])
        assert error(load(module, name, dtype)(x.to(dtype)), recorded(f"{name}/out")) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("name", ["danet_even", "danet_odd"])
@torch.no_grad()
def test_danet(name: str, dtype: torch.dtype) -> None:
    head = DANet([8, 16, 24, 32], [4, 8, 16, 32], 5, width=16, reduced=4, dropout=0.0)
    load(head, name, dtype)
    maps = [x.to(dtype) for x in inputs_of(RECORDS[name])]
    assert error(head(maps).logits, recorded(f"{name}/logits")) < TOLERANCE[dtype]
    head.training = True  # the head alone: its norms stay in evaluation
    assert {aux.name: error(aux.logits, recorded(f"{name}/{aux.name}")) < TOLERANCE[dtype] for aux in head(maps).aux} == {
        "pam": True,
        "cam": True,
    }


@DTYPES
@torch.no_grad()
def test_summaries_attend_across(dtype: torch.dtype) -> None:
    """There the summary, the mean of all tokens, takes the place of the first; ours gives the new summaries alone."""
    name = "attswin_cross_transformer"
    own = [f"{layer}.{kind}" for layer in ("project", "project_back") for kind in ("weight", "bias")]
    module = load(CrossContextual(24, 24, num_heads=8, head_dim=16), name, dtype, missing=own)
    assert isinstance(module, CrossContextual)
    a, b = (x.to(dtype) for x in inputs_of(RECORDS[name]))
    new_a, new_b = module.exchange(a.mean(1, keepdim=True), a[:, 1:], b.mean(1, keepdim=True), b[:, 1:])
    assert error(torch.cat([new_a, a[:, 1:]], 1), recorded(f"{name}/sm")) < TOLERANCE[dtype]
    assert error(torch.cat([new_b, b[:, 1:]], 1), recorded(f"{name}/lg")) < TOLERANCE[dtype]


@DTYPES
@torch.no_grad()
def test_additive_gate(dtype: torch.dtype) -> None:
    """Recorded on volumes: its convolutions see single positions, so that two axes may be one; the gating map is enlarged beforehand."""
    name = "mpu_attention_gate3d"
    module = load(AdditiveGate(8, 12, 4), name, dtype)
    skip, x = (tensor.to(dtype) for tensor in inputs_of(RECORDS[name]))
    x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
    out, same = module(skip.flatten(2, 3), x.flatten(2, 3))
    assert same.equal(x.flatten(2, 3))
    assert error(out.view(skip.shape), recorded(f"{name}/out")) < TOLERANCE[dtype]


@DTYPES
@torch.no_grad()
def test_token_aware_average_pooling(dtype: torch.dtype) -> None:
    kwargs = RECORDS["tap"]["kwargs"]
    module = load(TAP(kwargs["dim"], scales=kwargs["num_scales"]), "tap", dtype)
    (x,) = inputs_of(RECORDS["tap"])
    assert error(module(x.to(dtype)), recorded("tap/out")) < TOLERANCE[dtype]


@DTYPES
def test_attention_diversification(dtype: torch.dtype) -> None:
    maps = [(3 * x).softmax(-1).to(dtype).requires_grad_() for x in inputs_of(RECORDS["adl"])]
    loss = attention_diversification(maps, RECORDS["adl"]["kwargs"]["threshold"])
    # Theirs divides by the number of layers + 1e-6.
    assert error(loss.detach() * 2 / (2 + 1e-6), recorded("adl/loss")) < TOLERANCE[dtype]
    loss.backward()
    # In the first maps no key has twice its share on average: nothing is common to the rows, and nothing pulls.
    assert [bool(x.grad.any()) for x in maps if x.grad is not None] == [False, True]
    same = attention_diversification([maps[0][:, :, :1].expand(2, 4, 16, 16)])
    assert same.item() == pytest.approx(1), "equal rows"

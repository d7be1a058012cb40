"""The heads are mmsegmentation's: recorded outputs, from its key names, with weights filled by the rule of `tests.parity`."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity import fill
from visionattn.heads import HEADS, Head
from visionattn.heads.ccnet import CCNet, CrissCrossAttention

FOLDER = Path(__file__).parents[1] / "fixtures" / "heads"
RECORDS: dict[str, Any] = json.loads((FOLDER / "semantic.json").read_text())
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}  # of the largest value, as stated with the records
# Our head, and mmsegmentation's arguments that it has under other names.
OURS = {
    "upernet": ("upernet", {}),
    "fcn_aux": ("fcn", {"level": 2}),
    "fcn_concat": ("fcn", {}),
    "segformer": ("segformer", {}),
    "psp": ("psp", {}),
    "aspp": ("deeplabv3plus", {"separable": False, "low_width": 0}),
    "deeplabv3plus": ("deeplabv3plus", {}),
    "ccnet": ("ccnet", {}),
    "semfpn": ("semantic_fpn", {}),
}
NAMES = {
    "channels": "width",
    "pool_scales": "pool_sizes",
    "c1_channels": "low_width",
    "num_convs": "num_convs",
    "concat_input": "concat_input",
    "dilation": "dilation",
    "dilations": "dilations",
    "recurrence": "recurrence",
}


def recorded(name: str) -> np.ndarray:
    for file in ("semantic.npz", "semantic_os8.npz"):
        with np.load(FOLDER / file) as arrays:
            if name in arrays:
                return np.asarray(arrays[name])
    raise AssertionError(name)


def inputs_of(record: dict[str, Any]) -> list[torch.Tensor]:
    def draw(text: str, shape: list[int]) -> torch.Tensor:
        generator = np.random.RandomState(zlib.crc32(f"input:{text}".encode()))
        return torch.from_numpy(generator.standard_normal(tuple(shape)).astype(np.float32))

    return [draw(item["name"], item["shape"]) for item in record["inputs"]]


def weights_of(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    keys: dict[str, list[int]] = record["keys"]
    return {key: torch.from_numpy(np.asarray(fill(key, tuple(shape)))) for key, shape in keys.items()}


def build(name: str, kwargs: dict[str, Any]) -> Head:
    kind, given = OURS[name.rpartition("_")[0]]
    head = {**kwargs, **kwargs.get("decode_head", {})}
    args = {NAMES[key]: value for key, value in head.items() if key in NAMES} | given
    if "neck" in kwargs:
        args["neck_width"] = kwargs["neck"]["out_channels"]
    torch.manual_seed(0)
    return HEADS[kind]([8, 16, 24, 32], [4, 8, 16, 32], head["num_classes"], **args)


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "criss_cross"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_logits(name: str, dtype: torch.dtype) -> None:
    head = build(name, RECORDS[name]["kwargs"]).eval()
    given = {key.removeprefix("decode_head."): value for key, value in weights_of(RECORDS[name]).items()}
    state = head.from_upstream(given)
    fresh = {key for key in head.state_dict() if key.endswith("num_batches_tracked")}
    head.load_state_dict({**{key: torch.tensor(0) for key in fresh}, **state})  # every key, and no other
    with torch.no_grad():
        output = head.to(dtype)([x.to(dtype) for x in inputs_of(RECORDS[name])])
    assert output.aux == ()
    assert error(output.logits, recorded(name)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_authors_criss_cross_attention(dtype: torch.dtype) -> None:
    module = CrissCrossAttention(RECORDS["criss_cross"]["kwargs"]["in_dim"]).eval()
    module.load_state_dict(CCNet.from_upstream(weights_of(RECORDS["criss_cross"])))
    (x,) = inputs_of(RECORDS["criss_cross"])
    with torch.no_grad():
        assert error(module.to(dtype)(x.to(dtype)), recorded("criss_cross")) < TOLERANCE[dtype]


def test_gamma_of_both_layouts() -> None:
    head = CCNet([16], [32], 2, width=8)
    state = head.state_dict()
    theirs = {key.replace("gamma.scale", "gamma"): value.reshape(1) if "gamma" in key else value for key, value in state.items()}
    assert CCNet.from_upstream(theirs).keys() == CCNet.from_upstream(state).keys() == state.keys()
    head.load_state_dict(CCNet.from_upstream(theirs))


def error(got: torch.Tensor, want: np.ndarray) -> float:
    return float(np.abs(got.double().numpy() - want).max() / np.abs(want).max())

"""Weights and inputs of the recorded outputs: a rule that depends only on a tensor's name and shape.

The records were made by running the authors' code with weights filled by this rule; filling ours
the same way and comparing the outputs tells whether the network is the same. Uniform draws of the
frozen Mersenne Twister are used, so the bytes are equal on every machine.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures" / "parity"

# Buffers that follow from the configuration: zeros in the file, to be dropped or recomputed.
DERIVED = (
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "num_batches_tracked",
    "relative_pos_index",
    "seq_length_scale",
    "padding_mask",
    "biases",
    "angle",
    "decay",
)

# First match wins: a range by name, else 1 / sqrt(fan in) times a gain.
RANGES = [
    (r"running_var$", 0.5, 1.5),
    (r"running_mean$", -0.2, 0.2),
    # MedViTV2
    (r"\.rbf\.grid$", -2.0, 2.0),
    (r"^features\.\d+\.norm1\.weight$", 0.5, 1.0),
    (r"^features\.\d+\.norm2\.weight$", 0.1, 0.3),
    (r"^features\.\d+\.conv\.conv\.\d+\.fc\.0\.bias$", 0.3, 1.0),
    # Agent Attention, CAS-ViT, RMT and RAVLT
    (r"^network\.\d+\.\d+\.norm[12]\.weight$", 0.2, 0.4),
    (r"^pos_embed\d$", -0.5, 0.5),
    (r"\.na_bias$", -3.0, 3.0),
    (r"\.(an|ah|aw|ha|wa|ac|ca)_bias$", -1.0, 1.0),
    (r"gamma_[12]$", 0.5, 1.0),
    # OverLoCK
    (r"\.rpb[12]$", -1.0, 1.0),
    (r"\.(ls[12]?|[xh]_scale)\.weight$", 0.5, 1.0),
    (r"\.beta$", -0.15, 0.15),
    (r"layer_scale_[12]$", 0.01, 0.03),
    (r"(^|\.)gamma[12]?$", 0.5, 1.0),
    (r"logit_scale$", 1.5, 2.5),
    (r"temperature$", 1.0, 3.0),
    (r"(rpb|relative_position_bias_table|relative_pos_bias_local)$", -1.0, 1.0),
    (r"query_embedding$", -0.3, 0.3),
    (r"bias$", -0.15, 0.15),
]
GAINS = [
    # OverLoCK
    (r"^(sub_)?blocks\d\.\d+\.dwconv[12]?\.weight$", 0.3),
    (r"\.(lk_origin|dil_conv_k\d_\d)\.weight$", 0.4),
    (r"\.?weight_proj\.weight$", 0.4),
    (r"^patch_embed(x\.[xh]_proj|[234])\.0\.weight$", 0.7),
    # MedViTV2
    (r"\.kan\.layers\.1\.spline_linear\.weight$", 0.7),
    (r"^features\.\d+\.(patch_embed|projection)\.conv\.weight$", 0.7),
    (r"^features\.\d+\.(attn|patch_embed|norm1|norm2|e_mhsa|projection|mhca|conv\.conv|kan)\.", 1.0),
    # Triplet attention and ULSAM
    (r"^(cw|hc|hw)\.conv\.conv\.weight$", 0.5),
    (r"\.conv_point\.weight$", 6.0),
    # CAS-ViT, LITv2, RMT and RAVLT
    (r"\.conv_offset\.weight$", 0.15),
    (r"\.dconv\.weight$", 1.0),
    (r"^network\.\d+\.\d+\.local_perception\.network\.[024]\.weight$", 0.7),
    (r"^network\.\d+\.proj\.weight$", 0.7),
    (r"^layers\.\d+\.downsample\.reduction\.weight$", 1.0),
    (r"\.blocks\.\d+\.pos(\.conv)?\.weight$", 0.15),
    (r"\.pos_embed\.weight$", 0.3),
    (r"\.cpe\.\d+\.proj\.weight$", 0.15),
    (r"^main_blocks\.\d+\.\d+\.1\.attn\.qkv\.weight$", 0.15),
    (r"^features\.", 1.5),
    (r"^layer\d+\.", 1.0),
]


def uniform(seed: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    draws = np.random.RandomState(zlib.crc32(seed.encode())).random_sample(shape)
    return low + (high - low) * draws


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a tensor of the authors' state dict."""
    if key.rpartition(".")[2] in DERIVED:
        return np.zeros(shape, np.float32)
    for pattern, low, high in RANGES:
        if re.search(pattern, key):
            return uniform(key, shape, low, high).astype(np.float32)
    if len(shape) <= 1:
        return uniform(key, shape, 0.75, 1.25).astype(np.float32)
    if key.endswith("learnable_tokens"):  # heads, head dim, cells of the local window
        deviation = shape[1] ** -0.5
    elif len(shape) == 3 and shape[:2] == (1, 1):
        deviation = 0.5
    else:
        usual = 1.4 if len(shape) == 4 and shape[2] > 1 else 1.0
        gain = next((gain for pattern, gain in GAINS if re.search(pattern, key)), usual)
        deviation = gain * float(np.prod(shape[1:])) ** -0.5
    half = 1.7320508075688772 * deviation
    return uniform(key, shape, -half, half).astype(np.float32)


def image_batch(shape: tuple[int, int, int, int], salt: int) -> np.ndarray:
    """Blocks, an offset per image and channel, and noise, drawn in this order from one generator."""
    count, channels, height, width = shape
    generator = np.random.RandomState(zlib.crc32(f"input:{count}x{channels}x{height}x{width}:{salt}".encode()))

    def draw(size: tuple[int, ...], bound: float) -> np.ndarray:
        return -bound + 2 * bound * generator.random_sample(size)

    blocks, offset, noise = draw((count, channels, 8, 8), 1.5), draw((count, channels, 1, 1), 1.0), draw(shape, 0.75)
    blocks = blocks[:, :, np.arange(height) * 8 // height][:, :, :, np.arange(width) * 8 // width]
    return (blocks + offset + noise).astype(np.float32)


class Record:
    """One recorded run of the authors' code; `facts` names our model and the arguments that make it the same."""

    def __init__(self, family: str, name: str) -> None:
        self.family = family
        content = json.loads((FIXTURES / f"{family}.json").read_text())
        self.facts: dict[str, Any] = content["records"][name]
        self.keys: list[tuple[str, list[int]]] = content["states"][self.facts["state"]]
        with np.load(FIXTURES / f"{family}.npz") as arrays:
            self.arrays = {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith(f"{name}/")}

    def state(self) -> dict[str, torch.Tensor]:
        """The authors' state dict; the checksum of the record guards the rule."""
        values = {key: fill(key, tuple(shape)) for key, shape in self.keys}
        checksum = 0
        for key, value in values.items():
            if key.rpartition(".")[2] not in DERIVED:
                checksum = zlib.crc32(np.ascontiguousarray(value).tobytes(), checksum)
        assert checksum == self.facts["state_crc32"]
        return {key: torch.from_numpy(value) for key, value in values.items()}

    def image(self) -> torch.Tensor:
        batch = image_batch(tuple(self.facts["input"]["shape"]), self.facts["input"]["salt"])
        assert zlib.crc32(batch.tobytes()) == self.facts["input"]["crc32"]
        return torch.from_numpy(batch)

    def stage_error(self, index: int, feature: torch.Tensor) -> float:
        """Largest difference at the recorded 64 points of a map, over its standard deviation."""
        stage = self.facts["stages"][index]
        assert list(feature.shape) == stage["shape"]
        flat = feature.flatten().numpy()
        points = flat[(np.arange(64) * (flat.size - 1)) // 63]
        kind = "sample64" if feature.dtype == torch.float64 else "sample"
        return float(np.abs(points - self.arrays[f"stage{index}_{kind}"]).max() / stage["std"])


# Families with recorded outputs; those of ELA's gate, of other modules and of the losses belong to no network.
FAMILIES = tuple(sorted({path.stem for path in FIXTURES.glob("*.json")} - {"contmix", "ela", "losses", "modules"}))


def record_names(family: str) -> list[str]:
    return sorted(json.loads((FIXTURES / f"{family}.json").read_text())["records"])


def relative_error(got: torch.Tensor, want: np.ndarray) -> float:
    """Largest difference over the standard deviation of what is wanted."""
    return float(np.abs(got.double().numpy() - want.astype(np.float64)).max() / want.astype(np.float64).std())

"""MPU-Net against the recorded output of its authors' code, and MONAI's attention U-Net with our gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.heads.test_medical_parity import DTYPES, RECORDS, Rules, filled, inputs, recorded
from tests.heads.test_semantic_parity import TOLERANCE, error
from visionattn.errors import UserError
from visionattn.heads.unet import AdditiveGate
from visionattn.models.mpunet3d import MPUNet3d

GATE = (("skip_project", "Wx"), ("project", "Wg"), ("psi", "psi"))


def mpu_net() -> Rules:
    """Their encoders count from 1, the finest, their decoders from 1, the coarsest, and the gates from 1, the finest."""
    rules: list[tuple[str, str]] = [
        (r"^stem\.convs\.", "encoder1.encoder_stage."),
        (r"^attend\.0\.conv\.", "down5.down_conv.1."),
        (r"^attend\.0\.norm\.", "down5.down_conv.2."),
        (r"^attend\.1\.before\.", "PCL.attn."),
        (r"^attend\.1\.positions\.gamma\.scale$", "PCL.attn.3.gamma"),
        (r"^attend\.1\.positions\.(query|key|value)_project\.", r"PCL.attn.3.\1_conv."),
        *[(rf"^attend\.1\.after\.{i}\.", f"PCL.attn.{4 + i}.") for i in range(3)],
        (r"^coarsest\.convs\.", "decoder1.decoder_stage."),
        *[(rf"^coarsest\.gate\.{ours}\.", f"Att4.{theirs}.") for ours, theirs in GATE],
        *[(rf"^logits\.{i}\.", f"map{4 - i}.map_conv.0.") for i in range(4)],
    ]
    for i, level in enumerate((r"down\.0", r"down\.1", r"down\.2", "wide"), 1):
        rules += [
            (rf"^{level}\.0\.conv\.", f"down{i}.down_conv.1."),
            (rf"^{level}\.0\.norm\.", f"down{i}.down_conv.2."),
            (rf"^{level}\.1\.convs\.", f"encoder{i + 1}.encoder_stage."),
        ]
    for i in range(3):
        rules += [
            (rf"^up\.{i}\.up\.", f"up{4 - i}.up_conv.0."),
            (rf"^up\.{i}\.act\.", f"up{4 - i}.up_conv.1."),
            (rf"^up\.{i}\.join\.convs\.", f"decoder{4 - i}.decoder_stage."),
            *[(rf"^up\.{i}\.join\.gate\.{ours}\.", f"Att{i + 1}.{theirs}.") for ours, theirs in GATE],
        ]
    return rules


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@torch.no_grad()
def test_mpu_net(dtype: torch.dtype) -> None:
    """Theirs gives the mean of the probabilities of all levels, every fourth voxel of which was kept."""
    name = "mpunet_full"
    model = MPUNet3d(1, 2)
    unused = 3 + 9 + 2  # the first transposed convolution, the last decoder and its logits
    assert filled(model, mpu_net(), dtype) == RECORDS[name]["keys"] - unused
    model.training = True  # the network alone: its norms stay in evaluation
    levels = [F.interpolate(level, (32, 32, 32), mode="trilinear") for level in model(*inputs(name, dtype))]
    found = torch.stack([level.softmax(1) for level in levels]).mean(0)[..., ::4, ::4, ::4]
    assert error(found, recorded(f"{name}/prob_center")) < TOLERANCE[dtype]
    model.training = False
    (mean,) = model(*inputs(name, dtype))
    assert torch.equal(mean, torch.stack(levels).mean(0))


@pytest.mark.parametrize("size", [(9, 6, 13), (1, 8, 3)])
def test_any_size_and_number_of_channels(size: tuple[int, int, int]) -> None:
    model = MPUNet3d(2, 3, width=4, depth=2).eval()
    model.training = True
    outputs = model(torch.randn(2, 2, *size))
    halves = [size]
    for _ in range(2):
        halves.append(tuple(-(-side // 2) for side in halves[-1]))  # type: ignore[arg-type]
    assert [tuple(output.shape) for output in outputs] == [(2, 3, *half) for half in halves]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert {name for name, value in model.named_parameters() if value.grad is None} == set()


def test_what_the_first_shortcut_adds() -> None:
    """The volume to each channel; of several channels their mean."""
    model = MPUNet3d(3, 1, width=2, depth=1)
    nn.init.zeros_(model.stem.convs[-2].weight)  # type: ignore[arg-type]
    volume = torch.randn(1, 3, 4, 4, 4)
    assert torch.allclose(model.stem(volume), volume.mean(1, keepdim=True).expand(1, 2, 4, 4, 4))


def test_a_bottom_that_is_too_large() -> None:
    model = MPUNet3d(1, 2, width=1, depth=1).eval()
    with pytest.raises(UserError, match="at most 4096 voxels at the coarsest level, got 17 x 16 x 16 = 4352") as caught:
        model(torch.zeros(1, 1, 34, 32, 32))
    assert caught.value.code == "VA-M002"
    with pytest.raises(ValueError, match="depth >= 1"):
        MPUNet3d(1, 2, depth=0)


def test_meta_device() -> None:
    with torch.device("meta"):
        model = MPUNet3d(1, 2, width=2)
    model.to_empty(device="cpu")
    for value in model.parameters():
        torch.nn.init.constant_(value, float("nan"))
    model.init_weights()
    assert all(value.isfinite().all() for value in model.state_dict().values())


class OurGate(nn.Module):
    """Our gate as MONAI calls its own."""

    def __init__(self, skip: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = AdditiveGate(skip, width, hidden)

    def forward(self, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        gated, _ = self.gate(x.flatten(2, 3), g.flatten(2, 3))  # 1 x 1 x 1 convolutions
        return gated.view_as(x)  # type: ignore[no-any-return]


@DTYPES
@torch.no_grad()
def test_gates_in_the_attention_unet_of_monai(dtype: torch.dtype) -> None:
    """Recorded with its own gates; every second voxel along each axis was kept."""
    from monai.networks.nets import AttentionUnet

    name = "monai_attention_unet3d"
    model: Any = AttentionUnet(**RECORDS[name]["kwargs"])
    for level, channels in ((model.model[1], 4), (model.model[1].submodule[1], 8)):
        assert {len(level.attention.W_g[0].conv.weight), level.attention.W_x[0].conv.weight.shape[1]} == {channels // 2, channels}
        level.attention = OurGate(channels, channels, channels // 2)
    pairs = (("skip_project", "W_x"), ("project", "W_g"), ("psi", "psi"))
    rules = [
        rule
        for ours, theirs in pairs
        for rule in (
            (rf"attention\.gate\.{ours}\.0\.", f"attention.{theirs}.0.conv."),
            (rf"attention\.gate\.{ours}\.1\.", f"attention.{theirs}.1."),
        )
    ]
    assert filled(model, rules, dtype) == RECORDS[name]["keys"]
    logits = model(*inputs(name, dtype))
    assert error(logits[..., ::2, ::2, ::2], recorded(f"{name}/logits")) < TOLERANCE[dtype]

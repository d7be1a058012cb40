"""A backbone of every family, cut down to one block per stage and few channels, for tests of what stands above it."""

from __future__ import annotations

from typing import Any

import torch

import visionattn as va

# Class of the family -> a registered name, and arguments that make it small.
_PLAIN: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8)}
_WIDTHS: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "AgentDeiT": ("agent_deit_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2, "agent_depth": 3}),
    "AgentPVT": ("agent_pvt_tiny", {**_WIDTHS, "num_heads": (1, 2, 2, 4), "mlp_ratios": (2, 2, 2, 2)}),
    "AgentSwin": ("agent_swin_tiny", {**_PLAIN, "depths": (1, 1, 2, 1), "agent_depths": (1, 1, 1, 0)}),
    "BiFormer": ("biformer_tiny", {**_PLAIN, "embed_dim": 16}),
    "CASViT": ("casvit_xsmall", _WIDTHS),
    "ChAdaViT": ("chada_vit_moyen", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2}),
    "CrossFormer": ("crossformer_tiny", {**_PLAIN, "depths": (1, 2, 1, 1), "embed_dim": 48}),
    "DAEFormer": ("dae_former", {"depths": (1, 1, 1), "embed_dims": (8, 16, 24)}),
    "DaViT": ("davit_tiny", _PLAIN),
    "InLineDeiT": ("inline_deit_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2}),
    "InLinePVT": ("inline_pvt_tiny", {**_WIDTHS, "num_heads": (1, 2, 2, 4), "mlp_ratios": (2, 2, 2, 2)}),
    "InLineSwin": ("inline_swin_tiny", {**_PLAIN, "depths": (1, 1, 2, 1), "inline_depths": (1, 1, 1, 0)}),
    "LITv2": ("litv2_small", {**_PLAIN, "num_heads": (1, 2, 3, 4), "embed_dim": 24}),
    "MedViTV2": ("medvitv2_tiny", {"depths": (1, 1, 1, 1), "embed_dims": (32, 128, 128, 128)}),
    "NAT": ("dinat_mini", {**_PLAIN, "dilations": (2, 1, 1, 1)}),
    "NATIsotropic": ("nat_isotropic_small", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2}),
    "DiNATS": ("dinat_s_tiny", _PLAIN),
    "ECAMobileNetV2": ("eca_mobilenetv2", {}),
    "ECAResNet": ("eca_resnet18", {"depths": (1, 1, 1, 1)}),
    "ELAMobileNetV2": ("ela_mobilenetv2", {}),
    "ELAResNet": ("ela_resnet18", {"depths": (1, 1, 1, 1)}),
    "OverLoCK": ("overlock_xtiny", {**_WIDTHS, "focus_depths": (1, 1), "num_heads": (1, 2)}),
    "RAVLT": ("ravlt_tiny", {**_WIDTHS, "num_heads": (1, 2, 2, 4)}),
    "ResNet": ("resnet18", {"depths": (1, 1, 1, 1)}),
    "RMT": ("rmt_tiny", {**_WIDTHS, "num_heads": (1, 2, 2, 4)}),
    "SGFormer": ("sgformer_small", {"depths": (2, 2, 2, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (2, 2, 2, 4)}),
    "Swin": ("swin_tiny", {**_PLAIN, "depths": (1, 2, 1, 1)}),
    "SwinV2": ("swinv2_tiny_window8", _PLAIN),
    "TransNeXt": ("transnext_micro", _PLAIN),
    "TransDAE": ("trans_dae", {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}),
    "VAN": ("van_b0", {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}),
    "ViT": ("vit_small", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2}),
    "ViTRPB": ("vitrpb_small", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2}),
}

# Class of the family -> its smallest variant, for families of which the default run tests no other; `make test-zoo` tests all.
ZOO = {
    "AgentDeiT": "agent_deit_tiny",
    "AgentPVT": "agent_pvt_tiny",
    "AgentSwin": "agent_swin_tiny",
    "CASViT": "casvit_xsmall",
    "CrossFormer": "crossformer_tiny",
    "InLineDeiT": "inline_deit_tiny",
    "InLinePVT": "inline_pvt_tiny",
    "InLineSwin": "inline_swin_tiny",
    "LITv2": "litv2_small",
    "OverLoCK": "overlock_xtiny",
    "RAVLT": "ravlt_tiny",
    "ResNet": "resnet18",
    "RMT": "rmt_tiny",
    "ViT": "vit_small",
    "SGFormer": "sgformer_small",
}

# What makes a family smaller than in TINY, where it has every kind of attention all the same: two stages, of which the second block is
# the shifted or dilated one, and tables of positions that are made for images of 64 x 96.
CUT: dict[str, dict[str, Any]] = {
    "AgentDeiT": {"agent_depth": 1, "img_size": (64, 96)},
    "AgentPVT": {"img_size": (64, 96)},
    "AgentSwin": {"depths": (1, 2), "agent_depths": (1, 0), "window_size": 3, "img_size": (64, 96)},
    "BiFormer": {"topks": (4, None)},
    "CASViT": {},
    "ChAdaViT": {"img_size": (64, 96)},
    "CrossFormer": {"depths": (1, 2), "group_sizes": (3, 2), "intervals": (2, 2)},
    "DAEFormer": {},
    "DaViT": {},
    "DiNATS": {"dilations": ((1,), (2,)), "kernel_size": 3},
    "InLinePVT": {"img_size": (64, 96)},
    "InLineSwin": {"depths": (1, 2), "inline_depths": (1, 0), "window_size": 3, "img_size": (64, 96)},
    "LITv2": {"num_heads": (3, 2), "window_sizes": (2, 1)},
    "MedViTV2": {},
    "NAT": {"dilations": ((1,), (2,)), "kernel_size": 3},
    "NATIsotropic": {"dilations": 2, "kernel_size": 3},
    "RAVLT": {"linear": (True, False)},
    "RMT": {"decomposed": (True, False)},
    "Swin": {"window_size": 3},
    "SwinV2": {"depths": (1, 2), "window_size": 3, "pretrained_window_sizes": (3, 3)},
    "TransNeXt": {"sr_ratios": (4, 1)},
    "VAN": {"mlp_ratios": (2, 2)},
    "ViTRPB": {"grid_size": 4},
}


def cut(family: str, **arguments: Any) -> Any:
    """A small network of a family whose parameters all have an effect."""
    name, given = TINY[family]
    if family in CUT:
        given = {**{key: value[:2] if isinstance(value, tuple) else value for key, value in given.items()}, **CUT[family]}
    torch.manual_seed(0)
    return lively(va.create_model(name, num_classes=3, **{**given, **arguments}))


def lively(model: Any) -> Any:
    """A model whose biases, norms and scales are not those of a new one, so that nothing of it has no effect."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim < 2:
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.data = values + 1 if name.endswith("weight") else values
    return model.eval()


def initialised(model: Any) -> Any:
    """A model of the meta device on the CPU; `init_weights` leaves no value of before."""
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
    model.init_weights()
    assert not any(torch.isnan(tensor).any() for tensor in model.state_dict().values())
    return model

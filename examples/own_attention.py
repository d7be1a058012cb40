"""An attention module of your own: squeeze-and-excitation (Hu et al., arXiv 1709.01507).

In the blocks of a CNN:

    visionattn train --data flowers plugins=[own_attention.py] --model eca_resnet18 "model.args={attn: own_se}"

In the skips and the bottleneck of a U-Net:

    visionattn train --data polyps plugins=[own_attention.py] model.head.name=unet \
        "model.head.args={skip: own_se, bottleneck: own_se}"

The run folder keeps both settings for `eval`, `predict` and `--resume`. From Python, import this module before
`visionattn.create_model("eca_resnet18", attn="own_se")`.
"""

import torch
from torch import nn

import visionattn


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the averages of all channels.

    Args:
        channels: channels of the map `[B, C, H, W]`.
        reduction: ratio of channels to hidden width.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights; the network calls this too, so your own initial values belong here."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        nn.init.constant_(self.fc2.bias, 2.0)  # gates start at about 0.9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()  # B C
        return x * gate[:, :, None, None]


visionattn.register_attention("own_se", SqueezeExcite)

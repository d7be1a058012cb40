"""A plain vision transformer whose attention is chosen by name, to compare kinds of attention with everything else equal.

Papers: Beyer et al., "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580: patches of 16 pixels, sine and cosine positions, no
class token, the average of all positions. The attention of its blocks:

* "softmax": Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.
* "sigmoid": Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", arXiv 2409.04431. Each weight is a
  sigmoid of its own, with the bias `-log(N)` for N keys, with which the weights of a query begin with a sum near 1.
* "flow": Wu et al., "Flowformer: Linearizing Transformers with Conservation Flows", arXiv 2202.06258. Linear in the number of positions:
  keys compete for what queries take in, and queries share what keys give.

Differences from the papers:

* Any input size. The twelve blocks form four stages of three, whose outputs are the maps; all have stride 16.
* The weights of the competition of "flow" have the mean 1, as in the authors' code (thuml/Flowformer, commit 8385024, MIT), not the sum 1
  of the paper's equation; the constants that the code adds to every sum, and its bounds, are left out, since no sum can be 0.
* No weights are published for these networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from visionattn.backbones.nat_isotropic import Isotropic
from visionattn.backbones.registry import register_backbone
from visionattn.errors import UserError, did_you_mean
from visionattn.kernels import dense_attention
from visionattn.layers import PatchEmbed


def sigmoid_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute `sigmoid(q k^T / sqrt(d) - log N) v` of `[B, heads, N, d]` (arXiv 2409.04431, eq. 3)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores - math.log(k.shape[-2])).sigmoid() @ v


def flow_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention by conservation of flows between queries (sinks) and keys (sources), `[B, heads, N, d]` (arXiv 2202.06258, section 3.2).

    In half precision, sums over positions are taken in float32.
    """
    given, count = v.dtype, k.shape[-2]
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
    q, k = q.sigmoid(), k.sigmoid()
    incoming = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)  # of each query, B heads N 1
    outgoing = (k * q.sum(-2, keepdim=True)).sum(-1, keepdim=True)  # of each key
    conserved_incoming = (q * (k / outgoing).sum(-2, keepdim=True)).sum(-1, keepdim=True)
    conserved_outgoing = (k * (q / incoming).sum(-2, keepdim=True)).sum(-1, keepdim=True)
    competing = v * (conserved_outgoing.softmax(-2) * count)
    gathered = (q / incoming) @ (k.transpose(-2, -1) @ competing)
    return (gathered * conserved_incoming.sigmoid()).to(given)


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention of `[B, heads, N, d]`."""
    q, k, v = (x.transpose(1, 2).unsqueeze(1) for x in (q, k, v))  # B 1 N heads d
    return dense_attention(q, k, v).squeeze(1).transpose(1, 2)


ATTENTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "softmax": softmax_attention,
    "sigmoid": sigmoid_attention,
    "flow": flow_attention,
}


class MultiHead(nn.Module):
    """Multi-head attention of one kind among all positions."""

    def __init__(self, dim: int, num_heads: int, attn: str) -> None:
        super().__init__()
        self.num_heads, self.attend = num_heads, ATTENTIONS[attn]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # B heads N d
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class PositionedPatches(PatchEmbed):
    """Patches with the sines and cosines of their rows and columns added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B 3 H W -> B H/16 W/16 C
        x = super().forward(x)
        height, width, dim = x.shape[1:]
        rates = 10_000.0 ** -(torch.arange(dim // 4, device=x.device, dtype=torch.float32) / (dim // 4))
        rows, cols = (torch.arange(side, device=x.device)[:, None] * rates for side in (height, width))
        parts = [rows.sin(), rows.cos(), cols.sin(), cols.cos()]
        grid = [part[:, None].expand(-1, width, -1) if index < 2 else part.expand(height, -1, -1) for index, part in enumerate(parts)]
        return x + torch.cat(grid, -1).to(x.dtype)


class ViT(Isotropic):
    """Plain vision transformer.

    Args:
        in_chans: input channels.
        embed_dim: channels, a multiple of 4 and of the heads.
        depths: blocks per stage; each stage ends with a map.
        num_heads: attention heads.
        attn: kind of attention, "softmax", "sigmoid" or "flow".
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.

    Raises:
        UserError: VA-M002, an unknown attention.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 384,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 6,
        attn: str = "softmax",
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if attn not in ATTENTIONS:
            fix = f"{did_you_mean(str(attn), ATTENTIONS)} Expected one of: {', '.join(ATTENTIONS)}".strip()
            raise UserError("VA-M002", f'unknown attn "{attn}"', fix=fix)
        attns = [MultiHead(embed_dim, num_heads, attn) for _ in range(sum(depths))]
        super().__init__(in_chans, embed_dim, depths, attns, mlp_ratio, drop_path_rate)
        self.patch_embed = PositionedPatches(in_chans, embed_dim, 16)


_SMALL = {"embed_dim": 384, "depths": (3, 3, 3, 3), "num_heads": 6}

register_backbone(
    ViT,
    {
        "vit_small": {**_SMALL, "attn": "softmax"},
        "vit_small_sigmoid": {**_SMALL, "attn": "sigmoid"},
        "vit_small_flow": {**_SMALL, "attn": "flow"},
        "vit_base": {"embed_dim": 768, "depths": (3, 3, 3, 3), "num_heads": 12, "attn": "softmax"},
    },
)

"""A plain vision transformer whose attention is chosen by name, to compare kinds of attention with everything else equal.

Papers: Beyer et al., "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580: patches of 16 pixels, sine and cosine positions, no
class token, the average of all positions. The attention of its blocks:

* "softmax": Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.
* "sigmoid": Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", arXiv 2409.04431. Each weight is a
  sigmoid of its own, with the bias `-log(N)` for N keys, with which the weights of a query begin with a sum near 1.
* "flow": Wu et al., "Flowformer: Linearizing Transformers with Conservation Flows", arXiv 2202.06258. Linear in the number of positions:
  keys compete for what queries take in, and queries share what keys give.
* "soft": Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", arXiv 2110.11945, with the normalization of "Softmax-free
  Linear Transformers", arXiv 2207.03341. Linear in the number of positions: a Gaussian kernel of queries, which are the keys too, by way
  of at most 49 landmarks.
* "moh": Jin et al., "MoH: Multi-Head Attention as Mixture-of-Head Attention", arXiv 2410.11842. Each position weighs its heads: some are
  for all, of the others it chooses a few; a loss spreads the choices over the heads.
* "ssa": Hussain et al., "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles", arXiv 2306.01705. Softmax
  attention that in training sees a random quarter of the keys.
* "tap": Guo et al., "Robustifying Token Attention for Vision Transformers", arXiv 2303.11126. Softmax attention after token-aware average
  pooling, with a loss that keeps the rows of the attention map apart.

Differences from the papers:

* Any input size. The twelve blocks form four stages of three, whose outputs are the maps; all have stride 16.
* The weights of the competition of "flow" have the mean 1, as in the authors' code (thuml/Flowformer, commit 8385024, MIT), not the sum 1
  of the paper's equation; the constants that the code adds to every sum, and its bounds, are left out, since no sum can be 0.
* Landmarks of "soft" are averages of 7 x 7 bins of the queries, without the authors' learned convolution. Newton's iteration begins with
  `A / |A|^2`, half of the paper's first step, with which it converges for every kernel; the authors' code (fudan-zvg/SOFT, commit d3febc3,
  MIT) adds 0.01 to the diagonal instead. Its convolution of the values, added to the output, is left out.
* The weights of heads in "moh" are those of the paper times 2 and the number of shared heads, or of the others, so that they begin near
  the 1 of multi-head attention. The loss has the authors' factor (SkyworkAI/MoH, commit 2cefd57, Apache-2.0), the number of heads to
  choose from.
* "ssa" draws the keys of each image and block uniformly, for all heads the same; the paper's locally biased form is left out.
* No weights are published for these networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn.attention.tap import TAP, attention_diversification
from visionattn.backbones.nat_isotropic import Isotropic
from visionattn.backbones.registry import register_backbone
from visionattn.errors import UserError, did_you_mean
from visionattn.kernels import dense_attention
from visionattn.kernels.pooling import adaptive_average
from visionattn.layers import PatchEmbed

LANDMARKS = 7  # of "soft", along a side


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


def gaussian_kernel(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Compute `exp(-|a - b|^2 / 2)` of every pair of rows, `[..., N, d]` and `[..., M, d]`."""
    distances = one.square().sum(-1, keepdim=True) + other.square().sum(-1)[..., None, :] - 2 * one @ other.transpose(-2, -1)
    return (-0.5 * distances).exp()


def newton_inverse(kernel: torch.Tensor, steps: int = 20) -> torch.Tensor:
    """Approximate the pseudo-inverse of symmetric matrices whose eigenvalues are not negative (arXiv 2110.11945, Newton-Raphson).

    An eigenvalue l becomes `(1 - (1 - (l / |A|)^2)^(2^steps)) / l`, |A| being the largest sum of a row: those below a thousandth of it
    are cut off smoothly.
    """
    inverse = kernel / kernel.sum(-1).amax(-1)[..., None, None].square()
    for _ in range(steps):
        inverse = 2 * inverse - inverse @ kernel @ inverse
    return inverse


def soft_attention(q: torch.Tensor, v: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Gaussian kernel attention of a map to itself through landmarks (Nystrom), `[B, heads, H * W, d]` (arXiv 2110.11945, eq. 5 to 8).

    With P the kernel of positions and landmarks, A that of the landmarks and D the sums of its rows, it is
    `P D^-1/2 A^-1 D^-1/2 P^T v`. Computed in float32 or wider.

    Args:
        size: height and width of the map.
    """
    given = v.dtype
    with nullcontext() if torch.compiler.is_exporting() or q.is_meta else torch.autocast(q.device.type, enabled=False):
        q, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, v))
        q = q * q.shape[-1] ** -0.25
        grid = q.transpose(-2, -1).reshape(-1, q.shape[-1], *size)
        bins = adaptive_average(grid, [min(side, LANDMARKS) for side in size])
        landmarks = bins.flatten(2).transpose(-2, -1).unflatten(0, q.shape[:2])
        seen, among = gaussian_kernel(q, landmarks), gaussian_kernel(landmarks, landmarks)
        scale = among.sum(-1, keepdim=True).rsqrt()
        return (seen @ (scale * (newton_inverse(among) @ (scale * (seen.transpose(-2, -1) @ v))))).to(given)


class MultiHead(nn.Module):
    """Multi-head attention of one kind among all positions.

    Attributes:
        regularizer: a loss of the last call in training, of the kinds that have one.
    """

    regularizer: torch.Tensor | None = None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = softmax_attention,
    ) -> None:
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        return self.merge(self.attend(*self.split(x)), x)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute queries, keys and values, `[B, heads, N, d]`."""
        return self.qkv(x.flatten(1, 2)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[no-any-return]

    def merge(self, heads: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Project what the heads found, `[B, heads, N, d]`, to a map like `x`."""
        return self.proj(heads.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the regularizer out of copies: checkpointing sets it again in the backward pass, and a graph cannot be copied."""
        return {**self.__dict__, "regularizer": None}


class SoftmaxFree(nn.Module):
    """Multi-head Gaussian kernel attention; keys are the queries."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        q, v = self.qv(x.flatten(1, 2)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # B heads N d
        return self.proj(soft_attention(q, v, (x.shape[1], x.shape[2])).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class MixtureOfHeads(MultiHead):
    """Softmax attention whose heads are weighed by each position; most of them it can leave out (arXiv 2410.11842, section 3.2).

    Args:
        shared_heads: heads that every position uses, the first ones.
        routed_heads: heads that it chooses of the others.

    Attributes:
        regularizer: load balance loss of the last call in training, times 0.01.

    Raises:
        UserError: VA-M002, heads that do not fit.
    """

    def __init__(self, dim: int, num_heads: int, shared_heads: int | None = None, routed_heads: int | None = None) -> None:
        super().__init__(dim, num_heads)
        third = max(num_heads // 3, 1)
        self.shared_heads = third if shared_heads is None else shared_heads
        self.routed_heads = third if routed_heads is None else routed_heads
        if min(self.shared_heads, self.routed_heads) < 1 or self.shared_heads + self.routed_heads > num_heads:
            what = f"attn moh cannot share {self.shared_heads} and choose {self.routed_heads} of {num_heads} heads"
            raise UserError(
                "VA-M002", what, why="both are at least 1, and together at most num_heads", fix="for example 2 and 2 of 6 heads"
            )
        self.router = nn.Linear(dim, num_heads + 2, bias=False)  # of shared heads, of the others, and of the two groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        weights, balance = self.route(x.flatten(1, 2))
        self.regularizer = 0.01 * balance if self.training else None
        heads = self.attend(*self.split(x))
        return self.merge(heads * weights.transpose(1, 2)[..., None].to(heads.dtype), x)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the weights of the heads, `[B, N, heads]`, of which most are 0, and the load balance loss; float32 or wider."""
        scores = self.router(x)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        count = self.num_heads - self.shared_heads
        shared, others, groups = (part.softmax(-1) for part in scores.split([self.shared_heads, count, 2], -1))
        chosen = torch.zeros_like(others).scatter(-1, others.topk(self.routed_heads, -1).indices, 1.0)
        balance = count * (chosen.mean((0, 1)) * others.mean((0, 1))).sum()
        weights = [2 * self.shared_heads * groups[..., :1] * shared, 2 * count * groups[..., 1:] * others * chosen]
        return torch.cat(weights, -1), balance


class Subsampled(MultiHead):
    """Softmax attention that in training sees a random quarter of the keys (arXiv 2306.01705, section 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        q, k, v = self.split(x)
        if self.training:
            count = (k.shape[2] + 3) // 4
            drawn = torch.rand(k.shape[0], k.shape[2], device=k.device).argsort(1)[:, None, :count, None]
            k, v = (y.gather(2, drawn.expand(-1, y.shape[1], -1, y.shape[3])) for y in (k, v))
        return self.merge(self.attend(q, k, v), x)


class TokenAware(MultiHead):
    """Softmax attention after token-aware average pooling (arXiv 2303.11126).

    Attributes:
        regularizer: attention diversification loss of the last call in training, for which the whole map of weights is computed.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.tap = TAP(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B H W C
        q, k, v = self.split(self.tap(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        self.regularizer = None
        if not self.training:
            return self.merge(self.attend(q, k, v), x)
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        self.regularizer = attention_diversification([weights])
        return self.merge(weights.to(v.dtype) @ v, x)


ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "softmax": MultiHead,
    "sigmoid": partial(MultiHead, attend=sigmoid_attention),
    "flow": partial(MultiHead, attend=flow_attention),
    "soft": SoftmaxFree,
    "moh": MixtureOfHeads,
    "ssa": Subsampled,
    "tap": TokenAware,
}


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
        attn: kind of attention, one of `ATTENTIONS`.
        shared_heads: of "moh", heads that every position uses; default a third of them.
        routed_heads: of "moh", heads that every position chooses of the others; default a third of all.
        mlp_ratio: hidden width of the MLP relative to the channels.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.

    Raises:
        UserError: VA-M002, an unknown attention, or heads that do not fit it or the channels.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 384,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 6,
        attn: str = "softmax",
        shared_heads: int | None = None,
        routed_heads: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if attn not in ATTENTIONS:
            fix = f"{did_you_mean(str(attn), ATTENTIONS)} Expected one of: {', '.join(ATTENTIONS)}".strip()
            raise UserError("VA-M002", f'unknown attn "{attn}"', fix=fix)
        if embed_dim % num_heads or embed_dim % 4:
            why = "each head has as many channels, and positions take a quarter each for sines and cosines of rows and columns"
            fix = f"embed_dim a multiple of {math.lcm(num_heads, 4)}"
            raise UserError("VA-M002", f"embed_dim {embed_dim} does not fit {num_heads} heads", why=why, fix=fix)
        mixture = {"shared_heads": shared_heads, "routed_heads": routed_heads} if attn == "moh" else {}
        if attn != "moh" and (shared_heads, routed_heads) != (None, None):
            raise UserError("VA-M002", f"shared_heads and routed_heads are for attn moh, not {attn}", fix="leave them out, or take moh")
        attns = [ATTENTIONS[attn](embed_dim, num_heads, **mixture) for _ in range(sum(depths))]
        super().__init__(in_chans, embed_dim, depths, attns, mlp_ratio, drop_path_rate)
        self.patch_embed = PositionedPatches(in_chans, embed_dim, 16)


_SMALL = {"embed_dim": 384, "depths": (3, 3, 3, 3), "num_heads": 6}

register_backbone(
    ViT,
    {
        "vit_small": {**_SMALL, "attn": "softmax"},
        "vit_small_sigmoid": {**_SMALL, "attn": "sigmoid"},
        "vit_small_flow": {**_SMALL, "attn": "flow"},
        "vit_small_soft": {**_SMALL, "attn": "soft"},
        "vit_small_moh": {**_SMALL, "attn": "moh"},
        "vit_small_ssa": {**_SMALL, "attn": "ssa"},
        "vit_small_tap": {**_SMALL, "attn": "tap"},
        "vit_base": {"embed_dim": 768, "depths": (3, 3, 3, 3), "num_heads": 12, "attn": "softmax"},
    },
)

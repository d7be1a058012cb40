"""ChAda-ViT: a ViT whose tokens are patches of single channels, so that images may have any number of channels.

Paper: Bourriez et al., "ChAda-ViT: Channel Adaptive Attention for Joint Representation Learning of Heterogeneous Microscopy
Images", arXiv 2311.15264. Upstream: github nicoboou/chadavit, commit 9da56be (Apache-2.0).

One convolution embeds the patches of every channel; an embedding of the channel's number and one of the position are added, and a
class token attends to all of them. It classifies only: neither paper nor code has a dense task.

Verified against the authors' code with weights of our own, not against the file they published, which was not opened.

Differences from upstream:

* The maps are the tokens averaged over the channels, shifted so that their mean over the positions is the class token: the average
  pooling of every classifier here then reads the class token, as the authors' does.
* Images of a batch with fewer channels are computed apart, where upstream pads and masks them; the numbers are the same.
* Any input size, padded to whole patches; positions are resized to the size of the grid, upstream's to a factor close to it.
* Stochastic depth drops branches; upstream passes its rates to the dropout of single values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, to_2tuple, trunc_normal_
from torch import nn

from visionattn.backbones.base import Backbone, rename_keys
from visionattn.backbones.registry import register_backbone
from visionattn.kernels import dense_attention
from visionattn.layers import drop_path_rates, init_layer, same_size

HIDDEN = 2048  # of the MLP, whatever the width


class Attention(nn.Module):
    """Multi-head attention among all tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B N C
        batch, count, dim = x.shape
        q, k, v = self.qkv(x).view(batch, 1, count, 3, self.num_heads, dim // self.num_heads).unbind(3)
        return self.proj(dense_attention(q, k, v).reshape(x.shape))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, normalised after each sum; the first norm is applied before the attention as well."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, HIDDEN, act_layer=nn.ReLU)
        self.norm2 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # B N C
        x = self.norm1(x + self.drop_path(self.attn(self.norm1(x))))
        return self.norm2(x + self.drop_path(self.mlp(x)))  # type: ignore[no-any-return]


class ChAdaViT(Backbone):
    """Channel adaptive ViT.

    Args:
        in_chans: channels of the images it is meant for. Any number up to `max_channels` can be given at any time.
        embed_dim: channels of the tokens.
        depths: blocks per stage; each stage ends with a map.
        num_heads: attention heads.
        patch_size: side of a patch in pixels.
        max_channels: number of embeddings of channels.
        img_size: side in px (or height and width) of the images that the table of positions is made for.
        drop_path_rate: stochastic depth at the last block, growing linearly from 0.

    Raises:
        ValueError: `in_chans` above `max_channels`.
    """

    pool_first = True
    class_token = True
    per_channel = True
    size_step = 1
    first_conv = "patch_embed"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 192,
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 2,
        patch_size: int = 16,
        max_channels: int = 10,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans, channels=[embed_dim] * len(depths), strides=[patch_size] * len(depths))
        self.patch_size, self.max_channels = patch_size, max_channels
        check_channels(in_chans, max_channels)
        self.grid = (math.ceil(to_2tuple(img_size)[0] / patch_size), math.ceil(to_2tuple(img_size)[1] / patch_size))
        self.patch_embed = nn.Conv2d(1, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.empty(embed_dim))
        self.channel_embed = nn.Parameter(torch.empty(max_channels, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1 + self.grid[0] * self.grid[1], embed_dim))  # the first is the class token's
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(embed_dim, num_heads, rate) for rate in rates) for rates in drop_path_rates(drop_path_rate, depths)
        )
        self.init_weights()

    def forward(self, x: torch.Tensor, num_channels: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Compute the maps.

        Args:
            x: images `[B, K, H, W]` of K channels.
            num_channels: `[B]`, how many channels of each image are its own, the first ones; the others are padding and not read.

        Raises:
            ValueError: more channels than embeddings, or a number of channels that an image does not have.
        """
        if num_channels is None:
            return self.maps(x)
        counts = num_channels.tolist()
        if len(counts) != len(x) or not all(1 <= count <= x.shape[1] for count in counts):
            raise ValueError(f"num_channels: expected {len(x)} numbers from 1 to {x.shape[1]}, got {counts}")
        maps: list[torch.Tensor] = []
        for count in sorted(set(counts)):
            rows = [row for row, own in enumerate(counts) if own == count]
            part = self.maps(x[rows, :count])
            maps = maps or [feature.new_empty(len(x), *feature.shape[1:]) for feature in part]
            for whole, feature in zip(maps, part, strict=True):
                whole[rows] = feature
        return maps

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:  # B K H W
        batch, channels = x.shape[:2]
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        patches = self.patch_embed(x.flatten(0, 1)[:, None])  # BK C h w
        size = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2).unflatten(0, (batch, channels))  # B K hw C
        tokens = tokens + resized(self.pos_embed[1:], self.grid, (size[0], size[1])) + first(self.channel_embed, channels)[:, None]
        token = (self.cls_token + self.pos_embed[0]).to(tokens.dtype).expand(batch, 1, -1)
        tokens, maps = torch.cat([token, tokens.flatten(1, 2)], 1), []
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                tokens = self.run_block(block, tokens)
            if index in self.out_indices:
                places = tokens[:, 1:].unflatten(1, (channels, -1)).mean(1)  # B hw C
                places = places - places.mean(1, keepdim=True) + tokens[:, :1]
                maps.append(places.transpose(1, 2).unflatten(2, size))  # B C h w
        return maps

    def init_weights(self) -> None:
        for table in (self.cls_token, self.channel_embed, self.pos_embed):
            trunc_normal_(table, std=0.02)
        for module in self.modules():
            init_layer(module)

    def final_norm(self) -> nn.Module:
        return LayerNorm2d(self.stage_channels[-1], eps=1e-6)

    def cam_layer(self, index: int = -1) -> nn.Module:
        """Return the last block of the stage; of the last stage the one before it, behind which only the class token is read."""
        blocks = [block for blocks in self.stages[: index % len(self.stages) + 1] for block in blocks]
        last = index % len(self.stages) == len(self.stages) - 1
        return blocks[-2] if last and len(blocks) > 1 else blocks[-1]

    def cam_map(self, output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        grid = (math.ceil(size[0] / self.patch_size), math.ceil(size[1] / self.patch_size))
        tokens = output.transpose(1, 2)[:, :, None]  # B C 1 N
        return self.to_places(tokens, grid) * (grid[0] * grid[1] / (tokens.shape[3] - 1))  # the mean over channels

    def to_queries(self, places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Share a position's value out among its tokens, one per channel."""
        flat = places.flatten(-2)
        channels = (size[1] - 1) // flat.shape[-1]
        return F.pad(flat.repeat(*(1,) * (flat.dim() - 1), channels) / channels, (1, 0)).unsqueeze(-2)

    def to_places(self, keys: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Sum over the channels of a position; the class token has none."""
        return keys[..., 0, 1:].unflatten(-1, (-1, *size)).sum(-3)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "channel_embed", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^(?:patch_embed|cls_token|channel_embed|pos_embed)"
        return {"stem": stem, "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @staticmethod
    def from_upstream(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename keys of the official network, whose twelve blocks form one list; its tables have axes of length 1."""
        rules = [
            *((rf"^blocks\.{block}\.", f"backbone.stages.{block // 3}.{block % 3}.") for block in range(12)),
            (r"^token_learner\.proj\.", "backbone.patch_embed."),
            (r"^channel_token$", "backbone.channel_embed"),
            (r"^(cls_token|pos_embed)$", r"backbone.\1"),
            (r"^norm\.", "head.norm."),
            (r"^head\.", "head.fc."),
        ]
        parts = [
            (r"(.*)\.self_attn\.in_proj_", r"\1.attn.qkv."),
            (r"(.*)\.self_attn\.out_proj\.", r"\1.attn.proj."),
            (r"(.*)\.linear([12])\.", r"\1.mlp.fc\2."),
        ]
        state = rename_keys(rename_keys(state, rules), parts)
        for key, leading in {"cls_token": (), "channel_embed": (-1,), "pos_embed": (-1,)}.items():
            if f"backbone.{key}" in state:
                table = state[f"backbone.{key}"]
                state[f"backbone.{key}"] = table.reshape(*leading, table.shape[-1])
        return state

    @staticmethod
    def infer_args(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Infer the number of channels from the table of their embeddings."""
        tables = [value for key, value in state.items() if key.endswith(("channel_token", "channel_embed"))]
        return {"max_channels": tables[0].numel() // tables[0].shape[-1]} if tables else {}

    def adapt(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resize the table of positions of a file for square images of another size."""
        given = state.get("pos_embed")
        if given is None or given.shape == self.pos_embed.shape:
            return []
        side = math.isqrt(len(given) - 1)
        places = resized(given[1:].float(), (side, side), self.grid).to(given.dtype)
        state["pos_embed"] = torch.cat([given[:1], places])
        return [f"position table {side}x{side} -> {self.grid[0]}x{self.grid[1]}, bicubic"]


def check_channels(channels: int, max_channels: int) -> None:
    """Raise a ValueError if an image has more channels than there are embeddings."""
    if channels > max_channels:
        raise ValueError(f"{channels} channels, but embeddings of {max_channels} (max_channels)")


def first(embeddings: torch.Tensor, channels: int) -> torch.Tensor:
    """Return the embeddings `[K, C]` of an image's channels."""
    check_channels(channels, len(embeddings))
    return embeddings[:channels]


def resized(table: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Resize a table `[h * w, C]` of a grid bicubically to another."""
    if same_size(grid, size):
        return table
    places = F.interpolate(table.T.unflatten(1, grid)[None], size=size, mode="bicubic")
    return places[0].flatten(1).T


register_backbone(
    ChAdaViT,
    {"chada_vit_moyen": {"embed_dim": 192, "depths": (3, 3, 3, 3), "num_heads": 2}},
    {"*": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}},
)

"""Cases of tools/bench_kernels.py: our operations and their opponents, with the shapes of each family's smallest model at 224 px."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import opponents
import torch
import torch.nn.functional as F
from opponents import Call
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from visionattn.backbones.litv2 import HiLoAttention
from visionattn.kernels import (
    agent_attention,
    aggregated_attention,
    channel_attention,
    decayed_attention,
    dilated_depthwise_conv2d,
    inline_attention,
    neighborhood_aggregate,
    neighborhood_attention,
    rank_augmented_attention,
    region_routes,
    routed_attention,
    strided_attention,
    window_attention,
)
from visionattn.kernels.decay import Along
from visionattn.kernels.decay.reference import distances
from visionattn.kernels.neighborhood.reference import neighbors
from visionattn.layers import WindowAttention

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
WITHIN = 1 / 1.10  # of the best candidate's speed
EXPONENT = 1.05  # exponent of time in the number of pixels
NA = "neighborhood"

# Device, operation, case, opponent, precision, mode ("*" matches anything), and the minimum ratio of theirs to ours.
# The first match is used.
GOALS = [
    ("cpu", NA, "56x56 k7 d1", "gather", "fp32", "infer", 8.0),
    ("cpu", NA, "56x56 k7 d8", "gather", "fp32", "infer", 18.0),
    ("cpu", NA, "28x28 k7 d4", "gather", "fp32", "infer", 18.0),
    ("cpu", NA, "14x14 k7 d2", "gather", "fp32", "infer", 18.0),
    ("cpu", NA, "56x56 k7 d1", "gather", "fp32", "train", 6.0),
    ("cpu", NA, "56x56 k7 d8", "gather", "fp32", "train", 15.0),
    ("cpu", NA, "56x56 k7 d1", "gather", "bf16", "train", 10.0),
    ("cpu", NA, "56x56 k7 d8", "gather", "bf16", "train", 15.0),
    ("cpu", NA, "56x56 k7 d1", "gather", "fp32", "memory", 4.0),
    ("cpu", NA, "56x56 k7 d1", "FlexAttention, compiled", "fp32", "infer", 8.0),
    ("cpu", NA, "*d1", "NATTEN", "fp32", "infer", 1.2),
    ("cpu", NA, "*d1", "NATTEN", "fp32", "train", 1.8),
    ("cpu", NA, "*", "NATTEN", "fp32", "infer", 4.0),
    ("cpu", NA, "*", "NATTEN", "fp32", "train", 7.0),
    ("cpu", NA, "*", "best candidate*", "fp32", "*", WITHIN),
    ("cpu", NA, "*", "dense, masked", "fp32", "*", WITHIN),
    ("*", NA, "exponent of time*", "*", "*", "*", 1.0),
    ("cpu", "mixing", "*", "unfold", "fp32", "train", 2.0),
    ("cpu", "mixing", "*", "unfold", "fp32", "infer", 1.0),
    ("cpu", "routed", "*", "gather", "fp32", "infer", 1.2),
    ("cpu", "routed", "28x28*", "gather", "fp32", "train", 4.0),
    ("cpu", "routed", "*", "gather", "fp32", "train", 6.0),
    ("cpu", "aggregated", "56x56", "unfold", "fp32", "infer", 4.5),
    ("cpu", "aggregated", "56x56", "unfold", "fp32", "train", 3.5),
    ("cpu", "aggregated", "56x56 compiled", "unfold", "fp32", "*", 8.0),
    ("cpu", "window", "*", "roll and partition", "fp32", "infer", 1.05),
    ("cpu", "window", "*", "roll and partition", "fp32", "train", 0.97),
    ("cpu", "window", "*", "timm", "*", "*", 0.97),
    ("cpu", "strided", "64x64*interval 8", "pad and permute", "fp32", "train", 2.0),
    ("cpu", "strided", "*", "pad and permute", "fp32", "[it]*", 0.97),
    ("cpu", "decayed", "*", "step by step", "fp32", "[it]*", 0.97),
    ("cpu", "linear", "*", "step by step", "fp32", "[it]*", 0.97),
    ("cpu", "agent", "*", "step by step", "fp32", "[it]*", 0.97),
    ("cpu", "inline", "*", "step by step", "fp32", "[it]*", 0.97),
    ("cpu", "hilo", "*", "official", "fp32", "[it]*", 0.97),
    ("cpu", "channel", "*", "official", "fp32", "*", 0.97),
    ("cpu", "depthwise", "*", "native", "fp32", "infer", 3.0),
    ("cpu", "depthwise", "*", "native", "fp32", "train", 1.3),
    ("cuda", NA, "56x56 k7 d1", "copy of q, k, v and o", "bf16", "infer", 1 / 5),
    *(
        ("cuda", NA, case, "copy of q, k, v and o", "bf16", "infer", 1 / 3)
        for case in ("56x56 k7 d8", "28x28 k7 d4", "14x14 k7 d2", "7x7 k7 d1")
    ),
    ("cuda", NA, "56x56 k7 d1", "FlexAttention, compiled", "bf16", "infer", 2.0),
    ("cuda", NA, "56x56 k7 d1", "FlexAttention, compiled", "bf16", "train", 3.0),
    ("cuda", NA, "56x56 k7 d1", "dense, masked", "bf16", "infer", 8.0),
    ("cuda", NA, "28x28 k7 d1", "dense, masked", "bf16", "infer", 3.0),
    ("cuda", NA, "*", "without the gradient of the bias", "bf16", "backward", 1 / 1.5),
    ("cuda", "*", "*", "a second run", "*", "equal", 1.0),
    ("cuda", NA, "56x56 k7 d1", "all tensors once", "bf16", "memory", 1 / 1.3),
    ("cuda", "routed", "*", "gather", "bf16", "train", 4.0),
    ("cuda", "aggregated", "56x56", "unfold", "bf16", "train", 5.0),
    ("cuda", "window", "*", "roll, partition, SDPA", "bf16", "*", 1.3),
]


class Setting(NamedTuple):
    """Settings that a case is built for."""

    device: torch.device
    batch: int
    precision: str
    flex: bool  # with FlexAttention
    compiled: bool  # with our operations compiled

    def randn(self, *shapes: Sequence[int]) -> list[Tensor]:
        """Create random leaf tensors."""
        dtype = PRECISIONS[self.precision]
        return [torch.randn(*shape, device=self.device).to(dtype).requires_grad_() for shape in shapes]


class Trial(NamedTuple):
    """One case: every call takes `tensors` and returns the same tensor."""

    label: str
    tensors: list[Tensor]
    ours: Call
    opponents: Mapping[str, Call]
    products: float  # necessary multiplications and additions of the forward pass
    forward_only: str = ""  # an opponent without gradients


def neighborhoods(setting: Setting) -> Iterator[Trial]:
    """Cases of the stages of DiNAT-T, head dim 32."""
    for side, heads, kernel, dilation in (
        (56, 2, 7, 1),
        (56, 2, 7, 8),
        (28, 4, 7, 1),
        (28, 4, 7, 4),
        (14, 8, 7, 1),
        (14, 8, 7, 2),
        (7, 16, 7, 1),
        (56, 2, 3, 1),
    ):
        plan = neighbors(side, side, (kernel, kernel), (dilation, dilation), "shift", setting.device)[:2]
        others: dict[str, Call] = {"gather": partial(opponents.gather, plan=plan)}
        gpu = setting.device.type == "cuda"
        if setting.precision == "fp32" or gpu:
            others["shifts"] = partial(opponents.shifts, plan=plan, kernel=kernel)
        if side <= 28 or gpu:
            others["dense, masked"] = partial(opponents.dense, plan=plan, fused=gpu)
        if setting.flex or gpu:
            others["FlexAttention, compiled"] = opponents.flex(side, kernel, dilation, setting.device)
        if (natten := opponents.natten(kernel, dilation)) is not None:
            others["NATTEN"] = natten
        tensors = setting.randn((setting.batch, side, side, 3, heads, 32), (heads, 2 * kernel - 1, 2 * kernel - 1))
        ours = partial(neighborhood, kernel=kernel, dilation=dilation)
        products = 4.0 * setting.batch * heads * side**2 * kernel**2 * 32
        yield Trial(f"{side}x{side} k{kernel} d{dilation}", tensors, ours, others, products, "" if gpu else "FlexAttention, compiled")


def mixing(setting: Setting) -> Iterator[Trial]:
    """Cases of the third and fourth stage of OverLoCK-XT, and of the third at 512 px."""
    for side, heads, dim, kernel in ((14, 8, 16, 13), (14, 8, 16, 5), (7, 12, 14, 7), (7, 12, 14, 5), (32, 8, 16, 13), (32, 8, 16, 5)):
        index = neighbors(side, side, (kernel, kernel), (1, 1), "shift", setting.device)[0]
        others: dict[str, Call] = {
            "unfold": partial(opponents.unfold_windows, kernel=kernel),
            "gather": partial(opponents.gather_windows, index=index),
        }
        tensors = setting.randn((setting.batch, side, side, heads, kernel**2), (setting.batch, side, side, heads, dim))
        products = 2.0 * setting.batch * heads * side**2 * kernel**2 * dim
        yield Trial(f"{side}x{side} k{kernel}", tensors, partial(neighborhood_aggregate, kernel_size=kernel), others, products)


def routed(setting: Setting) -> Iterator[Trial]:
    for side, heads, topk in ((56, 2, 1), (28, 4, 4), (14, 8, 16)):
        region, scale = (side // 7, side // 7), (32 * heads) ** -0.5
        tensors = setting.randn((setting.batch, side, side, 3, heads, 32))
        q, k, _ = tensors[0].detach().unbind(3)
        routes = region_routes(q, k, region, topk)
        ours = partial(_from_qkv, partial(routed_attention, routes=routes, region=region, scale=scale))
        gather = partial(_from_qkv, partial(opponents.gather_routed, routes=routes, region=region, scale=scale))
        products = 4.0 * setting.batch * heads * side**2 * topk * region[0] * region[1] * 32
        yield Trial(f"{side}x{side} top {topk}", tensors, ours, {"gather": gather}, products)


def aggregated(setting: Setting) -> Iterator[Trial]:
    for side, heads in ((56, 3), (28, 6), (14, 12)):
        size, pooled = (setting.batch, side, side), (setting.batch, 7, 7)
        shapes = [(*size, heads, 24), (*size, 2, heads, 24), (*pooled, 2, heads, 24), (heads, 9), (heads, side**2, 49), (*size, heads, 9)]
        products = 4.0 * setting.batch * heads * side**2 * (9 + 49) * 24
        trial = Trial(f"{side}x{side}", setting.randn(*shapes), _aggregated, {"unfold": _unfolded}, products)
        yield trial
        if side == 56 and setting.compiled:
            yield trial._replace(label=f"{side}x{side} compiled", ours=torch.compile(_aggregated, fullgraph=True))


def windows(setting: Setting) -> Iterator[Trial]:
    for side, heads, shift in ((56, 3, 0), (56, 3, 3), (28, 6, 3), (14, 12, 3), (7, 24, 0)):
        block = SwinTransformerBlock(32 * heads, (side, side), heads, window_size=7, shift_size=shift).to(setting.device)
        mask = block.attn_mask if shift else torch.zeros(())
        label, products = f"{side}x{side} shift {shift}", 4.0 * setting.batch * heads * side**2 * 49 * 32
        tensors = setting.randn((setting.batch, side, side, 3, heads, 32), (heads, 49, 49))
        ours = partial(_from_qkv_bias, partial(window_attention, window_size=(7, 7), shift=(shift, shift)))
        rolled = {
            name: partial(_from_qkv_bias, partial(opponents.rolled_windows, shift=shift, mask=mask, fused=fused))
            for name, fused in (("roll and partition", False), ("roll, partition, SDPA", True))
        }
        yield Trial(label, tensors, ours, rolled, products)
        own = WindowAttention(32 * heads, heads, 7, shift, dense=False).to(setting.device)
        own.load_state_dict({key: value for key, value in block.attn.state_dict().items() if key != "relative_position_index"})
        own, block = own.to(PRECISIONS[setting.precision]), block.to(PRECISIONS[setting.precision])
        tensors = setting.randn((setting.batch, side, side, 32 * heads))
        linears = 8.0 * setting.batch * side**2 * (32 * heads) ** 2
        yield Trial(f"{label}, with projections", tensors, _without_grads(own), {"timm": _without_grads(block._attn)}, products + linears)


def channels(setting: Setting) -> Iterator[Trial]:
    for side, heads in ((56, 3), (14, 12)):
        tensors = setting.randn((setting.batch, side, side, 3, heads, 32))
        # Scaled down, so that the sum over positions does not saturate the softmax.
        ours, official = (partial(_from_qkv, call, factor=side**-1.0) for call in (channel_attention, opponents.official_channels))
        yield Trial(f"{side}x{side}", tensors, ours, {"official": official}, 4.0 * setting.batch * heads * side**2 * 32**2)


def strided(setting: Setting) -> Iterator[Trial]:
    """Cases of CrossFormer-T at 224 px, the third stage of CrossFormer++-S, and the first stage at 256 px, which no group divides."""
    for side, heads, group, interval in (
        (56, 2, 7, 8),
        (56, 2, 7, 1),
        (28, 4, 7, 4),
        (14, 8, 7, 2),
        (7, 16, 7, 1),
        (14, 8, 14, 1),
        (64, 2, 7, 8),
        (64, 2, 7, 1),
    ):
        tensors = setting.randn((setting.batch, side, side, 3, heads, 32), (heads, group**2, group**2))
        ours = partial(_from_qkv_bias, partial(strided_attention, group_size=(group, group), interval=(interval, interval)))
        theirs = partial(_from_qkv_bias, partial(opponents.permuted_groups, group=group, interval=interval))
        products = 4.0 * setting.batch * heads * side**2 * group**2 * 32
        yield Trial(f"{side}x{side} group {group} interval {interval}", tensors, ours, {"pad and permute": theirs}, products)


def hilo(setting: Setting) -> Iterator[Trial]:
    """Cases of the third stage of LITv2-S, at 224 and at 448 px, with projections."""
    for side in (14, 28):
        own = HiLoAttention(384, 12, 2, 0.9).to(setting.device, PRECISIONS[setting.precision])
        low, high, area = 10 * 32, 2 * 32, setting.batch * side**2
        linears = area * 384 * (low + 3 * high) + area / 4 * 384 * 2 * low + area * (low**2 + high**2)
        attention = 2 * area * (high * 4 + low * side**2 / 4)
        tensors = setting.randn((setting.batch, side, side, 384))
        official = {"official": _without_grads(own, partial(opponents.official_hilo, own))}
        yield Trial(f"{side}x{side}, alpha 0.9", tensors, _without_grads(own), official, 2.0 * (linears + attention))


def decayed(setting: Setting) -> Iterator[Trial]:
    """Cases of the stages of RMT-T."""
    cases: tuple[tuple[int, int, int, Along], ...] = (
        (56, 4, 16, "rows"),
        (56, 4, 16, "columns"),
        (28, 4, 32, "rows"),
        (14, 8, 32, "map"),
        (7, 16, 32, "map"),
    )
    for side, heads, dim, line in cases:
        tensors = setting.randn((setting.batch, side, side, 3, heads, dim))
        decay = -torch.rand(heads, device=setting.device)
        table = (decay[:, None, None] * distances(side, side, line, setting.device, decay.dtype)).to(PRECISIONS[setting.precision])
        ours = partial(_from_qkv, partial(decayed_attention, decay=decay, along=line))
        theirs = partial(opponents.decayed_lines, table=table, along=line)
        keys = side**2 if line == "map" else side
        yield Trial(f"{side}x{side} {line}", tensors, ours, {"step by step": theirs}, 4.0 * setting.batch * heads * side**2 * keys * dim)


def linear(setting: Setting) -> Iterator[Trial]:
    """Cases of the first two stages of RAVLT-T."""
    for side, heads in ((56, 1), (28, 2)):
        tensors = setting.randn((setting.batch, side, side, 3, heads, 64))
        angle = torch.rand(side, side, 32, device=setting.device)
        rotation = (angle.cos(), angle.sin())
        wide = [x.flatten(0, 1).repeat_interleave(2, -1).to(PRECISIONS[setting.precision]) for x in rotation]
        ours = partial(_from_qkv, partial(rank_augmented_attention, rotation=rotation))
        theirs = partial(opponents.stepwise_linear, cos=wide[0], sin=wide[1])
        yield Trial(f"{side}x{side}", tensors, ours, {"step by step": theirs}, 4.0 * setting.batch * heads * side**2 * 64**2)


def inline(setting: Setting) -> Iterator[Trial]:
    """Cases of the stages of InLine-PVT-T."""
    for side, heads in ((56, 2), (28, 4), (14, 10), (7, 16)):
        tensors = setting.randn((setting.batch, side, side, 3, heads, 32))
        ours, theirs = (partial(_from_qkv, call) for call in (inline_attention, opponents.stepwise_inline))
        yield Trial(f"{side}x{side}", tensors, ours, {"step by step": theirs}, 4.0 * setting.batch * heads * side**2 * 32**2)


def agents(setting: Setting) -> Iterator[Trial]:
    """Cases of the agent blocks of Agent-Swin-T."""
    for side, heads, agents in ((56, 3, 3), (28, 6, 4), (14, 12, 7)):
        count = agents**2
        shapes = [(setting.batch, side, side, 3, heads, 32), (setting.batch, agents, agents, heads, 32)]
        tensors = setting.randn(*shapes, (heads, count, side**2), (heads, side**2, count))
        products = 8.0 * setting.batch * heads * side**2 * count * 32
        yield Trial(f"{side}x{side}, {count} agents", tensors, _agents, {"step by step": opponents.two_softmaxes}, products)


def depthwise(setting: Setting) -> Iterator[Trial]:
    for width, side in ((64, 56), (128, 28), (320, 14), (512, 7)):
        tensors = setting.randn((setting.batch, width, side, side), (width, 1, 7, 7), (width,))
        native = partial(F.conv2d, padding=9, dilation=3, groups=width)
        ours = partial(dilated_depthwise_conv2d, dilation=3)
        yield Trial(f"{side}x{side}x{width} k7 d3", tensors, ours, {"native": native}, 2.0 * setting.batch * width * side**2 * 49)


def neighborhood(qkv: Tensor, bias: Tensor, *, kernel: int, dilation: int) -> Tensor:
    q, k, v = qkv.unbind(3)
    return neighborhood_attention(q, k, v, kernel, dilation, bias=bias)


def _from_qkv(call: Call, qkv: Tensor, factor: float = 1.0) -> Tensor:
    q, k, v = qkv.unbind(3)
    return call(q, k if factor == 1.0 else k * factor, v)


def _agents(qkv: Tensor, agents: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    q, k, v = qkv.unbind(3)
    return agent_attention(q, k, v, agents, agent_bias=agent_bias, query_bias=query_bias)


def _from_qkv_bias(call: Call, qkv: Tensor, bias: Tensor) -> Tensor:
    return call(*qkv.unbind(3), bias=bias)


def _aggregated(q: Tensor, kv: Tensor, pool: Tensor, local_bias: Tensor, pool_bias: Tensor, local_weight: Tensor) -> Tensor:
    (k, v), (pooled_k, pooled_v) = kv.unbind(3), pool.unbind(3)
    return aggregated_attention(q, k, v, pooled_k, pooled_v, local_bias=local_bias, pool_bias=pool_bias, local_weight=local_weight)


def _unfolded(q: Tensor, kv: Tensor, pool: Tensor, *biases: Tensor) -> Tensor:
    return opponents.unfold_aggregated(q, *kv.unbind(3), *pool.unbind(3), *biases)


def _without_grads(module: Any, run: Call | None = None) -> Call:
    """Compute the gradients of the parameters and drop them in the next call.

    Args:
        module: module, or a method of one.
        run: computes with the parameters in its place.
    """
    owner = module if isinstance(module, nn.Module) else module.__self__

    def call(x: Tensor) -> Tensor:
        owner.zero_grad(set_to_none=True)
        return (run or module)(x)

    return call


# Peak memory is measured for the first trial of each operation.
CASES: dict[str, Callable[[Setting], Iterator[Trial]]] = {
    NA: neighborhoods,
    "mixing": mixing,
    "routed": routed,
    "aggregated": aggregated,
    "window": windows,
    "channel": channels,
    "strided": strided,
    "hilo": hilo,
    "decayed": decayed,
    "linear": linear,
    "inline": inline,
    "agent": agents,
    "depthwise": depthwise,
}

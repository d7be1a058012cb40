"""What the pages of the families say that no table knows: the idea, its block, and what it is good for.

The keys are those of `FAMILIES` in `make_zoo.py`. `make_families.py` writes the pages; a family without an entry gets a page without a
drawing. The parts of a block are explained in `draw_block.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Description:
    """Text of a page.

    Attributes:
        file: name of the page.
        mixes: what a position is mixed with, in a few words.
        idea: the idea of the paper, one paragraph.
        good: what it is good for, one or two sentences.
        blocks: title and parts of each block that is drawn.
        kernels: pages of the operations it is made of.
        more: a section of its own after the variants, in Markdown.
    """

    file: str
    mixes: str
    idea: str
    good: str
    blocks: tuple[tuple[str, list[Any]], ...]
    kernels: tuple[str, ...] = ()
    more: str = ""


MLP = ("add", "norm", "MLP, 4 x as wide")

KINDS_OF_VIT = """## Kinds of attention

For N positions of C channels:

| `attn` | each position | good for | cost |
|---|---|---|---|
| `softmax` | mixes all others, by weights that sum to 1 | the baseline | N² |
| `sigmoid` | mixes all others, by weights that do not compete | dense attention without sums over a row | N² |
| `flow` | takes from keys that compete, and shares with other queries | large images | N |
| `soft` | is compared with at most 49 landmarks | large images; C² fewer parameters per block | N + 40 products of 49 x 49 per head |
| `moh` | weighs its heads and leaves out a third of them | which heads a task needs | N²: all heads are computed, then weighed |
| `ssa` | mixes a random quarter of the others in training, then all | regularization, time in training | N² / 4 in training, then N² |
| `tap` | mixes all others, pooled with their neighbours | robustness to noise and weather | N²; training keeps the N x N weights |

`moh` and `tap` add a loss of their own in training, the mean over their blocks: that of `moh`, with weight 0.01, spreads the choices over
the heads, that of `tap` keeps the rows of an attention map apart. In a loop of your own:
`loss + visionattn.layers.mean_regularizer(model)` after each call of the model. `model.args={attn: moh, shared_heads: 2, routed_heads: 3}`
sets how many heads are for all positions, and how many each chooses of the others. A network that was trained with `ssa` has the
parameters of `softmax`: the paper ends its training with a few epochs of that."""

DESCRIPTIONS = {
    "Swin": Description(
        "swin",
        "its window; windows are shifted in every second block",
        "A map is cut into windows of 7 x 7 positions, and attention stays inside each. The next block shifts the windows by half of "
        "their side, so that what was apart comes together; the cost grows with the number of pixels, not with its square. A table "
        "of biases by relative position stands for order.",
        "The safe choice: the most published weights, ImageNet-22k and ADE20K among them, and every head and library knows its shape.",
        (("Swin block", [("add", "norm", "@ attention in windows, shifted in every second block"), MLP]),),
        ("window_attention",),
    ),
    "Swin V2": Description(
        "swinv2",
        "its window, by cosine",
        "Swin, made to train at a larger scale: attention compares directions (cosine) instead of products, the bias of a pair of "
        "positions is computed from their distance on a logarithmic scale, and norms stand at the end of the residual branches, "
        "which keeps activations small.",
        "Windows that differ from those of the weights: the bias is a function, so that a checkpoint of 8 x 8 or 12 x 12 windows can "
        "be used with 16 x 16 or 24 x 24.",
        (
            (
                "Swin V2 block",
                [("add", "@ cosine attention in windows, bias from coordinates", "norm"), ("add", "MLP, 4 x as wide", "norm")],
            ),
        ),
        ("window_attention",),
    ),
    "NAT, DiNAT": Description(
        "nat",
        "its neighborhood; dilated in every second block of DiNAT",
        "Each position attends to the window of 7 x 7 positions around itself, like a convolution whose weights come from the "
        "content. DiNAT leaves gaps between the positions in every second block, so that four stages see the whole image while each "
        "layer still costs 49 keys per query.",
        "Dense prediction at any size: no partition into windows, stages that dilate to stride 8 or 16, exports of any size, and "
        "UPerNet weights of most variants.",
        (
            (
                "NAT and DiNAT block",
                [
                    ("add", "norm", "@ neighborhood attention 7 x 7, dilated in every second block"),
                    ("add", "norm", "MLP, 2 to 3 x as wide"),
                ],
            ),
        ),
        ("neighborhood_attention", "window_attention"),
    ),
    "BiFormer": Description(
        "biformer",
        "the regions that are most like its own",
        "The map is divided into 7 x 7 regions. The mean query and the mean key of each decide which few regions belong together; "
        "attention then looks at the positions of those regions only. It is sparse, and what is left out depends on the image.",
        "Images where related parts are far from each other. `visionattn explain --method routing` draws the regions that were chosen.",
        (
            (
                "BiFormer block",
                [
                    ("add", "~ depthwise convolution 3 x 3"),
                    (
                        "add",
                        "norm",
                        ("sum", ["choose regions", "@ attention to their positions"], ["~ depthwise convolution of the values"]),
                        "projection",
                    ),
                    ("add", "norm", "MLP, 3 x as wide"),
                ],
            ),
        ),
        ("routed_attention", "window_attention"),
    ),
    "DaViT": Description(
        "davit",
        "its window, then channels with channels over the whole map",
        "Blocks come in pairs. The first attends among the positions of a window; in the second channels attend "
        "to channels, each of which is a summary of the whole map. The pair is local and global at the cost of windows.",
        "The default of this package: of the models whose weights a program can download it has the best accuracy for its time on a "
        "CPU, and its exports hold for any size.",
        (
            (
                "block of positions",
                [("add", "~ depthwise 3 x 3"), ("add", "norm", "@ attention in windows"), ("add", "~ depthwise 3 x 3"), MLP],
            ),
            (
                "block of channels",
                [("add", "~ depthwise 3 x 3"), ("add", "norm", "@ attention among channels"), ("add", "~ depthwise 3 x 3"), MLP],
            ),
        ),
        ("window_attention", "channel_attention"),
    ),
    "VAN": Description(
        "van",
        "some 21 x 21 positions around it, by convolution",
        "Attention without a softmax: a depthwise 5 x 5 convolution, a depthwise 7 x 7 with dilation 3 and a pointwise one see some "
        "21 x 21 positions; their output is multiplied with their input. It is a convolutional network whose weights depend on the "
        "image.",
        "Large images and small memory: there is no matrix of attention, the time grows with the pixels, and exports hold for any size.",
        (
            (
                "VAN block",
                [
                    (
                        "add",
                        "batch norm",
                        ("add", "1 x 1, GELU", ("mul", ["~ depthwise 5 x 5", "~ depthwise 7 x 7, dilation 3", "1 x 1"], []), "1 x 1"),
                        "scale",
                    ),
                    ("add", "batch norm", "1 x 1", "~ depthwise 3 x 3", "GELU, 1 x 1", "scale"),
                ],
            ),
        ),
        ("dilated_depthwise_conv2d",),
    ),
    "TransNeXt": Description(
        "transnext",
        "its 3 x 3 neighbours and a pooled copy of the map, in one softmax",
        "Like an eye, each position sees sharply around itself and coarsely everywhere: its 3 x 3 neighbours and a pooled map share "
        "one softmax. Queries carry a learned offset, scores are cosines scaled by the number of keys, and the MLP is gated by a "
        "convolution.",
        "Accuracy for its size: 84.0 % at 28 million parameters. It takes about twice the time of Swin or DaViT of that size, see "
        "the table.",
        (
            (
                "TransNeXt block",
                [
                    ("add", "norm", "@ attention to neighbours and pooled map"),
                    ("add", "norm", ("mul", ["1 x 1", "~ depthwise 3 x 3", "GELU"], ["1 x 1"]), "1 x 1"),
                ],
            ),
        ),
        ("aggregated_attention", "dense_attention"),
    ),
    "ECA-Net": Description(
        "eca",
        "3 x 3 convolutions; a gate per channel",
        "A ResNet or MobileNetV2 whose blocks end with a gate: the mean of each channel, a convolution over neighbouring channels, a "
        "sigmoid. A handful of weights per block.",
        "A CPU, few images, small sizes: on 480 flowers it is some ten points ahead of attention of that cost "
        "([results](../results.md#fine-tuning)). The trunk takes other attention modules by name (`model.args={attn: ...}`), dilates "
        "to stride 8 or 16, and its exports hold for any size.",
        (
            (
                "bottleneck of ECA-ResNet",
                [
                    (
                        "add",
                        "~ 1 x 1, 3 x 3, 1 x 1, each with batch norm",
                        ("mul", ["mean over positions", "@ convolution over k channels, sigmoid"], []),
                    )
                ],
            ),
        ),
        ("gates",),
    ),
    "ELA": Description(
        "ela",
        "3 x 3 convolutions; a gate per channel and row, and per channel and column",
        "As ECA-Net, with gates for positions: the means of each row and of each column go through a convolution along them, group norm "
        "and a sigmoid. The map is multiplied by both.",
        "CNNs for images in which position along an axis matters: roads, text, organs. No weights are published: train from scratch, or "
        "from a run of your own.",
        (
            (
                "bottleneck of ELA-ResNet",
                [
                    (
                        "add",
                        "~ 1 x 1 and 3 x 3",
                        (
                            "mul",
                            ["means of the rows", "@ convolution, group norm, sigmoid"],
                            [],
                            ["means of the columns", "@ convolution, group norm, sigmoid"],
                        ),
                        "~ 1 x 1",
                    )
                ],
            ),
        ),
        ("gates",),
    ),
    "MedViTV2": Description(
        "medvit",
        "its neighborhood in most blocks, pooled runs of positions in the others",
        "Stages of local blocks (neighborhood attention and an inverted residual) end with a global block, in which attention to "
        "pooled positions and a grouped convolution share the channels, and layers of learned bumps (Kolmogorov-Arnold) take the "
        "place of the MLP.",
        "The benchmarks of MedMNIST, with the recipe of its authors. It is sensitive to rounding: train it in fp32.",
        (
            (
                "local block",
                [("add", "norm", "@ neighborhood attention"), ("add", "norm, 1 x 1", "~ depthwise 3 x 3", "channel gate", "1 x 1")],
            ),
            (
                "global block",
                [
                    ("add", "norm", "@ attention to pooled positions"),
                    ("cat", [], ["1 x 1", ("add", "~ grouped 3 x 3, norm, ReLU, 1 x 1")]),
                    ("add", "norm", "2 Kolmogorov-Arnold layers"),
                ],
            ),
        ),
        ("neighborhood_attention", "dense_attention"),
    ),
    "RMT": Description(
        "rmt",
        "all positions, less with distance",
        "The weight of a pair of positions decays with their Manhattan distance, at another rate in each head, as memory does in a "
        "retentive network. Fine stages apply it along rows and then along columns, the coarse ones over the whole map.",
        "Accuracy for its size: 84.1 % at 27 million parameters, with a prior for what is near and without tables of biases.",
        (
            (
                "RMT block",
                [
                    ("add", "~ depthwise 3 x 3"),
                    (
                        "add",
                        "norm",
                        ("sum", ["@ decayed attention: rows, then columns, or the whole map"], ["~ depthwise 5 x 5 of the values"]),
                        "projection",
                    ),
                    ("add", "norm", "MLP, with a depthwise convolution in it"),
                ],
            ),
        ),
        ("decayed_attention",),
    ),
    "RAVLT": Description(
        "ravlt",
        "all positions, by linear attention",
        "Linear attention is cheap, but its outputs have a low rank. RALA weighs the keys by how much the whole map asks for them, "
        "and multiplies the output by a projection of the input: both raise the rank again. The last two stages use softmax "
        "attention.",
        "Accuracy for its size, 84.4 % at 26 million parameters, the best published figure here of models of 22 to 33 million; and "
        "large maps, since the cost of the fine stages grows with the number of pixels.",
        (
            (
                "RAVLT block",
                [
                    ("add", "~ depthwise 3 x 3"),
                    (
                        "add",
                        "norm",
                        ("mul", [("sum", ["@ rank-augmented linear attention"], ["~ depthwise 5 x 5 of the values"])], ["1 x 1"]),
                        "projection",
                    ),
                    ("add", "norm", "MLP, with a depthwise convolution in it"),
                ],
            ),
        ),
        ("rank_augmented_attention", "dense_attention"),
    ),
    "Agent Attention": Description(
        "agent",
        "all positions, through a few agents",
        "A few agents, averages of the queries, attend to all positions, and all positions then attend to what the agents gathered: "
        "two softmax attentions whose cost grows with the number of positions, not with its square. It takes the place of attention "
        "in Swin, PVT and DeiT.",
        "Global attention at sizes where dense attention is too large, in three networks that are well known.",
        (
            (
                "Agent block",
                [
                    (
                        "add",
                        "norm",
                        (
                            "sum",
                            ["@ agents attend to all positions", "@ positions attend to the agents"],
                            ["~ depthwise 3 x 3 of the values"],
                        ),
                        "projection",
                    ),
                    MLP,
                ],
            ),
        ),
        ("agent_attention", "window_attention", "dense_attention"),
    ),
    "CAS-ViT": Description(
        "casvit",
        "3 x 3 surroundings, and the whole map through gates of channels",
        "No softmax and no heads: queries and keys are scaled by gates of positions and of channels, added, convolved, and "
        "multiplied with the values. Everything is a convolution.",
        "Small devices: 3 to 21 million parameters, operations that every runtime has.",
        (
            (
                "CAS-ViT block",
                [
                    ("add", "~ 1 x 1, depthwise 3 x 3, GELU, 1 x 1"),
                    (
                        "add",
                        "batch norm",
                        ("mul", [("sum", ["@ queries, with gates"], ["@ keys, with gates"]), "~ depthwise 3 x 3"], ["values"]),
                        "~ depthwise 3 x 3",
                    ),
                    ("add", "batch norm", "MLP, 4 x as wide"),
                ],
            ),
        ),
    ),
    "LITv2": Description(
        "litv2",
        "its 2 x 2 window (high frequencies) and averages of windows (low ones)",
        "Some heads attend inside windows of 2 x 2, where the fine detail is; the others attend from all positions to averages of "
        "the windows, where the coarse structure is. The two fine stages have no attention at all, and downsampling is deformable.",
        "GPUs: its authors designed it for measured speed there. The fine stages are convolutional MLPs without attention.",
        (
            ("block of stages 1 and 2", [("add", "norm", "1 x 1", "~ depthwise 3 x 3", "GELU, 1 x 1")]),
            (
                "block of stages 3 and 4",
                [
                    ("add", "norm", ("cat", ["@ attention in windows of 2 x 2"], ["@ attention to averages"])),
                    ("add", "norm", "1 x 1", "~ depthwise 3 x 3", "GELU, 1 x 1"),
                ],
            ),
        ),
        ("window_attention", "dense_attention"),
    ),
    "ChAda-ViT": Description(
        "chada_vit",
        "patches of all channels",
        "A ViT whose tokens are patches of single channels, each with an embedding of its channel and of its place. Images of one to "
        "ten channels go through the same network, in one batch.",
        "Microscopy whose number of stains differs from image to image. It classifies only.",
        (("ChAda-ViT block", [("add", "norm", "@ attention among all tokens"), "norm", ("add", "MLP"), "norm"]),),
        ("dense_attention",),
    ),
    "DAE-Former, TransDAE": Description(
        "dae",
        "all positions by efficient attention, then channels",
        "Each block attends twice: among positions, with the softmax of queries and keys apart so that no matrix of all pairs "
        "arises, and among channels; an MLP follows each. Their decoders are the heads `dae` and `trans_dae`.",
        "Medical segmentation with the decoder of its paper: `model.head.name=dae`.",
        (
            (
                "dual block",
                [
                    ("add", "norm", "@ attention of positions"),
                    ("add", "norm", "MLP, with a depthwise convolution"),
                    ("add", "norm", "@ attention of channels"),
                    ("add", "norm", "MLP, with a depthwise convolution"),
                ],
            ),
        ),
        ("channel_attention", "dense_attention"),
    ),
    "OverLoCK": Description(
        "overlock",
        "windows up to 17 x 17, by kernels that a first look at the image computes",
        "A first, coarse pass looks at the whole image; its map guides the second pass, whose blocks compute the weights of their "
        "convolutions from the affinity of each position to 7 x 7 regions of that map (ContMix). Large depthwise convolutions fold "
        "into one for inference.",
        "Accuracy for its size (82.7 % at 17 million parameters) without attention over the whole map. Fold the large convolutions for "
        "inference ([how](../zoo.md)).",
        (
            (
                "base block",
                [
                    ("add", "~ depthwise 3 x 3"),
                    ("add", "norm", "~ dilated depthwise convolutions, summed", "channel gate", "MLP, 4 x as wide"),
                ],
            ),
            (
                "dynamic block",
                [
                    ("cat", [], ["context of the first pass"]),
                    ("add", "~ depthwise 3 x 3"),
                    (
                        "add",
                        "norm",
                        ("mul", [("sum", ["@ ContMix: 5 x 5 and large kernels"], ["~ dilated depthwise"]), "channel gate"], ["gate"]),
                        "1 x 1",
                    ),
                    ("add", "norm", "MLP"),
                ],
            ),
        ),
        ("neighborhood_attention",),
    ),
    "InLine": Description(
        "inline",
        "all positions, by linear attention; 3 x 3 around it with predicted weights",
        "Linear attention made injective: weights sum to one by a difference, not by a division, so that different queries never "
        "attend alike; a depthwise 3 x 3 convolution whose kernel the mean token predicts adds what is near. It takes the place of "
        "attention in Swin, PVT and DeiT.",
        "Large maps at linear cost, in three networks that are well known.",
        (
            (
                "InLine block",
                [
                    ("add", "norm", ("sum", ["@ injective linear attention"], ["~ 3 x 3 of the values, predicted kernel"]), "projection"),
                    MLP,
                ],
            ),
        ),
        ("inline_attention", "window_attention"),
    ),
    "CrossFormer, CrossFormer++": Description(
        "crossformer",
        "its window, then positions at regular distances",
        "Blocks alternate between attention among neighbours and attention among positions that are a fixed interval apart, which "
        "spans the map. Patches of several sizes are embedded together, and a small network computes the bias of each offset.",
        "Objects of very different sizes in one image.",
        (
            ("short distance", [("add", "norm", "@ attention in windows"), MLP]),
            ("long distance", [("add", "norm", "@ attention on a grid of interval I"), MLP]),
        ),
        ("strided_attention",),
    ),
    "SG-Former": Description(
        "sgformer",
        "all positions, finer where they matter",
        "A map of significance decides how many tokens a region keeps: salient regions are reduced little, the background a lot, and "
        "all positions attend to the tokens that remain.",
        "Images whose subject fills a small part of them. Tokens are ordered by a sort, so that rounding can change results: compare in "
        "float64.",
        (
            (
                "SG-Former block",
                [
                    ("add", "norm", ("sum", ["@ attention to significant tokens"], ["~ depthwise 3 x 3"]), "projection"),
                    ("add", "norm", "MLP, with a depthwise convolution"),
                ],
            ),
        ),
        ("dense_attention",),
    ),
    "ResNet, with any attention module": Description(
        "resnet",
        "3 x 3 convolutions; what its attention module adds",
        "The ResNet of torchvision, with an attention module of your choice at the end of each residual branch. Its weights are "
        "those of the plain trunk; the module starts from scratch.",
        "Comparing attention modules with everything else equal, and as a plain baseline.",
        (("bottleneck", [("add", "~ 1 x 1, 3 x 3, 1 x 1, each with batch norm", "@ attention module, or none")]),),
    ),
    "ViT, with a choice of attention": Description(
        "vit",
        "all positions",
        "A plain vision transformer on patches of 16 pixels without a class token, whose attention is chosen by name: softmax, a "
        "sigmoid per weight, flow and Gaussian kernel attention, which are linear in the number of positions, heads that each position "
        "chooses, keys that are drawn at random in training, or softmax attention to tokens pooled with their surroundings.",
        "Comparing attention mechanisms with everything else equal. No weights are published.",
        (("ViT block", [("add", "norm", "@ attention of one of seven kinds"), MLP]),),
        ("dense_attention",),
        KINDS_OF_VIT,
    ),
}

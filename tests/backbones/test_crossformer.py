"""CrossFormer: its four convolutions of the image, groups that shrink, cooling layers, buffers of older files."""

from __future__ import annotations

from typing import Any

import torch

import visionattn as va
from tests.tiny import TINY
from visionattn.backbones.base import Sizes
from visionattn.layers import relative_position_bias


def tiny(**arguments: Any) -> Any:
    torch.manual_seed(0)
    name, args = TINY["CrossFormer"]
    return va.create_model(name, num_classes=5, **{**args, **arguments}).eval()


def test_all_convolutions_of_the_image_read_another_number_of_channels() -> None:
    colour, grey = tiny(), tiny(in_chans=1)
    report = va.load_checkpoint(grey, colour.state_dict())
    assert report.reshaped == ["first convolution 3 -> 1 input channels (summed)"]
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(grey(image), colour(image.expand(-1, 3, -1, -1)), atol=1e-5)
        assert not torch.allclose(grey(image), grey(image.flip(3)), atol=1e-6)


def test_a_small_map_is_one_group() -> None:
    """Of a map whose shorter side is at most a group, a distant block makes neighbouring groups of that side."""
    attn = tiny().backbone.stages[1].blocks[1].attn
    assert (attn.group_size, attn.interval) == (7, 4)
    wide = relative_position_bias(attn.position(7), 7).view(-1, 7, 7, 7, 7)[:, :5, :5, :5, :5].reshape(-1, 25, 25)
    assert torch.allclose(relative_position_bias(attn.position(5), 5), wide, atol=1e-6)
    x = torch.randn(1, 5, 10, 96)
    with torch.no_grad():
        y = attn(x)
        assert torch.allclose(attn(x[:, :, :5]), y[:, :, :5], atol=1e-5)  # columns 5 to 9 are another group
        assert torch.allclose(attn(x[:, :, 5:]), y[:, :, 5:], atol=1e-5)


def test_biases_depend_on_row_offset_before_column_offset() -> None:
    position = tiny().backbone.stages[0].blocks[0].attn.position
    table = position(3)
    with torch.no_grad():
        by_hand = torch.tensor([[1.0, -2.0]]) @ position.proj.weight.T + position.proj.bias
        for layer in position.layers:
            by_hand = layer(by_hand)
    assert torch.allclose(table[3, 0], by_hand[0], atol=1e-6)


def test_every_third_block_but_the_last_is_cooled() -> None:
    model = tiny(depths=(3, 4, 1, 7), cooling=True)
    cooled = [
        [index for index, block in enumerate(stage.blocks) if not isinstance(block.cooling, torch.nn.Identity)]
        for stage in model.backbone.stages
    ]
    assert cooled == [[], [2], [], [2, 5]]
    assert model(torch.randn(1, 3, 33, 40)).shape == (1, 5)


def test_files_with_buffers_of_positions() -> None:
    model = tiny()
    state = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49), "layers.0.blocks.0.attn.biases": torch.zeros(169, 2)}
    state["layers.0.blocks.0.attn.qkv.weight"] = torch.zeros(144, 48)
    assert list(model.backbone.from_upstream(state)) == ["backbone.stages.0.blocks.0.attn.qkv.weight"]


def test_a_graph_of_open_size_has_whole_groups() -> None:
    model = va.create_model("crossformer_pp_small", depths=(1, 1, 1, 1), embed_dim=48, num_heads=(1, 2, 4, 8))
    assert model.export_sizes((256, 320)) == Sizes((256, 320), 1, 225)
    assert model.export_sizes((224, 224)) == Sizes((224, 224))

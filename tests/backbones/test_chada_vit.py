"""ChAda-ViT: any number of channels, also within a batch; tables of files of another size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import visionattn as va
from visionattn.models.weights.recognise import Recognised, recognise


def small(**args: Any) -> Any:
    torch.manual_seed(0)
    return va.create_model("chada_vit_moyen", num_classes=3, **{"depths": (1, 1, 1, 1), "embed_dim": 16, "img_size": 32, **args}).eval()


@torch.no_grad()
def test_a_model_takes_any_number_of_channels() -> None:
    model, image = small(in_chans=3), torch.randn(2, 10, 32, 48)
    logits = [model(image[:, :count]) for count in range(1, 11)]
    assert all(not torch.allclose(one, two) for one, two in pairwise(logits))
    with pytest.raises(ValueError, match="11 channels, but embeddings of 10"):
        model(torch.randn(1, 11, 32, 32))
    with pytest.raises(ValueError, match="max_channels"):
        small(in_chans=11)
    assert small(in_chans=11, max_channels=12)(torch.randn(1, 12, 32, 32)).shape == (1, 3)


@torch.no_grad()
def test_images_of_a_batch_may_differ_in_channels_and_padding_is_not_read() -> None:
    model, image, counts = small(), torch.randn(4, 5, 33, 48), [2, 5, 2, 3]
    for row, count in enumerate(counts):
        image[row, count:] = float("nan")
    maps = model.backbone(image, torch.tensor(counts))
    for row, count in enumerate(counts):
        alone = model.backbone(image[row : row + 1, :count])
        assert all(torch.allclose(whole[row], one[0], atol=1e-6) for whole, one in zip(maps, alone, strict=True))
    assert model.forward_head(maps[-1]).isfinite().all()
    for wrong in ([2, 5, 2], [2, 6, 2, 3], [0, 5, 2, 3]):
        with pytest.raises(ValueError, match="expected 4 numbers from 1 to 5"):
            model.backbone(image, torch.tensor(wrong))


@torch.no_grad()
def test_pooling_reads_the_class_token() -> None:
    """Nothing but the first token reaches the logits: scale what the others hold after the last block, and they stay."""
    model, image = small(), torch.randn(2, 2, 32, 32)
    logits = model(image)
    last = model.backbone.stages[-1][-1]
    last.register_forward_hook(lambda module, args, tokens: torch.cat([tokens[:, :1], 7 * tokens[:, 1:]], 1))
    assert torch.allclose(model(image), logits, atol=1e-5)


def test_tables_of_other_files() -> None:
    wide = small(max_channels=12, img_size=(64, 64))
    authors = {
        key.removeprefix("backbone.")
        .replace("stages.0.0", "blocks.0")
        .replace("attn.qkv.", "self_attn.in_proj_")
        .replace("attn.proj", "self_attn.out_proj")
        .replace("mlp.fc", "linear")
        .replace("patch_embed", "token_learner.proj")
        .replace("channel_embed", "channel_token"): value
        for key, value in wide.state_dict().items()
        if key.startswith("backbone.") and ".stages.1" not in key and ".stages.2" not in key and ".stages.3" not in key
    }
    assert wide.backbone.from_upstream(authors).keys() == {
        key for key in wide.state_dict() if key.startswith("backbone.") and not any(f".stages.{i}" in key for i in (1, 2, 3))
    }
    report = va.load_checkpoint(small(max_channels=12, img_size=(32, 48)), wide.state_dict())
    assert report.reshaped == ["position table 4x4 -> 2x3, bicubic"]
    with torch.device("meta"):
        whole = va.create_model("chada_vit_moyen", max_channels=12, num_classes=4).state_dict()
    assert recognise(whole) == Recognised(("chada_vit_moyen",), {"max_channels": 12}, 4, 3, 1.0)

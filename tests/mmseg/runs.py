"""mmsegmentation's own training on our backbones. It is run by `make test-mmseg`, in an environment of its own.

mmsegmentation depends on opencv-python, which takes the place of the opencv-python-headless of albumentations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmseg.models
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.structures import SegDataSample
from PIL import Image

import visionattn
from tests.tiny import TINY
from visionattn.backbones import Backbone
from visionattn.errors import UserError
from visionattn.integrations.mmseg import VisionAttnBackbone
from visionattn.jobs.doctor import mmseg_text

assert mmseg.models  # registers heads and losses
FAMILIES = ("Swin", "NAT", "ECAResNet")
HEAD = {"num_classes": 2, "channels": 8, "norm_cfg": {"type": "BN"}, "align_corners": False}


def backbone(family: str) -> dict[str, Any]:
    name, args = TINY[family]
    return {"type": "VisionAttnBackbone", "name": name, **args}


def model(family: str, **more: Any) -> dict[str, Any]:
    name, args = TINY[family]
    channels = visionattn.create_model(name, features_only=True, **args).channels
    decode = {"type": "UPerHead", "in_channels": list(channels), "in_index": [0, 1, 2, 3], "pool_scales": (1, 2, 3, 6), **HEAD}
    aux = {"type": "FCNHead", "in_channels": channels[2], "in_index": 2, "num_convs": 1, "concat_input": False, **HEAD}
    images = {"type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {**images, "size": (64, 64), "pad_val": 0, "seg_pad_val": 255, "test_cfg": {"size_divisor": 32}},
        "backbone": {**backbone(family), **more},
        "decode_head": decode,
        "auxiliary_head": aux,
        "train_cfg": {},
        "test_cfg": {"mode": "slide", "crop_size": (64, 64), "stride": (48, 48)},
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, size in (("train", (64, 64)), ("val", (100, 140))):
        for number in range(2):
            mask = np.zeros(size, np.uint8)
            mask[: size[0] // 2, : size[1] // 2] = 1
            pixels = rng.integers(0, 100, (*size, 3), dtype=np.uint8) + 100 * mask[..., None]
            for kind, array in (("images", pixels), ("masks", mask)):
                path = tmp_path / "data" / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "data"


def config(family: str, data: Path, work: Path, steps: int, **more: Any) -> Config:
    def loader(split: str, sampler: dict[str, Any], size: int) -> dict[str, Any]:
        pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
        dataset = {
            "type": "BaseSegDataset",
            "data_root": str(data),
            "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"masks/{split}"},
            "img_suffix": ".png",
            "seg_map_suffix": ".png",
            "metainfo": {"classes": ("back", "front"), "palette": [[0, 0, 0], [255, 0, 0]]},
            "pipeline": pipeline,
        }
        return {"batch_size": size, "num_workers": 0, "sampler": sampler, "dataset": dataset}

    return Config(
        {
            "custom_imports": {"imports": ["visionattn.integrations.mmseg"]},
            "default_scope": "mmseg",
            "work_dir": str(work),
            "model": model(family),
            "train_dataloader": loader("train", {"type": "InfiniteSampler", "shuffle": True}, 2),
            "val_dataloader": loader("val", {"type": "DefaultSampler", "shuffle": False}, 1),
            "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": steps, "val_interval": steps},
            "val_cfg": {"type": "ValLoop"},
            "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 1e-3}},
            "param_scheduler": [{"type": "PolyLR", "power": 1.0, "begin": 0, "end": 4, "by_epoch": False}],
            "default_hooks": {"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 2}},
            "log_level": "ERROR",
            **more,
        }
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_runner_trains_resumes_and_predicts(family: str, data: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(config(family, data, tmp_path / "work", 2))
    before = {key: value.clone() for key, value in runner.model.backbone.state_dict().items()}
    runner.train()
    after = runner.model.backbone.state_dict()
    moved = [key for key, value in before.items() if value.is_floating_point() and not torch.equal(value, after[key])]
    # One step of Adam moves a weight by about the rate; weights drawn anew would be far away.
    assert moved and all((after[key] - before[key]).abs().max() < 0.01 for key in moved if "running" not in key)
    saved = tmp_path / "work/iter_2.pth"
    assert saved.is_file()

    resumed = Runner.from_cfg(config(family, data, tmp_path / "work", 4, resume=True))
    resumed.train()
    assert resumed.iter == 4 and (tmp_path / "work/iter_4.pth").is_file()
    assert 0 <= resumed.message_hub.get_scalar("val/mIoU").current() <= 100  # in slide mode

    network = resumed.model.eval()
    image = torch.randint(0, 255, (3, 90, 75), dtype=torch.uint8)
    sample = SegDataSample(metainfo={"ori_shape": (90, 75), "img_shape": (90, 75), "pad_shape": (90, 75), "padding_size": [0, 0, 0, 0]})
    (result,) = network.test_step({"inputs": [image], "data_samples": [sample]})
    assert result.pred_sem_seg.data.shape == (1, 90, 75)

    # The checkpoint is one of ours.
    name, args = TINY[family]
    ours = visionattn.create_segmenter(name, "upernet", 2, aux=False, backbone_args=args, width=8).eval()
    visionattn.load_checkpoint(ours, tmp_path / "work/iter_4.pth")
    batch = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs = network.decode_head(network.backbone(batch))
        assert torch.allclose(ours.decode_head(ours.backbone(batch)).logits, theirs, atol=1e-5)


def test_pretrained_weights_survive_the_building(tmp_path: Path) -> None:
    name, args = TINY["Swin"]
    torch.save(visionattn.create_model(name, **args).state_dict(), tmp_path / "weights.pth")
    init_default_scope("mmseg")
    built = MODELS.build(Config(model("Swin", pretrained=str(tmp_path / "weights.pth"))))
    built.init_weights()
    assert isinstance(built.backbone, Backbone)
    for key, value in torch.load(tmp_path / "weights.pth").items():
        if key.startswith("backbone."):
            assert torch.equal(built.state_dict()[key], value), key


def test_arguments() -> None:
    name, args = TINY["Swin"]
    chosen = VisionAttnBackbone(name, out_indices=(1, 3), in_channels=4, with_cp=True, **args)
    assert chosen.channels == (16, 64) and chosen.in_chans == 4 and chosen.grad_checkpointing and chosen.out_norm
    assert len(chosen(torch.zeros(1, 4, 64, 64))) == 2
    with pytest.raises(UserError, match="VA-M001"):
        VisionAttnBackbone("swin_tinny")
    with pytest.raises(UserError, match="VA-M002"):
        VisionAttnBackbone("swin_tiny", init_cfg={"type": "Pretrained"})


def test_doctor_finds_it_usable() -> None:
    assert mmseg_text() == "usable"

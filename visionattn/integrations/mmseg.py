"""Our backbones in mmsegmentation and other libraries on mmengine, as `type="VisionAttnBackbone"`.

Importing this module registers them in mmengine's root registry, where every child registry looks: a config does it by
`custom_imports = dict(imports=["visionattn.integrations.mmseg"])`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from visionattn.backbones import Backbone
from visionattn.backbones.registry import get_variant
from visionattn.errors import UserError
from visionattn.models import create_model, load_checkpoint
from visionattn.models.weights.hub import is_hub
from visionattn.models.weights.records import split_name

if find_spec("mmengine") is None:
    raise UserError("VA-R007", "mmengine is not installed", fix='pip install "visionattn[mmseg]"')

from mmengine.registry import MODELS


def VisionAttnBackbone(  # the name in configs, where types are classes
    name: str,
    pretrained: bool | str = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    *,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    output_stride: int = 32,
    with_cp: bool = False,
    **args: Any,
) -> Backbone:
    """Build a backbone, which returns the maps that decode heads take.

    It is one of ours itself, without a wrapper, so that checkpoints of mmsegmentation have the keys of ours (`backbone.stages.0...`):
    `visionattn predict iter_80000.pth` and `segmenter_from_file` read them, and mmsegmentation reads ours.

    Args:
        name: see `visionattn.list_models()`.
        pretrained: True for the published weights of the name, a tag of them, a file, or `hf-hub:OWNER/NAME`.
        out_indices: stages whose maps are returned.
        in_channels: channels of the images.
        drop_path_rate: stochastic depth.
        output_stride: largest stride of a returned map, where the family dilates (`create_model`).
        with_cp: recompute activations in the backward pass, as mmsegmentation calls it.
        **args: arguments of the family's class; the maps are normalised for dense prediction (`out_norm`) where the family has it.

    Raises:
        UserError: VA-M001 unknown name, VA-M002 unknown argument, VA-W001 to VA-W007 weights.
    """
    if "out_norm" in inspect.signature(get_variant(split_name(name)[0]).cls.__init__).parameters:
        args.setdefault("out_norm", True)
    is_file = isinstance(pretrained, str) and (is_hub(pretrained) or Path(pretrained).suffix != "" or Path(pretrained).exists())
    backbone = create_model(
        name,
        False if is_file else pretrained,
        features_only=True,
        out_indices=tuple(out_indices),
        output_stride=output_stride,
        in_chans=in_channels,
        drop_path_rate=drop_path_rate,
        **args,
    )
    if is_file:
        load_checkpoint(backbone, str(pretrained)).log(str(pretrained))
    backbone.set_grad_checkpointing(with_cp)
    vars(backbone)["is_init"] = True  # or mmengine would call `init_weights`, which draws all weights anew
    return backbone


MODELS.register_module(module=VisionAttnBackbone)

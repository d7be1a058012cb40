"""Create segmentation models by name or from a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from visionattn.backbones.registry import get_variant
from visionattn.errors import ArgumentError, UserError
from visionattn.models.factory import create_model, pretrained_cfg
from visionattn.models.segmenter import Segmenter, head_class
from visionattn.models.weights.download import Report, fetch, print_line
from visionattn.models.weights.hub import weights_file
from visionattn.models.weights.load import load_checkpoint, read_file, tensors_of
from visionattn.models.weights.recognise import Recognised, one_name, recognise
from visionattn.models.weights.records import SegmenterRecord, find_record, find_segmenter, records_of, segmenter_records, split_name

# All published segmentation models were trained with these, including VAN's, whose classifiers were not.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

Colour = tuple[int, int, int]


class Preset(NamedTuple):
    """A backbone with a head and its arguments."""

    backbone: str
    head: str
    head_args: Mapping[str, Any]


# Published systems for medical images: a backbone, which may bear the same name, with its decoder.
PRESETS = {
    # Att-SwinU-Net (Aghdam et al., arXiv 2210.16898).
    "att_swin_unet": Preset("swin_tiny", "att_swin", {}),
    # DAE-Former (Azad et al., arXiv 2212.13504).
    "dae_former": Preset("dae_former", "dae", {}),
    # TransDAE (Azad et al., arXiv 2409.02018).
    "trans_dae": Preset("trans_dae", "trans_dae", {}),
    # ResUNet with channel attention in the skips and atrous pyramid pooling below; the encoder is ECA-Net's (arXiv 1910.03151).
    "resunet_eca_aspp": Preset("eca_resnet34", "unet", {"skip": "eca", "bottleneck": "aspp"}),
}


class SegmenterFile(NamedTuple):
    """A published segmentation model, with its classes and palette if the file holds them."""

    model: Segmenter
    classes: tuple[str, ...] | None
    palette: tuple[Colour, ...] | None


def create_segmenter(
    backbone: str,
    head: str | None = None,
    num_classes: int | None = None,
    *,
    pretrained: bool | str = False,
    checkpoint_path: str | Path | None = None,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    aux: bool | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **head_args: Any,
) -> Segmenter:
    """Create a segmentation model by name.

    Args:
        backbone: see `list_models()`; with a tag (`swin_tiny.in22k`), the preprocessing is that of these weights. Or a name in `PRESETS`.
        head: a name in `visionattn.heads.HEADS`; None takes the preset's, or "segformer", the cheapest.
        num_classes: logits per pixel.
        pretrained: start the backbone from published classification weights, as in `create_model`.
        checkpoint_path: a segmentation file of this model (see `load_checkpoint`), the name of a published one
            (`swin_tiny.upernet_ade20k`, downloaded on first use), or a classification file, for the backbone only.
        in_chans: input channels.
        img_size: size of the images in training; the network accepts any size from 32 px.
        drop_path_rate: stochastic depth.
        aux: also train an auxiliary head on the second-to-last map; None follows the published recipes of the head.
        backbone_args: arguments of the backbone's class.
        **head_args: arguments of the head's class; they override those of the preset.

    Raises:
        UserError: VA-M001 unknown backbone or head, VA-M002 unknown argument or no `num_classes`, VA-W001 to VA-W007 weights.
    """
    if num_classes is None or num_classes < 1:
        raise ArgumentError(
            "VA-M002", f"num_classes: expected a number from 1, got {num_classes}", fix="create_segmenter(..., num_classes=2)"
        )
    backbone, head, given = with_preset(backbone, head, head_args)
    head_class(head, given)  # before any download
    name, tag = split_name(backbone)
    variant = get_variant(name)
    published = None if checkpoint_path is None else _published(checkpoint_path)
    args = {**(published.args if published and published.model == name else {}), **(backbone_args or {})}
    if "out_norm" in inspect.signature(variant.cls.__init__).parameters:
        args.setdefault("out_norm", True)
    network = create_model(
        backbone, pretrained, in_chans=in_chans, img_size=img_size, drop_path_rate=drop_path_rate, features_only=True, **args
    )
    asked = find_record(backbone, pretrained if isinstance(pretrained, str) else None) if pretrained or tag else None
    record = asked or next(iter(records_of(variant.name)), None)
    cfg = pretrained_cfg(variant, network, record, None, num_classes, img_size) | {"classifier": "decode_head.conv_seg"}
    model = Segmenter(network, head, num_classes, aux=aux, pretrained_cfg=cfg, **given)
    if checkpoint_path:
        path = _local_file(checkpoint_path)
        load_checkpoint(model, path).log(path)
    return model


def with_preset(backbone: str, head: str | None, head_args: Mapping[str, Any]) -> Preset:
    """Resolve a backbone or preset and a head; with a head other than the preset's, the preset's arguments are ignored."""
    preset = PRESETS.get(backbone, Preset(backbone, "segformer", {}))
    own = preset.head_args if head in (None, preset.head) else {}
    return Preset(preset.backbone, head or preset.head, {**own, **head_args})


def segmenter_from_file(
    path: str | Path,
    *,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    report: Report | None = print_line,
    **head_args: Any,
) -> SegmenterFile:
    """Create the model of a segmentation file and load its weights, classes and palette.

    The model is recognised from the file's tensors, in mmsegmentation's layout or ours.

    Args:
        path: .pth or .safetensors, a model of the hub (`hf-hub:OWNER/NAME`), or the name of a published model
            (`swin_tiny.upernet_ade20k`), downloaded on first use. Do not rename published files with DiNAT: their dilations
            are found by file name.
        backbone: needed only if several backbones have the same tensors and the file's name does not contain one of them.
        backbone_args: arguments of the backbone's class that cannot be inferred from tensors (dilations).
        report: called with lines about a download; None for no output.
        **head_args: arguments of the head's class that cannot be inferred from tensors (rates of dilation).

    Raises:
        UserError: VA-W003 not recognised, or several backbones fit; VA-W001, VA-W002, VA-W004 to VA-W006.
    """
    published, path = _published(path), _local_file(path, report)
    content = read_file(path)
    given = tensors_of(content).state
    found = recognise(given)
    if found is None or found.decoder is None or found.fit < 1:
        raise _not_a_segmenter(path, found)
    decoder = found.decoder
    name = one_name(path, found, backbone, fix=f"segmenter_from_file(..., backbone={found.names[0]!r})")
    args = {**found.args, **(published.args if published and published.model == name else {}), **(backbone_args or {})}
    model = create_segmenter(
        name,
        decoder.head,
        found.num_classes,
        in_chans=found.in_chans,
        aux=decoder.aux,
        backbone_args=args,
        **{**decoder.args, **head_args},
    )
    load_checkpoint(model, content, allow=()).log(path)
    if found.in_chans == 3:
        model.pretrained_cfg |= IMAGENET
    return SegmenterFile(model, *classes_and_palette(content, found.num_classes))


def classes_and_palette(content: Mapping[str, Any], num_classes: int) -> tuple[tuple[str, ...] | None, tuple[Colour, ...] | None]:
    """Return the names and colours in the `meta` of an mmsegmentation file, 0.x or 1.x; None if missing or not one per class."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    inner = meta.get("dataset_meta")
    meta = {**meta, **(inner if isinstance(inner, Mapping) else {})}
    names, colours = (meta.get(key.upper(), meta.get(key)) for key in ("classes", "palette"))
    classes = tuple(names) if _listed(names, num_classes) and all(isinstance(name, str) for name in names) else None
    rgb = [tuple(colour) for colour in colours if _listed(colour, 3)] if _listed(colours, num_classes) else []
    valid = len(rgb) == num_classes and all(isinstance(value, int) and 0 <= value <= 255 for colour in rgb for value in colour)
    return classes, tuple((red, green, blue) for red, green, blue in rgb) if valid else None


def _published(source: str | Path) -> SegmenterRecord | None:
    """Find a published model by its name or by the name of its file."""
    name = Path(source).name
    for record in segmenter_records():
        if record.name in (name, Path(name).stem) or (name and name in [item.name for item in record.sources]):
            return record
    return None


def _local_file(source: str | Path, report: Report | None = print_line) -> Path:
    """Return the file of a published model, downloaded on first use; any other path is returned unchanged."""
    record = find_segmenter(str(source))
    if record is not None and not Path(source).exists():
        return fetch(record, report=report).path
    return weights_file(source, report)


def _listed(value: Any, count: int) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple)) and len(value) == count


def _not_a_segmenter(path: Path, found: Recognised | None) -> UserError:
    if found is None:
        why = "its tensors match no registered backbone and head"
    elif found.decoder is None:
        why = f"it contains {' or '.join(found.names)} without a segmentation head"
    else:
        why = f"closest: {found.decoder.head} on {' or '.join(found.names)}, {found.fit:.0%} of the tensors match"
    return UserError("VA-W003", f"{path.name} is not recognised as a segmentation model", where=str(path), why=why)

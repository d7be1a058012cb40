"""Test our models as encoders of segmentation_models_pytorch: build every decoder and run it forward and backward.

`python tools/smp_acceptance.py va_swin_tiny va_eca_resnet18` (needs `pip install segmentation-models-pytorch`) prints
a table. The exit code is 0 if every decoder returned finite logits of the image's size and a gradient for every parameter.
Decoders run with their default arguments; `ok*` marks those whose default stride the family refuses, and which run with the
arguments that its error names. `--decoders PAN,DeepLabV3` runs only these.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

import segmentation_models_pytorch as smp
import torch

from visionattn.integrations.timm import register

# Arguments that a decoder needs besides its defaults.
DECODERS: dict[str, dict[str, Any]] = {
    "Unet": {},
    "UnetPlusPlus": {},
    "MAnet": {},
    "Linknet": {},
    "FPN": {},
    "PSPNet": {},
    "DeepLabV3": {},
    "DeepLabV3Plus": {},
    "PAN": {},
    "UPerNet": {},
    "Segformer": {},
    "DPT": {"decoder_readout": "ignore", "num_classes": 0},  # no class token; the encoder is a whole classifier
}
# What works without dilated stages.
STRIDED: dict[str, dict[str, Any]] = {
    "DeepLabV3": {"encoder_depth": 4, "encoder_output_stride": 16},
    "DeepLabV3Plus": {"encoder_depth": 4, "encoder_output_stride": 16},
    "PAN": {"encoder_output_stride": 32},
}
SIZES = {"PAN": 256}  # it halves the last map three times


def check(name: str, decoder: str) -> str:
    """Return "ok", "ok*" or the problem."""
    found = run(name, decoder, DECODERS[decoder])
    if decoder in STRIDED and "encoder_output_stride=32" in found:
        found = run(name, decoder, STRIDED[decoder])
        return "ok*" if found == "ok" else found
    return found


def run(name: str, decoder: str, arguments: dict[str, Any]) -> str:
    """Return "ok" or the problem."""
    torch.manual_seed(0)
    size = SIZES.get(decoder, 96)
    try:
        model = getattr(smp, decoder)(encoder_name=f"tu-{name}", encoder_weights=None, classes=3, **arguments).train()
        logits = model(torch.randn(2, 3, size, size))
        logits.square().mean().backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if logits.shape != (2, 3, size, size) or not torch.isfinite(logits).all():
        return f"logits {tuple(logits.shape)}, finite: {bool(torch.isfinite(logits).all())}"
    # DPT runs the backbone of a classifier without the classifier's norm.
    unused = [key for key, value in model.named_parameters() if value.grad is None and not key.startswith("encoder.model.head.")]
    return f"no gradient for {unused}" if unused else "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME", help="names in timm's registry, for example va_swin_tiny")
    parser.add_argument("--decoders", default=",".join(DECODERS))
    args = parser.parse_args()
    decoders = args.decoders.split(",")
    unknown = set(args.models) - set(register())
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")

    failures = []
    print("| model |", " | ".join(decoders), "|")
    print("|---|" + "---|" * len(decoders))
    for name in args.models:
        results = {decoder: check(name, decoder) for decoder in decoders}
        failures += [f"{name} {decoder}: {result}" for decoder, result in results.items() if not result.startswith("ok")]
        print(f"| {name} |", " | ".join(result if result.startswith("ok") else "FAIL" for result in results.values()), "|", flush=True)
    print(f"\nsegmentation_models_pytorch {smp.__version__}: {len(args.models)} models, {len(failures)} failures")
    print("\n".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

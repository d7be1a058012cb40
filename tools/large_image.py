"""Peak memory and time of segmenting one large image in windows.

python tools/large_image.py                                      # a small convolutional network
python tools/large_image.py --backbone swin_tiny --head upernet  # one of ours, with random weights
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import visionattn
from visionattn.tasks.windows import class_map


class SmallNet(nn.Module):
    """Two convolutions at a quarter of the resolution."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.head = nn.Conv2d(16, num_classes, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.head(self.stem(image).relu()), image.shape[2:], mode="bilinear", align_corners=False)


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="name of a backbone; a small convolutional network if left out")
    parser.add_argument("--head", default="upernet")
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=341)
    parser.add_argument("--blend", choices=("constant", "gaussian"), default="constant")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, help="GiB of peak memory above which the exit code is 1")
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.backbone is None:
        model: nn.Module = SmallNet(args.classes)
    else:
        model = visionattn.create_segmenter(args.backbone, args.head, num_classes=args.classes)
    model.to(args.device).eval()
    image = torch.randint(0, 256, (1, 3, args.height, args.width), dtype=torch.uint8)

    def prepare(window: torch.Tensor) -> torch.Tensor:
        return (window.to(args.device, torch.float32) - 127.5) / 60

    before, start = peak_bytes(), time.perf_counter()
    classes = class_map(model, image, args.classes, args.window, stride=args.stride, blend=args.blend, batch=args.batch, prepare=prepare)
    seconds, peak = time.perf_counter() - start, peak_bytes()
    name = f"{args.backbone} + {args.head}" if args.backbone else "small network"
    gib = 2**30
    print(f"{args.width} x {args.height}, {args.classes} classes, {name}, windows of {args.window} every {args.stride}, {args.device}")
    print(f"classes found {len(classes.unique())}, type {str(classes.dtype).removeprefix('torch.')}, {seconds:.1f} s")
    print(f"peak {peak / gib:.2f} GiB, of which before the first window {before / gib:.2f} GiB")
    if args.limit is not None and peak > args.limit * gib:
        sys.exit(f"above the limit of {args.limit} GiB")


if __name__ == "__main__":
    main()

"""Segmentation inference: logits for evaluation, maps of files in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
import torch
from timm.layers import to_2tuple
from torch import nn

from visionattn.data.images.transforms import resized_channels
from visionattn.data.masks.transforms import MaskEvalTransform, resized_shape
from visionattn.tasks.batch import Batch
from visionattn.tasks.segmentation.decision import ImageMaps, image_maps
from visionattn.tasks.segmentation.settings import SegmentConfig
from visionattn.tasks.windows import Blend, Block, Predict, resized_blocks, sliding_blocks, sliding_logits, with_flips, with_scales

# Images above either limit (pixels, bytes of logits) are predicted in windows, whatever eval.mode is.
LARGE_PIXELS = 2**22
LARGE_LOGITS = 2**30


class LogitPredictor:
    """Predict logits `[B, K, H, W]`, float32, at once or in windows, averaged over flips and scales.

    Args:
        model: model in evaluation mode, on `device`.
        num_classes: number of classes: K, or K + 1 if one logit separates two classes.
        window: height and width of a sliding window; None predicts whole images.
        stride: steps of the window; None derives them from `overlap`.
        overlap: share of a side that neighbouring windows have in common.
        blend: weights within a window.
        window_batch: windows per call of the model.
        stitch_device: device on which windows are combined.
        flips: axes along which images are also flipped: -1 left and right, -2 top and bottom.
        scales: factors of the image size; () uses only the original size.
        average: averages "logits" (nnU-Net) or "probabilities" (mmsegmentation) over flips and scales.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        device: torch.device | str = "cpu",
        *,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        overlap: float = 0.5,
        blend: Blend = "constant",
        window_batch: int = 1,
        stitch_device: str = "cpu",
        flips: Sequence[int] = (),
        scales: Sequence[float] = (),
        average: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        self.model, self.num_classes, self.device = model, num_classes, device
        self.window: dict[str, Any] | None = None
        if window is not None:
            self.window = {"window": window, "stride": stride, "overlap": overlap, "blend": blend, "batch": window_batch}
        self.stitch_device = stitch_device
        self.flips, self.scales, self.average = tuple(flips), tuple(scales), average

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.logits(batch["image"].to(self.device))

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Predict the logits of images `[B, C, H, W]`."""
        run: Predict = self.model
        if self.window is not None:
            run = partial(sliding_logits, self.model, stitch_device=self.stitch_device, **self.window)
        if not self.flips and not self.scales:
            return run(image).float()
        as_probabilities = self.average == "probabilities"
        if as_probabilities:
            run = partial(_probabilities, run)
        if self.flips:
            run = with_flips(run, self.flips)
        if self.scales:
            run = with_scales(run, self.scales)
        return _logits(run(image)) if as_probabilities else run(image).float()

    def blocks(self, image: torch.Tensor, prepare: Predict | None = None) -> Iterator[Block]:
        """Predict the logits of one image block by block, on the CPU, without storing all of them.

        Equal to `logits`, except that each window is flipped separately.

        Args:
            image: `[1, C, H, W]`, of any type that `prepare` accepts.
            prepare: converts a crop of the image into the input of the model.

        Raises:
            ValueError: no window is set, or scales are, which need the whole image.
        """
        if self.window is None or self.scales:
            raise ValueError("blocks come from windows of the image at its own size")
        run: Predict = partial(_both_classes, self.model)
        if self.flips:
            run = with_flips(run, self.flips)
        return sliding_blocks(run, image, self.num_classes, prepare=prepare, **self.window)


class MapPredictor:
    """Predict the classes of the pixels of images at their original size, one image per batch.

    Images whose logits would be too large are predicted in windows of eval.tile, or model.img_size if unset, at scale 1:
    the map then differs slightly from that of the whole image, since a window sees less context.

    Args:
        whole: inference as configured.
        tiled: inference in windows, without scales.
        transform: evaluation transform.
        thresholds: of each class, see `pixel_thresholds`.
        formats: what will be written of it.
        warn: called once with a message if an image is too large.
    """

    def __init__(
        self,
        whole: LogitPredictor,
        tiled: LogitPredictor,
        transform: MaskEvalTransform,
        *,
        thresholds: torch.Tensor | None = None,
        formats: Collection[str] = (),
        warn: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.whole, self.tiled, self.transform, self.warn = whole, tiled, transform, warn
        self.thresholds, self.formats = thresholds, formats

    def __call__(self, batch: Batch) -> list[ImageMaps]:
        return [self.maps(image.numpy()) for image in batch["image"]]

    def maps(self, image: np.ndarray) -> ImageMaps:
        """Predict an image `[H, W, C]`, uint8 or float32 in 0..1."""
        whole, size = self.whole, (image.shape[0], image.shape[1])
        height, width = resized_shape(size, self.transform.resize, self.transform.size)
        large = height * width > LARGE_PIXELS or 4 * height * width * whole.num_classes > LARGE_LOGITS
        if large and (whole.window is None or whole.scales):
            window = " x ".join(map(str, (self.tiled.window or {})["window"]))
            self.warn(f"image of {width} x {height} pixels: too large to predict at once, predicted in windows of {window}")
            self.warn = lambda text: None
        with torch.inference_mode():
            if large or (whole.window is not None and not whole.scales):
                return self._in_windows(image, (height, width), size)
            logits = whole.logits(self.transform(image)[None].to(whole.device))
            return self._together(resized_blocks(logits, size), size)

    def _together(self, blocks: Iterator[Block], size: tuple[int, int]) -> ImageMaps:
        return image_maps(blocks, size, self.whole.num_classes, self.thresholds, self.formats)

    def _in_windows(self, image: np.ndarray, shape: tuple[int, int], size: tuple[int, int]) -> ImageMaps:
        """Normalise and predict the image window by window, without storing its logits."""
        if image.shape[:2] != shape:
            image = resized_channels(image, shape, cv2.INTER_LINEAR)
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]

        def prepare(window: torch.Tensor) -> torch.Tensor:
            return self.transform.normalize(window[0].permute(1, 2, 0).contiguous().numpy())[None].to(self.whole.device)

        predictor = self.tiled if self.whole.window is None or self.whole.scales else self.whole
        return self._together(predictor.blocks(planes, prepare), shape).resized(size)


def build_predictor(
    config: SegmentConfig, num_classes: int, model: nn.Module, device: torch.device, *, tiled: bool = False
) -> LogitPredictor:
    """Build the inference of a config; `tiled` uses windows without scales, whatever the config."""
    settings = config.eval
    windows = tiled or settings.mode == "slide"
    tile = config.model.size if settings.tile is None else to_2tuple(settings.tile)
    return LogitPredictor(
        model,
        num_classes,
        device,
        window=tile if windows else None,
        stride=None if settings.stride is None else to_2tuple(settings.stride),
        overlap=settings.overlap,
        blend=settings.blend,
        flips={"none": (), "horizontal": (-1,), "both": (-1, -2)}[settings.flips],
        scales=() if tiled else settings.scales,
        average=settings.average,
    )


def _both_classes(model: Predict, image: torch.Tensor) -> torch.Tensor:
    logits = model(image)
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _probabilities(model: Predict, image: torch.Tensor) -> torch.Tensor:
    logits = model(image).float()
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _logits(probabilities: torch.Tensor) -> torch.Tensor:
    """Convert probabilities to logits."""
    tiny = torch.finfo(probabilities.dtype).eps
    return probabilities.clamp_min(tiny).log() if probabilities.shape[1] > 1 else probabilities.logit(tiny)

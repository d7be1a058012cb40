"""Segmentation: a class for each pixel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.errors import UserError
from visionattn.heads.base import HeadOutput, resize_to
from visionattn.tasks.base import Batch, Scores
from visionattn.tasks.losses import LOSSES
from visionattn.tasks.scores import CaseScore, ConfusionMatrix, HausdorffVariant, case_scores, summarise
from visionattn.tasks.windows import Blend, Predict, class_map, resized_classes, sliding_logits, with_flips, with_scales

DeepSupervision = Literal["upsample_logits", "downsample_label"]
ClassWeights = Literal["none", "balanced"] | Sequence[float]

# Logits (classes x pixels) of an image above which the loss of an evaluation is that of fewer pixels: 256 MiB, several times over.
LOSS_VALUES = 2**26
# Images below which resampling them tells too little of the spread.
LEAST_RESAMPLED = 10

# Columns of classes for cases, and their names in a summary of cases.
CASE_COLUMNS = {"case_dice": "dice", "case_iou": "iou"} | {
    key: key for key in ("hd95", "nsd", "n_defined", "n_missed", "hd95_variant", "hd95_unit")
}


class Segmentation:
    """Weighted losses of all outputs, prediction in one piece or in windows, scores over pixels and, if asked for, of each case.

    Two classes may be told apart by one logit, of the second class.

    Args:
        classes: class names in index order; the first is the background where there is one.
        losses: name (see `LOSSES`), weight and arguments of each loss. `class_weights` may be "none", "balanced" or numbers.
        pixel_counts: pixels of each class in the training set, `[classes]`, for balanced class weights.
        deep_supervision: at which size auxiliary outputs meet the label. "upsample_logits" resizes them to it, and adds their losses to
            that of the main output (mmsegmentation); "downsample_label" takes the nearest labels, and divides the weights of all
            outputs by their sum (nnU-Net).
        window: sides of a sliding window (height, width), or None to predict images in one piece.
        stride: steps of the window; from `overlap` if None.
        overlap: share of a side that neighbouring windows have in common.
        blend: weights within a window.
        window_batch: windows per call of the model.
        stitch_device: where windows are put together.
        flips: axes along which images are flipped for prediction too: -1 left and right, -2 top and bottom.
        scales: sizes at which images are predicted, as factors; () is the size as it is.
        average: what flips and scales are averaged over: "logits" (nnU-Net), or "probabilities" (mmsegmentation).
        per_case: whether each image is a case with scores of its own.
        spacing: pixel size in mm (rows, columns) for distances; None measures in pixels.
        hausdorff: variant of the Hausdorff distance.
        tolerance: of the surface Dice, in mm or pixels.
        monitor: the metric that chooses the best checkpoint, higher is better; None is "dice" of cases, or "miou".

    Raises:
        UserError: VA-C002, arguments that do not fit together.
    """

    name = "segment"

    def __init__(
        self,
        classes: Sequence[str],
        *,
        losses: Sequence[tuple[str, float, Mapping[str, Any]]] = (("cross_entropy", 1.0, {}),),
        pixel_counts: np.ndarray | None = None,
        deep_supervision: DeepSupervision = "upsample_logits",
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        overlap: float = 0.5,
        blend: Blend = "constant",
        window_batch: int = 1,
        stitch_device: str = "cpu",
        flips: Sequence[int] = (),
        scales: Sequence[float] = (),
        average: Literal["logits", "probabilities"] = "logits",
        per_case: bool = False,
        spacing: tuple[float, float] | None = None,
        hausdorff: HausdorffVariant = "max_directed",
        tolerance: float = 1.0,
        monitor: str | None = None,
    ) -> None:
        if not 2 <= len(classes) <= 255:
            raise UserError("VA-C002", f"segmentation takes 2 to 255 classes, got {len(classes)}", fix="name the background as a class too")
        if monitor in ("dice", "iou", "nsd") and not per_case:
            raise UserError("VA-C002", f'"{monitor}" is a score of cases, which are not scored', fix="score cases, or choose mdice or miou")
        self.classes, self.deep_supervision = list(classes), deep_supervision
        self.monitor = monitor or ("dice" if per_case else "miou")
        self.losses = {name: (weight, _bound(name, arguments, self.classes, pixel_counts)) for name, weight, arguments in losses}
        if len(self.losses) < len(losses):
            raise UserError("VA-C002", f"a loss is given twice: {', '.join(name for name, _, _ in losses)}")
        self.window: dict[str, Any] | None = None
        if window is not None:
            self.window = {"window": window, "stride": stride, "overlap": overlap, "blend": blend, "batch": window_batch}
        self.stitch_device = stitch_device
        self.flips, self.scales, self.average = tuple(flips), tuple(scales), average
        self.per_case = per_case
        self.case: dict[str, Any] = {"spacing": spacing, "variant": hausdorff, "tolerance": tolerance}

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics printed after an epoch."""
        return ("dice", "iou", "miou") if self.per_case else ("miou", "mdice", "aacc")

    def mix(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch

    def loss(self, output: HeadOutput | torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss`, and the losses of the main output by name, unweighted; `aux` is the part of the auxiliary outputs in `loss`.

        Losses are those of the label's size. In evaluation (logits, not a `HeadOutput`) with more than `LOSS_VALUES` logits at that size
        they are those of a smaller label, made by the nearest pixel, so that memory stays bounded.
        """
        label: torch.Tensor = batch["label"]
        if not isinstance(output, HeadOutput):
            label = _bounded_label(label, output.shape[1])
            output = HeadOutput(output)
        weight, *aux_weights = output_weights([aux.weight for aux in output.aux], self.deep_supervision)
        parts = self._losses(resize_to(output.logits.float(), label.shape[1:]), label)
        total = weight * self._weighted(parts)
        if output.aux:
            parts["aux"] = torch.zeros_like(total)
        for aux, aux_weight in zip(output.aux, aux_weights, strict=True):
            if self.deep_supervision == "upsample_logits":
                logits, target = resize_to(aux.logits.float(), label.shape[1:]), label
            else:
                logits, target = aux.logits, nearest_label(label, aux.logits.shape[2:])
            parts["aux"] = parts["aux"] + aux_weight * self._weighted(self._losses(logits, target))
        return {"loss": total + parts["aux"] if output.aux else total, **parts}

    def _losses(self, logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: loss(logits, label) for name, (_, loss) in self.losses.items()}

    def _weighted(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([weight * parts[name] for name, (weight, _) in self.losses.items()]).sum()

    def predict(self, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """Logits `[B, K, H, W]`, float32, of images in one piece or in windows, averaged over flips and scales."""
        run: Predict = model
        if self.window is not None:
            run = partial(sliding_logits, model, stitch_device=self.stitch_device, **self.window)
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

    def class_map(self, model: nn.Module, image: torch.Tensor, prepare: Predict | None = None) -> torch.Tensor:
        """The class of each pixel of one image, `[H, W]` uint8 on the CPU, without ever holding its logits.

        Equal to that of `predict`, except that each window is flipped by itself.

        Args:
            model: in evaluation mode.
            image: `[1, C, H, W]`, of any type that `prepare` takes.
            prepare: from a cut-out of the image to the input of the model.

        Raises:
            ValueError: the task has no window, or has scales, which need the whole image.
        """
        if self.window is None or self.scales:
            raise ValueError("class_map works in windows of the image at its own size")
        run: Predict = partial(_both_classes, model)
        if self.flips:
            run = with_flips(run, self.flips)
        return class_map(run, image, len(self.classes), prepare=prepare, **self.window)

    def meter(self) -> SegmentationMeter:
        """Counts pixels, and scores cases."""
        return SegmentationMeter(self)


class Image(NamedTuple):
    """One image: its row of scores, its scores as a case, and per class the pixels that are right, of the truth and of the guess."""

    row: dict[str, Any]
    case: list[CaseScore]
    areas: np.ndarray


class SegmentationMeter:
    """One confusion matrix of a split, a row of scores per image and, of cases, their scores.

    Predictions are resized to the label, so that scores are those of the original size.
    """

    def __init__(self, task: Segmentation) -> None:
        self.task = task
        self.matrix = ConfusionMatrix(len(task.classes))
        self.images: list[Image] = []

    def update(self, prediction: torch.Tensor, batch: Batch) -> None:
        """Take in logits `[B, K, h, w]` and labels `[B, H, W]`."""
        task = self.task
        for logits, label, index in zip(prediction, batch["label"], batch["index"], strict=True):
            guess = resized_classes(logits[None], (label.shape[0], label.shape[1])).numpy()
            truth = label.cpu().numpy()
            self.matrix.update(guess, truth)
            alone = ConfusionMatrix(len(task.classes), boundary=0)
            alone.update(guess, truth)
            scores, _ = alone.scores()
            row = {"index": int(index), "miou": scores["miou"], "aacc": scores["aacc"]}
            case: list[CaseScore] = []
            if task.per_case:
                case = case_scores(guess, truth, len(task.classes), **task.case)
                scores, _ = summarise([case])
                row |= {name: scores[name] for name in ("dice", "iou", "hd95", "nsd", "n_missed")}
            areas = np.stack([alone.counts.diagonal(), alone.counts.sum(1), alone.counts.sum(0)])
            self.images.append(Image(row, case, areas))

    def state(self) -> tuple[ConfusionMatrix, list[Image]]:
        return self.matrix, self.images

    def merge(self, states: list[tuple[ConfusionMatrix, list[Image]]]) -> None:
        for matrix, images in states:
            self.matrix.add(matrix)
            self.images += images

    def result(self) -> Scores:
        """Metrics of pixels and cases; in rows of classes, means over cases are `case_dice`, `case_iou`, `hd95` and so on.

        Intervals (of `miou`, and of `dice` over cases) are the 2.5th to 97.5th percentile over images drawn with replacement.
        """
        task = self.task
        images = sorted(self.images, key=lambda image: int(image.row["index"]))
        metrics, rows = self.matrix.scores(task.classes)
        if task.per_case:
            case_metrics, case_rows = summarise([image.case for image in images], task.classes)
            metrics |= case_metrics
            for row, case in zip(rows, [{}, *case_rows], strict=False):  # the background is not scored; without cases nothing is
                row |= {name: case.get(key) for name, key in CASE_COLUMNS.items()}
        return Scores(metrics, rows, [image.row for image in images], _intervals(images, task.per_case))


def _intervals(images: list[Image], per_case: bool) -> dict[str, tuple[float, float]]:
    if len(images) < LEAST_RESAMPLED:
        return {}
    draws = np.random.default_rng(0).multinomial(len(images), np.full(len(images), 1 / len(images)), size=1000).astype(float)
    areas = np.stack([image.areas for image in images]).astype(float)  # images, 3, classes
    hits, truth, guess = (draws @ areas[:, kind] for kind in range(3))
    intervals: dict[str, tuple[float, float] | None] = {"miou": _percentiles(hits, truth + guess - hits)}
    if per_case:
        dice = np.array([[np.nan if score.dice is None else score.dice for score in image.case] for image in images])
        intervals["dice"] = _percentiles(draws @ np.nan_to_num(dice), draws @ np.isfinite(dice).astype(float))
    return {name: bounds for name, bounds in intervals.items() if bounds is not None}


def _percentiles(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float] | None:
    """Of the mean over classes of parts / wholes `[draws, classes]`; classes with nothing in a draw are left out of its mean."""
    defined = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(parts), where=defined)
    drawn = defined.any(1)
    if not drawn.any():
        return None
    low, high = np.percentile(ratios[drawn].sum(1) / defined[drawn].sum(1), (2.5, 97.5))
    return float(low), float(high)


def output_weights(aux: Sequence[float], rule: DeepSupervision) -> list[float]:
    """Weights of the main and the auxiliary outputs: 1 and their own, divided by the sum for nnU-Net's rule."""
    weights = [1.0, *aux]
    return weights if rule == "upsample_logits" else [weight / sum(weights) for weight in weights]


def _bounded_label(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels as they are, or of at most `LOSS_VALUES` logits."""
    excess = num_classes * label[0].numel() / LOSS_VALUES
    return label if excess <= 1 else nearest_label(label, [max(1, int(side / excess**0.5)) for side in label.shape[1:]])


def nearest_label(label: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels `[B, H, W]` at the centres of the pixels of another size."""
    return F.interpolate(label[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()


def balanced_weights(pixel_counts: np.ndarray) -> list[float]:
    """Weights with which every class has the same share of the loss; 1 for a class without pixels."""
    counts = np.asarray(pixel_counts, float)
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.where(present, counts, 1)), 1.0).tolist()


def _bound(name: str, arguments: Mapping[str, Any], classes: list[str], pixel_counts: np.ndarray | None) -> Callable[..., torch.Tensor]:
    """A loss with its arguments."""
    if name not in LOSSES:
        raise UserError("VA-C002", f'there is no loss "{name}"', fix=f"choose of {', '.join(LOSSES)}")
    known = [key for key in inspect.signature(LOSSES[name]).parameters if key not in ("logits", "label")]
    for key in arguments:
        if key not in known:
            raise UserError("VA-C002", f'loss "{name}" has no setting "{key}"', fix=f"it has {', '.join(known)}")
    given = dict(arguments)
    if "class_weights" in given:
        given["class_weights"] = _class_weights(given["class_weights"], classes, pixel_counts)
    return partial(LOSSES[name], **given)


def _class_weights(weights: ClassWeights | None, classes: list[str], pixel_counts: np.ndarray | None) -> torch.Tensor | None:
    if weights is None or weights == "none":
        return None
    if weights == "balanced":
        if pixel_counts is None:
            raise ValueError("balanced class weights need pixel_counts")
        weights = balanced_weights(pixel_counts)
    if len(weights) != len(classes):
        raise UserError("VA-C002", f"class_weights: expected {len(classes)} numbers, one per class, got {len(weights)}")
    return torch.tensor(weights, dtype=torch.float32)


def _both_classes(model: Predict, image: torch.Tensor) -> torch.Tensor:
    logits = model(image)
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _probabilities(model: Predict, image: torch.Tensor) -> torch.Tensor:
    logits = model(image).float()
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _logits(probabilities: torch.Tensor) -> torch.Tensor:
    """Logits that have these probabilities."""
    tiny = torch.finfo(probabilities.dtype).eps
    return probabilities.clamp_min(tiny).log() if probabilities.shape[1] > 1 else probabilities.logit(tiny)

"""Losses of label maps of any dimension as functions of raw logits and labels.

Logits are `[B, K, ...]`, or `[B, 1, ...]` for foreground against background (the sigmoid equals the
softmax over zero and the logit, so every loss supports both forms); labels are `[B, ...]` int64 of the
same size. Pixels labelled `IGNORE` are excluded. All losses are computed in at least float32, and are zero with zero
gradients if nothing is labelled.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch.nn import functional as F

from visionattn.data.masks.settings import IGNORE
from visionattn.errors import UserError

DeepSupervision = Literal["upsample_logits", "downsample_label"]
ClassWeights = Literal["none", "balanced"] | Sequence[float]
Average = Literal["valid", "all"]  # over labelled pixels, or with ignored pixels counted as a loss of zero


def cross_entropy(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    avg: Average = "valid",
) -> torch.Tensor:
    """Cross-entropy, averaged over pixels, or over their class weights.

    Args:
        logits, label: see the module.
        class_weights: `[K]`, or `[2]` for one channel.
        label_smoothing: share of the target spread over all classes.
        avg: "valid" averages over labelled pixels, as torch does; "all" also counts ignored pixels, the default of
            mmsegmentation (`avg_non_ignore=False`) and the rule behind its published results.
    """
    pixels = _pixel_losses(logits, label, class_weights, label_smoothing)
    valid = label != IGNORE
    if class_weights is None:
        loss = _ratio(pixels.sum(), valid.sum())
    else:
        weights = class_weights.to(pixels)[label.where(valid, 0)]
        loss = _ratio(pixels.sum(), weights.where(valid, 0).sum())
    return loss if avg == "valid" else loss * valid.float().mean()


def binary_cross_entropy(logits: torch.Tensor, label: torch.Tensor, *, pos_weight: float = 1.0) -> torch.Tensor:
    """Binary cross-entropy of each channel against all other classes; `pos_weight` scales the loss of the channel's own class."""
    logits = _wide(logits)
    valid = (label != IGNORE).unsqueeze(1)
    target = _one_hot(label, 2)[:, 1:] if logits.shape[1] == 1 else _one_hot(label, logits.shape[1])
    weight = logits.new_tensor(pos_weight)
    channels = F.binary_cross_entropy_with_logits(logits, target.to(logits), pos_weight=weight, reduction="none")
    return _ratio(channels.where(valid, 0).sum(), valid.sum() * logits.shape[1])


def focal(logits: torch.Tensor, label: torch.Tensor, *, gamma: float = 2.0, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy times (1 - probability of the label) ** gamma, averaged over pixels (Lin et al., arXiv 1708.02002, with softmax)."""
    pixels = _pixel_losses(logits, label)
    # The floor keeps the gradient of the power finite at a probability of 1.
    pixels = (-torch.expm1(-pixels)).clamp_min(1e-8) ** gamma * pixels
    valid = label != IGNORE
    if class_weights is not None:
        pixels = pixels * class_weights.to(pixels)[label.where(valid, 0)]
    return _ratio(pixels.sum(), valid.sum())


def ohem_cross_entropy(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy over only the hard pixels of the batch (online hard example mining).

    Args:
        logits, label: see the module.
        threshold: pixels whose label has a lower probability are hard.
        min_kept: at least this number of pixels per image, the hardest, are kept.
        class_weights: `[K]`; they do not affect hardness.
    """
    pixels = _pixel_losses(logits, label)
    valid = label != IGNORE
    hardness = pixels.detach()[valid]
    if not hardness.numel():
        return pixels.sum()
    least = hardness.topk(max(1, min(min_kept * len(label), hardness.numel()))).values[-1]
    kept = valid & (pixels >= least.clamp_max(-math.log(threshold)))
    weights = kept.to(pixels) if class_weights is None else class_weights.to(pixels)[label.where(kept, 0)] * kept
    return _ratio((pixels * weights).sum(), weights.sum())


def dice(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    per_class: bool = True,
    squared: bool = False,
    batch: bool = False,
    include_background: bool = True,
    smooth: float | tuple[float, float] = 1e-5,
    avg: Average = "valid",
) -> torch.Tensor:
    """1 - soft Dice coefficient (Milletari et al., arXiv 1606.04797), averaged over images and classes.

    The target probabilities of an absent class are zero. Several published definitions are combinations of the arguments:
    MONAI and nnU-Net (`include_background=False`; nnU-Net adds a constant 1) by default, with `batch` if configured;
    TransUNet and DAE-Former `squared=True, batch=True`; mmsegmentation `per_class=False, squared=True, smooth=(0, 2e-3), avg="all"`.

    Args:
        logits, label: see the module. With one channel the foreground is the only class.
        per_class: one coefficient per class; otherwise one over all classes.
        squared: square the probabilities in the denominator.
        batch: one coefficient over all images; otherwise one per image.
        include_background: whether class 0 counts.
        smooth: added to numerator and denominator, or one number for each; keeps absent classes defined.
        avg: "all" keeps the probabilities of ignored pixels in the denominator.
    """
    overlap, predicted, present = _areas(logits, label, squared=squared, avg=avg, include_background=include_background)
    if batch:
        overlap, predicted, present = (area.sum(0, keepdim=True) for area in (overlap, predicted, present))
    if not per_class:
        overlap, predicted, present = (area.sum(1) for area in (overlap, predicted, present))
    above, below = smooth if not isinstance(smooth, (int, float)) else (smooth, smooth)
    return _labelled(1 - (2 * overlap + above) / (predicted + present + below).clamp_min(1e-8), label)


def generalised_dice(logits: torch.Tensor, label: torch.Tensor, *, smooth: float = 1e-5) -> torch.Tensor:
    """Dice with class weights 1 / (pixels in the image)^2 (Sudre et al., arXiv 1707.03237); absent classes weigh as much as the rarest."""
    overlap, predicted, present = _areas(logits, label)
    rarest = present.where(present > 0, math.inf).amin(1, keepdim=True)
    weights = present.where(present > 0, rarest) ** -2  # 0 where nothing is labelled
    above, below = (overlap * weights).sum(1), ((predicted + present) * weights).sum(1)
    return _labelled(1 - (2 * above + smooth) / (below + smooth), label)


def tversky(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    batch: bool = False,
    include_background: bool = True,
    smooth: float = 1e-5,
) -> torch.Tensor:
    """1 - Tversky index, averaged over images and classes (Salehi et al., arXiv 1706.05721).

    Args:
        logits, label: see the module.
        alpha: weight of false positives. With `beta`: 0.5 and 0.5 is Dice, 1 and 1 is Jaccard (IoU).
        beta: weight of false negatives.
        batch, include_background, smooth: see `dice`.
    """
    return _labelled(_tversky(logits, label, alpha, beta, batch, include_background, smooth), label)


def focal_tversky(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    batch: bool = False,
    include_background: bool = True,
    smooth: float = 1e-5,
) -> torch.Tensor:
    """(1 - Tversky index) ** (1 / gamma), averaged over images and classes (Abraham and Khan, arXiv 1810.07842).

    Args:
        logits, label: see the module.
        gamma: above 1, classes that are segmented badly weigh more.
        alpha, beta, batch, include_background, smooth: see `tversky`.
    """
    losses = _tversky(logits, label, alpha, beta, batch, include_background, smooth)
    return _labelled(losses.clamp_min(1e-8) ** (1 / gamma), label)  # the floor keeps the gradient of the power finite at 0


def boundary(logits: torch.Tensor, label: torch.Tensor, *, include_background: bool = False) -> torch.Tensor:
    """Error of the probability times the distance to the boundary, averaged over pixels and classes (Kervadec et al., arXiv 1812.07032).

    It has the gradients of the paper's loss, which differs by a constant: here a perfect prediction loses nothing. Classes that are
    absent from an image, or fill it, have no boundary there and lose nothing. To be added to another loss with a small weight, as
    distances are in pixels, halfway between two pixels at the boundary.

    Args:
        logits, label: see the module.
        include_background: whether class 0 counts. With one channel the foreground is the only class.
    """
    probabilities = _classes(logits).softmax(1)
    truth = _one_hot(label, probabilities.shape[1])
    first = 1 if logits.shape[1] == 1 or not include_background else 0
    errors = (probabilities - truth.to(probabilities)).abs()[:, first:] * boundary_distances(truth[:, first:]).to(probabilities)
    valid = (label != IGNORE).unsqueeze(1)
    return _ratio(errors.where(valid, 0).sum(), valid.sum() * errors.shape[1])


def boundary_distances(masks: torch.Tensor) -> torch.Tensor:
    """Distances in pixels from each pixel of `[B, K, ...]` to the boundary of its mask; 0 where a mask is empty or full."""
    found = np.zeros(masks.shape, np.float32)
    for index, mask in np.ndenumerate(masks.flatten(2).any(2).cpu().numpy()):
        inside = masks[index].cpu().numpy()
        if mask and not inside.all():
            found[index] = distance_transform_edt(inside) + distance_transform_edt(~inside) - 0.5
    return torch.from_numpy(found).to(masks.device)


def lovasz(logits: torch.Tensor, label: torch.Tensor, *, per_image: bool = False) -> torch.Tensor:
    """Lovasz-softmax: a convex surrogate of 1 - IoU (Berman et al., arXiv 1705.08790), averaged over the classes that are present.

    Args:
        logits, label: see the module. With one channel the foreground is the only class, and counts even if absent.
        per_image: average over images; otherwise use the batch as a whole.
    """
    one_channel = logits.shape[1] == 1
    probabilities = _classes(logits).softmax(1).movedim(1, -1)  # B ... K
    parts = list(zip(probabilities, label, strict=True)) if per_image else [(probabilities, label)]
    losses = []
    for probability, truth in parts:
        valid = truth != IGNORE
        flat, target = probability[valid], truth[valid]
        if not len(target):
            continue
        present = [1] if one_channel else target.unique().tolist()
        losses.append(torch.stack([_lovasz_class(flat[:, index], target == index) for index in present]).mean())
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0


def _lovasz_class(probability: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """Weight the sorted errors by their contribution to the Jaccard loss (algorithm 1), in closed form: float32 loses the differences."""
    errors, order = (foreground.to(probability) - probability).abs().sort(descending=True)
    truth = foreground[order]
    if not truth.any():
        return errors[0]  # a single false positive raises the loss from 0 to 1
    intersection = (truth.sum() - truth.cumsum(0)).to(errors)
    union = (truth.sum() + (~truth).cumsum(0)).to(errors)
    return errors @ ((intersection / (union - 1).clamp_min(1)).where(~truth, 1) / union)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _classes(logits: torch.Tensor) -> torch.Tensor:
    """Return logits per class; a single channel becomes background and foreground."""
    logits = _wide(logits)
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _pixel_losses(
    logits: torch.Tensor, label: torch.Tensor, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of each pixel, 0 if ignored. Not reduced by torch: its sum over pixels is not deterministic on CUDA."""
    logits = _classes(logits)
    weight = None if class_weights is None else class_weights.to(logits)
    return F.cross_entropy(logits, label, weight=weight, ignore_index=IGNORE, label_smoothing=label_smoothing, reduction="none")


def _one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Encode labels as bool `[B, classes, ...]`; ignored pixels are all False."""
    index = torch.arange(classes, device=label.device)
    return label.unsqueeze(1) == index.view(-1, *[1] * (label.ndim - 1))


def _areas(
    logits: torch.Tensor, label: torch.Tensor, *, squared: bool = False, avg: Average = "valid", include_background: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum over pixels, each `[B, K]`: probabilities of the true class, all probabilities, and pixels of the class."""
    first = 1 if logits.shape[1] == 1 or not include_background else 0
    probabilities = _classes(logits).softmax(1)
    truth = _one_hot(label, probabilities.shape[1])[:, first:].flatten(2)
    probabilities = probabilities[:, first:].flatten(2)
    overlap = probabilities.where(truth, 0).sum(2)
    if squared:
        probabilities = probabilities**2
    if avg == "valid":
        probabilities = probabilities.where((label != IGNORE).unsqueeze(1).flatten(2), 0)
    return overlap, probabilities.sum(2), truth.sum(2).to(overlap)


def _tversky(
    logits: torch.Tensor, label: torch.Tensor, alpha: float, beta: float, batch: bool, include_background: bool, smooth: float
) -> torch.Tensor:
    """1 - Tversky index per image (one over all with `batch`) and class."""
    overlap, predicted, present = _areas(logits, label, include_background=include_background)
    if batch:
        overlap, predicted, present = (area.sum(0, keepdim=True) for area in (overlap, predicted, present))
    union = overlap + alpha * (predicted - overlap) + beta * (present - overlap)
    return 1 - (overlap + smooth) / (union + smooth)


def _labelled(losses: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Average `losses`; zero if no pixel is labelled."""
    return losses.mean() * (label != IGNORE).any()


def _ratio(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Divide; zero instead of NaN if the count is zero."""
    return total / count.to(total).clamp_min(torch.finfo(total.dtype).tiny)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
    "ohem_cross_entropy": ohem_cross_entropy,
    "dice": dice,
    "generalised_dice": generalised_dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "boundary": boundary,
    "lovasz": lovasz,
}


def balanced_weights(pixel_counts: np.ndarray) -> list[float]:
    """Weights that give every class the same share of the loss; 1 for a class without pixels."""
    counts = np.asarray(pixel_counts, float)
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.where(present, counts, 1)), 1.0).tolist()


def bind_loss(name: str, arguments: Mapping[str, Any], num_classes: int, pixel_counts: np.ndarray | None) -> Callable[..., torch.Tensor]:
    """A loss with its arguments, of logits and labels.

    Args:
        pixel_counts: pixels of each class in the training set, `[classes]`, for balanced class weights.

    Raises:
        UserError: VA-C002, an unknown loss, or arguments it does not take.
    """
    if name not in LOSSES:
        raise UserError("VA-C002", f'there is no loss "{name}"', fix=f"choose one of {', '.join(LOSSES)}")
    known = [key for key in inspect.signature(LOSSES[name]).parameters if key not in ("logits", "label")]
    for key in arguments:
        if key not in known:
            raise UserError("VA-C002", f'loss "{name}" has no setting "{key}"', fix=f"it has {', '.join(known)}")
    given = dict(arguments)
    if "class_weights" in given:
        given["class_weights"] = _class_weights(given["class_weights"], num_classes, pixel_counts)
    return partial(LOSSES[name], **given)


def _class_weights(weights: ClassWeights | None, num_classes: int, pixel_counts: np.ndarray | None) -> torch.Tensor | None:
    if weights is None or weights == "none":
        return None
    if weights == "balanced":
        if pixel_counts is None:
            raise ValueError("balanced class weights need pixel_counts")
        weights = balanced_weights(pixel_counts)
    if len(weights) != num_classes:
        raise UserError("VA-C002", f"class_weights: expected {num_classes} numbers, one per class, got {len(weights)}")
    return torch.tensor(weights, dtype=torch.float32)


def output_weights(aux: Sequence[float], rule: DeepSupervision) -> list[float]:
    """Weights of main and auxiliary outputs: 1 and the given ones, divided by their sum for nnU-Net's rule."""
    weights = [1.0, *aux]
    return weights if rule == "upsample_logits" else [weight / sum(weights) for weight in weights]


def nearest_label(label: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Sample labels `[B, ...]` at the pixel centres of another size."""
    return F.interpolate(label[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()

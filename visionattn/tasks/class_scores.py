"""Metrics of tasks that give a class, or several, to each sample, over all samples of a split at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score, roc_curve

from visionattn.names import shown
from visionattn.spill import Rows, Table, blocks
from visionattn.tasks.base import Confidence, Confusion, Evaluation, Metrics, Panel, Scores, Verdict
from visionattn.tasks.batch import Batch
from visionattn.tasks.means import mean, ratio

UNSURE = "unsure"  # the answer where no class reaches its threshold


@dataclass(frozen=True)
class Guesses:
    """Probabilities and truth of every image of a split, in its order.

    Attributes:
        probabilities: `[N, classes]`.
        labels: `[N]` class indices, or `[N, classes]` 0/1.
        indices: `[N]`, positions in the split.
        thresholds: of each class; None for the usual answer.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    thresholds: np.ndarray | None = None


class ClassificationMeter:
    """Keeps the probabilities of all images, if they are many on the disk: AUROC and the confusion matrix need them at once.

    Args:
        thresholds: of each class, see `answer`.
        specificity, kappa: as in `class_metrics`.
    """

    def __init__(
        self,
        classes: list[str],
        *,
        multi_label: bool,
        thresholds: np.ndarray | None = None,
        specificity: float | None = None,
        kappa: str = "none",
    ) -> None:
        self.classes, self.multi_label, self.thresholds = classes, multi_label, thresholds
        self.specificity, self.kappa = specificity, kappa
        self.indices = array("q")
        self.rows: Rows[dict[str, Any]] = Rows()
        self.probabilities, self.labels = Table(), Table()

    def update(self, predictions: torch.Tensor, batch: Batch) -> None:
        """Add logits `[B, classes]` and labels."""
        found = probabilities(predictions, multi_label=self.multi_label).cpu().numpy()
        labels = batch["label"].cpu().numpy()
        self.indices.extend(batch.indices)
        self.rows.extend(self._rows(found, labels, batch))
        self.probabilities.append(found)
        self.labels.append(labels)

    def state(self) -> Any:
        return self.indices, self.rows, self.probabilities, self.labels

    def merge(self, states: list[Any]) -> None:
        for indices, rows, found, labels in states:
            self.indices.extend(indices)
            self.rows.extend(rows)
            self.probabilities.append(found.array())
            self.labels.append(labels.array())

    def result(self) -> Scores:
        """Scores with the interval of top-1, and `Guesses` as details."""
        order = np.argsort(self.indices, kind="stable")
        guesses = Guesses(self.probabilities.ordered(order), self.labels.ordered(order), np.array(self.indices)[order], self.thresholds)
        metrics, per_class = class_metrics(
            guesses.probabilities,
            guesses.labels,
            self.classes,
            multi_label=self.multi_label,
            thresholds=self.thresholds,
            specificity=self.specificity,
            kappa=self.kappa,
        )
        top1 = metrics.get("top1")
        intervals = {} if top1 is None else {"top1": wilson_interval(round(top1 * len(order)), len(order))}
        columns = [f"p({name})" for name in self.classes]
        cases = self.rows.reordered(order)
        return Scores(metrics, per_class, cases, intervals, self._remarks(), (columns, guesses.probabilities), details=guesses)

    def _remarks(self) -> list[str]:
        """Describe the metrics whose definition depends on settings."""
        remarks = []
        if self.specificity is not None:
            of = shown(self.classes[1]) if is_binary(self.classes, multi_label=self.multi_label) else "the mean of all classes"
            remarks.append(
                f"sens@spec: sensitivity at a specificity of at least {100 * self.specificity:g} %, each class against the rest; "
                f"in the summary that of {of}"
            )
        if self.kappa in ("linear", "quadratic"):
            order = shown(", ".join(self.classes[:8])) + (", ..." if len(self.classes) > 8 else "")
            remarks.append(f"kappa with {self.kappa} weights, classes in the order {order}")
        return remarks

    def _rows(self, found: np.ndarray, labels: np.ndarray, batch: Batch) -> Iterator[dict[str, Any]]:
        classes = self.classes
        for index, name, case, label, values in zip(batch.indices, batch.ids, batch.cases, labels, found, strict=True):
            truth = (";".join(names_of(label, classes)) or "none") if self.multi_label else classes[int(label)]
            guess = answer(values, classes, self.thresholds, multi_label=self.multi_label)
            row = {"index": index, "id": name, "case": case}
            yield row | {"label": truth, "prediction": guess, "probability": float(values.max())}


def probabilities(logits: torch.Tensor, *, multi_label: bool) -> torch.Tensor:
    """Probabilities `[B, classes]`, float32."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(-1)


def class_metrics(
    found: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    *,
    multi_label: bool = False,
    thresholds: np.ndarray | None = None,
    specificity: float | None = None,
    kappa: str = "none",
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics of a whole split and a row per class; None where a metric is not defined.

    `sensitivity` is that of the second of two classes, else the mean of all.

    Args:
        found: probabilities `[N, classes]`.
        labels: `[N]` class indices, or `[N, classes]` 0/1.
        thresholds: of each class: which labels are guessed, or which answers count as sure.
        specificity: at which `sensitivity` is measured; None leaves it out.
        kappa: weights of Cohen's kappa, which needs single labels: unweighted, linear or quadratic; none leaves it out.
    """
    hits, support, guessed = np.zeros((3, len(classes)), np.int64)
    whole = first = among = 0  # images whose labels are all right; whose label is first; among the first five
    for part in blocks(*found.shape):
        truth = labels[part]
        if multi_label:
            truth, guess = truth > 0, found[part] >= (0.5 if thresholds is None else thresholds)
            hits += (truth & guess).sum(0)
            support += truth.sum(0)
            guessed += guess.sum(0)
            whole += int((truth == guess).all(1).sum())
        else:
            guess = found[part].argmax(1)
            hits += np.bincount(truth[guess == truth], minlength=len(classes))
            support += np.bincount(truth, minlength=len(classes))
            guessed += np.bincount(guess, minlength=len(classes))
            correct = np.argsort(-found[part], axis=1, kind="stable")[:, :5] == truth[:, None]
            first += int(correct[:, 0].sum())
            among += int(correct.any(1).sum())
    aurocs, precisions, sensitivities = _ranked_metrics(found, labels, support, multi_label=multi_label, specificity=specificity)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(classes):
        recall = ratio(hits[index], support[index])
        precision = ratio(hits[index], guessed[index])
        f1 = ratio(2 * hits[index], support[index] + guessed[index])
        facts = {"class": name, "support": int(support[index]), "precision": precision, "recall": recall, "f1": f1}
        rows.append(facts | {"auroc": aurocs[index]} | ({} if specificity is None else {"sensitivity": sensitivities[index]}))
    common: Metrics = {
        "balanced_accuracy": mean([row["recall"] for row in rows]),
        # A class without images has no F1 to average, even if it was guessed.
        "macro_f1": mean([row["f1"] for row in rows if row["support"]]),
        "auroc": mean(aurocs),
    }
    if specificity is not None:
        common["sensitivity"] = sensitivities[1] if is_binary(classes, multi_label=multi_label) else mean(sensitivities)
    if multi_label:
        return {"exact_match": ratio(whole, len(found)), "mean_average_precision": mean(precisions), **common}, rows
    single: Metrics = {"top1": ratio(first, len(found)), "top5": ratio(among, len(found)), **common}
    single["ece"] = calibration_error(confidence_bins(found, labels))
    if kappa != "none":
        single["kappa"] = cohen_kappa(confusion_matrix(found, labels), None if kappa == "unweighted" else kappa)
    return single | ({} if thresholds is None else _answered(found, labels, thresholds)), rows


def _answered(found: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> Metrics:
    """The share of images whose most probable class reaches its threshold, and top-1 among them."""
    answered = right = 0
    for part in blocks(*found.shape):
        guess = found[part].argmax(1)
        sure = found[part].max(1) >= thresholds[guess]
        answered += int(sure.sum())
        right += int((sure & (guess == labels[part])).sum())
    return {"answered": ratio(answered, len(found)), "answered_top1": ratio(right, answered)}


def confidence_bins(found: np.ndarray, labels: np.ndarray, count: int = 15) -> Confidence:
    """Sort images into bins of equal width by their largest probability; bin m holds those above (m - 1) / count up to m / count.

    Args:
        found: probabilities `[N, classes]`.
        labels: `[N]` class indices.
    """
    bins = Confidence(*np.zeros((3, count)))
    for part in blocks(*found.shape):
        confidence = found[part].max(1).astype(np.float64)
        place = np.clip(np.ceil(confidence * count).astype(np.int64) - 1, 0, count - 1)
        right = found[part].argmax(1) == labels[part]
        for total, weight in zip(bins, (None, right, confidence), strict=True):
            total += np.bincount(place, weight, count)
    return bins


def calibration_error(bins: Confidence) -> float | None:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3): the mean distance of accuracy and confidence, by images."""
    return ratio(float(np.abs(bins.right - bins.total).sum()), float(bins.answers.sum()))


def class_verdicts(evaluation: Evaluation, guesses: Guesses, classes: Sequence[str], *, fittable: bool = True) -> list[Verdict]:
    """Compare with always giving one answer, name the classes that are hardly found, and judge the probabilities.

    Args:
        fittable: whether the task fits a temperature.
    """
    rows, metrics, found = evaluation.scores.per_class, evaluation.metrics, []
    top1, ece = metrics.get("top1"), metrics.get("ece")
    if top1 is not None:
        support = [row["support"] for row in rows]
        largest = int(np.argmax(support))
        share = support[largest] / max(sum(support), 1)
        constant = f'always answering "{shown(classes[largest])}" would be right for {100 * share:.1f} %'
        found.append(Verdict(top1 > share, f"right for {100 * top1:.1f} %; {constant}"))
    weak = sorted((row["recall"], row["class"]) for row in rows if row["recall"] is not None and row["recall"] < 0.5)
    if weak:
        named = ", ".join(f"{shown(name)} ({100 * recall:.0f} %)" for recall, name in weak[:4])
        more = f" and {len(weak) - 4} more" if len(weak) > 4 else ""
        found.append(Verdict(False, f"fewer than half of these classes' samples are found: {named}{more}"))
    elif any(row["support"] for row in rows):
        found.append(Verdict(True, "at least half of the samples of every class are found"))
    absent = [row["class"] for row in rows if not row["support"]]
    if absent:
        named = shown(", ".join(absent[:4])) + (" ..." if len(absent) > 4 else "")
        found.append(
            Verdict(False, f"nothing is known about {len(absent)} of {len(rows)} classes, of which the split has no sample: {named}")
        )
    if ece is not None:
        bins = confidence_bins(guesses.probabilities, guesses.labels)
        sure, right = (float(values.sum()) / max(float(bins.answers.sum()), 1) for values in (bins.total, bins.right))
        text = f"on average {100 * sure:.0f} % sure of its answers, of which {100 * right:.0f} % are right"
        text += f" (calibration error {100 * ece:.1f} %)"
        found.append(Verdict(ece <= 0.05, text, "visionattn eval RUN --calibrate" if ece > 0.05 and fittable else ""))
    return found


def class_panels(evaluation: Evaluation, guesses: Guesses, classes: list[str], unit: str, accuracy: str) -> list[Panel]:
    """The confusion matrix and the reliability diagram, of single labels.

    Args:
        unit: what a sample is, in the plural.
        accuracy: what the task calls it.
    """
    from visionattn.figures import confusion_figure, reliability_figure  # matplotlib takes long to import

    counts = confusion_matrix(guesses.probabilities, guesses.labels)
    bins = confidence_bins(guesses.probabilities, guesses.labels)
    split, metrics = f"{evaluation.split}: {evaluation.count} {unit}", evaluation.metrics
    title = f"{split}, {accuracy} {100 * (metrics['top1'] or 0):.2f} %"
    reliability = f"{split}, ECE {100 * (metrics['ece'] or 0):.2f} %"
    return [
        Panel(
            "confusion",
            "Confusion matrix",
            confusion_figure(counts, classes, title, counts.astype(str)),
            "Each row is a true class, each column what the model answered: right answers are on the diagonal.",
            Confusion(counts, classes, unit),
        ),
        Panel(
            "reliability",
            "Reliability",
            reliability_figure(bins.answers, bins.right, bins.total, reliability, unit),
            "How far the probabilities can be believed: of the answers that the model is 80 % sure of, 80 % should be right. Below "
            "the dashed line it is too sure of itself, above it not sure enough.",
            bins,
        ),
    ]


def _ranked_metrics(
    found: np.ndarray, labels: np.ndarray, support: np.ndarray, *, multi_label: bool, specificity: float | None
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """AUROC of each class; of several labels per image the average precision; the sensitivity at a specificity, if one is given."""
    aurocs: list[float | None] = []
    precisions: list[float | None] = []
    sensitivities: list[float | None] = []
    for part in blocks(found.shape[1], len(found)):
        for index, values in enumerate(np.ascontiguousarray(found[:, part].T), part.start):
            truth = labels[:, index] > 0 if multi_label else labels == index
            defined = 0 < support[index] < len(truth)
            aurocs.append(float(roc_auc_score(truth, values)) if defined else None)
            sensitivities.append(sensitivity_at(truth, values, specificity) if defined and specificity is not None else None)
            precisions.append(float(average_precision_score(truth, values)) if multi_label and support[index] else None)
    return aurocs, precisions, sensitivities


def is_binary(classes: Sequence[str], *, multi_label: bool) -> bool:
    """Whether one class excludes the other, so that the second stands for both."""
    return len(classes) == 2 and not multi_label


def sensitivity_at(truth: np.ndarray, values: np.ndarray, specificity: float) -> float:
    """Largest sensitivity of a threshold on the values whose specificity is at least this.

    Args:
        truth: `[N]`, bool, of both kinds.
    """
    false_rate, true_rate, _ = roc_curve(truth, values, drop_intermediate=False)
    return float(true_rate[false_rate <= 1 - specificity + 1e-12].max())


def cohen_kappa(counts: np.ndarray, weights: str | None) -> float | None:
    """Cohen's kappa of counts `[true class, predicted class]`; None if truth and prediction are one class throughout.

    Args:
        weights: of a disagreement: None, linear or quadratic (Cohen 1968), by the distance of the classes.
    """
    if counts.trace() == counts.sum() and np.count_nonzero(counts) <= 1:
        return None
    truth, guess = np.nonzero(counts)
    found = cohen_kappa_score(truth, guess, labels=np.arange(len(counts)), weights=weights, sample_weight=counts[truth, guess])
    return float(found)


def names_of(vector: np.ndarray, classes: Sequence[str], thresholds: np.ndarray | None = None) -> list[str]:
    """Names of the classes with a value of at least their threshold, by default one half."""
    return [classes[number] for number in np.flatnonzero(vector >= (0.5 if thresholds is None else thresholds)).tolist()]


def answer(found: np.ndarray, classes: Sequence[str], thresholds: np.ndarray | None, *, multi_label: bool) -> str:
    """The answer for an image with these probabilities: names that reach their thresholds, or the most probable class, or `unsure`."""
    if multi_label:
        return ";".join(names_of(found, classes, thresholds))
    best = int(found.argmax())
    return UNSURE if thresholds is not None and found[best] < thresholds[best] else classes[best]


def confusion_matrix(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts `[true class, predicted class]` of single labels, from probabilities `[N, classes]`."""
    classes = found.shape[1]
    return np.bincount(labels * classes + found.argmax(1), minlength=classes**2).reshape(classes, classes)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share of independent cases (Wilson 1927)."""
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)

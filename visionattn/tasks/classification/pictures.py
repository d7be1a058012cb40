"""Pictures of classification: images with their labels and predictions, the confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from visionattn.figures import picture_grid
from visionattn.names import shown
from visionattn.spill import blocks
from visionattn.tasks.base import Evaluation, Example, Panel, Pictures, Verdict
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_scores import Guesses, class_panels, class_verdicts, names_of
from visionattn.tasks.images import LabelledImages, readable_picture, unnormalise


class ClassificationPictures(Pictures):
    """Pictures with the names of these classes."""

    worst_caption = "truth -> prediction, with its probability"

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def batch_figure(self, model: Any, batch: Batch, count: int) -> Figure | None:
        """Augmented images with their classes; None if none could be read."""
        if not len(batch):
            return None
        pictures = [unnormalise(image, model.pretrained_cfg) for image in batch["image"][:count]]
        return picture_grid(pictures, [label_text(label, self.classes) for label in batch["label"][:count].numpy()])

    def predictions_figure(self, evaluation: Evaluation, dataset: LabelledImages, count: int) -> Figure | None:
        """Images spread over the split, titled truth -> guess; green where right, red where wrong."""
        rows = np.unique(np.linspace(0, evaluation.count - 1, min(count, evaluation.count)).astype(int))
        guesses: Guesses = evaluation.scores.details
        pictures, titles, colors = [], [], []
        for row in rows:
            picture = readable_picture(dataset.image_set.images, int(guesses.indices[row]))
            if picture is None:
                continue
            truth, guess = label_text(guesses.labels[row], self.classes), _guess_text(guesses, row, self.classes)
            right = _is_right(guesses, row)
            pictures.append(picture)
            titles.append(guess if right else f"{truth} ->\n{guess}")
            colors.append("green" if right else "firebrick")
        return picture_grid(pictures, titles, colors) if pictures else None

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        """The confusion matrix and the reliability diagram, of single labels."""
        guesses: Guesses = evaluation.scores.details
        return [] if guesses.labels.ndim == 2 else class_panels(evaluation, guesses, self.classes, "images", "top-1")

    def worst(self, evaluation: Evaluation, dataset: LabelledImages, count: int) -> list[Example]:
        """Wrong images, the least probability of the truth first."""
        guesses: Guesses = evaluation.scores.details
        return self._examples(guesses, dataset, _ranked_rows(guesses, count, right=False))

    def best(self, evaluation: Evaluation, dataset: LabelledImages, count: int) -> list[Example]:
        """Right images, the largest probability of the truth first; of each class one before a second of any."""
        guesses: Guesses = evaluation.scores.details
        return self._examples(guesses, dataset, _ranked_rows(guesses, count, right=True))

    def verdicts(self, evaluation: Evaluation) -> list[Verdict]:
        return class_verdicts(evaluation, evaluation.scores.details, self.classes)

    def _examples(self, guesses: Guesses, dataset: LabelledImages, rows: list[int]) -> list[Example]:
        cases = []
        for rank, row in enumerate(rows):
            picture = readable_picture(dataset.image_set.images, int(guesses.indices[row]))
            if picture is not None:
                truth, guess = label_text(guesses.labels[row], self.classes), _guess_text(guesses, row, self.classes)
                right = _is_right(guesses, row)
                cases.append(Example(f"{rank + 1:02d}_{truth}_as_{guess}", guess if right else f"{truth} ->\n{guess}", picture))
        return cases


def label_text(label: Any, classes: list[str], thresholds: np.ndarray | None = None) -> str:
    """Class name of an index, or the names of all classes in a vector of zeros and ones or of probabilities, in one line."""
    if np.ndim(label) == 0:
        return shown(classes[int(label)])
    return shown(", ".join(names_of(label, classes, thresholds))) or "none"


def _guess_text(guesses: Guesses, row: int, classes: list[str]) -> str:
    found = guesses.probabilities[row]
    if guesses.labels.ndim == 2:
        return label_text(found, classes, guesses.thresholds)
    return f"{shown(classes[int(found.argmax())])} {found.max():.2f}"


def _is_right(guesses: Guesses, row: int) -> bool:
    found, label = guesses.probabilities[row], guesses.labels[row]
    if guesses.labels.ndim == 2:
        return bool(((found >= (0.5 if guesses.thresholds is None else guesses.thresholds)) == (label > 0.5)).all())
    return bool(found.argmax() == label)


def _ranked_rows(guesses: Guesses, count: int, *, right: bool) -> list[int]:
    """Rows of wrong predictions, the least probability of the truth first; or of right ones, the largest first and no class twice
    before the others have had their turn."""
    probabilities, labels = guesses.probabilities, guesses.labels
    if labels.ndim == 1:
        truth = probabilities[np.arange(len(labels)), labels]
        wrong = probabilities.argmax(1) != labels
    else:
        truth = np.concatenate([1 - np.abs(probabilities[part] - labels[part]).max(1) for part in blocks(*labels.shape)])
        wrong = truth < 0.5
    if not right:
        return [int(row) for row in np.argsort(truth, kind="stable") if wrong[row]][:count]
    rows = [int(row) for row in np.argsort(-truth, kind="stable") if not wrong[row]]
    turns: dict[Any, int] = {}
    ranked = []
    for place, row in enumerate(rows):
        label = labels[row].tobytes()
        turns[label] = turns.get(label, 0) + 1
        ranked.append((turns[label], place, row))
    return [row for _, _, row in sorted(ranked)[:count]]

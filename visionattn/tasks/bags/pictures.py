"""Pictures of bags: the confusion matrix, and attention over the instances of the best and the worst bags."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from visionattn.figures import picture_grid
from visionattn.names import shown
from visionattn.tasks.bags.heatmap import heat_map
from visionattn.tasks.bags.scores import BagDetails
from visionattn.tasks.base import Evaluation, Example, Panel, Pictures, Verdict
from visionattn.tasks.class_scores import class_panels, class_verdicts

_SIDE = 160  # pixels of a picture
_MOST = 100_000  # instances of a bag that are drawn


class BagPictures(Pictures):
    """Pictures with the names of these classes."""

    worst_caption = (
        "truth -> prediction, with its probability; attention over the instances, from dark (none) to bright (the most of the bag)"
    )

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def predictions_figure(self, evaluation: Evaluation, dataset: Any, count: int) -> Figure | None:
        """Attention in bags spread over the split."""
        rows = np.unique(np.linspace(0, evaluation.count - 1, min(count, evaluation.count)).astype(int)).tolist()
        return self._figure(evaluation, rows)

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        """The confusion matrix, the reliability diagram, and attention in the bags with the largest probability of their class."""
        details: BagDetails = evaluation.scores.details
        best = self._figure(evaluation, self._best_rows(details)[:8])
        return [
            *class_panels(evaluation, details.guesses, self.classes, "bags", "accuracy"),
            Panel("attention", "Attention in the bags of the most certain right answers", best, in_report=False),
        ]

    def worst(self, evaluation: Evaluation, dataset: Any, count: int) -> list[Example]:
        """Attention in wrongly classified bags, the least probability of the truth first."""
        details: BagDetails = evaluation.scores.details
        wrong = details.guesses.probabilities.argmax(1) != details.guesses.labels
        rows = [int(row) for row in np.argsort(self._truth(details), kind="stable") if wrong[row]][:count]
        return self._examples(evaluation, rows)

    def best(self, evaluation: Evaluation, dataset: Any, count: int) -> list[Example]:
        """Attention in rightly classified bags, the largest probability of the truth first."""
        details: BagDetails = evaluation.scores.details
        right = details.guesses.probabilities.argmax(1) == details.guesses.labels
        return self._examples(evaluation, [row for row in self._best_rows(details) if right[row]][:count])

    def verdicts(self, evaluation: Evaluation) -> list[Verdict]:
        return class_verdicts(evaluation, evaluation.scores.details.guesses, self.classes, fittable=False)

    def _examples(self, evaluation: Evaluation, rows: list[int]) -> list[Example]:
        details: BagDetails = evaluation.scores.details
        names = [f"{rank:02d}_{evaluation.scores.per_case[row]['id']}" for rank, row in enumerate(rows, 1)]
        return [Example(name, self._title(details, row), self._picture(details, row)) for name, row in zip(names, rows, strict=True)]

    def _best_rows(self, details: BagDetails) -> list[int]:
        """Bags by the probability of their class, the largest first."""
        rows: list[int] = np.argsort(-self._truth(details), kind="stable").tolist()
        return rows

    def _figure(self, evaluation: Evaluation, rows: list[int]) -> Figure:
        details: BagDetails = evaluation.scores.details
        right = details.guesses.probabilities.argmax(1) == details.guesses.labels
        colors = ["green" if right[row] else "firebrick" for row in rows]
        return picture_grid([self._picture(details, row) for row in rows], [self._title(details, row) for row in rows], colors)

    def _picture(self, details: BagDetails, row: int) -> np.ndarray:
        seen = details.seen[row]
        largest = np.argsort(-seen.attention, kind="stable")[:_MOST]
        return heat_map(seen.attention[largest], None if seen.coords is None else seen.coords[largest], side=_SIDE)

    def _title(self, details: BagDetails, row: int) -> str:
        found, label = details.guesses.probabilities[row], int(details.guesses.labels[row])
        guess = int(found.argmax())
        text = f"{shown(self.classes[guess])} {found[guess]:.2f}"
        return text if guess == label else f"{shown(self.classes[label])} ->\n{text}"

    @staticmethod
    def _truth(details: BagDetails) -> np.ndarray:
        """Probability of the true class of each bag."""
        guesses = details.guesses
        values: np.ndarray = guesses.probabilities[np.arange(len(guesses.labels)), guesses.labels]
        return values

"""Metrics of bags: those of classes, and how well attention finds key instances."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from visionattn.data.bags.readers import Bag
from visionattn.heads.mil import BagOutput
from visionattn.names import shown
from visionattn.spill import Rows
from visionattn.tasks.base import Scores
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_scores import ClassificationMeter, Guesses
from visionattn.tasks.means import mean


class Seen(NamedTuple):
    """What a bag's pictures need: its attention, where its instances are, and how its key instances rank."""

    attention: np.ndarray
    coords: np.ndarray | None
    key_auroc: float | None


@dataclass(frozen=True)
class BagDetails:
    """Probabilities of all bags, and their attention, in the order of the split."""

    guesses: Guesses
    seen: Rows[Seen]


class BagMeter(ClassificationMeter):
    """The metrics of classes; attention is kept, on the disk if it is much.

    Args:
        key: instance label of the key instances; None scores no attention.
        specificity, kappa: as in `class_metrics`.
    """

    def __init__(self, classes: list[str], key: int | None, *, specificity: float | None = None, kappa: str = "none") -> None:
        super().__init__(classes, multi_label=False, specificity=specificity, kappa=kappa)
        self.key = key
        self.seen: Rows[Seen] = Rows()
        self.order = array("q")

    def update(self, predictions: BagOutput, batch: Batch) -> None:  # type: ignore[override]
        """Add the output of bags with labels."""
        super().update(predictions.logits, batch)
        self.order.extend(batch.indices)
        for attention, bag in zip(predictions.attention.float().cpu().numpy(), batch["bag"], strict=True):
            own = attention[: len(bag)]
            self.seen.append(Seen(own, bag.coords, self._key_auroc(own, bag)))

    def state(self) -> Any:
        return super().state(), self.order, self.seen

    def merge(self, states: list[Any]) -> None:
        super().merge([state for state, _, _ in states])
        for _, order, seen in states:
            self.order.extend(order)
            self.seen.extend(seen)

    def result(self) -> Scores:
        """Scores of classes, without top-5; `key_auroc` if key instances are known; `BagDetails` as details."""
        scores = super().result()
        seen = self.seen.reordered(np.argsort(self.order, kind="stable"))
        metrics = {name: value for name, value in scores.metrics.items() if name != "top5"}
        remarks = list(scores.remarks)
        undefined = [row["class"] for row in scores.per_class if row["auroc"] is None]
        if undefined:
            names = shown(", ".join(undefined[:5]))
            remarks.append(f"AUROC is not defined for {len(undefined)} of {len(self.classes)} classes, which are left out: {names}")
        if self.key is not None:
            values = [item.key_auroc for item in seen]
            metrics["key_auroc"] = mean(values)
            defined = sum(value is not None for value in values)
            remarks.append(f"key AUROC over the {defined:,} bags with key instances and others")
        return replace(scores, metrics=metrics, remarks=remarks, details=BagDetails(scores.details, seen))

    def _key_auroc(self, attention: np.ndarray, bag: Bag) -> float | None:
        """AUROC of attention for the key instances of a bag that has both kinds."""
        if self.key is None or bag.instances is None:
            return None
        truth = bag.instances == self.key
        return float(roc_auc_score(truth, attention)) if 0 < truth.sum() < len(truth) else None

"""Settings of `eval` that tasks on classes share, and what their metrics mean."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from visionattn.config.schema import EvalConfig, setting

CLASS_MEANINGS = {
    "top5": "the right class is among the five most probable ones",
    "balanced_accuracy": "recall, averaged over the classes: rare ones count as much as frequent ones",
    "macro_f1": "F1, averaged over the classes",
    "exact_match": "all classes are right",
    "mean_average_precision": "quality of the ranking by probability, averaged over the classes",
    "auroc": "of a sample of the class and another one, how often the first is given the larger probability; 50 % is chance",
    "ece": "how far probabilities are from the share of right answers; 0 is best",
    "kappa": "agreement beyond chance",
    "answered": "share that is answered with the given thresholds",
    "support": "samples of the class",
    "precision": "of those that are called the class, how many are of it",
    "recall": "of those that are of the class, how many are found",
    "f1": "precision and recall in one figure",
}


class ClassEvalConfig(EvalConfig):
    specificity: float | None = setting(
        None, "Specificity at which the sensitivity for each class against the rest is measured, for example 0.95; null: none.", gt=0, lt=1
    )
    kappa: Literal["none", "unweighted", "linear", "quadratic"] = setting(
        "none",
        "Cohen's kappa: unweighted; or linear or quadratic for ordered classes (grades), whose disagreement weighs more the further apart "
        "they are in the order of data.classes.",
    )

    @model_validator(mode="after")
    def _check_kappa(self) -> ClassEvalConfig:
        if self.best == "kappa" and self.kappa == "none":
            raise ValueError("best: kappa is not measured; set eval.kappa=quadratic, or choose another metric")
        return self

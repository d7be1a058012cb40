"""Settings of `eval` that tasks on classes share."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from visionattn.config.schema import EvalConfig, setting


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

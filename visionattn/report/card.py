"""The model card of a run: `README.md` of a model on the Hugging Face hub, with metrics, licences, preprocessing and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from visionattn import __version__
from visionattn.models.weights.hub import LOCAL_DIR, is_hub
from visionattn.names import shown, typed
from visionattn.tasks.base import Display

_MOST_CLASSES = 200  # that are listed
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&-])")


@dataclass(frozen=True)
class CardFacts:
    """What a card states.

    Attributes:
        title: name of the model.
        backbone: registered name.
        task: name of the task.
        pipeline_tag: that of the hub, or empty.
        license: SPDX name of the weights' licence; empty if it is not stated.
        started_from: name of the initial weights, with licence of the weights and of the code; empty from scratch.
        preprocessing: name -> text.
        classes: names of the outputs.
        evaluation: `metrics.json` of an evaluation; empty if there is none.
        in_timm: whether timm can build it.
        plugins: names of the user's modules that the model needs.
    """

    title: str
    backbone: str
    task: str
    pipeline_tag: str
    license: str
    started_from: str
    preprocessing: Mapping[str, str]
    classes: Sequence[str]
    evaluation: Mapping[str, Any]
    in_timm: bool
    plugins: Sequence[str]


def model_card(facts: CardFacts, source: str, display: Display, unit: str) -> str:
    """Format the card.

    Args:
        source: the model as commands take it, `hf-hub:OWNER/NAME` or a folder.
        display: how metrics are shown.
        unit: what a case is called.
    """
    sections = {
        "Results": _results(facts, display, unit),
        "Use": _use(facts, source),
        "Input": "\n".join(f"- {name}: {markdown(text)}" for name, text in facts.preprocessing.items()),
        "Classes": _classes(facts.classes),
        "Licences": _licences(facts),
    }
    head = yaml.safe_dump(_metadata(facts, display), sort_keys=False, allow_unicode=True)
    intro = f"`{facts.backbone}` for the task `{facts.task}`, trained with visionattn {__version__}."
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"---\n{head}---\n\n# {markdown(facts.title)}\n\n{intro}\n\n{body}\n"


def markdown(text: str) -> str:
    """Format a name from a file as text of Markdown, in which it neither marks up anything nor is HTML."""
    return _SPECIAL.sub(r"\\\1", shown(text))


def _metadata(facts: CardFacts, display: Display) -> dict[str, Any]:
    """The head of the card, which the hub reads."""
    found: dict[str, Any] = {"library_name": "visionattn"}
    if facts.license:
        found["license"] = facts.license.lower()
    if facts.pipeline_tag:
        found["pipeline_tag"] = facts.pipeline_tag
    found["tags"] = ["visionattn", *(["timm"] if facts.in_timm else []), facts.backbone]
    values = {name: value for name, value in _metrics(facts).items() if name in display.metrics and isinstance(value, float)}
    if facts.pipeline_tag and values:
        results = {
            "task": {"type": facts.pipeline_tag},
            "dataset": {"type": "custom", "name": "validation split of the run"},
            "metrics": [
                {"type": "accuracy" if name == "top1" else name, "name": display.metric_name(name), "value": round(value, 5)}
                for name, value in values.items()
            ],
        }
        found["model-index"] = [{"name": shown(facts.title), "results": [results]}]
    return found


def _metrics(facts: CardFacts) -> Mapping[str, Any]:
    metrics = facts.evaluation.get("metrics", {})
    return metrics if isinstance(metrics, Mapping) else {}


def _results(facts: CardFacts, display: Display, unit: str) -> str:
    values = {name: value for name, value in _metrics(facts).items() if name not in display.hidden_metrics}
    if not values:
        return "Not evaluated."
    intervals = facts.evaluation.get("interval") or {}
    lines = ["| metric | value | 95 % interval |", "|---|---:|---|"]
    for name, value in values.items():
        bounds = intervals.get(name)
        between = " to ".join(display.text(name, bound, 1) for bound in bounds) if bounds else ""
        lines.append(f"| {markdown(display.metric_name(name))} | {display.text(name, value, 3 if name == 'loss' else 2)} | {between} |")
    count = facts.evaluation.get("count")
    split = f"{count:,} {unit}s of the validation split" if isinstance(count, int) else "The validation split"
    return "\n".join([f"{split}; fractions in percent.", "", *lines])


def _use(facts: CardFacts, source: str) -> str:
    lines = ["```bash", "pip install visionattn", f"visionattn predict {typed(source)} --source FILE_OR_FOLDER", "```"]
    if facts.plugins:
        lines.insert(2, "# The model has code of its own, which is not part of this folder and has to be importable.")
    if facts.in_timm:
        name = json.dumps(source if is_hub(source) else f"{LOCAL_DIR}{source}", ensure_ascii=False)  # also a text of Python
        lines += ["", "```python", "import visionattn", "", f"model = visionattn.create_model({name}, pretrained=True)", "```", ""]
        lines += ["In timm, after `visionattn.integrations.timm.register()`:", "", "```python"]
        lines += ["import timm", "from visionattn.integrations.timm import register", "", "register()"]
        lines += [f"model = timm.create_model({name}, pretrained=True)", "```"]
    train = f"visionattn train --data FOLDER --model {facts.backbone} --weights {typed(source)}"
    lines += ["", f"To start a training of your own from it: `{train}`."]
    return "\n".join(lines)


def _classes(names: Sequence[str]) -> str:
    if not names:
        return ""
    listed = ", ".join(map(markdown, names[:_MOST_CLASSES]))
    return f"{len(names)}: {listed}" + (", ..." if len(names) > _MOST_CLASSES else "")


def _licences(facts: CardFacts) -> str:
    own = markdown(facts.license) if facts.license else "not stated; ask the author before you use or share them"
    lines = [f"- these weights: {own}"]
    lines.append(
        f"- initial weights: {markdown(facts.started_from)}" if facts.started_from else "- initial weights: none, or not published"
    )
    lines.append("- visionattn: Apache-2.0; its NOTICE lists the licences of the networks that it follows")
    return "\n".join(lines)

"""Whether the figures of a report can be trusted: what holds for every task, and what the task knows."""

from __future__ import annotations

from visionattn.files import counted
from visionattn.names import shown
from visionattn.report.summary import RunSummary
from visionattn.tasks.base import Evaluation, Pictures, Verdict

_NARROW = 0.03  # half the width of an interval that is good news
_GAIN = 0.005  # of a fraction over the last evaluations, from which on training was still improving it
_RISE = 1.1  # of the validation loss over its least value
_FEW = 30  # samples, without an interval
_NOTES = 3  # warnings of the data check that are quoted


def verdicts(summary: RunSummary, evaluation: Evaluation, pictures: Pictures) -> list[Verdict]:
    """All verdicts, those that ask for care first."""
    found = [
        *_ending(summary),
        *_spread(summary, evaluation),
        *pictures.verdicts(evaluation),
        *_curves(summary),
        *_data(summary, evaluation),
    ]
    return sorted(found, key=lambda verdict: verdict.good)


def _ending(summary: RunSummary) -> list[Verdict]:
    """A run that did not end."""
    state = str(summary.state.get("state") or "unknown")
    if state == "done":
        return []
    failure = summary.state.get("failure")
    why = f": {shown(str(failure.get('what')))}" if isinstance(failure, dict) and state == "failed" else ""
    text = {
        "running": "training has not ended yet",
        "interrupted": "training was interrupted",
        "failed": f"training failed{why}",
    }.get(state, "it is not known how training ended")
    fix = "" if state == "running" else "visionattn train --resume RUN"
    return [Verdict(False, f"{text}, after {summary.trained}; these are the figures of the best checkpoint so far", fix)]


def _spread(summary: RunSummary, evaluation: Evaluation) -> list[Verdict]:
    """How far the main figure may be from that of any number of samples."""
    name, display, unit = summary.monitor, summary.display, summary.task.unit
    count = counted(len(evaluation.scores.per_case), unit)
    bounds = evaluation.scores.intervals.get(name)
    if bounds is None:
        few = len(evaluation.scores.per_case)
        text = f"{count} {'is' if few == 1 else 'are'} too few to tell how far {display.metric_name(name)} is due to chance"
        return [Verdict(False, text)] if few < _FEW else []
    low, high = (display.text(name, bound, 1) for bound in bounds)
    percent = "" if name in display.plain else " %"
    good = (bounds[1] - bounds[0]) / 2 <= _NARROW
    more = "" if good else f": smaller differences between runs say nothing; more validation {unit}s would narrow it"
    return [Verdict(good, f"{display.metric_name(name)} of so many {unit}s ({count}) is between {low} and {high}{percent} (95 %){more}")]


def _curves(summary: RunSummary) -> list[Verdict]:
    """Training that stopped too early, or learned its samples by heart."""
    values, train, val = summary.points(f"val_{summary.monitor}"), summary.points("train_loss"), summary.points("val_loss")
    if len(values) < 4:
        return []
    found, gain = [], values[-1][1] - values[-4][1]
    enough = _GAIN if summary.monitor not in summary.display.plain else 0.01 * abs(values[-1][1])
    if summary.best_epoch == values[-1][0] and gain > enough and summary.done and not summary.ended:
        name, rise = summary.display.metric_name(summary.monitor), summary.display.text(summary.monitor, gain, 1)
        fix = f"visionattn train --resume RUN train.epochs={2 * summary.config.train.epochs}"
        found.append(Verdict(False, f"{name} was still rising when training ended (by {rise} over the last 3 evaluations)", fix))
    if val and train:
        least = min(val, key=lambda point: point[1])
        earlier = min(train, key=lambda point: abs(point[0] - least[0]))
        if val[-1][1] > _RISE * least[1] > 0 and train[-1][1] < earlier[1]:
            text = f"after epoch {least[0]:g} it began to learn its training {summary.task.unit}s by heart: the validation loss rose from "
            text += f"{least[1]:.3g} to {val[-1][1]:.3g}, while the training loss fell further"
            kept = f"; the weights are those of epoch {summary.best_epoch:g}" if summary.best_epoch is not None else ""
            found.append(Verdict(False, text + kept))
    return found or [Verdict(True, "the curves show neither an early end nor learning by heart")]


def _data(summary: RunSummary, evaluation: Evaluation) -> list[Verdict]:
    """What the check of the data and the evaluation found."""
    found, unit, notes = [], summary.task.unit, summary.notes
    if evaluation.unreadable:
        found.append(Verdict(False, f"{counted(len(evaluation.unreadable), unit)} could not be read, and are not counted"))
    for note in notes[:_NOTES]:
        found.append(Verdict(False, f"the data check warned: {shown(str(note.get('text')))}"))
    if len(notes) > _NOTES:
        found.append(Verdict(False, f"and {counted(len(notes) - _NOTES, 'more warning')} of the data check: data/check.json"))
    whole = getattr(summary.config.data, "check", None) == "full" and (summary.path / "data" / "check.json").is_file()
    if whole and not notes:
        found.append(Verdict(True, f"every {unit} was decoded before training, and the check had nothing to warn of"))
    return found

"""What a run is logged to beside its folder: TensorBoard, MLflow, Weights & Biases and others, by accelerate's trackers.

They are started here one by one: accelerate's `init_trackers` ends with the first that fails.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from visionattn.config.read import to_yaml
from visionattn.config.schema import LogConfig, RunConfig
from visionattn.console import Console
from visionattn.errors import Interrupted, UserError
from visionattn.files import atomic_write
from visionattn.names import file_name, fitted, shown
from visionattn.runs.folder import RunFolder
from visionattn.tasks.base import Dataset, Display, Evaluation, Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from visionattn.tasks.batch import Batch

# Most seconds and tries for a server that does not answer, unless the user gave others: by themselves the packages try for minutes.
_WAITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "60",
}
_INSTALL = {"mlflow": 'pip install "visionattn[trackers]"'}  # the others have the name of their package
_LONGEST = 500  # characters of a setting: what all servers take
_NAME = 100  # characters of a name
_REASON = 200  # characters of an error and of its cause


def require_packages(log: LogConfig) -> None:
    """Stop if the package of a tracker is not installed.

    Raises:
        UserError: VA-R007.
    """
    # A folder of that name, as trackers make them where a command runs, is a package without an origin.
    missing = [name for name in log.to if getattr(find_spec(name), "origin", None) is None]
    if missing:
        fix = "\n".join(_INSTALL.get(name, f"pip install {name}") for name in missing)
        fix += f"\nor train without: log.to=[{','.join(name for name in log.to if name not in missing)}]"
        what = f"log.to: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise UserError("VA-R007", what, fix=fix)


@dataclass
class _Record:
    """What `trackers.json` knows of a tracker.

    Attributes:
        id: of its run.
        done: last step that it got, by kind of value.
        failed: whether it got nothing more although the run went on.
    """

    id: str = ""
    done: dict[str, int] = field(default_factory=dict)
    failed: bool = False


@contextmanager
def tracking(run: RunFolder, config: RunConfig, display: Display, pictures: Pictures, console: Console, step: int) -> Iterator[Trackers]:
    """Open the trackers of `log.to` for a run that continues after `step`; on leaving, they record how it ended.

    Call it before the metrics are rewound: what was logged after `step` has been sent, and is not sent again.

    Raises:
        UserError: VA-R007, a folder that TensorBoard cannot write in.
    """
    waits = {name: value for name, value in _WAITS.items() if name not in os.environ}
    os.environ.update(waits)
    try:
        trackers = Trackers(run, config, display, pictures, console, step)
        try:
            yield trackers
        except (Interrupted, KeyboardInterrupt):
            trackers.close("KILLED")
            raise
        except BaseException:
            trackers.close("FAILED")
            raise
        trackers.close("FINISHED")
    finally:
        for name in waits:
            os.environ.pop(name, None)


class Trackers:
    """The trackers of a run.

    One that fails, at its start or later, is left out with a warning; when the run resumes, it gets what it missed.

    Args:
        run: its folder.
        config: of the run.
        display: which values of classes are drawn.
        pictures: the task's figures.
        console: where a failure is reported.
        step: that the run continues after.
    """

    def __init__(self, run: RunFolder, config: RunConfig, display: Display, pictures: Pictures, console: Console, step: int) -> None:
        self.run, self.config, self.display, self.pictures, self.console = run, config, display, pictures, console
        self.records = _read_records(run.path / "trackers.json")
        self.sent: dict[str, dict[str, int]] = {}  # what each one got before, by kind
        self.opened: dict[str, Any] = {}
        lines = run.read_metrics()
        if "tensorboard" in config.log.to:
            _require_printable(run.path)
        for name in config.log.to:
            self._open(name, lines, step)
        self._write_records()
        for line in lines:
            if line["step"] <= step:
                self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of `metrics.jsonl`."""
        values = _scalars(line)
        self._each(line["kind"], line["step"], lambda name, tracker: tracker.log(values, step=line["step"]))

    def log_best(self, metrics: Mapping[str, float | None], step: int) -> None:
        """The metrics of the best checkpoint, at the end of the run."""
        values = {f"best/{_plain(name)}": value for name, value in metrics.items() if value is not None}
        self._each("best", step, lambda name, tracker: tracker.log(values, step=step))

    def show_batch(self, model: nn.Module, batch: Batch) -> None:
        """The first training batch."""
        if self._draws and (figure := self.pictures.batch_figure(model, batch, self.config.log.images)) is not None:
            self._draw("step", "train/augmented_batch", figure, 0)

    def show_classes(self, evaluation: Evaluation, step: int) -> None:
        """The values of each class; in TensorBoard only, since there may be thousands."""
        for column in self.display.class_curves:
            rows = {fitted(shown(row["class"])): row[column] for row in evaluation.scores.per_class if row[column] is not None}
            values = {f"val_{column}/{name}": value for name, value in rows.items()}
            self._each("epoch", step, lambda name, tracker, values=values: tracker.log(values, step=step), only=("tensorboard",))

    def show_evaluation(self, evaluation: Evaluation, dataset: Dataset, history: list[dict[str, Any]]) -> None:
        """Predictions, the task's figures and the curves, at the last step of `history`."""
        if not self._draws:
            return
        from visionattn.figures import curves_figure

        step, count = history[-1]["step"], self.config.log.images
        if count and (figure := self.pictures.predictions_figure(evaluation, dataset, count)) is not None:
            self._draw("epoch", "val/predictions", figure, step)
        for panel in self.pictures.panels(evaluation):
            self._draw("epoch", f"val/{fitted(shown(panel.title)).lower().replace(' ', '_')}", panel.figure, step)
        self._draw("epoch", "learning_curves", curves_figure(history, self.display.curves), step)

    def close(self, status: str) -> None:
        """End their runs.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        for name in list(self.opened):
            self._try(name, lambda name, tracker: _end(name, tracker, status))
        self.opened.clear()
        with suppress(OSError):  # of a disk that is full, which has been reported
            self._write_records()

    @property
    def _draws(self) -> bool:
        return any(name in _DRAWN for name in self.opened)

    def _draw(self, kind: str, title: str, figure: Figure, step: int) -> None:
        self._each(kind, step, lambda name, tracker: _DRAWN[name](tracker, title, figure, step), only=_DRAWN)

    def _open(self, name: str, lines: list[dict[str, Any]], step: int) -> None:
        """Start a tracker, or let it continue its run."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        record = self.records.setdefault(name, _Record())
        if record.id and not record.failed:  # a kill may have come after the last record
            for line in lines:
                record.done[line["kind"]] = max(line["step"], record.done.get(line["kind"], -1))
        known = record.id
        if name == "tensorboard":  # it hides what comes after the step
            record.done |= {kind: min(last, step) for kind, last in record.done.items() if kind != "best"}
        self.sent[name] = dict(record.done)
        words = _place(self.run, self.config, name)
        options = _options(self.run, self.config, name, known, step)

        def start(name: str, _: Any) -> None:
            tracker = LOGGER_TYPE_TO_CLASS[name](*words, **options)
            tracker.start()
            self.opened[name] = tracker
            record.id = _IDS[name](tracker.tracker)
            if not known:
                _store_config(name, tracker, self.config)

        record.failed = False
        self._try(name, start)
        if not record.failed and name != "tensorboard":
            self.console.field("tracker", f"{name}: {words[0]}, {'run' if not known else 'continues run'} {record.id}")

    def _each(self, kind: str, step: int, call: Callable[..., object], only: Any = None) -> None:
        """Call every tracker that has not got this before a resumption."""
        for name in list(self.opened):
            if (only is None or name in only) and step > self.sent[name].get(kind, -1) and self._try(name, call):
                self.records[name].done[kind] = step

    def _try(self, name: str, call: Callable[..., object]) -> bool:
        """Call a tracker, which is left out if it fails."""
        try:
            with redirect_stdout(sys.stderr):  # standard output may carry JSON
                call(name, self.opened.get(name))
            return True
        except Exception as error:  # of any kind: these are other people's servers and packages
            self.console.warn(f"{name}: {_reason(error)}; nothing more is logged there unless the run is resumed")
        self.records[name].failed = True
        if (tracker := self.opened.pop(name, None)) is not None:
            with suppress(Exception), redirect_stdout(sys.stderr):
                _end(name, tracker, "FAILED")
        with suppress(OSError):
            self._write_records()
        return False

    def _write_records(self) -> None:
        if self.records:
            content = {name: asdict(record) for name, record in self.records.items()}
            atomic_write(self.run.path / "trackers.json", json.dumps(content, indent=1))


# ---------------------------------------------------------------- what each tracker wants


def _place(run: RunFolder, config: RunConfig, name: str) -> list[Any]:
    """Project, and the folder of those that write in one."""
    project = _folders(run, config)[0]
    return {"tensorboard": ["tb", str(run.path)], "aim": [project, "."]}.get(name, [project])


def _options(run: RunFolder, config: RunConfig, name: str, known: str, step: int) -> dict[str, Any]:
    """Arguments with which a tracker starts a run, or continues the one with the id `known`."""
    _, group, title = _folders(run, config)
    options: dict[str, dict[str, Any]] = {
        # Events after the step are hidden, because the resumed run writes them again.
        "tensorboard": {"purge_step": step + 1} if known else {},
        "mlflow": {"run_name": title, "run_id": known or None},
        "wandb": {"name": title, "group": group} | ({"id": known, "resume": "allow"} if known else {}),
        # A run is found by its name, which one of a deleted folder may have, too.
        "trackio": {"name": known, "group": group, "resume": "allow"} if known else {"name": f"{title}-{uuid4().hex[:6]}", "group": group},
        "comet_ml": {"experiment_key": known} if known else {},
        "aim": {"run_hash": known or None},
        "clearml": {"task_name": title, "reuse_last_task_id": known or False, "continue_last_task": 0 if known else False}
        | {"auto_connect_frameworks": False, "auto_connect_arg_parser": False},
        "dvclive": {"dir": str(run.path / "dvclive"), "resume": bool(known), "save_dvc_exp": False, "dvcyaml": None},
        "swanlab": {"name": title, "group": group} | ({"id": known, "resume": "allow"} if known else {}),
    }
    return options[name]


def _folders(run: RunFolder, config: RunConfig) -> tuple[str, str | None, str]:
    """Project, group and name of a run: of folds `<name>`, `<nnn>` and `<nnn>-fold2`, of others `<name>`, none and `<nnn>`."""
    path = run.path.absolute()
    if config.data.fold is None or path.name != f"fold{config.data.fold[0]}":
        return file_name(path.parent.name), None, path.name
    group = path.parent.name
    return file_name(path.parent.parent.name), group, f"{group}-{path.name}"


_IDS: dict[str, Callable[[Any], str]] = {
    "tensorboard": lambda writer: "tb",
    "mlflow": lambda run: run.info.run_id,
    "wandb": lambda run: run.id,
    "trackio": lambda run: run.name,
    "comet_ml": lambda experiment: experiment.get_key(),
    "aim": lambda run: run.hash,
    "clearml": lambda task: task.id,
    "dvclive": lambda live: "dvclive",
    "swanlab": lambda run: run.id,
}


def _draw_mlflow(tracker: Any, title: str, figure: Figure, step: int) -> None:
    tracker.log_figure(figure, f"pictures/{'/'.join(map(_plain, title.split('/')))}.png")  # the latest one


def _draw_wandb(tracker: Any, title: str, figure: Figure, step: int) -> None:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    tracker.log_images({title: [np.asarray(canvas.buffer_rgba())]}, step=step)


_DRAWN: dict[str, Callable[[Any, str, Any, int], object]] = {
    "tensorboard": lambda tracker, title, figure, step: tracker.tracker.add_figure(title, figure, step),
    "mlflow": _draw_mlflow,
    "wandb": _draw_wandb,
}


def _store_config(name: str, tracker: Any, config: RunConfig) -> None:
    """All settings, once: MLflow refuses others for the same run."""
    values = config.model_dump(mode="json")
    if name == "tensorboard":  # whose table of settings would be a run beside this one
        tracker.tracker.add_text("config", f"```\n{to_yaml(values)}\n```", 0)
    else:
        tracker.store_init_configuration(dict(_flat(values)))


def _end(name: str, tracker: Any, status: str) -> None:
    if name == "mlflow":
        import mlflow

        mlflow.end_run(status)
    elif name == "wandb":
        tracker.tracker.finish(exit_code=int(status != "FINISHED"))
    else:
        tracker.finish()


# ---------------------------------------------------------------- values


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`, grouped by a name before a slash."""
    group = "train" if line["kind"] == "step" else "epoch"
    values: dict[str, float] = {}
    for key, value in line.items():
        if key in ("schema", "step") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if key == "epoch":
            values |= {"epoch/number": value} if group == "epoch" else {}
        elif key.startswith("val_"):
            values[f"val/{_plain(key.removeprefix('val_'))}"] = value
        else:
            values[f"{group}/{_plain(key)}"] = value
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, and values that are numbers or text."""
    for key, value in values.items():
        name = prefix + _plain(str(key))
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield name, value if isinstance(value, (bool, int, float)) else text[:_LONGEST]


def _plain(name: str) -> str:
    """The name of a value as every tracker takes it: one with other characters than ASCII letters, digits and `-_.` ends in its hash."""
    safe = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:_NAME]
    if safe == name and name.strip("."):
        return name
    return f"{safe.strip('.')}-{blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"


def _reason(error: BaseException) -> str:
    """The first line of an error, and that of its cause, which says more where a server does not answer."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    lines = [(str(part).strip() or type(part).__name__).splitlines()[0] for part in (error, cause)]
    return " ... ".join(line[:_REASON] for line in dict.fromkeys(lines))


def _require_printable(folder: Path) -> None:
    """Stop at a folder that TensorBoard cannot write in.

    Raises:
        UserError: VA-R007.
    """
    if shown(str(folder)) != str(folder):
        fix = "another output.dir, or log.to=[]"
        raise UserError("VA-R007", "TensorBoard needs a folder whose name is printable UTF-8", where=str(folder), fix=fix)


def _read_records(path: Path) -> dict[str, _Record]:
    """What an earlier process left; nothing of a file that is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        records = {}
        for name, of in content.items():
            done = {kind: int(step) for kind, step in of["done"].items()}
            records[name] = _Record(str(of["id"]), done, bool(of["failed"]))
        return records
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}

"""The seam between the engine and the tasks: the engine, the report and the jobs call this interface and know no task by name.

A task is a subclass of `Task`, whose methods are the table of contents of its folder, and the four parts that its methods
build: an `Objective` (training and evaluation, needs labels), a `Predictor` (needs none), a `Meter` (scores) and a `Writer`
(the files of `predict`). Batches are the task's own (`tasks/batch.py`): nobody else looks inside.

Importing this module loads no torch; a task imports its parts when they are first used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from visionattn.config.choices import Choice, Facts, choices
from visionattn.config.schema import RunConfig
from visionattn.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from torch import nn

    from visionattn.data.check import CheckReport
    from visionattn.data.splits import Data, ManifestRow, Split
    from visionattn.models.weights.download import Report
    from visionattn.models.weights.records import Weights
    from visionattn.tasks.batch import Batch

Metrics = dict[str, float | None]

# Meaning of a model's outputs as plain values: class names, colours, units. Every checkpoint holds it.
Target = dict[str, Any]


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Scores:
    """Results for one split.

    Attributes:
        metrics: fractions from 0 to 1 unless `Display.plain` names them; None where not defined.
        per_class: a row per class (or whatever the task breaks its metrics down by); may be empty.
        per_case: a row per case in the order of the split: `index` of its first sample, `id`, `case`, then the task's own columns.
            Where cases may be many, `visionattn.spill.Rows` keeps them on the disk.
        intervals: 95 % interval by the name of its metric.
        remarks: sentences that go with the table.
        case_values: further columns of numbers per case: their names, and an array `[cases, columns]`.
        details: what only the task's own pictures use.
    """

    metrics: Metrics
    per_class: list[dict[str, Any]]
    per_case: Sequence[dict[str, Any]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    case_values: tuple[list[str], np.ndarray] | None = None
    details: Any = None


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split with the loss, each sample counted once.

    Attributes:
        task: name of the task.
        split: name of the split.
        count: samples evaluated.
        metrics: those of the task and `loss`, averaged over samples.
        scores: everything the task reports.
        unreadable: id and reason of samples that could not be read.
    """

    task: str
    split: str
    count: int
    metrics: Metrics
    scores: Scores
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class Display:
    """How a task's metrics are shown.

    Attributes:
        metrics: printed after an epoch, where they are defined.
        curves: drawn over the epochs.
        class_curves: columns of `per_class` that TensorBoard draws over the epochs.
        names: display name by metric or column, where it differs.
        metric_names: the same for metrics that share the name of a column but mean something else.
        meanings: of a metric or column in plain words, for readers of the report who do not know it.
        class_rank: column of `per_class` by which classes are ranked, best first; empty if they are not.
        plain: values that are not fractions, so not shown as percent.
        hidden_metrics: metrics that `Scores.remarks` report instead; so are `hidden_columns` of tables.
    """

    metrics: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    class_curves: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    metric_names: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    class_rank: str = ""
    plain: frozenset[str] = frozenset()
    hidden_metrics: frozenset[str] = frozenset()
    hidden_columns: frozenset[str] = frozenset()

    def name(self, column: str) -> str:
        """Display name of a column of `per_class`."""
        return self.names.get(column, column)

    def metric_name(self, metric: str) -> str:
        """Display name of a metric of a split."""
        return self.metric_names.get(metric) or self.name(metric)

    def text(self, name: str, value: Any, decimals: int) -> str:
        """A value in a table or a summary: fractions as percent, `n/a` where it is not defined."""
        if isinstance(value, float):
            return f"{value if name in self.plain or name == 'loss' else 100 * value:.{decimals}f}"
        return "n/a" if value is None else str(value)


class Confusion(NamedTuple):
    """Counts `[true class, predicted class]` of `what`; `counted`: whether numbers tell more than shares, as those of pixels do not."""

    counts: np.ndarray
    classes: Sequence[str]
    what: str
    counted: bool = True


class Confidence(NamedTuple):
    """Answers in bins of equal width by their probability, `[bins]` each: how many, how many right, sum of the probabilities."""

    answers: np.ndarray
    right: np.ndarray
    total: np.ndarray


class Panel(NamedTuple):
    """A figure of an evaluation: `<name>.png`, `val/<title>` in TensorBoard, a section of the report.

    Attributes:
        note: how it is read, for the report.
        data: what the report draws itself in place of the figure.
        in_report: False where the examples of the report show the same.
    """

    name: str
    title: str
    figure: Figure
    note: str = ""
    data: Confusion | Confidence | None = None
    in_report: bool = True


class Example(NamedTuple):
    """A picture of a case: name of its file, title, and pixels `[H, W, 3]` uint8."""

    name: str
    title: str
    picture: np.ndarray


class Verdict(NamedTuple):
    """A sentence on how far results can be trusted: whether it is good news, the text, and a command that helps, with `RUN` for the run."""

    good: bool
    text: str
    fix: str = ""


# ---------------------------------------------------------------- the four parts


class Dataset(Protocol):
    """Samples as a loader reads them.

    A sample is a dict with `index`, `id` and `case`, and either the task's own values or `unreadable`, the reason. Keys are
    indices, or `(epoch, index)` where training augments: the randomness of a sample depends on its key alone.

    Attributes:
        ids: unique name of each sample.
        collate: makes a `Batch` of samples.
    """

    @property
    def ids(self) -> list[str]: ...

    @property
    def collate(self) -> Callable[[list[dict[str, Any]]], Batch]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> dict[str, Any]: ...


class Objective(ABC):
    """The loss; it needs labels, so only training and evaluation build one."""

    def mix(self, batch: Batch) -> Batch:
        """Augment across the samples of a training batch; may leave samples out."""
        return batch

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss` and its named parts, float32, averaged over the batch.

        Args:
            outputs: what the model returned in training, or the predictor in evaluation, on whichever device.
        """


# From a batch as it was loaded (on the CPU, perhaps without labels) to outputs at the size of the case, without gradients.
Predictor = Callable[["Batch"], Any]


class Meter(Protocol):
    """Collects predictions of one process; states of several are merged before the result is taken."""

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add a batch with labels."""

    def state(self) -> Any:
        """Everything collected, picklable."""

    def merge(self, states: list[Any]) -> None:
        """Add the collections of other meters."""

    def result(self) -> Scores:
        """Scores of everything collected, cases in the order of the split."""


@dataclass(frozen=True)
class Prediction:
    """Result for one case: the fields of a subclass."""

    def display_row(self) -> dict[str, str]:
        """A row of the table on the terminal."""
        return {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in self.as_dict().items()}

    def as_dict(self) -> dict[str, Any]:
        """The entry of `predictions.json`."""
        return asdict(self)


class Writer(ABC):
    """Turns predictions into results and files, one batch at a time."""

    def planned_files(self) -> list[Path]:
        """Files that will be written besides the tables; none of them may exist."""
        return []

    @abstractmethod
    def write(self, predictions: Any, batch: Batch) -> Sequence[Prediction]:
        """Results of the cases that the batch completes, picklable; their files are written."""

    def finish(self) -> None:  # noqa: B027
        """Write what covers all cases."""

    def table(self, predictions: Sequence[Any]) -> tuple[list[str], Iterable[Sequence[Any]]]:
        """Columns and rows of `predictions.csv`; predictions may be many, so rows are made one at a time."""
        return list(predictions[0].as_dict()), (list(prediction.as_dict().values()) for prediction in predictions)


@dataclass(frozen=True)
class WriterRequest:
    """The request of a `predict` call.

    Attributes:
        files: inputs, with the place of each within the source it was found in.
        out: folder for the results; None keeps them in memory.
        formats: a subset of the task's `formats`.
        topk: classes per sample, of tasks that rank classes.
    """

    files: dict[Path, Path]
    out: Path | None
    formats: Collection[str]
    topk: int


class Pictures:
    """Pictures of a task in TensorBoard and in the report; each may be left out.

    Attributes:
        worst_caption: what the titles of the best and the worst cases mean.
        worst_columns: pictures side by side.
    """

    worst_caption = ""
    worst_columns = 8

    def batch_figure(self, model: nn.Module, batch: Batch, count: int) -> Figure | None:
        """The first `count` samples of a training batch as the network sees them."""
        return None

    def predictions_figure(self, evaluation: Evaluation, dataset: Any, count: int) -> Figure | None:
        """Samples spread over the split with their predictions."""
        return None

    def panels(self, evaluation: Evaluation) -> list[Panel]:
        """Figures of the whole split."""
        return []

    def worst(self, evaluation: Evaluation, dataset: Any, count: int) -> list[Example]:
        """The cases that went most wrong, worst first."""
        return []

    def best(self, evaluation: Evaluation, dataset: Any, count: int) -> list[Example]:
        """The cases that went best, best first."""
        return []

    def verdicts(self, evaluation: Evaluation) -> list[Verdict]:
        """What speaks for and against trusting the results, beside what holds for every task."""
        return []


@dataclass(frozen=True)
class PublishedModel:
    """A model that comes with its weights, with the preprocessing it was published with."""

    config: RunConfig
    model: nn.Module
    target: Target


@dataclass(frozen=True)
class Question:
    """What `explain` is asked about an image.

    Attributes:
        image: its file, the content of one, or what `Task.image_to_explain` loaded, `[H, W, C]`.
        point: column and row of a pixel in it; None leaves the choice to the task.
        class_name: class whose probability is explained; None: the predicted one.
    """

    image: Path | bytes | np.ndarray
    point: tuple[float, float] | None = None
    class_name: str | None = None


@dataclass(frozen=True)
class Subject:
    """What `explain` explains: an image as the network sees it, and one of its outputs.

    Attributes:
        image: `[1, C, H, W]`, normalised, on the device of the model.
        picture: the same to look at, `[H, W, 3]`, uint8.
        point: row and column from which attention is drawn.
        class_name: name of the class.
        where: the place of the output in words; empty if it is that of the whole image.
        region: weight of each pixel in the output, `[H, W]`; None: it is that of the whole image.
        logit: the output, `[B]` of what the model returns.
        probability: probability of the class, `[B]` of what the model returns.
    """

    image: torch.Tensor
    picture: np.ndarray
    point: tuple[int, int]
    class_name: str
    where: str
    region: torch.Tensor | None
    logit: Callable[[torch.Tensor], torch.Tensor]
    probability: Callable[[torch.Tensor], torch.Tensor]


class Bar(NamedTuple):
    """A class in an `Answer`: its name to show, a share from 0 to 1, and its colour as `#rrggbb`, if it has one."""

    name: str
    share: float
    colour: str | None = None


@dataclass(frozen=True)
class Answer:
    """What `serve` answers about one image.

    Attributes:
        facts: plain values, as in `predictions.json`, but without a path.
        headline: the answer in a few words.
        meaning: what the shares of the bars are.
        bars: the largest first.
        pictures: media type and content of pictures, by name; one called `overlay` is shown in the place of the image.
    """

    facts: dict[str, Any]
    headline: str
    meaning: str
    bars: list[Bar]
    pictures: dict[str, tuple[str, bytes]] = field(default_factory=dict)


# From what the predictor of files returned for one image, and its batch, to the answer.
Presenter = Callable[[Any, "Batch"], Answer]


class Member(NamedTuple):
    """One model of an ensemble, with the config it is used with."""

    config: Any
    model: nn.Module


# ---------------------------------------------------------------- the task


class Task(ABC):
    """One kind of job: its settings, data, model, objective, inference, scores, pictures and files.

    Attributes:
        name: value of `task:` in a config.
        config: schema of its configs.
        unit: what a case is called in messages and in `per_<unit>.csv`.
        formats: what `predict --save` can write; `default_formats`: what it writes unless told.
        display: how metrics are shown.
        pipeline_tag: the task's name on the Hugging Face hub; empty if it has none there.
        leaves_unused: whether parameters may take no part in a step, which training on several processes has to know.
        synchronises_norms: whether batch norms see the samples of all GPUs, for tasks whose batches are small.
    """

    name: ClassVar[str]
    config: ClassVar[type[RunConfig]]
    unit: ClassVar[str] = "image"
    formats: ClassVar[tuple[str, ...]] = ("json", "csv")
    default_formats: ClassVar[tuple[str, ...]] = ("json", "csv")
    display: ClassVar[Display] = Display()
    pipeline_tag: ClassVar[str] = ""
    leaves_unused: ClassVar[bool] = False
    synchronises_norms: ClassVar[bool] = False

    # data

    def recognise(self, root: Path) -> bool:
        """Whether a folder is laid out for this task and no other."""
        return False

    def check_source(self, config: Any) -> None:  # noqa: B027
        """Check that there are data, without importing torch: the command line calls this before anything heavy is loaded.

        Raises:
            UserError: VA-D001.
        """

    @abstractmethod
    def read_data(self, config: Any) -> Data[Any]:
        """List the splits; nothing is decoded.

        Raises:
            UserError: VA-D001 to VA-D005 and the task's own.
        """

    @abstractmethod
    def read_split(self, config: Any, split: str, target: Target) -> Split:
        """One split for evaluation, with the target of the trained model."""

    def with_data(self, config: Any, data: Any) -> Any:
        """The config with what follows from the training data, where it is auto; `model.in_chans`, `data.mean` and `data.std` have it."""
        return config

    def check_data(self, config: Any, data: Any, *, cache_dir: Path, progress: Callable[[int], None]) -> CheckReport:
        """Decode every file once and report what training would stumble over."""
        from visionattn.data.check import check_images

        return check_images(data, config.data, in_chans=config.model.channels, cache_dir=cache_dir, progress=progress)

    def usable_data(self, config: Any, data: Any, report: CheckReport) -> Any:
        """The data without unreadable samples.

        Raises:
            UserError: VA-D005, VA-D010, VA-D020: too little is left, or the check failed.
        """
        from visionattn.data.check import exclude_unreadable

        return exclude_unreadable(data, report, config.data, self.unit)

    def manifest(self, data: Any, report: CheckReport) -> list[ManifestRow]:
        """A row per sample; their hash decides whether a run may resume with the data."""
        from visionattn.data.splits import image_manifest

        return image_manifest(data, report.hashes)

    def target(self, config: Any, data: Any) -> Target:
        """Meaning of the outputs."""
        return {}

    def describe(self, config: Any, target: Target) -> str:
        """The target in a few words, for the first lines of a run."""
        return ""

    def purpose(self, config: Any, target: Target) -> str:
        """What a model does, in words that continue "it ...", for the report; empty leaves it out."""
        return ""

    def describe_input(self, config: Any) -> str:
        """The size of a sample as the network takes it, for the first lines of a run; empty if it has none."""
        height, width = config.model.size
        return f"{height}x{width} px"

    @abstractmethod
    def train_dataset(self, config: Any, model: nn.Module, data: Any, report: CheckReport) -> Dataset:
        """Training samples, augmented."""

    @abstractmethod
    def eval_dataset(self, config: Any, model: nn.Module, split: Any) -> Dataset:
        """Labelled samples of a split, not augmented."""

    @abstractmethod
    def file_dataset(self, config: Any, model: nn.Module, files: Sequence[Path]) -> Dataset:
        """Samples without labels, for prediction."""

    def labelled_split(self, config: Any, split: str, target: Target) -> tuple[Split, list[str] | None]:
        """One split, whatever its classes, with the label of each sample as text; None if samples have none."""
        return self.read_split(config, split, target), None

    def feature_dataset(self, config: Any, model: nn.Module, files: Sequence[Path]) -> Dataset:
        """Samples without labels, for `embedder`."""
        return self.file_dataset(config, model, files)

    @property
    def input_suffixes(self) -> frozenset[str]:
        """Endings of the files that `predict` takes."""
        from visionattn.data.walk import IMAGE_SUFFIXES

        return IMAGE_SUFFIXES

    def is_input(self, path: str) -> bool:
        """Whether `predict` takes a file with another ending, because of what it contains."""
        return False

    def preview(self, config: Any, model: nn.Module, data: Any, split: Any, count: int, path: Path, *, augmented: bool) -> bool:
        """Write a picture of samples as the network sees them; returns whether the task has one.

        Raises:
            UserError: VA-D010, none could be read.
        """
        return False

    # model

    def check_names(self, config: Any) -> None:
        """Stop at an unknown backbone or head before the data are read.

        Raises:
            UserError: VA-M001, VA-M002.
        """
        from visionattn.backbones.registry import get_variant

        get_variant(self.backbone_name(config))

    def backbone_name(self, config: Any) -> str:
        """Registered name of the backbone."""
        return str(config.model.name)

    @abstractmethod
    def build_model(self, config: Any, target: Target) -> nn.Module:
        """The model of a config with initial weights: parameters under `backbone.*` and a head.

        Raises:
            UserError: VA-M002, arguments it cannot be built with.
        """

    def exchange_config(self, config: Any, target: Target, model: nn.Module) -> dict[str, Any]:
        """What other libraries read in the `config.json` of a model on the Hugging Face hub."""
        return {}

    def published_weights(self, config: Any) -> Weights | None:
        """The record that `model.weights` names, if it names one."""
        from visionattn.models.weights.records import named_weights

        return named_weights(self.backbone_name(config), config.model.weights)

    def with_weights(self, config: Any) -> Any:
        """The config with what `model.weights` brings: the weights that auto means, and the arguments and the size that come with a tag.

        A run then needs no record of an imported file.
        """
        from visionattn.backbones.registry import get_variant, is_foreign
        from visionattn.models.factory import weights_args
        from visionattn.models.weights.download import default_weights
        from visionattn.models.weights.records import named_weights

        name, model = self.backbone_name(config), config.model
        if model.weights == "auto":
            model = model.model_copy(update={"weights": "none" if model.args else default_weights(name)})
        if (record := named_weights(name, model.weights)) is not None:
            args = {**weights_args(get_variant(name), record), **model.args}
            size = self.size_of_weights(record) if model.img_size == "auto" else model.img_size
            model = model.model_copy(update={"args": args, "img_size": size})
        elif model.img_size == "auto" and is_foreign(name) and (cfg := get_variant(name).cfg)["fixed_input_size"]:
            model = model.model_copy(update={"img_size": tuple(cfg["input_size"][1:])})
        return config.model_copy(update={"model": model})

    def size_of_weights(self, record: Any) -> Any:
        """`model.img_size` for weights with a record, where it is auto."""
        return tuple(record.input_size[1:])

    def with_model_of(self, config: Any, other: RunConfig) -> Any:
        """The config with the network of another run, whose weights it starts from, where its user left it open."""
        model = config.model
        if "name" not in model.model_fields_set:
            model = model.model_copy(update={"name": other.model.name})
        if model.name != other.model.name:
            return config
        size = other.model.img_size if model.img_size == "auto" and other.task == self.name else model.img_size
        args = {**other.model.args, **model.args}
        return config.model_copy(update={"model": model.model_copy(update={"args": args, "img_size": size})})

    def choices(self, config: Any, facts: Facts, report: CheckReport | None) -> list[Choice]:
        """Values for all keys that may be `auto`, chosen for a network and its data."""
        return choices(config, facts)

    def open_published(self, source: str | Path, report: Report | None) -> PublishedModel | None:
        """The model of published weights, by name or file; None if it belongs to another task."""
        return None

    # training and evaluation

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of the model in training."""
        return model(batch["image"])

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Cut a batch for gradient accumulation; into fewer parts where it has fewer samples."""
        return batch.split(parts)

    @abstractmethod
    def objective(self, config: Any, target: Target, dataset: Any) -> Objective:
        """The loss.

        Args:
            dataset: the samples whose labels balanced class weights are counted from.

        Raises:
            UserError: VA-C002, a loss that cannot be computed.
        """

    def sample_classes(self, config: Any, dataset: Any) -> Sequence[int]:
        """The class of each training sample, which `data.sampler=balanced` shows equally often.

        Args:
            dataset: that of `train_dataset`.

        Raises:
            UserError: VA-C002, samples of the task have none.
        """
        what = f"data.sampler: a sample of task {self.name} has no single class to balance"
        raise UserError("VA-C002", what, fix="data.sampler=shuffled")

    def predictor(self, config: Any, target: Target, model: nn.Module, device: torch.device) -> Predictor:
        """Inference for evaluation; what it returns goes to the meter and the objective."""
        return lambda batch: model(batch["image"].to(device))

    def embedder(self, model: nn.Module, device: torch.device) -> Predictor:
        """Features `[B, C]` of samples: by default the last map of the backbone, averaged over its pixels.

        Raises:
            UserError: VA-C002, of a task whose samples are not images.
        """
        backbone: Any = model.backbone
        return lambda batch: backbone(batch["image"].to(device))[-1].mean((2, 3))

    def no_features(self) -> UserError:
        """What `embedder` raises in a task whose samples are not images."""
        return UserError("VA-C002", f"features are of images, and the model is one of {self.unit}s (task {self.name})")

    @abstractmethod
    def meter(self, config: Any, target: Target) -> Meter:
        """A new, empty meter."""

    @abstractmethod
    def monitor(self, config: Any) -> str:
        """Metric that selects the best checkpoint; higher is better."""

    def calibrate(self, config: Any, target: Target, evaluation: Evaluation) -> dict[str, Any]:
        """Fit settings of `eval` to an evaluation of the validation split, which was made without them.

        Raises:
            UserError: VA-C002, the task has nothing to fit; VA-D005, the split does not determine it.
        """
        raise UserError("VA-C002", f"--calibrate: task {self.name} has nothing to fit")

    def eval_batch_size(self, config: Any) -> int:
        """Samples per step of evaluation."""
        return int(config.train.batch_size)

    def pictures(self, target: Target) -> Pictures:
        """Pictures for TensorBoard and the report."""
        return Pictures()

    # explanation

    def subject(self, config: Any, target: Target, model: nn.Module, question: Question, device: torch.device) -> Subject:
        """The image and the output that a question is about.

        Args:
            model: in evaluation mode, on `device`.

        Raises:
            UserError: VA-C002, the task has no explanation, or a class or a point that is not there; VA-D010, no image.
        """
        raise UserError("VA-C002", f"explain: task {self.name} has no explanation of an image")

    def image_to_explain(self, dataset: Any, index: int) -> np.ndarray | None:
        """The image `[H, W, C]` of a sample of `eval_dataset`, for `subject`; None if there is none, or it cannot be read."""
        return None

    # ensembles

    def ensemble(self, members: Sequence[Member]) -> Sequence[Member]:
        """The models that run side by side, and whose outputs `average` combines; a task may make one model of all.

        Raises:
            UserError: VA-M004, models that cannot be combined.
        """
        return members

    def average(self, config: Any, outputs: Sequence[Any]) -> Any:
        """Combine the outputs of several models into one of the same meaning: by default their mean."""
        return sum(outputs[1:], start=outputs[0]) / len(outputs)

    # export

    def network_input(self, config: Any) -> tuple[int, int, int]:
        """Channels, height and width of the images that the network takes, one tensor `[B, C, H, W]` of them, to export it.

        Raises:
            UserError: VA-C002, it takes something else.
        """
        return (config.model.channels, *config.model.size)

    def size_advice(self, size: tuple[int, int]) -> str:
        """What to do where an exported network takes images of `size` only, and gets others."""
        return ""

    # prediction

    def input_files(self, config: Any, files: dict[Path, Path]) -> dict[Path, Path]:
        """The files that are inputs of their own, where an input may be in several files."""
        return files

    def file_predictor(
        self,
        config: Any,
        target: Target,
        model: nn.Module,
        device: torch.device,
        formats: Collection[str],
        warn: Callable[[str], object],
    ) -> Predictor:
        """Inference on files; what it returns goes to the writer.

        Args:
            formats: what will be written of it.
            warn: takes a line for the user, where results differ from those of evaluation.
        """
        return self.predictor(config, target, model, device)

    def file_batch_size(self, batch_size: int) -> int:
        """Files per step of prediction."""
        return batch_size

    @abstractmethod
    def writer(self, config: Any, target: Target, request: WriterRequest) -> Writer:
        """Build the writer of `predict`."""

    # serving

    def upload_dataset(self, config: Any, model: nn.Module, content: bytes) -> Dataset:
        """One sample without a label, from the content of an image file; the predictor is that of files.

        Raises:
            UserError: VA-C002, the task is not served.
        """
        raise self.not_served("a request brings one image")

    def presenter(self, config: Any, target: Target, topk: int) -> Presenter:
        """Build what makes answers of predictions.

        Args:
            topk: classes in an answer, of tasks that rank classes.

        Raises:
            UserError: VA-C002, the task is not served.
        """
        raise self.not_served("a request brings one image")

    def not_served(self, why: str) -> UserError:
        """What `upload_dataset` and `presenter` raise where a model cannot be served."""
        fix = "visionattn predict RUN --source FILE_OR_FOLDER"
        return UserError("VA-C002", f"this model of {self.unit}s (task {self.name}) cannot be served", why=why, fix=fix)

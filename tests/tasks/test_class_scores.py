"""Metrics of classification against slow, obvious versions."""

from __future__ import annotations

import json
import pickle
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn import spill
from visionattn.errors import UserError
from visionattn.tasks import TASKS, load_config
from visionattn.tasks.batch import Batch
from visionattn.tasks.class_scores import (
    ClassificationMeter,
    class_metrics,
    cohen_kappa,
    confusion_matrix,
    sensitivity_at,
    wilson_interval,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLASSES = ["a", "b", "c", "d"]


def area(scores: list[float], positive: list[bool]) -> float:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    pairs = [(a, b) for a, p in zip(scores, positive, strict=True) if p for b, q in zip(scores, positive, strict=True) if not q]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def test_recorded_metrics_of_scikit_learn_and_torchmetrics() -> None:
    """Drawn by the recorded rule; the last of the four labels is never there, where torchmetrics counts 0 and ours nothing."""
    record = json.loads((FIXTURES / "segmentation" / "metrics.json").read_text())["classification"]
    random, values = np.random.RandomState(zlib.crc32(b"input:cls")), record["values"]
    labels, logits = random.randint(0, 3, 40), random.standard_normal((40, 3))
    logits[np.arange(40), labels] += 1
    several = random.random_sample((40, 4)) < [0.5, 0.3, 0.1, 0]
    marks = 0.6 * random.random_sample((40, 4)) + 0.3 * several
    assert labels.tolist() == record["y"] and several.sum(0).tolist() == record["yl_sum"]
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    metrics, _ = class_metrics(found, labels, CLASSES[:3])
    wanted = {"top1": ("sk_acc", "sk_f1_micro", "tm_f1_default_micro"), "balanced_accuracy": ("sk_balanced_acc", "tm_acc_macro")}
    wanted |= {"macro_f1": ("sk_f1_macro", "tm_f1_macro"), "auroc": ("sk_auc_ovr_macro", "tm_auroc_macro")}
    for name, names in wanted.items():
        for theirs in names:
            assert metrics[name] == pytest.approx(values[theirs], rel=1e-12 if theirs.startswith("sk") else 1e-6), theirs
    assert confusion_matrix(found, labels).tolist() == values["confusion"]
    metrics, rows = class_metrics(marks, several.astype(np.float32), CLASSES, multi_label=True)
    areas, precisions = values["ml_sk_auc_per_label"][:3], values["ml_sk_ap_per_label"][:3]
    assert [row["auroc"] for row in rows[:3]] == pytest.approx(areas, rel=1e-12) and rows[3]["auroc"] is None
    assert metrics["auroc"] == pytest.approx(np.mean(areas)) and metrics["auroc"] == pytest.approx(4 / 3 * values["ml_tm_auroc_macro"])
    assert metrics["mean_average_precision"] == pytest.approx(np.mean(precisions))


def test_metrics_with_a_class_that_is_absent_but_guessed() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 0])  # no image of "d"
    probabilities = rng.dirichlet(np.ones(4), 8).astype(np.float32)
    probabilities[0] = [0.1, 0.1, 0.1, 0.7]
    metrics, rows = class_metrics(probabilities, labels, CLASSES)
    guess = probabilities.argmax(1)
    assert metrics["top1"] == pytest.approx(sum(g == t for g, t in zip(guess, labels, strict=True)) / 8)
    assert metrics["top5"] == 1.0
    recalls = [float((guess[labels == index] == index).mean()) for index in range(3)]
    assert metrics["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    f1 = []
    for index in range(3):
        hits = int(((guess == index) & (labels == index)).sum())
        f1.append(2 * hits / (int((guess == index).sum()) + int((labels == index).sum())))
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / 3)
    areas = [area(probabilities[:, index].tolist(), (labels == index).tolist()) for index in range(3)]
    assert metrics["auroc"] == pytest.approx(sum(areas) / 3)
    assert rows[3]["recall"] is None and rows[3]["auroc"] is None and rows[3]["precision"] == 0.0 and rows[3]["support"] == 0


def test_one_class_only_leaves_auroc_undefined() -> None:
    metrics, _ = class_metrics(np.eye(4, dtype=np.float32)[[0, 0, 1]], np.array([0, 0, 0]), CLASSES)
    assert metrics["auroc"] is None and metrics["top1"] == pytest.approx(2 / 3)


def test_multi_label_metrics() -> None:
    truth = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)
    probabilities = np.array([[0.9, 0.2, 0.4, 0.1], [0.3, 0.8, 0.1, 0.6], [0.7, 0.9, 0.2, 0.2]], np.float32)
    metrics, rows = class_metrics(probabilities, truth, CLASSES, multi_label=True)
    assert metrics["exact_match"] == pytest.approx(1 / 3)  # the first misses "c", the second adds "d"
    assert [row["f1"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert metrics["macro_f1"] == pytest.approx(2 / 3)  # "d" has no image
    assert "top1" not in metrics
    task = TASKS["classify"]
    assert task.monitor(load_config(None, ["data.multi_label=true"])) == "macro_f1" and task.monitor(load_config()) == "top1"


def test_confusion_matrix_and_interval() -> None:
    counts = confusion_matrix(np.eye(3, dtype=np.float32)[[0, 1, 1, 2]], np.array([0, 0, 1, 2]))
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    low, high = wilson_interval(90, 100)
    assert (low, high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))
    assert wilson_interval(10, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))


def recorded() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of the recorded case, by its rule."""
    random = np.random.RandomState(zlib.crc32(b"input:cls"))
    labels = random.randint(0, 3, 40)
    logits = random.standard_normal((40, 3))
    logits[np.arange(40), labels] += 1
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True), labels


def test_recorded_figures_of_scikit_learn() -> None:
    record = json.loads((Path(__file__).parents[1] / "fixtures" / "segmentation" / "metrics.json").read_text())["classification"]
    found, labels = recorded()
    assert labels.tolist() == record["y"] and confusion_matrix(found, labels).tolist() == record["values"]["confusion"]
    metrics, rows = class_metrics(found, labels, ["a", "b", "c"], kappa="quadratic")
    names = {"top1": "sk_acc", "balanced_accuracy": "sk_balanced_acc", "macro_f1": "sk_f1_macro", "auroc": "sk_auc_ovr_macro"}
    for name, known in (names | {"kappa": "sk_kappa_quadratic"}).items():
        assert metrics[name] == pytest.approx(record["values"][known], rel=1e-6), name
    assert "sensitivity" not in metrics and "sensitivity" not in rows[0], "only where a specificity is set"


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_by_hand(weights: str | None) -> None:
    """1 - observed / expected disagreement (Cohen 1968); a grade that does not occur keeps the others apart."""
    counts = np.array([[5, 2, 0, 1], [1, 4, 0, 2], [0, 0, 0, 0], [0, 1, 0, 6]])
    power = {None: 0, "linear": 1, "quadratic": 2}[weights]
    observed = expected = 0.0
    for i in range(4):
        for j in range(4):
            apart = 0 if i == j else abs(i - j) ** power
            observed += apart * counts[i, j]
            expected += apart * counts[i].sum() * counts[:, j].sum() / counts.sum()
    assert cohen_kappa(counts, weights) == pytest.approx(1 - observed / expected)
    assert cohen_kappa(np.diag([0, 7]), weights) is None and cohen_kappa(np.diag([2, 7]), weights) == 1.0


@pytest.mark.parametrize("specificity", [0.5, 0.8, 0.9, 0.95])
def test_sensitivity_is_the_largest_among_all_thresholds(specificity: float) -> None:
    random = np.random.default_rng(1)
    truth = random.random(80) < 0.4
    truth[:2] = (False, True)
    values = np.round(random.normal(truth * 1.2, 1), 1)  # with ties
    found = [
        float((values[truth] >= threshold).mean())
        for threshold in [*values, np.inf]
        if (values[~truth] < threshold).mean() >= specificity - 1e-12
    ]
    assert sensitivity_at(truth, values, specificity) == max(found)


def test_sensitivity_of_classes() -> None:
    """Of two classes the second stands for both; a class without images has none."""
    found, labels = recorded()
    two = np.stack([1 - found[:, 2], found[:, 2]], 1)
    metrics, rows = class_metrics(two, (labels == 2).astype(int), ["healthy", "ill"], specificity=0.9)
    assert metrics["sensitivity"] == rows[1]["sensitivity"] == sensitivity_at(labels == 2, found[:, 2], 0.9) != rows[0]["sensitivity"]
    several, rows = class_metrics(np.pad(found, ((0, 0), (0, 1))), labels, CLASSES, specificity=0.9)
    assert rows[3]["sensitivity"] is None and several["sensitivity"] == pytest.approx(np.mean([row["sensitivity"] for row in rows[:3]]))
    multi = np.stack([labels == 0, labels != 1], 1).astype(np.float32)
    both, rows = class_metrics(found[:, :2], multi, ["a", "b"], multi_label=True, specificity=0.9)
    assert both["sensitivity"] == pytest.approx((rows[0]["sensitivity"] + rows[1]["sensitivity"]) / 2)


@pytest.mark.parametrize(("task", "kind"), [("classify", "ClassificationMeter"), ("bags", "BagMeter")])
def test_settings_reach_the_meter(task: str, kind: str) -> None:
    config = load_config(None, [f"task={task}", "eval.specificity=0.9", "eval.kappa=quadratic", "eval.best=kappa"])
    meter = TASKS[task].meter(config, {"classes": ["none", "mild"]})
    assert type(meter).__name__ == kind and (meter.specificity, meter.kappa) == (0.9, "quadratic")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"kappa is not measured; set eval\.kappa=quadratic"):
        load_config(None, [f"task={task}", "eval.best=kappa"])
    with pytest.raises(UserError, match="it needs one label per image"):
        load_config(None, ["data.multi_label=true", "eval.kappa=linear"])


def test_remarks_name_what_was_set() -> None:
    logits, label = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2
    meter = ClassificationMeter(["none", "mild"], multi_label=False, specificity=0.9, kappa="linear")
    first, second = scored(meter, logits, label, list(range(9))).result().remarks
    assert "specificity of at least 90 %" in first and first.endswith("that of mild")
    assert second == "kappa with linear weights, classes in the order none, mild"


def scored(meter: ClassificationMeter, logits: torch.Tensor, label: torch.Tensor, indices: list[int]) -> ClassificationMeter:
    names = [f"{index}.png" for index in indices]
    meter.update(logits[indices], Batch({"label": label[indices]}, indices, names, names))
    return meter


def test_states_of_several_processes_come_together() -> None:
    logits, label = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    want = scored(ClassificationMeter(CLASSES, multi_label=False), logits, label, list(range(7))).result()
    parts = [scored(ClassificationMeter(CLASSES, multi_label=False), logits, label, indices) for indices in ([1, 3, 5], [0, 2, 4, 6])]
    whole = ClassificationMeter(CLASSES, multi_label=False)
    whole.merge([pickle.loads(pickle.dumps(part.state())) for part in parts])
    got = whole.result()
    assert got.metrics == want.metrics and got.per_class == want.per_class and got.per_case == want.per_case
    assert [row["index"] for row in got.per_case] == list(range(7)) and got.per_case[3]["id"] == got.per_case[3]["case"] == "3.png"
    np.testing.assert_allclose(got.details.probabilities, logits.softmax(1).numpy(), atol=1e-6)
    assert got.details.labels.tolist() == label.tolist()
    hits = int((logits.argmax(1) == label).sum())
    assert got.metrics["top1"] == pytest.approx(hits / 7) and got.intervals == {"top1": wilson_interval(hits, 7)}


def test_cases_with_several_labels() -> None:
    logits = torch.tensor([[2.0, -1, 3, -1], [-1, -1, -1, -1]])
    label = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]])
    first, second = scored(ClassificationMeter(CLASSES, multi_label=True), logits, label, [0, 1]).result().per_case
    assert (first["label"], first["prediction"]) == ("a;b", "a;c") and first["probability"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert (second["label"], second["prediction"]) == ("none", "")


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_of_many_images_are_those_of_few(multi_label: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk and in small parts, also when processes come together out of order."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator)
    label = (torch.rand(60, 4, generator=generator) > 0.5).float() if multi_label else torch.arange(60) % 4
    want = scored(ClassificationMeter(CLASSES, multi_label=multi_label), logits, label, list(range(60))).result()
    monkeypatch.setattr(spill, "HELD_BYTES", 100)
    monkeypatch.setattr(spill, "BLOCK", 32)
    whole = ClassificationMeter(CLASSES, multi_label=multi_label)
    for first in (1, 0):
        whole.merge([scored(ClassificationMeter(CLASSES, multi_label=multi_label), logits, label, list(range(first, 60, 2))).state()])
    got = whole.result()
    assert isinstance(got.details.probabilities, np.memmap)
    assert (got.metrics, got.per_class, got.intervals) == (want.metrics, want.per_class, want.intervals)
    for row, wanted in zip(got.per_case, want.per_case, strict=True):
        assert row == wanted | {"probability": pytest.approx(wanted["probability"])}


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "HELD_BYTES", 2**12)
    classes = [f"class {number}" for number in range(200)]
    logits, label = torch.zeros(32, 200), torch.zeros(32, dtype=torch.int64)
    meter = ClassificationMeter(classes, multi_label=False)
    tracemalloc.start()
    try:
        held = []
        for step in range(40):
            indices = list(range(32 * step, 32 * step + 32))
            names = [f"{index}.png" for index in indices]
            meter.update(logits, Batch({"label": label}, indices, names, names))
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[-1] - held[9] < 30 * 32 * 50  # bytes per image: two numbers

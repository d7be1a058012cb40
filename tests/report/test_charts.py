"""Charts of pages: what is drawn is inside, what cannot be drawn is left out."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from visionattn.report.charts import Line, confused_pairs, confusion_chart, line_chart, reliability_chart
from visionattn.tasks.base import Confidence, Confusion


def drawing(text: str) -> ET.Element:
    """The chart, which is well-formed XML, too."""
    found = ET.fromstring(text).find("svg")
    assert found is not None
    return found


def places(chart: ET.Element) -> np.ndarray:
    """Ends of all curves."""
    paths = [path.get("d", "") for path in chart.findall("path") if "curve" in path.get("class", "")]
    return np.array([[float(number) for number in point.split()] for path in paths for point in path.strip("M").split("L")])


def test_curves_are_inside_and_in_order() -> None:
    points = [(epoch, 1 / epoch) for epoch in range(1, 21)]
    chart = drawing(line_chart("Loss", [Line("train", points, 1), Line("val", points[::2], 2)], mark=5))
    x, y = places(chart).T
    assert (np.diff(x[:20]) > 0).all() and (np.diff(y[:20]) > 0).all(), "lower values are further down"
    assert x.min() >= 46 and x.max() <= 350 and y.min() >= 10 and y.max() <= 196
    assert len(chart.findall("circle")) == 30 and len([path for path in chart.findall("path") if path.get("class") == "mark"]) == 1


@pytest.mark.parametrize("value", [0.3, 0.0, 1.0, -4.0, 1e-30, 1e30])
def test_a_single_value(value: float) -> None:
    (place,) = places(drawing(line_chart("one", [Line("a", [(1, value)], 1)], percent=0 <= value <= 1)))
    assert 46 < place[0] < 350 and 10 <= place[1] <= 196


def test_what_is_not_finite_is_left_out() -> None:
    points = [(1.0, math.nan), (2.0, 1.0), (3.0, math.inf), (4.0, 2.0)]
    assert len(places(drawing(line_chart("a", [Line("a", points, 1)])))) == 2
    assert line_chart("a", [Line("a", [(1.0, math.nan)], 1), Line("b", [], 2)]) == ""


def test_values_of_many_sizes_are_on_a_logarithmic_scale() -> None:
    _, y = places(drawing(line_chart("a", [Line("a", [(1, 1e6), (2, 1.0), (3, 0.1), (4, 0.01)], 1)]))).T
    assert y[3] - y[2] == pytest.approx(y[2] - y[1], abs=0.2)


def test_a_long_curve_keeps_its_mean() -> None:
    values = np.random.default_rng(0).normal(5, 1, 10_000)
    chart = line_chart("a", [Line("a", list(enumerate(values)), 1, faint=True)])
    assert len(places(drawing(chart))) == 300 and len(chart) < 20_000


def test_names_are_escaped_everywhere() -> None:
    name = "<script>\"'&"
    assert drawing(line_chart(name, [Line(name, [(1, 2)], 1)])).get("aria-label") == name
    chart = confusion_chart(Confusion(np.array([[3, 1], [0, 2]]), [name, "b"], "images"))
    assert "<script" not in chart and name in "".join(ET.fromstring(chart).itertext())


def test_a_confusion_matrix() -> None:
    counts = np.array([[8, 2, 0], [0, 5, 5], [1, 0, 0]])
    chart = drawing(confusion_chart(Confusion(counts, ["a", "b", "c"], "images")))
    filled = [(box.get("class"), box.get("fill-opacity")) for box in chart.findall("rect") if box.get("class") != "cell"]
    assert filled == [("right", "0.82"), ("wrong", "0.30"), ("right", "0.56"), ("wrong", "0.56"), ("wrong", "1.00")]
    assert [text.text for text in chart.findall("text") if text.get("class") in ("count", "strong")] == ["8", "2", "5", "5", "1"]
    pairs = confused_pairs(Confusion(counts, ["a", "b", "c"], "images"))
    assert pairs == [("b", "c", 5, 0.5), ("a", "b", 2, 0.2), ("c", "a", 1, 1.0)]
    shares = drawing(confusion_chart(Confusion(counts * 100_000, ["a", "b", "c"], "pixels", counted=False)))
    assert [text.text for text in shares.findall("text") if text.get("class") in ("count", "strong")] == ["80", "20", "50", "50", "100"]


def test_many_classes_become_a_list() -> None:
    counts = np.eye(1000, dtype=int) * 9
    counts[3, 4] = 7
    confusion = Confusion(counts, [f"class {number}" for number in range(1000)], "images")
    assert confusion_chart(confusion) == "" and confused_pairs(confusion) == [("class 3", "class 4", 7, 7 / 16)]


def test_a_reliability_diagram() -> None:
    count, right = np.array([0.0, 10, 0, 30]), np.array([0.0, 5, 0, 27])
    chart = drawing(reliability_chart(Confidence(count, right, np.array([0.0, 4, 0, 28.5]))))
    told = [title.text or "" for title in chart.iter("title")]
    assert [re.findall(r"[\d.]+", text) for text in told] == [["25.0", "40", "50"], ["75.0", "95", "90"]]
    np.testing.assert_allclose(places(chart), [[46 + 0.4 * 250, 10 + 0.5 * 250], [46 + 0.95 * 250, 10 + 0.1 * 250]])

"""Charts of a page as SVG, which follow its colours in light, dark and print: curves, a confusion matrix, a reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

from visionattn.names import shown
from visionattn.tasks.base import Confidence, Confusion

_WIDTH, _HEIGHT = 360, 230  # of a chart of curves, in pixels where the page shows it at its own size
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34  # margins
_POINTS = 300  # most points of a curve; of more, neighbours are averaged
_MARKED = 40  # most points that are drawn as such
_COLORS = 6  # that a page has for curves
_LETTERS = 18  # of a class name beside a matrix
MOST_CLASSES = 30  # of a matrix that is drawn

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: its name in the legend.
        points: x and y; those that are not finite are left out.
        color: number of its colour, counted from 1; after the last colour they begin anew, dashed.
        faint: drawn thin and pale, behind the others.
    """

    label: str
    points: Sequence[Point]
    color: int
    faint: bool = False


def line_chart(title: str, lines: Sequence[Line], *, x_label: str = "epoch", percent: bool = False, mark: float | None = None) -> Markup:
    """Curves with axes and a legend; on a logarithmic scale where values differ that much.

    Args:
        percent: y are fractions, shown as percent.
        mark: x of a dashed line, that of the best epoch.
    """
    kept = [(line, _thinned([(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)])) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        return Markup("")
    xs, ys = (np.array([point[axis] for _, points in kept for point in points]) for axis in (0, 1))
    log = bool(ys.min() > 0 and ys.max() > 100 * np.median(ys))
    (low, high), ticks = _scale(float(ys.min()), float(ys.max()), log=log, percent=percent)
    left, right = float(xs.min()), float(xs.max())
    if left == right:
        left, right = left - 0.5, right + 0.5

    def place(x: float, y: float) -> Point:
        level = (math.log(y) - math.log(low)) / (math.log(high) - math.log(low)) if log else (y - low) / (high - low)
        return (
            _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - level * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for tick in ticks:
        _, y = place(left, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{100 * tick:g} %" if percent else _number(tick), anchor="end"))
    for tick in MaxNLocator(6, integer=True).tick_values(left, right):
        if left <= tick <= right:
            x, _ = place(tick, low)
            parts.append(_text(x, _HEIGHT - _BOTTOM + 16, f"{tick:g}"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 3, x_label))
    if mark is not None and left <= mark <= right:
        x, _ = place(mark, low)
        parts.append(f'<path class="mark" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    for line, points in sorted(kept, key=lambda item: not item[0].faint):
        places = [place(x, y) for x, y in points]
        style = _style(line)
        parts.append(f'<path class="curve {style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
        if not line.faint and len(points) <= _MARKED:
            for (x, y), point in zip(places, points, strict=True):
                value = f"{100 * point[1]:.2f} %" if percent else f"{point[1]:.4g}"
                told = escape(shown(f"{line.label}, {x_label} {point[0]:g}: {value}"))
                parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{told}</title></circle>')
    legend = [f'<li class="{_style(line)}">{escape(shown(line.label))}</li>' for line, _ in kept]
    if mark is not None and left <= mark <= right:
        legend.append('<li class="marked">best</li>')
    return _figure(title, _svg(_WIDTH, _HEIGHT, title, parts), legend)


def confusion_chart(confusion: Confusion) -> Markup:
    """The matrix: rows are true classes, colour is the share of the row; empty where the classes are too many to be read."""
    counts, names = np.asarray(confusion.counts), [shown(name) for name in confusion.classes]
    size = len(names)
    if size > MOST_CLASSES:
        return Markup("")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 46 if size <= 8 else 34 if size <= 16 else 24
    short = [_shortened(name) for name in names]
    room = 14 + 7 * max(map(len, short))
    top = 26 + int(0.75 * room)
    parts = [_text(room + size * cell / 2, 14, "predicted", style="axis"), _text(room - 8, top - 8, "true", anchor="end", style="axis")]
    for number, (name, full) in enumerate(zip(short, names, strict=True)):
        middle = (number + 0.5) * cell
        parts.append(_text(room - 8, top + middle + 4, name, anchor="end", told=full))
        x, y = room + middle + 4, top - 8
        parts.append(_text(x, y, name, anchor="start", told=full, turned=f"rotate(-50 {x:.1f} {y})"))
    for row in range(size):
        for column in range(size):
            x, y, share = room + column * cell, top + row * cell, float(shares[row, column])
            kind = "right" if row == column else "wrong"
            what = f"true {names[row]}, predicted {names[column]}: {int(counts[row, column]):,} {confusion.what} ({100 * share:.1f} %)"
            box = f'x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="3"'
            parts.append(f'<rect class="cell" {box}/>')
            if counts[row, column]:
                opacity = f"{0.12 + 0.88 * share:.2f}"
                parts.append(f'<rect class="{kind}" fill-opacity="{opacity}" {box}><title>{escape(what)}</title></rect>')
                if label := _cell(int(counts[row, column]), share, small=confusion.counted):
                    style = "strong" if share > 0.5 else "count"
                    parts.append(_text(x + cell / 2, y + cell / 2 + 4, label, style=style))
    title = "Confusion matrix"
    return _figure("", _svg(room + size * cell + int(0.6 * room), top + size * cell + 4, title, parts), [], wide=True)


def confused_pairs(confusion: Confusion, most: int = 12) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: true class, predicted class, how often, and as a share of the true class."""
    counts = np.array(confusion.counts)
    totals = np.maximum(counts.sum(1), 1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [
        (confusion.classes[row], confusion.classes[column], int(counts[row, column]), float(counts[row, column] / totals[row]))
        for row, column in pairs
        if counts[row, column]
    ]


def reliability_chart(confidence: Confidence) -> Markup:
    """Share of right answers over their probability; the area of a mark grows with the answers of its bin."""
    count, right, total = (np.asarray(values, float) for values in confidence)
    used = count > 0
    accuracy, mean, share = right[used] / count[used], total[used] / count[used], count[used] / count.sum()
    size, left, top = 250, 46, 10

    def place(x: float, y: float) -> Point:
        return left + x * size, top + (1 - y) * size

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(tick, tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{left + size}M{x:.1f} {top}V{top + size}"/>')
        parts += [_text(left - 6, y + 4, f"{100 * tick:g} %", anchor="end"), _text(x, top + size + 16, f"{100 * tick:g} %")]
    parts.append(f'<path class="mark" d="M{left} {top + size}L{left + size} {top}"/>')
    parts.append(_text(left + size / 2, top + size + 33, "how sure the model is"))
    points = [place(x, y) for x, y in zip(mean, accuracy, strict=True)]
    parts.append(f'<path class="curve s1" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')
    for (x, y), part, sure, found in zip(points, share, mean, accuracy, strict=True):
        told = f"{100 * part:.1f} % of answers: {100 * sure:.0f} % sure, {100 * found:.0f} % right"
        parts.append(f'<circle class="dot s1" cx="{x:.1f}" cy="{y:.1f}" r="{3 + 11 * math.sqrt(part):.1f}"><title>{told}</title></circle>')
    title = "Share of right answers, by how sure the model is"
    legend = ['<li class="s1">right answers (larger: more of them)</li>', '<li class="marked">as sure as it is right</li>']
    return _figure("", _svg(left + size + 24, top + size + 40, title, parts), legend)


# ---------------------------------------------------------------- parts


def _style(line: Line) -> str:
    """Classes of CSS."""
    dashed = " dashed" if line.color > _COLORS else ""
    return f"s{(line.color - 1) % _COLORS + 1}{dashed}{' faint' if line.faint else ''}"


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    label = escape(shown(title))
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _figure(title: str, drawing: str, legend: Sequence[str], *, wide: bool = False) -> Markup:
    head = f"<figcaption>{escape(shown(title))}</figcaption>" if title else ""
    below = f'<ul class="legend">{"".join(legend)}</ul>' if legend else ""
    return Markup(f'<figure class="chart{" wide" if wide else ""}">{head}{drawing}{below}</figure>')  # all text in it is escaped


def _text(x: float, y: float, text: str, *, anchor: str = "middle", style: str = "tick", told: str = "", turned: str = "") -> str:
    turn = f' transform="{turned}"' if turned else ""
    title = f"<title>{escape(told)}</title>" if told and told != text else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(shown(text))}{title}</text>'


def _shortened(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def _cell(count: int, share: float, *, small: bool) -> str:
    """What a cell of the matrix says: the count, or of what is counted in millions the share, where it is not next to nothing."""
    if small:
        return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
    return f"{100 * share:.0f}" if share >= 0.005 else ""


def _scale(low: float, high: float, *, log: bool, percent: bool) -> tuple[tuple[float, float], list[float]]:
    """Ends of an axis, and its ticks within them."""
    if log:
        low, high = low / 1.2, high * 1.2
        ticks = LogLocator(numticks=6).tick_values(low, high)
    else:
        room = 0.06 * (high - low) or (0.02 if percent else 0.1 * abs(high) or 1.0)
        low, high = low - room, high + room
        if percent:
            low, high = max(low, 0.0), min(high, 1.0)
            low, high = (low, high) if high > low else (low - 0.02, high + 0.02)
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return (low, high), [float(tick) for tick in ticks if low <= tick <= high]


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value and not 1e-3 <= abs(value) < 1e5 else f"{value:g}"


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_POINTS` points: means of neighbours."""
    if len(points) <= _POINTS:
        return list(points)
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in np.array_split(np.array(points), _POINTS)]

"""Draw a block of a network from a plain description, as SVG that is readable on light and on dark pages.

A description is a list of parts, from the input to the output:

* text: a step. One that begins with `@` is the attention, `~` a convolution, `*` a product; the sign is not drawn.
* ("add", part, ...): a residual branch, whose output is added to its input.
* ("mul", [part, ...], [part, ...]): branches side by side from one input, whose outputs are multiplied; "sum" adds and "cat"
  concatenates them. An empty branch passes its input on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

Part = Any
STEP, GAP, LINE, LETTERS = 178, 14, 15, 24
INK, ON_BOX = "#757c8a", "#15181e"
FILLS = {"@": "#c3ccfb", "~": "#c9ead6", "*": "#f6dcb5", "": "#e3e6ec"}
SIGNS = {"add": "+", "sum": "+", "mul": "\N{MULTIPLICATION SIGN}", "cat": "concat"}


def words(step: str) -> tuple[str, list[str]]:
    """Kind and lines of a step."""
    kind = step[0] if step[0] in FILLS else ""
    return kind, textwrap.wrap(step[len(kind) :].strip(), LETTERS)


def size_of(part: Part) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(part, str):
        return STEP, LINE * len(words(part)[1]) + 14
    name, *rest = part
    if name == "add":
        width, height = size_of_chain(rest)
        return width + 44, height + 2 * GAP + 22
    sizes = [size_of_chain(branch) for branch in rest]
    return sum(max(width, 30) for width, _ in sizes) + 16 * (len(sizes) - 1), max(height for _, height in sizes) + 2 * GAP + 32


def size_of_chain(parts: Sequence[Part]) -> tuple[int, int]:
    sizes = [size_of(part) for part in parts]
    return max((width for width, _ in sizes), default=0), sum(height for _, height in sizes) + GAP * max(len(parts) - 1, 0)


def line(*points: tuple[float, float]) -> str:
    return f'<polyline points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def sign(name: str, x: float, y: float) -> list[str]:
    """A circle with the operation in it, or a word for a longer one."""
    text, half = SIGNS[name], 11 if len(SIGNS[name]) == 1 else 28
    return [
        f'<rect class="sign" x="{x - half:g}" y="{y - 11:g}" width="{2 * half}" height="22" rx="11"/>',
        f'<text x="{x:g}" y="{y + 4.5:g}">{text}</text>',
    ]


def draw(part: Part, x: float, y: float) -> list[str]:
    """Draw a part whose input enters at the top, in the middle `x`."""
    width, height = size_of(part)
    if isinstance(part, str):
        kind, lines = words(part)
        box = f'<rect x="{x - STEP / 2:g}" y="{y:g}" width="{STEP}" height="{height}" rx="5" fill="{FILLS[kind]}"/>'
        return [box, *(f'<text x="{x:g}" y="{y + 19 + LINE * row:g}">{escape(text)}</text>' for row, text in enumerate(lines))]
    name, *rest = part
    top, bottom = y + GAP, y + height - 11
    if name == "add":
        inner = size_of_chain(rest)
        side = x + inner[0] / 2 + 14
        return [
            line((x, y), (x, top)),
            *draw_chain(rest, x, top),
            line((x, top + inner[1]), (x, bottom - 11)),
            line((x, y + 3), (side, y + 3), (side, bottom), (x + 11, bottom)),
            *sign(name, x, bottom),
        ]
    drawn, left = [line((x, y), (x, y + 4))], x - width / 2
    for branch in rest:
        inner = size_of_chain(branch)
        middle = left + max(inner[0], 30) / 2
        drawn += [line((x, y + 4), (middle, y + 4), (middle, top + 6)), *draw_chain(branch, middle, top + 6)]
        drawn += [line((middle, top + 6 + inner[1]), (middle, bottom - 17), (x, bottom - 17), (x, bottom - 11))]
        left += max(inner[0], 30) + 16
    return [*drawn, *sign(name, x, bottom)]


def draw_chain(parts: Sequence[Part], x: float, y: float) -> list[str]:
    drawn = []
    for index, part in enumerate(parts):
        if index:
            drawn.append(line((x, y), (x, y + GAP)))
            y += GAP
        drawn += draw(part, x, y)
        y += size_of(part)[1]
    return drawn


def in_words(parts: Sequence[Part]) -> str:
    """The description as a sentence, for readers of a screen."""
    told = []
    for part in parts:
        if isinstance(part, str):
            told.append(" ".join(words(part)[1]))
        elif part[0] == "add":
            told.append(f"({in_words(part[1:])}), added to the input")
        else:
            how = {"mul": "product", "sum": "sum", "cat": "concatenation"}[part[0]]
            told.append(f"{how} of [{'] and ['.join(in_words(branch) or 'the input' for branch in part[1:])}]")
    return ", then ".join(told)


def svg(blocks: Sequence[tuple[str, Sequence[Part]]]) -> str:
    """Draw blocks, each with its title, side by side."""
    sizes = [size_of_chain(parts) for _, parts in blocks]
    widths = [max(width, 8 * len(title)) for (title, _), (width, _) in zip(blocks, sizes, strict=True)]
    width, height = sum(widths) + 28 * (len(blocks) - 1) + 16, max(height for _, height in sizes) + 76
    drawn, left = [], 8.0
    for (title, parts), wide, (_, tall) in zip(blocks, widths, sizes, strict=True):
        x = left + wide / 2
        drawn += [f'<text class="title" x="{x:g}" y="16">{escape(title)}</text>', line((x, 28), (x, 44))]
        drawn += draw_chain(parts, x, 44)
        drawn += [line((x, 44 + tall), (x, 60 + tall)), f'<path d="M{x - 4:g},{60 + tall:g} h8 l-4,7 z"/>']
        left += wide + 28
    told = escape("; ".join(f"{title}: {in_words(parts)}" for title, parts in blocks))
    style = (
        f"text{{font:13px system-ui,sans-serif;text-anchor:middle;fill:{ON_BOX}}} .title{{font-weight:600;fill:{INK}}} "
        f"polyline{{fill:none;stroke:{INK};stroke-width:1.5}} path{{fill:{INK}}} .sign{{fill:#fff;stroke:{INK};stroke-width:1.5}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    return "\n".join([head, f"<title>{told}</title>", f"<style>{style}</style>", *drawn, "</svg>"]) + "\n"

"""Read a page as a browser would: what is balanced, what is escaped, what it would fetch."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "img", "br"}
SHAPES = {"svg", "path", "circle", "rect", "text", "title"}
TAGS = {
    *("html", "head", "style", "body", "header", "nav", "div", "span", "h1", "h2", "h3", "p", "a", "b", "i", "ul", "li"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "pre", "code", "details", "summary"),
    *EMPTY,
    *SHAPES,
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "class", "id", "style", "href", "alt", "src", "title", "data-name", "role", "aria-label"),
    *("viewbox", "width", "height", "d", "x", "y", "cx", "cy", "r", "rx", "text-anchor", "transform", "fill-opacity"),
}


class Page(HTMLParser):
    """Text and pictures of a page.

    Raises:
        AssertionError: tags that do not match, or tags and attributes that pages of ours do not have.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.alternatives: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "all tags are closed"
        assert len(set(self.ids)) == len(self.ids)
        assert not re.search(r"url\(|@import|https?:", self.style), "nothing is fetched"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag in TAGS and set(given) <= ATTRIBUTES and len(given) == len(attrs), (tag, attrs)
        if tag == "img":
            assert (given["src"] or "").startswith(("data:image/png;base64,", "data:image/webp;base64,"))
            self.alternatives.append(given["alt"] or "")
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def style(self) -> str:
        return self.source.partition("<style>")[2].partition("</style>")[0]

    @property
    def text(self) -> str:
        """All that can be read, in one line."""
        return " ".join(" ".join(self.texts).split())

"""Hooks of mkdocs: patterns in the navigation, links that lead out of docs/, and pages that ask no other host.

On a code host `../examples/own_task.py` leads from a page to the file. The site does not hold that file, so that such links lead to the
code host there.
"""

from __future__ import annotations

import posixpath
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

LINK = re.compile(r"(\]\()(\.\./[^)\s#]*)")


def on_config(config: Any) -> Any:
    """Put pages into the navigation that only a pattern names."""
    docs = Path(config.docs_dir)
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    listed = set(_names(config.nav))
    config.nav = _expanded(config.nav, [page for page in pages if page not in listed])
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to files outside of docs/ lead to the code host."""
    folder = posixpath.dirname(page.file.src_uri)

    def outside(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        inside = target == "docs" or target.startswith("docs/")
        return found[0] if inside else f"{found[1]}{config.repo_url}/blob/main/{target}"

    return LINK.sub(outside, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Leave out the mark by which the theme's script finds the link to the code host, whose numbers it would load from there."""
    return output.replace('data-md-component="source"', "")


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """Do the same in the page for addresses that do not exist."""
    return output_content.replace('data-md-component="source"', "")


def _names(nav: Any) -> list[str]:
    """Every page and pattern of a navigation."""
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav
    return [name for item in items for name in _names(item)]


def _expanded(nav: Any, pages: list[str]) -> Any:
    """The navigation with pages in the place of patterns; a pattern reaches into no folder below its own."""
    if isinstance(nav, dict):
        return {title: _expanded(item, pages) for title, item in nav.items()}
    if isinstance(nav, str):
        return nav
    found: list[Any] = []
    for item in nav:
        if isinstance(item, str) and "*" in item:
            found += [page for page in pages if fnmatch(page, item) and page.count("/") == item.count("/")]
        else:
            found.append(_expanded(item, pages))
    return found

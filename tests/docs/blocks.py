"""Find the fenced blocks of Markdown pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)(`{3,})(.*)\n((?:.*\n)*?)^\1\2 *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the page in the repository.
        line: where it begins.
        language: what stands behind the fence; a block without a language holds commands.
        text: what it holds.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block.

    Attributes:
        place: page and line.
        text: the command without a comment.
        words: its words.
        error: what the block shows below it, if that is an error.
    """

    place: str
    text: str
    words: tuple[str, ...]
    error: str = ""


def blocks_of(path: Path) -> list[Block]:
    """Every fenced block of a page; what an odd number of fences would hide is an error."""
    text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    found = [
        Block(page, text[: match.start()].count("\n") + 2, match[3].strip(), re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE))
        for match in FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{page}: a fence without its end"
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a block; where some lines begin with a prompt, the others are what they print."""
    lines = re.sub(r"\\\n\s*", "", block.text).split("\n")
    prompted, found = any(line.startswith("$ ") for line in lines), []
    for number, line in enumerate(lines):
        if prompted and not line.startswith("$ "):
            continue
        after = list(takewhile(lambda text: not text.startswith("$ "), lines[number + 1 :])) if prompted else []
        error = "\n".join(after).strip() if after and after[0].startswith("error ") else ""
        for part in line.removeprefix("$ ").split(" && "):
            if words := tuple(shlex.split(part, comments=True)):
                found.append(Command(f"{block.page}:{block.line + number}", shlex.join(words), words, error))
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
COMMANDS = [command for block in BLOCKS if block.language in ("", "sh") for command in commands_of(block)]

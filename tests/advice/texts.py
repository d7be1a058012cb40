"""Find the texts of the package that suggest a command or a setting: those of messages, not of help or of docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import visionattn

PACKAGE = Path(visionattn.__file__).parent
HOLE = "\0"  # stands for what an f-string fills in

# A command, a flag, a dotted key with a value, or the only keys without a dot that messages name.
SUGGESTION = re.compile(
    rf"visionattn (?:-v|train|eval|predict|doctor|data|models|weights|config|kernels)\b"
    rf"|(?<![\w-])--[a-z][a-z-]+"
    rf"|(?<![\w.])[a-z_]+\.[a-z_{HOLE}.]+=|(?<![\w.])(?:task|plugins|checkpoint_path|backbone|num_classes)="
    rf"|(?<![\w])[A-Z][A-Z]+_[A-Z_]+=|\b(?:torchrun|hf download)\b"
)

# Calls whose texts are help, a meaning of a key, or are not printed.
_OTHER = {"setting", "Field", "Option", "Argument", "Typer", "command", "compile", "ValueError", "key_value", "split", "removeprefix"}


class Template(NamedTuple):
    """A text with holes, and the file of the package it stands in."""

    source: str
    text: str

    def matches(self, advice: str) -> bool:
        """Whether a printed text can come from this one."""
        pattern = ".*?".join(map(re.escape, self.text.split(HOLE)))
        return re.search(pattern, advice, re.DOTALL) is not None


def templates() -> list[Template]:
    """All texts that suggest something."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        visitor = _Texts()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        source = path.relative_to(PACKAGE).as_posix()
        found.update(dict.fromkeys(Template(source, text) for text in visitor.texts if SUGGESTION.search(text)))
    return list(found)


class _Texts(ast.NodeVisitor):
    """Collects texts, those of f-strings with their holes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in _OTHER:
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.texts.append(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self.texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

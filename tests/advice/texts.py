"""Find what the texts of the package suggest: commands, flags and settings in messages, not those in help or in docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import visionattn

PACKAGE = Path(visionattn.__file__).parent
HOLE = "\0"  # stands for what an f-string fills in

# A command, a flag, a setting; and what else messages say to type. Each up to its first hole.
_KINDS = (
    r"visionattn (?:-v|train|eval|predict|compare|explain|export|serve|bench|features|neighbors|push|doctor|data|models|weights|config"
    r"|kernels)\b"
    r"[^\n\0(),;`]*",
    r"(?<![\w-])--[a-z][a-z_-]+",
    r"(?<![\w.])[a-z_]+\.[a-z_.\0]+=[^\s\0,;:)`\"']*",
    r"(?<![\w.\0])(?:task|plugins|checkpoint_path|pretrained|backbone|num_classes)=[^\s\0,;)]*",
    r"\b[A-Z]+_[A-Z_]+=",
    r"\b(?:torchrun|accelerate launch|hf download|tensorboard --logdir)\b",
)
_SUGGESTION = re.compile("|".join(_KINDS))

# Calls whose texts are help, the meaning of a key, or are not printed.
_OTHER = {"setting", "Field", "Option", "Argument", "Typer", "command", "compile", "key_value", "split", "search"}


class Suggestion(NamedTuple):
    """Text that a message tells the user to type, up to the first part that is filled in, and the file of the package it is in."""

    source: str
    text: str


def suggestions() -> set[Suggestion]:
    """All suggestions of the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        visitor = _Texts()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        source = path.relative_to(PACKAGE).as_posix()
        for text in visitor.texts:
            found.update(Suggestion(source, match[0].partition(HOLE)[0].strip()) for match in _SUGGESTION.finditer(text))
    return found


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

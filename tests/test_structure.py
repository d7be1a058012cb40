"""The house: imports go down only and in no circle, nobody but a task knows it, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from visionattn.backbones.registry import _VARIANTS
from visionattn.tasks import TASKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "visionattn"
FILES = sorted(PACKAGE.rglob("*.py"))

# Classes whose kind only a folder of tasks/ may ask for: tasks, their configs, models.
KINDS = {type(task).__name__ for task in TASKS.values()} | {task.config.__name__ for task in TASKS.values()}
KINDS |= {variant.cls.__name__ for variant in _VARIANTS.values()}
KINDS |= {"Task", "RunConfig", "Backbone", "Classifier", "Segmenter"}


def above_tasks(path: Path) -> bool:
    """Whether a file is outside of the folders of tasks."""
    parts = path.relative_to(PACKAGE).parts
    return not (parts[0] == "tasks" and len(parts) > 2)


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_import_floors() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_circle_of_imports() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # at import; functions and TYPE_CHECKING do not count
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in names else node.module for alias in node.names}
        graph[name] = {module for module in wanted if module in names and module != name}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", [path for path in FILES if above_tasks(path)], ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nobody_but_a_task_asks_for_its_kind(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
            asked = {item.id for item in ast.walk(node.args[1]) if isinstance(item, ast.Name)}
            assert not asked & KINDS, f"line {node.lineno}: {ast.unparse(node)}"
        # tasks have names in their folders and in the table; a text may mention them
        if isinstance(node, ast.Constant):
            assert node.value not in TASKS, f"line {node.lineno}: the name of a task"


@pytest.mark.parametrize("folder", ["engine", "report", "runs", "jobs", "cli"])
def test_nothing_above_the_tasks_looks_into_a_batch(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
                assert node.value.id not in ("batch", "mixed", "part", "sample"), f"{path}:{node.lineno}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("batch", "mixed", "part"):
                assert node.attr in ("to", "ids", "unreadable", "finite"), f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("module", ["visionattn", "visionattn.tasks", "visionattn.config", "visionattn.cli", "visionattn.console"])
def test_importing_costs_nothing(module: str) -> None:
    heavy = {"torch", "timm", "numpy", "PIL", "cv2", "matplotlib", "accelerate", "visionattn.backbones"}
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

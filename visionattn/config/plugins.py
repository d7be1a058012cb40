"""Import a user's own modules, named under `plugins:`, which register backbones, heads, attention modules and tasks.

Only what the user names is imported: in a config or on the command line. A run, too, names the modules it was trained with, but
it may come from somebody else, so opening one imports nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from visionattn.errors import UserError


def import_plugins(names: Iterable[str]) -> None:
    """Import modules by name, or `.py` files by path.

    Raises:
        UserError: VA-C002, not importable.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).expanduser().resolve())
            else:
                import_module(name)
        except ImportError as error:
            fix = "give the path of the file (plugins=[my_module.py]), or install the module, or put its folder on PYTHONPATH"
            raise UserError("VA-C002", f'plugins: "{name}" cannot be imported', why=str(error), fix=fix) from error
        except Exception as error:  # a fault in the user's code, which `-v` shows
            why = f"{type(error).__name__}: {error}"
            raise UserError(
                "VA-C002", f'plugins: "{name}" failed while it was imported', why=why, fix="visionattn -v ... shows where"
            ) from error


def require_plugins(names: Iterable[str]) -> None:
    """Stop if modules that a run names are not imported yet.

    Raises:
        UserError: VA-C006, with the setting that imports them.
    """
    missing = [name for name in names if not _imported(name)]
    if missing:
        raise UserError(
            "VA-C006",
            f"the run names code of its own, which is not imported: {', '.join(missing)}",
            why="a run may come from somebody else, so opening one runs no code that it names",
            fix=f"if you trust them, name them yourself: plugins=[{','.join(missing)}]",
        )


def absolute_plugins(names: Iterable[str]) -> list[str]:
    """The same modules with the paths of files made absolute, so that a saved config works from any folder."""
    return [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in names]


def _imported(name: str) -> bool:
    if not name.endswith(".py"):
        return name in sys.modules
    found = getattr(sys.modules.get(Path(name).stem), "__file__", None)
    if found is None:
        return False
    # A model that was exported or shared names the file without its folder.
    return Path(found).name == name or Path(found).resolve() == Path(name).expanduser().resolve()


def _import_file(path: Path) -> None:
    """Import a file under its stem. Its folder joins sys.path, where loader processes find the module again."""
    if not path.is_file():
        raise ImportError(f"no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    found = getattr(import_module(path.stem), "__file__", None)  # built-in modules have none
    if found is None or Path(found).resolve() != path:
        raise ImportError(f"another module is called {path.stem}: {found or 'a part of Python'}")

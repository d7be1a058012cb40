"""The folder or file that data.root names; needs no other library, so that a wrong one is reported at once."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from visionattn.config.schema import DataConfig
from visionattn.errors import UserError
from visionattn.names import shown, to_path


def find_root(settings: DataConfig, *, otherwise: str = "") -> Path:
    """The path of data.root, which has to exist.

    Args:
        otherwise: what else could be done, for the message about an empty data.root.

    Raises:
        UserError: VA-D001.
    """
    if not settings.root:
        raise UserError("VA-D001", "data.root is empty", fix="; ".join(filter(None, ["data.root=FOLDER (or --data FOLDER)", otherwise])))
    root = Path(to_path(settings.root)).expanduser()
    if root.exists():
        return root
    parent = root.absolute().parent
    near = get_close_matches(root.name, [path.name for path in parent.iterdir()], 1) if parent.is_dir() else []
    place = "this folder" if parent == Path.cwd() else str(parent)
    raise UserError(
        "VA-D001",
        f'data.root "{settings.root}" not found',
        where=f"looked in {parent}" if parent.is_dir() else f"{parent} does not exist either",
        fix=f'Did you mean "{shown(near[0])}" (in {place})?' if near else "data.root=FOLDER",
    )

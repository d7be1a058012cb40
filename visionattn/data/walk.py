"""Find files below a folder, for layouts and for prediction alike: links are followed, each folder is entered once.

Needs no other library, so that the task of a folder is recognised before numpy or torch are loaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from visionattn.files import counted
from visionattn.names import shown

PICTURE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
IMAGE_SUFFIXES = PICTURE_SUFFIXES | ARRAY_SUFFIXES

Identity = tuple[int, int]


@dataclass
class Walker:
    """Lists the regular files below folders and counts what it leaves out.

    Attributes:
        suffixes: endings of the files to list.
        exclude: names (globs) of files and folders to skip.
        is_known: whether a file with another ending is listed too, by its path.
        hidden: number of skipped entries by name.
        others: number of files with other endings by ending.
        special: names of FIFOs, sockets and devices.
        repeated: names of links to folders that are listed already.
    """

    suffixes: Collection[str]
    exclude: Sequence[str]
    is_known: Callable[[str], bool] = lambda path: False
    hidden: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    special: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)

    def excludes(self, name: str) -> bool:
        """Whether a file or folder of this name is skipped."""
        return any(fnmatch(name, pattern) for pattern in self.exclude)

    def folders(self, folder: Path, above: Iterable[Path] = ()) -> list[Path]:
        """List the folders in a folder, sorted, each once: a link only if its target is neither beside it nor above.

        Args:
            above: folders that contain this one.
        """
        entered = {_identity(path) for path in (folder, *above)}
        inside = [path for path in sorted(folder.iterdir()) if not self.excludes(path.name) and path.is_dir()]
        return sorted(path for path in sorted(inside, key=os.path.islink) if self._enter(str(path), entered))

    def files(self, folder: Path) -> list[str]:
        """List the files below a folder, sorted."""
        return self.files_of([folder])[0]

    def files_of(self, folders: Sequence[Path], above: Iterable[Path] = ()) -> list[list[str]]:
        """List the files below each of several folders, sorted; no folder is entered twice.

        Links are followed last, so that a file belongs to the folder it lies in rather than to one that links to it.

        Args:
            above: folders that contain these, which links do not lead back to.
        """
        entered = {_identity(path) for path in (*above, *folders)}
        found: list[list[str]] = [[] for _ in folders]
        links: list[tuple[str, list[str]]] = []
        for folder, files in zip(folders, found, strict=True):
            self._list(str(folder), files, links, entered)
        for link, files in links:  # grows while it is walked
            if self._enter(link, entered):
                self._list(link, files, links, entered)
        return [sorted(files) for files in found]

    def _list(self, folder: str, files: list[str], links: list[tuple[str, list[str]]], entered: set[Identity]) -> None:
        """Add the files of a folder that was entered, and of the folders in it, to `files`, and linked folders to `links`."""
        waiting = [folder]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if self.excludes(entry.name):
                        self.hidden[entry.name] += 1
                    elif not _is_folder(entry):
                        if self.accepts(entry.path):
                            files.append(entry.path)
                    elif entry.is_symlink():
                        links.append((entry.path, files))
                    elif self._enter(entry.path, entered):
                        waiting.append(entry.path)

    def _enter(self, folder: str, entered: set[Identity]) -> bool:
        identity = _identity(folder)
        if identity in entered:
            if os.path.islink(folder):
                self.repeated[os.path.basename(folder)] += 1
            return False
        entered.add(identity)
        return True

    def accepts(self, path: str) -> bool:
        """Whether a path that is not a folder is a file to list; counts it otherwise.

        A link that leads nowhere is listed: reading it gives the reason.
        """
        name = os.path.basename(path)
        suffix = os.path.splitext(name)[1]
        if suffix.lower() not in self.suffixes and not (os.path.isfile(path) and self.is_known(path)):
            self.others[suffix or name] += 1
        elif os.path.exists(path) and not os.path.isfile(path):
            self.special[name] += 1
        else:
            return True
        return False

    def without_strays(self, groups: list[list[str]]) -> list[list[str]]:
        """The files of several groups; arrays only where no group has a picture, since beside pictures they are something else."""
        kept = [[path for path in files if os.path.splitext(path)[1].lower() not in ARRAY_SUFFIXES] for files in groups]
        if not any(kept):
            return groups
        left_out = [path for files, rest in zip(groups, kept, strict=True) if len(rest) < len(files) for path in set(files) - set(rest)]
        self.others.update(os.path.splitext(path)[1] for path in left_out)
        return kept

    def report(self, *, hidden_names: bool = True) -> list[str]:
        """Describe what was left out, a line per kind.

        Args:
            hidden_names: give examples of the skipped names.
        """
        lines = []
        if self.hidden:
            names = f" ({_examples(self.hidden)})" if hidden_names else ""
            lines.append(f"{sum(self.hidden.values()):,} hidden or system files and folders skipped{names}; data.exclude")
        if self.others:
            lines.append(f"{counted(sum(self.others.values()), 'file')} of other types left out ({_examples(self.others)})")
        if self.special:
            lines.append(f"{sum(self.special.values()):,} left out because they are not regular files ({_examples(self.special)})")
        if self.repeated:
            links = counted(sum(self.repeated.values()), "link")
            lines.append(f"{links} to folders that are read already left out ({_examples(self.repeated)})")
        return lines


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob in which `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _identity(folder: str | Path) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _examples(names: Counter[str]) -> str:
    return shown(", ".join(name for name, _ in names.most_common(4)))

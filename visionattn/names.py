"""Names that come from files (classes, paths, columns, reasons of errors), made harmless for where they are shown or written.

In memory a name is what the file says. It goes through `shown` to the terminal, the log, tables and pages, and through
`file_name` into the name of a new file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

_PLAIN = re.compile(r"[\w@%+=:,./{}-]+", re.ASCII)  # words that a shell leaves alone
_LONGEST = 255  # bytes in the name of a file, on all common file systems
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}  # on Windows


def shown(name: str) -> str:
    r"""Format a name as one line: characters without a picture become their escapes, `\x1b`, `\n`, `\u202e`, `\udce4`.

    These are control characters, line breaks, marks of direction or without width, and bytes of a path that are not UTF-8.
    """
    if name.isprintable():
        return name
    return "".join(letter if _has_picture(letter) else letter.encode("unicode_escape").decode() for letter in name)


def shown_lines(text: str) -> str:
    """Format a text whose line breaks are meant, each line as by `shown`."""
    return "\n".join(map(shown, text.split("\n")))


def typed(word: object) -> str:
    """Format a word of a command as it is typed in a shell, in quotes where it needs them."""
    text = str(word)
    return text if _PLAIN.fullmatch(text) else shlex.quote(text)


def typed_plugins(plugins: Sequence[str]) -> str:
    """Format the setting `plugins` as it is typed behind a command, with a space before it; an empty text if there are none."""
    return f" {typed(f'plugins={json.dumps(list(plugins), ensure_ascii=False)}')}" if plugins else ""


def file_name(name: str, ending: str = "") -> str:
    """Make the name of a new file: letters and digits of the locale and `-_.`, with its ending at most 255 bytes.

    It is neither empty nor hidden nor reserved on Windows.
    """
    safe = "".join(letter if _is_plain(letter) else "-" for letter in shown(name)).strip(".") or "-"
    if safe.partition(".")[0].lower() in _RESERVED:
        safe = f"_{safe}"
    return fitted(safe, _LONGEST - len(ending)) + ending


def fitted(text: str, room: int = _LONGEST) -> str:
    """Cut a text to `room` bytes of UTF-8, between characters; one that is cut ends in its hash, so that it stays unique."""
    content = text.encode()
    if len(content) <= room:
        return text
    digest = blake2b(content, digest_size=4).hexdigest()
    return f"{content[: room - len(digest) - 1].decode('utf-8', 'ignore')}-{digest}"


def plain_path(place: Path) -> Path:
    """Make each part of a path a plain name with room for another suffix; ordinary ones stay."""
    parts = [from_path(part) for part in place.parts]
    return Path(*(to_path(fitted(part, 251)) if shown(part) == part and part != ".." else file_name(part) for part in parts))


def from_path(path: str) -> str:
    """Read letters as UTF-8 that the locale could not: the same files have the same names under `LC_ALL=C`."""
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a pair, which only Windows has in paths
        return path


def to_path(name: str) -> str:
    """Write letters as UTF-8 that the locale lacks: a list in UTF-8 names the same files under `LC_ALL=C`."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    return name


def _has_picture(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category[0] != "C" and category not in ("Zl", "Zp")


def _is_plain(letter: str) -> bool:
    word = letter.isalnum() or unicodedata.category(letter)[0] == "M"  # accents and vowel signs
    return letter in "-_." or (word and to_path(letter) == letter)

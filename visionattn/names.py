"""Names that come from files (classes, paths, columns, reasons of errors), made harmless for where they are shown or written.

In memory a name is what the file says. It goes through `shown` to the terminal, the log, tables and pages, and through
`file_name` into the name of a new file.
"""

from __future__ import annotations

import os
import unicodedata
from hashlib import blake2b

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


def file_name(name: str, ending: str = "") -> str:
    """Make the name of a new file: letters, digits and `-_.`, and with its ending at most 255 bytes.

    It is neither empty nor hidden nor reserved on Windows, and encoded as UTF-8 in every locale.
    """
    safe = "".join(letter if _is_plain(letter) else "-" for letter in shown(name)).strip(".") or "-"
    if safe.partition(".")[0].lower() in _RESERVED:
        safe = f"_{safe}"
    return to_path(fitted(safe, _LONGEST - len(ending)) + ending)


def fitted(text: str, room: int = _LONGEST) -> str:
    """Cut a text to `room` bytes of UTF-8, between characters; one that is cut ends in its hash, so that it stays unique."""
    content = text.encode()
    if len(content) <= room:
        return text
    digest = blake2b(content, digest_size=4).hexdigest()
    return f"{content[: room - len(digest) - 1].decode('utf-8', 'ignore')}-{digest}"


def from_path(path: str) -> str:
    """Decode a path as UTF-8, whatever the locale: the same files have the same names under `LC_ALL=C`."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def to_path(name: str) -> str:
    """Turn the name of a file, for example from a list in UTF-8, into a path that this locale opens."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def _has_picture(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category[0] != "C" and category not in ("Zl", "Zp")


def _is_plain(letter: str) -> bool:
    return letter.isalnum() or letter in "-_." or unicodedata.category(letter)[0] == "M"  # accents and vowel signs

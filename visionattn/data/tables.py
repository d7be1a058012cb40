"""Read text that users wrote: lists of names, class lists, CSV tables. Right, or refused with the line and the fix; never guessed."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionattn.errors import UserError, did_you_mean
from visionattn.files import counted
from visionattn.names import shown

_DELIMITERS = ",;\t"
_LONGEST = 2**20  # characters of a line; a longer one is not a row of a table
_MOST_COLUMNS = 1000
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SAVE = 'save it as "CSV UTF-8" (in Excel), or as text in UTF-8'
_SHOWN = 8


@dataclass(frozen=True)
class CsvTable:
    """The rows of a CSV file by column, without blanks around values, and the line that each row ends at."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def where(self, positions: Sequence[int]) -> str:
        """Name the lines of some rows."""
        numbers = ", ".join(str(self.lines[position]) for position in positions[:_SHOWN])
        return f"{self.path}: line{'s' * (len(positions) != 1)} {numbers}" + (", ..." if len(positions) > _SHOWN else "")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank, without blanks around them.

    Raises:
        UserError: VA-D002, not text.
    """
    return [stripped for line in _lines(path) if (stripped := line.strip())]


def csv_columns(path: Path, required: Sequence[str]) -> list[str]:
    """Column names of a CSV file, whose rows are not read; raises like `read_csv`, but not for a missing column."""
    return _header(path, required)[1]


def read_csv(path: Path, required: Sequence[str]) -> CsvTable:
    """Read a CSV file whose columns are separated by commas, semicolons or tabs, in UTF-8 or UTF-16.

    Args:
        required: columns that must exist; `a|b` means one of them, and the rows have it under the first name.

    Raises:
        UserError: VA-D002, not such a table.
    """
    delimiter, columns = _header(path, required)
    for names in required:
        if not set(names.split("|")) & set(columns):
            name = names.partition("|")[0]
            what, why = f'{path.name} has no column "{name}"', f"columns found: {shown(', '.join(columns[:_SHOWN]))}"
            raise UserError("VA-D002", what, where=str(path), why=why, fix=did_you_mean(name, columns, 1))
    renamed = {name: names.partition("|")[0] for names in required for name in names.split("|") if name in columns}
    keys = [renamed.get(name, name) for name in columns]
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    long: list[int] = []
    records = _records(path, delimiter)
    next(records, None)
    for number, row in records:
        if not any(value.strip() for value in row):
            continue
        if any(value.strip() for value in row[len(columns) :]):
            long.append(len(rows))
        values = [value.strip() for value in row[: len(columns)]]
        rows.append(dict(zip(keys, values + [""] * (len(columns) - len(values)), strict=True)))
        lines.append(number)
    table = CsvTable(path, keys, rows, lines)
    if long:
        what = f"{counted(len(long), 'row')} of {path.name} with more fields than columns"
        raise UserError("VA-D002", what, where=table.where(long), fix='put values that contain the separator in quotes: "a, b"')
    if not rows:
        raise UserError("VA-D002", f"{path.name} lists no images", where=str(path))
    return table


def _header(path: Path, required: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter that the first line shows, and the columns."""
    first = next(_lines(path), "")
    if (count := 1 + max(map(first.count, _DELIMITERS))) > _MOST_COLUMNS:
        raise UserError("VA-D002", f"{path.name} has {count:,} columns, at most {_MOST_COLUMNS:,} are read", where=str(path))
    found: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        _, row = next(_records(path, delimiter), (1, []))
        found[delimiter] = [name.strip() for name in row]
    several = [delimiter for delimiter, columns in found.items() if len(columns) > 1]
    fitting = [d for d, columns in found.items() if required and all(set(names.split("|")) & set(columns) for names in required)]
    if len(several) > 1 and len(fitting) != 1:
        raise UserError(
            "VA-D002",
            f"{path.name}: the columns can be separated in several ways",
            where=f"{path}: line 1: {first.strip()[:200]}",
            fix="separate the columns by commas, and put names that contain one in quotes",
        )
    delimiter = (fitting if len(fitting) == 1 else several or [","])[0]
    columns = found[delimiter]
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise UserError("VA-D002", f'{path.name} has two columns "{twice[0]}"', where=str(path), fix="rename one of them")
    return delimiter, columns


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file with the number of their last line."""
    reader = csv.reader(_lines(path), delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError("VA-D002", f"{path.name} is not a CSV file: {error}", where=f"{path}: line {reader.line_num}") from error
        yield reader.line_num, row


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file with their ends.

    Raises:
        UserError: VA-D002, not text in UTF-8 or UTF-16, or a line without end.
    """
    with path.open("rb") as file:
        wide = file.read(2) in _UTF16
        file.seek(0)
        source: io.BufferedReader | io.TextIOWrapper = io.TextIOWrapper(file, encoding="utf-16", newline="") if wide else file
        number = 0
        while True:
            number += 1
            where = f"{path}: line {number}"
            try:
                line = source.readline(_LONGEST)
                if len(line) == _LONGEST:
                    raise UserError("VA-D002", f"{path.name} has a line of more than {_LONGEST:,} characters", where=where)
                text = line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                encoding = "UTF-16" if wide else "UTF-8"
                raise UserError("VA-D002", f"{path.name} is not text in {encoding}", where=where, why=error.reason, fix=_SAVE) from error
            if not text:
                return
            if "\0" in text:
                raise UserError("VA-D002", f"{path.name} is not a text file: it contains zero bytes", where=where, fix=_SAVE)
            yield text

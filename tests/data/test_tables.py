"""Lists and CSV files as people save them: read right, or refused with the line and the fix."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from visionattn.data.tables import read_csv, read_lines
from visionattn.errors import UserError

COLUMNS = ("path", "label")


def refused(path: Path, content: str | bytes, *required: str) -> UserError:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read_csv(path, required or COLUMNS)
    assert (caught.value.code, caught.value.exit_code) == ("VA-D002", 3)
    return caught.value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_save(tmp_path: Path, encoding: str, delimiter: str, end: str) -> None:
    rows = [["path", " label "], ['"a b.png"', "café"], ["", ""], ["c.png", "007"]]
    text = end.join(delimiter.join(row) for row in rows) + end
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    table = read_csv(tmp_path / "x.csv", COLUMNS)
    assert table.rows == [{"path": "a b.png", "label": "café"}, {"path": "c.png", "label": "007"}] and table.lines == [2, 4]


def test_a_delimiter_inside_of_values_and_names(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('path,label,"a;b;c"\nx.png,"one, two",1;2\n')
    assert read_csv(tmp_path / "x.csv", COLUMNS).rows[0] == {"path": "x.png", "label": "one, two", "a;b;c": "1;2"}
    assert "in several ways" in refused(tmp_path / "y.csv", "path;label,split\na.png;b,train\n").what


def test_columns(tmp_path: Path) -> None:
    error = refused(tmp_path / "x.csv", "paths,label\na.png,1\n")
    assert 'no column "path"' in error.what and "paths, label" in error.why and error.fix == "Did you mean paths?"
    assert 'two columns "label"' in refused(tmp_path / "x.csv", "path,label,label\na.png,1,2\n").what
    (tmp_path / "x.csv").write_text("file,split\na.png,train\n")
    assert read_csv(tmp_path / "x.csv", ("image|path|file", "split")).rows == [{"image": "a.png", "split": "train"}]


def test_rows_of_another_length(tmp_path: Path) -> None:
    error = refused(tmp_path / "x.csv", "path,label\na.png,1\nb, c.png,1\nd.png,1,2\n")
    assert error.what == "2 rows of x.csv with more fields than columns" and error.where.endswith("lines 3, 4")
    (tmp_path / "x.csv").write_text("path,label\na.png\nb.png,1,,\n")  # Excel pads rows with empty fields
    assert [row["label"] for row in read_csv(tmp_path / "x.csv", COLUMNS).rows] == ["", "1"]


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    error = refused(tmp_path / "x.csv", "path,label\na.png,the\nb.png,thé\n".encode("cp1252"))
    assert error.where.endswith("line 3") and "UTF-8" in error.fix
    assert "zero bytes" in refused(tmp_path / "x.csv", "path,label\n".encode("utf-16-le")).what
    (tmp_path / "names.txt").write_bytes("café\n".encode("cp1252"))
    with pytest.raises(UserError, match="VA-D002"):
        read_lines(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("," * 2**19 + "\n", "columns, at most 1,000"),
        ("path,label\n" + "x" * 2**21, "a line of more than"),
        ('path,label\na.png,"' + "x\n" * 2**17, "field larger than field limit"),
        ("path,label\n", "lists no images"),
        ("", "no column"),
    ],
    ids=["columns", "line", "field", "header", "empty"],
)
def test_tables_without_measure(tmp_path: Path, content: str, what: str) -> None:
    assert what in refused(tmp_path / "x.csv", content).what


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    os.truncate(tmp_path / "x.csv", 2**40)  # a hole, all zeros
    with pytest.raises(UserError, match="VA-D002"):
        read_csv(tmp_path / "x.csv", COLUMNS)

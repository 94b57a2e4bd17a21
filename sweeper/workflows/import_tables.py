"""Reading plain tables as they are: delimiters, decimal commas, percent signs, words for missing values."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

MISSING = {
    *("", "nan", "na", "n/a", "#n/a", "null", "none", "nil", "-", "--", "—", "?", "inf", "+inf", "-inf", "infinity"),
    *("-infinity", "undefined", "missing", "<na>"),
}
"""Words that stand for no value, in lower case."""
FAILED = {"failed", "fail", "crashed", "crash", "diverged", "oom", "error", "err", "timeout", "timed out", "killed"}
"""Words in the place of a score that say why there is none."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DELIMITERS = "\t;|,"
_ENCODINGS = ("utf-8-sig", "utf-16", "latin-1")


def read_text(path: Path) -> str:
    """Return a file's text, unpacked where it is gzipped, whatever usual encoding it has."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    for encoding in _ENCODINGS:
        if encoding == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            continue
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes anything")


def table_rows(text: str) -> list[dict[str, Any]]:
    """Return the rows of a delimited or Markdown table; the delimiter is the one that its lines agree on.

    Lines before the header that begin with ``#`` are comments. Names and values lose surrounding blanks; numbers lose
    a percent sign, and with semicolons a decimal comma; words for missing values become None.

    Raises
    ------
    ValueError
        When rows differ in length, or two columns have one name.
    """
    lines = text.splitlines(keepends=True)
    while lines and (not lines[0].strip() or lines[0].lstrip().startswith("#")):
        lines.pop(0)
    if lines and lines[0].lstrip().startswith("|"):
        lines = [line.strip().strip("|") + "\n" for line in lines if not re.fullmatch(r"[\s|:-]*", line)]
    body = "".join(lines)
    delimiter = _delimiter(body)
    rows = [row for row in csv.reader(io.StringIO(body), delimiter=delimiter, skipinitialspace=True) if any(row)]
    if not rows:
        return []
    header = [name.strip() for name in rows[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"columns must have different names, {', '.join(map(repr, twice))} stands more than once")
    wrong = next((number for number, row in enumerate(rows, start=1) if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(f"line {wrong} has {len(rows[wrong - 1])} values, the header {len(header)}")
    columns = [_column([row[at].strip() for row in rows[1:]], comma=delimiter == ";") for at in range(len(header))]
    kept = [at for at, name in enumerate(header) if name and not re.fullmatch(r"Unnamed: \d+", name)]
    return [{header[at]: columns[at][row] for at in kept} for row in range(len(rows) - 1)]


def json_rows(text: str, damaged: Callable[[int, str, object], Exception]) -> list[dict[str, Any]]:
    """Return the objects of JSON lines, of a JSON array, or of pandas' JSON by columns.

    Parameters
    ----------
    damaged:
        Makes the error of a line (from 1) out of what it must be and what was seen.
    """
    if text.lstrip().startswith("["):
        return _whole(text, damaged)
    first = text.lstrip().split("\n", 1)
    if first[0].strip() == "{" or (len(first) == 1 and _is_columns(first[0])):
        return _whole(text, damaged)
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise damaged(number, "a JSON object a line", error) from None
        if not isinstance(row, dict):
            raise damaged(number, "a JSON object a line", type(row).__name__)
        rows.append(row)
    return rows


def _whole(text: str, damaged: Callable[[int, str, object], Exception]) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(1, "an array of JSON objects", error) from None
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if len(lists) == 1:
            found = lists[0]
        elif found and all(isinstance(value, list | dict) for value in found.values()):
            found = _by_columns(found)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise damaged(1, "an array of JSON objects", type(found).__name__)
    return found


def _is_columns(line: str) -> bool:
    """Whether one line is a table by columns rather than the only trial."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    values = list(found.values()) if isinstance(found, dict) else []
    sizes = {len(value) for value in values if isinstance(value, list | dict)}
    return len(values) > 1 and len(sizes) == 1 and sizes.pop() > 1 and all(isinstance(v, list | dict) for v in values)


def _by_columns(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = {name: value if isinstance(value, dict) else dict(enumerate(value)) for name, value in found.items()}
    keys: Iterable[Any] = dict.fromkeys(key for column in columns.values() for key in column)
    return [{name: column.get(key) for name, column in columns.items()} for key in keys]


def _delimiter(text: str) -> str:
    """Return the delimiter that splits the header into most columns and every line alike."""
    lines = text.splitlines()[:50]
    best, most = ",", 0
    for delimiter in _DELIMITERS:
        counts = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        agreeing = bool(counts) and counts.count(counts[0]) >= 0.9 * len(counts)
        if agreeing and counts[0] > 1 and counts[0] > most:
            best, most = delimiter, counts[0]
    return best


def _column(cells: list[str], *, comma: bool) -> list[Any]:
    """Return a column's values: whole numbers, numbers or truth values where all that are present are; else text."""
    present = [cell for cell in cells if cell.lower() not in MISSING]
    texts = [cell.removesuffix("%").strip() for cell in present if cell.lower() not in FAILED]
    if comma:
        texts = [text.replace(",", ".") if text.count(",") == 1 and "." not in text else text for text in texts]
    if texts and all(_NUMBER.fullmatch(text) for text in texts):
        whole = all(re.fullmatch(r"[+-]?\d{1,18}", text) for text in texts) and not any("%" in cell for cell in present)
        numbers = iter(int(text) if whole else float(text) for text in texts)
        return [_cell(cell, numbers) for cell in cells]
    if present and {cell.lower() for cell in present} <= {"true", "false"}:
        return [None if cell.lower() in MISSING else cell.lower() == "true" for cell in cells]
    return [None if cell.lower() in MISSING else cell for cell in cells]


def _cell(cell: str, numbers: Any) -> Any:
    if cell.lower() in MISSING:
        return None
    return cell if cell.lower() in FAILED else next(numbers)

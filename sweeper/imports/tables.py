"""Reading plain tables as they are: delimiters, decimal commas, percent signs, words for missing values."""

from __future__ import annotations

import ast
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
_LONGEST = 100_000  # characters of an object in a cell
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


def unpacked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in which columns of objects written as text, JSON or Python's, are objects."""
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        if all(cell is None or (isinstance(cell, str) and cell.startswith("{")) for cell in cells) and any(cells):
            read = [None if cell is None else _object(cell) for cell in cells]
            if all(isinstance(value, dict) or cell is None for value, cell in zip(read, cells, strict=True)):
                rows = [{**row, name: value or {}} for row, value in zip(rows, read, strict=True)]
    return rows


def _object(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text[:_LONGEST])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def with_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in which columns of numbers written as text, such as ``"91.2%"``, are numbers, as in `table_rows`."""
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        texts = [cell for cell in cells if cell is not None]
        if texts and all(isinstance(cell, str) for cell in texts):
            read = _column(["" if cell is None else cell.strip() for cell in cells], comma=False)
            if any(isinstance(value, int | float) for value in read):
                rows = [{**row, name: value} if name in row else row for row, value in zip(rows, read, strict=True)]
    return rows


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
        elif _is_by_model(found):
            found = [{"model": model, **row} for model, rows in found.items() for row in _rows_of(rows)]
        elif found and all(isinstance(value, list | dict) for value in found.values()):
            found = _by_columns(found)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise damaged(1, "an array of JSON objects", type(found).__name__)
    return found


def _is_columns(line: str) -> bool:
    """Whether one line is a table by columns or by models rather than the only trial."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    values = list(found.values()) if isinstance(found, dict) else []
    if isinstance(found, dict) and _is_by_model(found):
        return True
    sizes = {len(value) for value in values if isinstance(value, list | dict)}
    return len(values) > 1 and len(sizes) == 1 and sizes.pop() > 1 and all(isinstance(v, list | dict) for v in values)


def _is_by_model(found: Mapping[str, Any]) -> bool:
    """Whether a JSON object holds, by model, a list of trials or equally long lists of scores, alike for all models."""
    names: list[set[str]] = []
    for value in found.values():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            names.append(set(value[0]))
        elif isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
            if len({len(column) for column in value.values()}) > 1:
                return False
            names.append(set(value))
        else:
            return False
    return len(names) > 1 and bool(set.intersection(*names)) and not any("model" in keys for keys in names)


def _rows_of(rows: list[dict[str, Any]] | dict[str, list[Any]]) -> list[dict[str, Any]]:
    return rows if isinstance(rows, list) else _by_columns(rows)


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
    """Return a column's values: whole numbers, numbers or truth values where all that are present are; else text.

    Where only some bear a percent sign, beside fractions of at most 1, these are a hundredth of what they say.
    """
    present = [cell for cell in cells if cell.lower() not in MISSING]
    texts = [cell.removesuffix("%").strip() for cell in present if cell.lower() not in FAILED]
    if comma:
        texts = [text.replace(",", ".") if text.count(",") == 1 and "." not in text else text for text in texts]
    if texts and all(_NUMBER.fullmatch(text) for text in texts):
        whole = all(re.fullmatch(r"[+-]?\d{1,18}", text) for text in texts) and not any("%" in cell for cell in present)
        values = [int(text) if whole else float(text) for text in texts]
        signed = [cell.endswith("%") for cell in present if cell.lower() not in FAILED]
        if any(signed) and all(value <= 1 for value, is_signed in zip(values, signed, strict=True) if not is_signed):
            share = 1.0 if all(signed) else 0.01
            values = [value * share if is_signed else value for value, is_signed in zip(values, signed, strict=True)]
        numbers = iter(values)
        return [_cell(cell, numbers) for cell in cells]
    if present and {cell.lower() for cell in present} <= {"true", "false"}:
        return [None if cell.lower() in MISSING else cell.lower() == "true" for cell in cells]
    return [None if cell.lower() in MISSING else cell for cell in cells]


def _cell(cell: str, numbers: Any) -> Any:
    if cell.lower() in MISSING:
        return None
    return cell if cell.lower() in FAILED else next(numbers)

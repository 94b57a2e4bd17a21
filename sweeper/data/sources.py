"""Reading labelled examples: csv, tsv, json, jsonl, parquet, image folders, hub ids, built-ins, memory.

Whatever the source, a raw table has ``example_id`` (text), its input column(s) and ``label`` (text).
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from PIL import Image

from sweeper.core.errors import InputError, Problem
from sweeper.data.builtin import read_builtin
from sweeper.spec.study import ColumnsSpec

MAX_PIXELS = 50_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TEXT_NAMES = ("text", "sentence", "message", "content", "review", "document", "input")
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent")
_REPORTED = 5  # unreadable images listed one by one


@dataclass(frozen=True)
class Columns:
    """The columns that were found: one or two inputs, and the target."""

    inputs: tuple[str, ...]
    target: str


def read_source(
    source: str,
    kind: str,
    columns: ColumnsSpec,
    *,
    split: str,
    revision: str | None = None,
    in_memory: Mapping[str, Any] | None = None,
) -> tuple[pa.Table, Columns]:
    """Read one source.

    Parameters
    ----------
    source:
        As in the study file.
    kind:
        ``text`` or ``image``.
    split:
        ``train``, ``validation`` or ``test``: for hub ids and for messages.

    Raises
    ------
    InputError
        For anything missing or unreadable, in one line.
    """
    place = f"task.data.{split} {source}"
    if in_memory is not None:
        table = in_memory[split].with_format("arrow")[:] if split in in_memory else None
        if table is None:
            raise InputError(Problem(f"datasets[{split!r}]", "must be given", "nothing", "pass a datasets.Dataset"))
    elif source.startswith("builtin:"):
        table = read_builtin(source.removeprefix("builtin:"))
    else:
        path = Path(source)
        if path.is_dir() and kind == "image":
            return _image_folder(path, place), Columns(("image",), "label")
        table = _read_file(path, place) if path.is_file() else _read_hub(source, split, revision, place)
    if len(table) == 0:
        raise InputError(Problem(place, "must hold at least one example", "0 rows", "give a file with rows"))
    found = _find_columns(table, kind, columns, place)
    return _normalised(table, kind, found, place, split), found


def _read_file(path: Path, place: str) -> pa.Table:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise InputError(Problem(place, "must not be empty", "0 bytes", "give a file with rows"))
    try:
        if suffix in (".csv", ".tsv"):
            options = pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
            return pa.csv.read_csv(path, parse_options=options)
        if suffix in (".jsonl", ".ndjson"):
            return pa.json.read_json(path)
        if suffix == ".json":
            import json

            rows = json.loads(path.read_text(encoding="utf-8"))
            return pa.Table.from_pylist(rows)
        if suffix == ".parquet":
            return pq.read_table(path)
    except (pa.ArrowException, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(Problem(place, f"must be a readable {suffix} file", reason, "mend the file")) from None
    raise InputError(
        Problem(place, "must be csv, tsv, json, jsonl, parquet or an image folder", suffix, "convert the file")
    )


def _read_hub(source: str, split: str, revision: str | None, place: str) -> pa.Table:
    path = Path(source)
    if path.is_absolute() or path.suffix or source.startswith("."):
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        remedy = f"did you mean {near[0]}?" if near else "check the path"
        raise InputError(Problem(place, "the file or folder must exist", "nothing there", remedy))
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source, split=split, revision=revision).with_format("arrow")[:]
    except Exception as error:  # the hub client has many
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:140]}"
        remedy = "check the name and the network, or give a local file"
        raise InputError(Problem(place, "must be a file, a folder or a hub id", reason, remedy)) from None


def _image_folder(folder: Path, place: str) -> pa.Table:
    """Read one sub-folder per class; every image is opened once, so that a broken one is told before any training."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [
        (path, group.name)
        for group in classes
        for path in sorted(group.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        remedy = "put the images of each class into a sub-folder named after it"
        raise InputError(Problem(place, "must hold images in one sub-folder a class", "no images", remedy))
    root = folder.resolve()
    outside = [path for path, _ in files if not path.resolve().is_relative_to(root)]
    if outside:
        raise InputError(
            Problem(str(outside[0]), "must lie in the folder", "a link that leads outside", "copy the file")
        )
    cells = [path.read_bytes() for path, _ in files]
    _check_images([str(path) for path, _ in files], cells)
    return pa.table(
        {
            "example_id": [path.relative_to(folder).as_posix() for path, _ in files],
            "image": pa.array(cells, pa.binary()),
            "label": [name for _, name in files],
        }
    )


def _check_images(names: Sequence[str], cells: Sequence[bytes]) -> None:
    problems = []
    for name, cell in zip(names, cells, strict=True):
        try:
            with Image.open(io.BytesIO(cell)) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    value = f"{image.width} x {image.height}"
                    problems.append(Problem(name, "an image must have at most 50 million pixels", value, "shrink it"))
                    continue
                image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())[:80]
            problems.append(Problem(name, "must be a readable image", reason, "replace or remove it"))
    if len(problems) > _REPORTED:
        rest = Problem(f"{len(problems) - _REPORTED} more images", "must be readable", "", "replace or remove them")
        problems = [*problems[:_REPORTED], rest]
    if problems:
        raise InputError(problems)


def _find_columns(table: pa.Table, kind: str, columns: ColumnsSpec, place: str) -> Columns:
    names = table.column_names
    asked = [columns.input] if isinstance(columns.input, str) else columns.input
    usual = ("image", "img") if kind == "image" else TEXT_NAMES
    inputs = tuple(asked) if asked else tuple(name for name in usual if name in names)[:1]
    target = columns.target or next((name for name in LABEL_NAMES if name in names), None)
    problems = []
    for what, wanted in (("input", inputs), ("target", (target,) if target else ())):
        missing = [name for name in wanted if name not in names]
        if not wanted or missing:
            rule = f"the {what} column must be there, the file has {', '.join(names)}"
            remedy = f"name it under task.columns.{what}"
            problems.append(Problem(place, rule, ", ".join(missing) or "none of the usual names", remedy))
    if len(inputs) > 2:
        problems.append(Problem(place, "one or two input columns can be used", str(len(inputs)), "join the others"))
    if problems:
        raise InputError(problems)
    assert target is not None
    return Columns(inputs, target)


def _normalised(table: pa.Table, kind: str, found: Columns, place: str, split: str) -> pa.Table:
    """Bring a table to the names and types of a raw split."""
    problems = []
    for name in (*found.inputs, found.target):
        column = table.column(name)
        if column.null_count:
            first = column.is_null().to_pylist().index(True) + 1
            rule = f"column {name} must have a value in every row"
            value = f"{column.null_count} missing, the first in row {first}"
            problems.append(Problem(place, rule, value, "fill them in or drop the rows"))
    if problems:
        raise InputError(problems)
    names = ("image",) if kind == "image" else ("text", "text_pair")
    result: dict[str, Any] = {"example_id": _ids(table, split)}
    for name, source in zip(names, found.inputs, strict=False):
        column = table.column(source)
        result[name] = _image_cells(column, place) if kind == "image" else _text_cells(column, source, place)
    labels = table.column(found.target)
    # A ClassLabel of a hub data set keeps its index here; its names are not in Arrow's table.
    result["label"] = pa.array([str(value) for value in labels.to_pylist()], pa.string())
    return pa.table(result)


def _ids(table: pa.Table, split: str) -> pa.Array:
    if "example_id" in table.column_names:
        ids = [str(value) for value in table.column("example_id").to_pylist()]
        if len(set(ids)) == len(ids):
            return pa.array(ids, pa.string())
    return pa.array([f"{split}-{row:06d}" for row in range(len(table))], pa.string())


def _text_cells(column: Any, name: str, place: str) -> pa.Array:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        remedy = "name a text column under task.columns.input"
        raise InputError(Problem(place, f"column {name} must hold text", str(column.type), remedy))
    return column.cast(pa.string())


def _image_cells(column: Any, place: str) -> pa.Array:
    cells = column.to_pylist()
    cells = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    if not all(isinstance(cell, bytes) for cell in cells):
        remedy = "give an image folder, or a column of encoded images"
        raise InputError(Problem(place, "the image column must hold encoded images", str(column.type), remedy))
    _check_images([f"{place} row {row + 1}" for row in range(len(cells))], cells)
    return pa.array(cells, pa.binary())

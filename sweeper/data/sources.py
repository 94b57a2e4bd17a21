"""Reading labelled examples: csv, tsv, json, jsonl, parquet, image folders, hub ids, built-ins, memory.

Whatever the source, a raw table has ``example_id`` (text), its input column(s) and ``label``: text, a list of texts,
a number, or labelled boxes (`sweeper.data.detection`); where asked ``group`` and ``time``, and the raw columns of
records as ``field.NAME``.
"""

from __future__ import annotations

import difflib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from PIL import Image

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import TargetKind
from sweeper.data.builtin import read_builtin
from sweeper.data.detection import is_detection_source, read_detection, table_of_objects
from sweeper.data.records import FIELD, default_template, render, template_fields
from sweeper.spec.study import ColumnsSpec, TemplateSpec

MAX_PIXELS = 50_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TEXT_NAMES = ("text", "sentence", "message", "content", "review", "document", "input", "prompt", "question")
OBJECT_NAMES = ("objects", "annotations", "label")
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "completion", "response", "answer")
_REPORTED = 5  # unreadable images listed one by one


@dataclass(frozen=True)
class Columns:
    """The columns that were found: the inputs, the target, and the template of a record (empty for others)."""

    inputs: tuple[str, ...]
    target: str
    template: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read.

    Parameters
    ----------
    kind:
        ``text`` or ``image``.
    target:
        Kind of the targets.
    group, time:
        Columns to keep beside, where there are such.
    drop_missing:
        Leave out rows without input or target instead of refusing them.
    images:
        Detection: folder of a COCO file's images.
    claimed:
        Detection: other splits that name the same source.
    own_target:
        The input is its own target, for what is not to be trained on.
    """

    kind: str
    columns: ColumnsSpec
    target: TargetKind = "class"
    group: str | None = None
    time: str | None = None
    drop_missing: bool = False
    images: str | None = None
    claimed: tuple[str, ...] = ()
    own_target: bool = False


def read_source(
    source: str,
    kind: str | Reading,
    columns: ColumnsSpec | None = None,
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
    kind, columns:
        ``text`` or ``image`` and the columns, or a whole `Reading`.
    split:
        ``train``, ``validation`` or ``test``: for hub ids and for messages.

    Raises
    ------
    InputError
        For anything missing or unreadable, in one line.
    """
    reading = kind if isinstance(kind, Reading) else Reading(kind=kind, columns=columns or ColumnsSpec())
    place = f"task.data.{split} {source}"
    base: Path | None = None
    if in_memory is not None:
        table = in_memory[split].with_format("arrow")[:] if split in in_memory else None
        if table is None:
            raise InputError(Problem(f"datasets[{split!r}]", "must be given", "nothing", "pass a datasets.Dataset"))
    elif source.startswith("builtin:"):
        table = read_builtin(source.removeprefix("builtin:"))
    else:
        path = Path(source)
        if reading.target == "boxes" and is_detection_source(path):
            images = Path(reading.images) if reading.images is not None else None
            table = read_detection(path, place, split=split, claimed=reading.claimed, images=images)
            return table, Columns(("image",), "label")
        if path.is_dir() and reading.target == "boxes":
            rule = "must be a Pascal VOC folder (Annotations, JPEGImages) or hold a COCO file"
            raise InputError(Problem(place, rule, path.name, "name the folder or the json file"))
        if path.is_dir() and reading.kind == "image":
            return _with_target(_image_folder(path, place), reading, place), Columns(("image",), "label")
        table = read_file(path, place) if path.is_file() else _read_hub(source, split, revision, place)
        base = path.parent if path.is_file() else None
    if len(table) == 0:
        raise InputError(Problem(place, "must hold at least one example", "0 rows", "give a file with rows"))
    found = _find_columns(table, reading, place)
    return _normalised(table, reading, found, place, split, base), found


def read_file(path: Path, place: str) -> pa.Table:
    """Read a csv, tsv, json, jsonl or parquet file as it is.

    Raises
    ------
    InputError
        When it is empty, damaged or of another kind.
    """
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise InputError(Problem(place, "must not be empty", "0 bytes", "give a file with rows"))
    if suffix not in _READERS:
        rule = "must be csv, tsv, json, jsonl, parquet or an image folder"
        raise InputError(Problem(place, rule, suffix, "convert the file"))
    try:
        table = _READERS[suffix](path)
        table.validate(full=True)  # readers trust files: text that is no UTF-8 would fail much later
        assert all(isinstance(name, str) for name in table.column_names)  # decodes them
    except (pa.ArrowException, ValueError, TypeError, OSError, RecursionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(Problem(place, f"must be a readable {suffix} file", reason, "mend the file")) from None
    return table


def _read_csv(path: Path) -> pa.Table:
    options = pa.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True)
    return pa.csv.read_csv(path, parse_options=options)


def _read_json(path: Path) -> pa.Table:
    return pa.Table.from_pylist(json.loads(path.read_text(encoding="utf-8")))


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": pa.json.read_json,
    ".ndjson": pa.json.read_json,
    ".parquet": pq.read_table,
}


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


def _find_columns(table: pa.Table, reading: Reading, place: str) -> Columns:
    columns, names = reading.columns, table.column_names
    template = columns.input.template if isinstance(columns.input, TemplateSpec) else ""
    asked: Sequence[str] = (
        template_fields(template, "task.columns.input.template")
        if isinstance(columns.input, TemplateSpec)
        else [columns.input]
        if isinstance(columns.input, str)
        else columns.input or ()
    )
    usual = ("image", "img") if reading.kind == "image" else TEXT_NAMES
    inputs = tuple(asked) if asked else tuple(name for name in usual if name in names)[:1]
    targets = OBJECT_NAMES if reading.target == "boxes" else LABEL_NAMES
    target = columns.target or next((name for name in targets if name in names), None)
    beside = (("data.group", reading.group), ("data.time", reading.time))
    problems = []
    for what, wanted in (("columns.input", inputs), ("columns.target", (target,) if target else ())):
        missing = [name for name in wanted if name not in names]
        if not wanted or missing:
            rule = f"the {what.removeprefix('columns.')} column must be there, the file has {', '.join(names)}"
            remedy = f"name it under task.{what}"
            problems.append(Problem(place, rule, ", ".join(missing) or "none of the usual names", remedy))
    for what, name in beside:
        if name is not None and name not in names:
            rule = f"the column of task.{what} must be there, the file has {', '.join(names)}"
            problems.append(Problem(place, rule, name, "correct it"))
    if reading.kind == "image" and len(inputs) > 1:
        problems.append(Problem(place, "one image column can be used", str(len(inputs)), "name one"))
    if target is not None and target in inputs and not reading.own_target:
        problems.append(Problem(place, "the target must not be an input", target, "remove it from task.columns.input"))
    if problems:
        raise InputError(problems)
    assert target is not None
    is_pair = len(inputs) == 2 and all(_is_text(table.column(name).type) for name in inputs)
    if reading.kind == "text" and len(inputs) > 1 and not template and not is_pair:
        template = default_template(inputs)
    return Columns(inputs, target, template)


def _normalised(
    table: pa.Table, reading: Reading, found: Columns, place: str, split: str, base: Path | None
) -> pa.Table:
    """Bring a table to the names and types of a raw split."""
    ids = row_ids(table, split)
    table = table.append_column("\x1fexample_id", ids)
    required = (found.target,) if found.template else (*found.inputs, found.target)
    whole = np.ones(len(table), dtype=bool)
    problems = []
    for name in required:
        column = table.column(name)
        empty = np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
        if _is_text(column.type):  # what csv writes for a missing value
            empty = empty | (pc.utf8_length(pc.utf8_trim_whitespace(column)).fill_null(1).to_numpy() == 0)
        whole &= ~empty
        if empty.any() and not reading.drop_missing:
            rule = f"column {name} must have a value in every row"
            value = f"{empty.sum()} missing, the first in row {int(empty.argmax()) + 1}"
            problems.append(Problem(place, rule, value, "fill them in or drop the rows"))
    if problems:
        raise InputError(problems)
    if not whole.all():
        table = table.filter(pa.array(whole))
    if reading.target == "boxes":
        named = table.select([found.target]).append_column("example_id", table.column("\x1fexample_id"))
        return table_of_objects(
            named, _image_cells(table.column(found.inputs[0]), place, base).to_pylist(), found.target, place
        )
    result: dict[str, Any] = {"example_id": table.column("\x1fexample_id")}
    if found.template:
        digits = reading.columns.significant_digits
        result["text"] = pa.array(render(table, found.template, digits), pa.string())
        result |= {FIELD + name: table.column(name) for name in found.inputs}
    elif reading.kind == "image":
        result["image"] = _image_cells(table.column(found.inputs[0]), place, base)
    else:
        names = zip(("text", "text_pair"), found.inputs, strict=False)
        result |= {name: _text_cells(table.column(source), source, place) for name, source in names}
    for name, source in (("group", reading.group), ("time", reading.time)):
        if source is not None:
            result[name] = table.column(source)
    # A ClassLabel of a hub data set keeps its index here; its names are not in Arrow's table.
    result["label"] = table.column(found.target)
    made = _with_target(pa.table(result), reading, place)
    return made.replace_schema_metadata({"missing": str(int((~whole).sum()))})


def _with_target(table: pa.Table, reading: Reading, place: str) -> pa.Table:
    """Bring the label column to the kind of target that is asked."""
    values = table.column("label").to_pylist()
    if reading.target == "number":
        made = pa.array(_numbers(values, place), pa.float64())
    elif reading.target == "labels":
        separator = reading.columns.separator
        lists = [v if isinstance(v, list) else [part.strip() for part in str(v).split(separator)] for v in values]
        made = pa.array([sorted({str(v) for v in labels if str(v)}) for labels in lists], pa.list_(pa.string()))
    else:
        made = pa.array([str(value) for value in values], pa.string())
    return table.set_column(table.column_names.index("label"), "label", made)


def _numbers(values: Sequence[Any], place: str) -> list[float]:
    numbers = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                Problem(f"{place} row {row + 1}", "the target must be a finite number", str(value), "correct the row")
            )
        numbers.append(number)
    return numbers


def row_ids(table: pa.Table, split: str) -> pa.Array:
    """Return the names of a file's rows: its own ``example_id`` where all differ, else split and number."""
    if "example_id" in table.column_names:
        ids = [str(value) for value in table.column("example_id").to_pylist()]
        if len(set(ids)) == len(ids):
            return pa.array(ids, pa.string())
    return pa.array([f"{split}-{row:06d}" for row in range(len(table))], pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _text_cells(column: Any, name: str, place: str) -> pa.Array:
    if not _is_text(column.type):
        remedy = "name a text column under task.columns.input"
        raise InputError(Problem(place, f"column {name} must hold text", str(column.type), remedy))
    return column.cast(pa.string())


def _image_cells(column: Any, place: str, base: Path | None) -> pa.Array:
    """Return encoded images; text cells are paths below the file's folder."""
    cells = column.to_pylist()
    cells = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    if base is not None and _is_text(column.type):
        cells = [_image_file(base, cell, f"{place} row {row + 1}") for row, cell in enumerate(cells)]
    if not all(isinstance(cell, bytes) for cell in cells):
        remedy = "give an image folder, or a column of encoded images or of paths"
        raise InputError(Problem(place, "the image column must hold encoded images", str(column.type), remedy))
    _check_images([f"{place} row {row + 1}" for row in range(len(cells))], cells)
    return pa.array(cells, pa.binary())


def _image_file(base: Path, name: str, place: str) -> bytes:
    path = (base / name).resolve()
    if not path.is_relative_to(base.resolve()) or not path.is_file():
        raise InputError(Problem(place, "must name an image below the file's folder", name, "correct the path"))
    return path.read_bytes()

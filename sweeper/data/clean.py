"""Writing a cleaned copy of a data set beside the original, never over it, with a list of what was left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sweeper.core.errors import InputError, Problem
from sweeper.data.checks import Scan
from sweeper.data.prepare import SPLITS
from sweeper.data.sources import read_file, row_ids
from sweeper.spec.study import TaskSpec

MARK = "cleaned"


def clean(spec: TaskSpec, scan: Scan) -> list[Path]:
    """Write a cleaned copy of each file or folder of a study's data, and ``NAME.cleaned.log.jsonl`` beside it.

    Rows are dropped as `Scan.removals` says, and rows without input or target. Of detection data COCO files and lists
    of a Pascal VOC folder are copied; images stay where they are.

    Raises
    ------
    InputError
        When a source is no local file or folder, or a copy stands there already. Nothing is written then.
    """
    removals = scan.removals()
    shared = [split for split in SPLITS if not isinstance(getattr(spec.data, split), str)]
    jobs: list[tuple[str, Path, Path, dict[str, str], set[str]]] = []
    problems = []
    for split in SPLITS:
        source = getattr(spec.data, split)
        if not isinstance(source, str):
            continue
        path = Path(source)
        target = path.with_name(f"{path.stem}.{MARK}{path.suffix}")
        place = f"task.data.{split} {source}"
        if not path.exists():
            problems.append(Problem(place, "only local files and folders can be cleaned", source, "save it as a file"))
        elif target.exists():
            problems.append(Problem(str(target), "must not exist yet", "a cleaned copy", "move or remove it"))
        elif scan.has_boxes and path.is_dir():
            remedy = "name ImageSets/Main/NAME.txt or the COCO file"
            problems.append(Problem(place, "a detection folder is cleaned by its lists", source, remedy))
        parts = [split, *shared] if split == "train" else [split]
        reasons = {name: reason for part in parts for name, reason in removals[part].items()}
        kept = {name for part in parts for name in scan.tables[part].column("example_id").to_pylist()} - set(reasons)
        jobs.append((split, path, target, reasons, kept))
    if problems:
        raise InputError(problems)
    written = []
    for split, path, target, reasons, kept in jobs:
        log = target.with_name(f"{target.stem if target.suffix else target.name}.log.jsonl")
        if path.is_dir():
            dropped = _copy_folder(path, target, kept)
        elif scan.has_boxes and path.suffix.lower() in (".txt", ".json"):
            dropped = _copy_listing(path, target, kept)
        else:
            dropped = _copy_file(path, target, split, kept)
        lines = [
            {"row": row, "example_id": name, "reason": reasons.get(name, "a value is missing")} for row, name in dropped
        ]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        written += [target, log]
    return written


def _copy_file(path: Path, target: Path, split: str, kept: set[str]) -> list[tuple[int, str]]:
    table = read_file(path, str(path))
    ids = row_ids(table, split).to_pylist()
    rows = [row for row, name in enumerate(ids) if name in kept]
    part = table.take(rows)
    suffix = path.suffix.lower()
    partial = target.with_name(target.name + ".partial")
    if suffix in (".csv", ".tsv"):
        options = pa.csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
        pa.csv.write_csv(part, partial, options)
    elif suffix == ".parquet":
        pq.write_table(part, partial)
    else:
        rows_out = part.to_pylist()
        text = json.dumps(rows_out, indent=1, default=str) if suffix == ".json" else _lines(rows_out)
        partial.write_text(text, encoding="utf-8")
    partial.replace(target)
    return [(row + 1, name) for row, name in enumerate(ids) if name not in kept]


def _copy_listing(path: Path, target: Path, kept: set[str]) -> list[tuple[int, str]]:
    """Copy a list of images, or a COCO file with the annotations of the images that stay."""
    text = path.read_text(encoding="utf-8")
    partial = target.with_name(target.name + ".partial")
    if path.suffix.lower() == ".txt":
        lines = [line for line in text.splitlines() if line.strip()]
        names = [line.split()[0] for line in lines]
        partial.write_text("".join(f"{line}\n" for line in lines if line.split()[0] in kept), encoding="utf-8")
    else:
        data = json.loads(text)
        names = [str(image["file_name"]) for image in data["images"]]
        data["images"] = [image for image in data["images"] if str(image["file_name"]) in kept]
        ids = {image["id"] for image in data["images"]}
        data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] in ids]
        partial.write_text(json.dumps(data), encoding="utf-8")
    partial.replace(target)
    return [(row + 1, name) for row, name in enumerate(names) if name not in kept]


def _lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _copy_folder(path: Path, target: Path, kept: set[str]) -> list[tuple[int, str]]:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dropped = []
    images = sorted(p for group in path.iterdir() if group.is_dir() for p in group.rglob("*") if p.is_file())
    for row, image in enumerate(images):
        name = image.relative_to(path).as_posix()
        if name in kept:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(image, partial / name)
        else:
            dropped.append((row + 1, name))
    partial.rename(target)
    return dropped

"""Proposing a study file from a data set and checkpoints: task, columns, metric, split and budget."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.core.errors import InputError, Problem
from sweeper.data.detection import has_official_list, is_detection_source
from sweeper.data.sources import Reading, read_source
from sweeper.spec.study import ColumnsSpec

_IMBALANCED = 1.5  # largest class / smallest class from which accuracy flatters
_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Words that stand in the place of ``train`` in the names of other splits."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was found in the data: the task's type, its splits, and lines of the study file.

    ``splits`` are paths or shares of train; ``counts`` are examples (of boxes: objects) by class.
    """

    type: str
    splits: Mapping[str, Path | str]
    num_examples: int
    counts: Mapping[str, int]
    facts: str
    columns: str = ""


def propose(data: Path, checkpoints: Sequence[str], *, name: str | None = None, base: Path | None = None) -> str:
    """Return the text of a commented study file.

    Parameters
    ----------
    data:
        A csv, tsv, json, jsonl or parquet file; a folder with one sub-folder of images a class; a Pascal VOC folder or
        list; a COCO file, or the folder that it lies in. A folder may hold one such folder a split (``train``,
        ``valid``, ``test``).
    checkpoints:
        Folders or hub ids.
    base:
        The folder that the study file will lie in: paths are written relative to it.

    Raises
    ------
    InputError
        When the data cannot be read, hold one class only, or no labelled box.
    """
    base = (base or Path.cwd()).resolve()
    data = _train_folder(data)
    found = _boxes(data) if is_detection_source(data) else _classes(data)
    lines = [
        f"# {found.facts}",
        "schema: 1",
        f"name: {name or _safe(_title(data))}",
        "seed: 0",
        "storage_path: results",
        "task:",
        f"  type: {found.type}",
        "  data:",
        *(f"    {split}: {_where(source, base)}" for split, source in found.splits.items()),
        *([found.columns] if found.columns else []),
        *_measure(found),
        "models:",
        *(f"  - {{name: {model}, checkpoint: {_quoted(at)}}}" for model, at in _models(checkpoints, base)),
        "search:",
        "  num_trials: 32   # for each model, the default configuration included",
        f"  max_epochs: {_epochs(found)}",
        "  sampler: auto",
        "  scheduler: {type: asha-promotion, reduction_factor: 3, grace_fraction: 0.04}",
        "  max_concurrent_trials: auto   # lanes; 1 makes the study deterministic",
        "training: {num_workers: 1, resources_per_worker: auto, precision: auto}",
        "confirm: {num_seeds: auto}   # the fewest with which a claim can reach 5%",
        "cluster: local",
    ]
    return "\n".join(lines) + "\n"


def _classes(data: Path) -> _Found:
    """Look at texts or images with one class each."""
    kind = "image" if data.is_dir() else "text"
    table, columns = read_source(str(data.resolve()), kind, ColumnsSpec(), split="train")
    counts = Counter(table.column("label").to_pylist())
    if len(counts) < 2:
        rule = "must hold at least two classes"
        raise InputError(Problem(str(data), rule, f"only {next(iter(counts))}", "check the target column"))
    section = f"  columns: {{input: {_quoted(columns.inputs[0])}, target: {_quoted(columns.target)}}}"
    return _Found(
        type=f"{kind}-classification",
        splits=_splits(data),
        num_examples=len(table),
        counts=counts,
        facts=f"{len(table)} examples, {len(counts)} classes, largest / smallest class {_ratio(counts):.1f}.",
        columns=section if kind == "text" else "",
    )


def _boxes(data: Path) -> _Found:
    """Look at images with labelled boxes."""
    splits = _splits(data)
    claimed = tuple(split for split, source in splits.items() if split != "train" and source == data)
    reading = Reading(kind="image", columns=ColumnsSpec(), target="boxes", claimed=claimed)
    table, _ = read_source(str(data.resolve()), reading, split="train")
    objects = table.column("label").to_pylist()
    counts = Counter(each["label"] for found in objects for each in found if not each["ignored"])
    if not counts:
        raise InputError(Problem(str(data), "must hold at least one labelled box", "none", "check the annotations"))
    classes = (
        f"{len(counts)} classes, largest / smallest class {_ratio(counts):.1f}" if len(counts) > 1 else "one class"
    )
    return _Found(
        type="object-detection",
        splits=splits,
        num_examples=len(table),
        counts=counts,
        facts=f"{len(table)} images to train on, {sum(counts.values())} objects of {classes}.",
    )


def _measure(found: _Found) -> list[str]:
    """Return the lines of metric and remedies."""
    if found.type == "object-detection":
        return ["  metric: {name: map}   # COCO's; map_50 is Pascal VOC's overlap"]
    metric, word = ("macro_f1", "im") if _ratio(found.counts) >= _IMBALANCED else ("accuracy", "")
    return [
        f"  metric: {{name: {metric}}}   # the classes are {word}balanced",
        "  balance: none   # or class-weights, sampler",
    ]


def _epochs(found: _Found) -> int:
    """Return a budget by the number of examples; detectors, which learn through a matching, take four times as long."""
    epochs = 3 if found.num_examples > 20_000 else 5 if found.num_examples > 2_000 else 10
    return 4 * epochs if found.type == "object-detection" else epochs


def _ratio(counts: Mapping[str, int]) -> float:
    return max(counts.values()) / min(counts.values())


def _train_folder(data: Path) -> Path:
    """Return the folder of the training split where a folder holds nothing but splits; else ``data``."""
    inner = data / "train"
    if not inner.is_dir() or is_detection_source(data):
        return data
    others = {path.name for path in data.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"train"}
    has_examples = is_detection_source(inner) or any(path.is_dir() for path in inner.iterdir())
    return inner if has_examples and others <= {name for names in _NAMES.values() for name in names} else data


def _splits(data: Path) -> dict[str, Path | str]:
    """Return where each split lies: Pascal VOC's own lists, what stands beside ``train``, or a share of train."""
    if (data / "Annotations").is_dir():
        official = {split for split in ("train", *_NAMES) if has_official_list(data, split)}
        beside: dict[str, Path | str] = {split: data for split in ("validation", "test") if split in official}
        if "train" not in official:  # then the list of validation says nothing of what is left to train on
            beside.pop("validation", None)
    else:
        beside = {split: path for split in _NAMES if (path := _sibling(data, split))}
    shares = {"validation": "0.15   # share of train", "test": "0.2   # share of train; sealed"}
    return {"train": data, **{split: beside.get(split, share) for split, share in shares.items()}}


def _title(data: Path) -> str:
    """Return what a study of these data may be called: of a split's folder, what it lies in."""
    return data.resolve().parent.name if data.is_dir() and data.name == "train" else data.stem


def _where(source: Path | str, base: Path) -> str:
    return source if isinstance(source, str) else _quoted(_relative(source, base))


def _models(checkpoints: Sequence[str], base: Path) -> list[tuple[str, str]]:
    """Return a unique name and the path or id of each checkpoint."""
    found: list[tuple[str, str]] = []
    for checkpoint in checkpoints:
        path = Path(checkpoint)
        name = _safe(path.name)
        taken = [used for used, _ in found]
        if name in taken:
            name = f"{name}-{len(found) + 1}"
        found.append((name, _relative(path, base) if path.is_dir() else checkpoint))
    return found


def _sibling(data: Path, split: str) -> Path | None:
    """Return the file or folder of another split that stands beside ``train*``."""
    if "train" not in data.stem:
        return None
    candidates = [data.with_name(data.name.replace("train", word)) for word in _NAMES[split]]
    return next((path for path in candidates if path.is_dir() == data.is_dir() and path.exists()), None)


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base)).as_posix()


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_./-]+", text) and not text.replace(".", "").isdigit() else json.dumps(text)


def _safe(text: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return cleaned[:60] or "study"

"""Proposing a study file from a data set and checkpoints: task, columns, metric, split and budget."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sweeper.core.errors import InputError, Problem
from sweeper.data.sources import read_source
from sweeper.spec.study import ColumnsSpec

_IMBALANCED = 1.5  # largest class / smallest class from which accuracy flatters


def propose(data: Path, checkpoints: Sequence[str], *, name: str | None = None, base: Path | None = None) -> str:
    """Return the text of a commented study file.

    Parameters
    ----------
    data:
        A csv, tsv, json, jsonl or parquet file, or a folder with one sub-folder of images a class.
    checkpoints:
        Folders or hub ids.
    base:
        The folder that the study file will lie in: paths are written relative to it.

    Raises
    ------
    InputError
        When the data cannot be read or has one class only.
    """
    base = (base or Path.cwd()).resolve()
    kind = "image" if data.is_dir() else "text"
    table, columns = read_source(str(data.resolve()), kind, ColumnsSpec(), split="train")
    counts = Counter(table.column("label").to_pylist())
    if len(counts) < 2:
        rule = "must hold at least two classes"
        raise InputError(Problem(str(data), rule, f"only {next(iter(counts))}", "check the target column"))
    ratio = max(counts.values()) / min(counts.values())
    metric = "macro_f1" if ratio >= _IMBALANCED else "accuracy"
    siblings = {split: _sibling(data, split) for split in ("validation", "test")}
    splits = {split: _relative(path, base) if path else None for split, path in siblings.items()}
    epochs = 3 if len(table) > 20_000 else 5 if len(table) > 2_000 else 10
    lines = [
        f"# {len(table)} examples, {len(counts)} classes, largest / smallest class {ratio:.1f}.",
        "schema: 1",
        f"name: {name or _safe(data.stem)}",
        "seed: 0",
        "storage_path: results",
        "task:",
        f"  type: {'image' if kind == 'image' else 'text'}-classification",
        "  data:",
        f"    train: {_quoted(_relative(data, base))}",
        f"    validation: {_quoted(splits['validation']) if splits['validation'] else '0.15   # share of train'}",
        f"    test: {_quoted(splits['test']) if splits['test'] else '0.2   # share of train; sealed'}",
    ]
    if kind == "text":
        inputs = columns.inputs[0]
        lines.append(f"  columns: {{input: {_quoted(inputs)}, target: {_quoted(columns.target)}}}")
    lines += [
        f"  metric: {{name: {metric}}}   # the classes are {'imbalanced' if metric == 'macro_f1' else 'balanced'}",
        "  balance: none   # or class-weights, sampler",
        "models:",
        *(f"  - {{name: {model}, checkpoint: {_quoted(at)}}}" for model, at in _models(checkpoints, base)),
        "search:",
        "  num_trials: 32   # for each model, the default configuration included",
        f"  max_epochs: {epochs}",
        "  sampler: auto",
        "  scheduler: {type: asha-promotion, reduction_factor: 3, grace_fraction: 0.04}",
        "  max_concurrent_trials: auto   # lanes; 1 makes the study deterministic",
        "training: {num_workers: 1, resources_per_worker: auto, precision: auto}",
        "confirm: {num_seeds: auto}   # the fewest with which a claim can reach 5%",
        "cluster: local",
    ]
    return "\n".join(lines) + "\n"


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
    """Return the file of another split that stands beside ``train.*``."""
    if data.is_dir() or "train" not in data.stem:
        return None
    names = [split, "valid", "val", "dev"] if split == "validation" else [split]
    candidates = [data.with_name(data.name.replace("train", word)) for word in names]
    return next((path for path in candidates if path.is_file()), None)


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base)).as_posix()


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_./-]+", text) and not text.replace(".", "").isdigit() else json.dumps(text)


def _safe(text: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return cleaned[:60] or "study"

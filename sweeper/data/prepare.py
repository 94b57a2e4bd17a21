"""From a study's ``task.data`` to three Arrow files: train, validation, and the sealed test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.data.encoded import map_table, write_table
from sweeper.data.sources import read_source
from sweeper.data.splits import split_off, subset
from sweeper.spec.study import TaskSpec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Splits on disk; each has ``example_id``, its inputs (``text``, ``text_pair`` or ``image``) and ``label``.

    Parameters
    ----------
    classes:
        Labels in the order of their index.
    fingerprint:
        Hash of the content of all three splits.
    counts:
        By split and class: examples.
    notes:
        What a user should know.
    """

    folder: Path
    classes: tuple[str, ...]
    fingerprint: str
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()

    @property
    def num_examples(self) -> dict[str, int]:
        """Examples by split."""
        return {split: sum(classes.values()) for split, classes in self.counts.items()}

    def train(self) -> pa.Table:
        """The train split, memory-mapped."""
        return map_table(self.folder / "train.arrow")

    def validation(self) -> pa.Table:
        """The validation split, memory-mapped."""
        return map_table(self.folder / "validation.arrow")

    def open_test(self) -> pa.Table:
        """The sealed test split. Only confirmation, after its runs are frozen, and the data check may call this."""
        return map_table(self.folder / "test.arrow")

    def resplit(self, seed: int) -> tuple[pa.Table, pa.Table]:
        """Return train and validation drawn anew from their union, of the same sizes, alike in their classes."""
        union = pa.concat_tables([self.train(), self.validation()]).combine_chunks()
        labels = union.column("label").to_numpy()
        rest, chosen = split_off(labels, self.num_examples["validation"] / len(union), seed)
        return union.take(rest), union.take(chosen)


def load_prepared(folder: Path) -> PreparedData:
    """Read what `prepare` wrote."""
    facts = json.loads((folder / "data.json").read_text())
    return PreparedData(
        folder=folder,
        classes=tuple(facts.pop("classes")),
        notes=tuple(facts.pop("notes")),
        **facts,
    )


def prepare(
    spec: TaskSpec, *, kind: str, seed: int, folder: Path, in_memory: Mapping[str, Any] | None = None
) -> PreparedData:
    """Read, check and split the data, and write the splits.

    Parameters
    ----------
    spec:
        The task section of the study.
    kind:
        ``text`` or ``image``: what the task takes.
    seed:
        Of the splits.
    folder:
        Where to write. Nothing is written when the input is wrong.
    in_memory:
        Splits as ``datasets.Dataset`` by name, in the place of files.

    Raises
    ------
    InputError
        For missing files or columns, unreadable images, one class only, a label unseen in train, an empty split.
    """
    tables = _read(spec, kind, in_memory)
    notes: list[str] = []
    train = tables["train"]
    groups = _groups(spec, kind, in_memory) if spec.data.group is not None else None
    parts = {"train": np.arange(len(train))}
    labels = np.asarray(train.column("label").to_pylist())
    for split, share in (("test", spec.data.test), ("validation", spec.data.validation)):
        if isinstance(share, float):
            rest = parts["train"]
            kept, chosen = split_off(
                labels[rest], _of_rest(share, split, spec), seed, groups[rest] if groups is not None else None
            )
            parts["train"], parts[split] = rest[kept], rest[chosen]
    if spec.data.max_train_examples is not None:
        rows = parts["train"]
        parts["train"] = rows[subset(labels[rows], spec.data.max_train_examples, seed)]
    raw = {split: train.take(parts[split]) if split in parts else tables[split] for split in SPLITS}
    classes = _classes(raw)
    _check(raw, classes)
    final = {split: _indexed(table, classes) for split, table in raw.items()}
    counts = {
        split: dict(
            zip(classes, np.bincount(table.column("label").to_numpy(), minlength=len(classes)).tolist(), strict=True)
        )
        for split, table in final.items()
    }
    rare = [name for name, count in counts["train"].items() if count < 2]
    if rare:
        notes.append(f"{len(rare)} classes have a single training example, {rare[0]} among them")
    prepared = PreparedData(
        folder=folder,
        classes=classes,
        fingerprint=_fingerprint(final),
        counts=counts,
        notes=tuple(notes),
    )
    _write(prepared, final)
    return prepared


def _read(spec: TaskSpec, kind: str, in_memory: Mapping[str, Any] | None) -> dict[str, pa.Table]:
    tables: dict[str, pa.Table] = {}
    problems: list[Problem] = []
    for split in SPLITS:
        source = getattr(spec.data, split)
        if isinstance(source, str) or (in_memory is not None and split in in_memory):
            try:
                tables[split], _ = read_source(
                    str(source), kind, spec.columns, split=split, revision=spec.data.revision, in_memory=in_memory
                )
            except InputError as error:
                problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return tables


def _groups(spec: TaskSpec, kind: str, in_memory: Mapping[str, Any] | None) -> NDArray[Any]:
    """Read the group column of train by treating it as the target."""
    assert spec.data.group is not None
    columns = spec.columns.model_copy(update={"target": spec.data.group})
    table, _ = read_source(
        spec.data.train, kind, columns, split="train", revision=spec.data.revision, in_memory=in_memory
    )
    return np.asarray(table.column("label").to_pylist())


def _of_rest(share: float, split: str, spec: TaskSpec) -> float:
    """Both shares are of all rows of train: validation is drawn after test, so its share of the rest is larger."""
    test = spec.data.test
    return share / (1 - test) if split == "validation" and isinstance(test, float) else share


def _classes(raw: Mapping[str, pa.Table]) -> tuple[str, ...]:
    """Return the labels of train in a natural order: numbers by value, else by text."""
    labels = set(raw["train"].column("label").to_pylist())
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def _check(raw: Mapping[str, pa.Table], classes: tuple[str, ...]) -> None:
    problems = [
        Problem(f"task.data.{split}", "a split must hold at least one example", "0", "give more rows or another share")
        for split, table in raw.items()
        if len(table) == 0
    ]
    if len(classes) == 1:
        remedy = "check the target column"
        problems.append(Problem("task.data.train", "must hold at least two classes", f"only {classes[0]}", remedy))
    for split in ("validation", "test"):
        unseen = sorted(set(raw[split].column("label").to_pylist()) - set(classes))
        if unseen and classes:
            rule = "every label must occur in train"
            remedy = "correct the label, or add training examples of it"
            problems.append(Problem(f"task.data.{split}", rule, ", ".join(unseen[:5]), remedy))
    if problems:
        raise InputError(problems)


def _indexed(table: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    index = {name: number for number, name in enumerate(classes)}
    labels = pa.array([index[label] for label in table.column("label").to_pylist()], pa.int32())
    return table.set_column(table.column_names.index("label"), "label", labels)


def _fingerprint(tables: Mapping[str, pa.Table]) -> str:
    """Hash ids, inputs and labels of all splits; files, paths and times play no part."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(split.encode())
        for name in tables[split].column_names:
            digest.update(name.encode())
            for value in tables[split].column(name).to_pylist():
                cell = value if isinstance(value, bytes) else str(value).encode()
                digest.update(len(cell).to_bytes(8, "big") + cell)
    return digest.hexdigest()


def _write(prepared: PreparedData, tables: Mapping[str, pa.Table]) -> None:
    prepared.folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        write_table(prepared.folder / f"{split}.arrow", table)
    facts = asdict(prepared)
    del facts["folder"]
    (prepared.folder / "data.json").write_text(json.dumps(facts, indent=2))

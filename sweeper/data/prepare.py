"""From a study's ``task.data`` to three Arrow files: train, validation, and the sealed test."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import TargetFacts, TargetKind
from sweeper.data.encoded import map_table, write_table
from sweeper.data.sources import Reading, read_source
from sweeper.data.splits import split_off, subset
from sweeper.spec.study import TaskSpec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Splits on disk; each has ``example_id``, its inputs (``text``, ``text_pair`` or ``image``) and ``label``.

    ``label`` is a class index, a list of them, a number, a text, or a list of boxes with class indices. Where the study
    names such columns ``group`` and ``time`` stand beside; a record's raw columns stay as ``field.NAME``.

    Parameters
    ----------
    facts:
        What was learnt of the targets on train.
    fingerprint:
        Hash of the content of all three splits.
    counts:
        By split and class, or set of labels: examples. Numbers, texts and images with boxes are counted under one empty
        name.
    missing:
        By split: rows left out because input or target were missing.
    notes:
        What a user should know.
    """

    folder: Path
    facts: TargetFacts
    fingerprint: str
    counts: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of their index; empty for numbers and text."""
        return self.facts.classes

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
        """Return train and validation drawn anew from their union, of like sizes, alike in their classes.

        Groups stay whole. What was learnt of the targets stays that of the study's own train split.
        """
        union = pa.concat_tables([self.train(), self.validation()], promote_options="permissive").combine_chunks()
        groups = np.asarray(union.column("group").to_pylist()) if "group" in union.column_names else None
        share = self.num_examples["validation"] / len(union)
        rest, chosen = split_off(_strata(union.column("label"), self.facts.kind), share, seed, groups)
        return union.take(rest), union.take(chosen)


def load_prepared(folder: Path) -> PreparedData:
    """Read what `prepare` wrote."""
    facts = json.loads((folder / "data.json").read_text())
    target = facts.pop("facts")
    return PreparedData(
        folder=folder,
        facts=TargetFacts(**{**target, "classes": tuple(target["classes"])}),
        notes=tuple(facts.pop("notes")),
        **facts,
    )


def retention_folder(folder: Path) -> Path:
    """Return where the set that may be forgotten is prepared, beside a study's own data in ``folder``."""
    return folder / "retention"


def prepare(
    spec: TaskSpec,
    *,
    kind: str,
    seed: int,
    folder: Path,
    in_memory: Mapping[str, Any] | None = None,
    target: TargetKind = "class",
    drop_missing: bool = False,
    own_target: bool = False,
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
    target:
        Kind of the targets.
    drop_missing:
        Leave out and count rows without input or target, instead of refusing them: for the data check.
    own_target:
        Let the input column be the target too, for texts that are not trained on.

    Raises
    ------
    InputError
        For missing files or columns, unreadable images, one class only, a label unseen in train, an empty split.
    """
    reading = Reading(
        kind=kind,
        columns=spec.columns,
        target=target,
        group=spec.data.group,
        time=spec.data.time,
        drop_missing=drop_missing,
        own_target=own_target,
        images=spec.data.images,
    )
    tables, missing, notes = _read(spec, reading, in_memory)
    raw = _split(tables, spec, target, seed)
    facts = _facts(raw, target)
    _check(raw, facts)
    final = {split: _indexed(table, facts) for split, table in raw.items()}
    counts = _counts(final, facts)
    if target == "class":
        rare = [name for name, count in counts["train"].items() if count < 2]
        if rare:
            notes.append(f"{len(rare)} classes have a single training example, {rare[0]} among them")
    prepared = PreparedData(
        folder=folder,
        facts=facts,
        fingerprint=_fingerprint(final),
        counts=counts,
        missing=missing,
        notes=tuple(notes),
    )
    _write(prepared, final)
    return prepared


def _read(
    spec: TaskSpec, reading: Reading, in_memory: Mapping[str, Any] | None
) -> tuple[dict[str, pa.Table], dict[str, int], list[str]]:
    tables: dict[str, pa.Table] = {}
    problems: list[Problem] = []
    for split in SPLITS:
        source = getattr(spec.data, split)
        if isinstance(source, str) or (in_memory is not None and split in in_memory):
            others = tuple(other for other in SPLITS if other != split and getattr(spec.data, other) == source)
            try:
                tables[split], _ = read_source(
                    str(source),
                    replace(reading, claimed=others),
                    split=split,
                    revision=spec.data.revision,
                    in_memory=in_memory,
                )
            except InputError as error:
                problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    facts = {split: table.schema.metadata for split, table in tables.items() if table.schema.metadata}
    missing = {split: int(found[b"missing"]) for split, found in facts.items()}
    notes = [
        f"{split}: {int(found[b'boxes_without_area'])} boxes without area inside their image were left out"
        for split, found in facts.items()
        if int(found.get(b"boxes_without_area", 0))
    ]
    return {split: table.replace_schema_metadata(None) for split, table in tables.items()}, missing, notes


def _split(tables: Mapping[str, pa.Table], spec: TaskSpec, target: TargetKind, seed: int) -> dict[str, pa.Table]:
    """Draw the splits that are shares of train, and the subset of train."""
    train = tables["train"]
    strata = _strata(train.column("label"), target)
    groups = np.asarray(train.column("group").to_pylist()) if spec.data.group is not None else None
    parts = {"train": np.arange(len(train))}
    if spec.data.time is not None:
        parts["train"] = np.argsort(np.asarray(train.column("time").to_pylist()), kind="stable")
    for split, share in (("test", spec.data.test), ("validation", spec.data.validation)):
        if isinstance(share, float):
            rest = parts["train"]
            of_rest = _of_rest(share, split, spec)
            if spec.data.time is not None:
                last = max(1, round(of_rest * len(rest)))
                parts["train"], parts[split] = rest[:-last], rest[-last:]
                continue
            within = groups[rest] if groups is not None else None
            kept, chosen = split_off(strata[rest], of_rest, seed, within)
            parts["train"], parts[split] = rest[kept], rest[chosen]
    if spec.data.max_train_examples is not None:
        rows = parts["train"]
        parts["train"] = rows[subset(strata[rows], spec.data.max_train_examples, seed)]
    return {split: train.take(parts[split]) if split in parts else tables[split] for split in SPLITS}


def _strata(labels: Any, target: TargetKind) -> NDArray[Any]:
    """Return what splits shall be alike in, (N,): the class, the set of labels, or nothing."""
    if target == "class":
        return np.asarray(labels.to_pylist())
    if target == "labels":
        return np.asarray(["\x1f".join(str(label) for label in found) for found in labels.to_pylist()])
    return np.zeros(len(labels), dtype=np.int64)


def _of_rest(share: float, split: str, spec: TaskSpec) -> float:
    """Both shares are of all rows of train: validation is drawn after test, so its share of the rest is larger."""
    test = spec.data.test
    return share / (1 - test) if split == "validation" and isinstance(test, float) else share


def _facts(raw: Mapping[str, pa.Table], target: TargetKind) -> TargetFacts:
    """Learn the classes, or mean and deviation, from train."""
    labels = raw["train"].column("label")
    if target == "number":
        values = labels.to_numpy()
        scale = float(values.std()) if len(values) else 0.0
        return TargetFacts(kind=target, mean=float(values.mean()) if len(values) else 0.0, scale=scale)
    if target == "text":
        return TargetFacts(kind=target)
    return TargetFacts(kind=target, classes=_natural({label for found in _lists(labels) for label in found}))


def _lists(labels: Any) -> list[list[Any]]:
    """Return each row's labels, one or many, as a list."""
    rows = [value if isinstance(value, list) else [value] for value in labels.to_pylist()]
    return [[item["label"] if isinstance(item, dict) else item for item in row] for row in rows]


def _natural(labels: set[str]) -> tuple[str, ...]:
    """Return labels in a natural order: numbers by value, else by text."""
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def _check(raw: Mapping[str, pa.Table], facts: TargetFacts) -> None:
    problems = [
        Problem(f"task.data.{split}", "a split must hold at least one example", "0", "give more rows or another share")
        for split, table in raw.items()
        if len(table) == 0
    ]
    remedy = "check the target column"
    if facts.kind == "boxes" and not facts.classes:
        problems.append(Problem("task.data.train", "must hold at least one box", "none", "check the annotations"))
    if facts.kind in ("class", "labels") and len(facts.classes) == 1:
        rule, value = "must hold at least two classes", f"only {facts.classes[0]}"
        problems.append(Problem("task.data.train", rule, value, remedy))
    if facts.kind == "number" and facts.scale == 0 and not problems:
        rule, value = "the target must take more than one value", f"only {facts.mean:g}"
        problems.append(Problem("task.data.train", rule, value, remedy))
    for split in ("validation", "test") if facts.classes else ():
        unseen = sorted({label for found in _lists(raw[split].column("label")) for label in found} - set(facts.classes))
        if unseen:
            rule = "every label must occur in train"
            remedy = "correct the label, or add training examples of it"
            problems.append(Problem(f"task.data.{split}", rule, ", ".join(unseen[:5]), remedy))
    if problems:
        raise InputError(problems)


def _indexed(table: pa.Table, facts: TargetFacts) -> pa.Table:
    """Replace class names by their indices."""
    index = {name: number for number, name in enumerate(facts.classes)}
    at, labels = table.column_names.index("label"), table.column("label").to_pylist()
    if facts.kind == "class":
        return table.set_column(at, "label", pa.array([index[label] for label in labels], pa.int32()))
    if facts.kind == "labels":
        indices = [sorted(index[label] for label in found) for found in labels]
        return table.set_column(at, "label", pa.array(indices, pa.list_(pa.int32())))
    if facts.kind == "boxes":
        boxes = [[{**item, "label": index[item["label"]]} for item in found] for found in labels]
        kind = pa.struct([("label", pa.int32()), ("box", pa.list_(pa.float64(), 4)), ("ignored", pa.bool_())])
        return table.set_column(at, "label", pa.array(boxes, pa.list_(kind)))
    return table


def _counts(tables: Mapping[str, pa.Table], facts: TargetFacts) -> dict[str, dict[str, int]]:
    found = {}
    for split, table in tables.items():
        if facts.kind == "class":
            numbers = np.bincount(table.column("label").to_numpy(), minlength=len(facts.classes)).tolist()
            found[split] = dict(zip(facts.classes, numbers, strict=True))
        elif facts.kind == "labels":
            sets = (", ".join(facts.classes[i] for i in row) for row in table.column("label").to_pylist())
            found[split] = dict(Counter(sets))
        else:
            found[split] = {"": len(table)}
    return found


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

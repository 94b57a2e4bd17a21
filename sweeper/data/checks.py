"""What is dangerous in a data set: duplicates, leakage between splits, conflicting labels, imbalance, outliers.

The check reads the inputs of all three splits, the sealed test included, to compare hashes; no model sees them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from sweeper.data.neighbours import Pictures, Texts, key, near_rows, normal, open_image
from sweeper.data.prepare import SPLITS, PreparedData
from sweeper.data.records import FIELD

PAIRS = tuple(combinations(SPLITS, 2))
_LONG_FACTOR = 8  # an input this many times longer than the median is listed as over-long
_FAR = 3.0  # an outlier lies this many interquartile ranges beyond the quartiles (Tukey's "far out")
_TELLTALE = 0.5  # share of inputs that name their own label from which they are suspect
_OF_RECORDS = "near duplicates are not looked for in records: rows that differ in a digit are different rows"
_DETERMINED = 0.999  # share of rows, or rank correlation, from which one column gives the target away


@dataclass(frozen=True)
class DataReport:
    """The findings, counts of rows.

    ``exact_duplicates``: rows whose very input stood earlier in the same split (``all``: in the whole data set);
    ``trivial_duplicates`` count those that differ in case, punctuation, white space or Unicode form too, and
    ``near_duplicates`` further ones. ``leaks``: by pair of splits, rows of the second whose very input stands in the
    first; ``near_leaks``: further ones whose input does but for trivial changes, or nearly does; ``group_leaks``: rows
    whose group does.
    ``suspect_inputs`` give the target or an identity away; ``outliers`` are rows far out in length or size.
    """

    rows: dict[str, int]
    exact_duplicates: dict[str, int]
    trivial_duplicates: dict[str, int]
    near_duplicates: dict[str, int]
    leaks: dict[str, int]
    near_leaks: dict[str, int]
    group_leaks: dict[str, int]
    conflicting_labels: int
    missing: int
    classes: dict[str, int]
    imbalance_ratio: float
    over_long: int
    outliers: dict[str, int]
    suspect_inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines."""
        return {**asdict(self), "suspect_inputs": list(self.suspect_inputs), "notes": list(self.notes)}

    def as_text(self) -> str:
        """A few lines for people."""

        def counts(found: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in found.items())

        lines = [
            f"rows: {counts(self.rows)}; left out for a missing input or target: {self.missing}",
            f"classes: {len(self.classes)}, largest / smallest in train {self.imbalance_ratio:.1f}"
            if self.classes
            else "target: numbers or text",
            f"exact duplicates: {counts(self.exact_duplicates)}",
            f"  but for case, punctuation and the like: {counts(self.trivial_duplicates)}",
            f"  near ones beside: {counts(self.near_duplicates)}",
            "leaks: " + ", ".join(f"{pair} {n} (+{self.near_leaks[pair]} near)" for pair, n in self.leaks.items()),
            f"inputs with conflicting labels: {self.conflicting_labels}",
            f"over-long inputs: {self.over_long}; outliers in length or size: {counts(self.outliers)}",
        ]
        if any(self.group_leaks.values()):
            lines.append(f"groups that stand in two splits, rows: {counts(self.group_leaks)}")
        return "\n".join([*lines, *self.suspect_inputs, *self.notes])


class Scan:
    """All three splits prepared for comparison; ``report`` counts, ``removals`` says which rows to drop."""

    def __init__(self, prepared: PreparedData) -> None:
        self._prepared = prepared
        self.tables = {"train": prepared.train(), "validation": prepared.validation(), "test": prepared.open_test()}
        self.is_image = "image" in self.tables["train"].column_names
        self.is_record = any(name.startswith(FIELD) for name in self.tables["train"].column_names)
        self._raw: dict[str, list[int]] = {}
        self._keys: dict[str, list[int]] = {}
        self._sizes: dict[str, NDArray[np.float64]] = {}
        self._made: dict[str, Any] = {}
        for split, table in self.tables.items():
            if self.is_image:
                images = [open_image(cell.as_py()) for cell in table.column("image")]
                self._raw[split] = self._keys[split] = [key(f"{i.size}".encode() + i.tobytes()) for i in images]
                self._sizes[split] = np.array([i.width * i.height for i in images], dtype=np.float64)
                self._made[split] = Pictures.of(images)
            else:
                texts = _texts(table)
                clean = ["\x1f".join(normal(part) for part in text.split("\x1f")) for text in texts]
                self._raw[split], self._keys[split] = [key(t) for t in texts], [key(t) for t in clean]
                self._sizes[split] = np.array([len(t) for t in texts], dtype=np.float64)
                self._made[split] = Texts(clean)

    def standing(self, first: str, second: str) -> NDArray[np.bool_]:
        """Return which rows of ``second`` stand in ``first``, trivial changes aside."""
        known = set(self._keys[first])
        return np.array([found in known for found in self._keys[second]], dtype=bool)

    def _literally(self, first: str, second: str) -> NDArray[np.bool_]:
        """Return which rows of ``second`` stand in ``first`` as they are."""
        known = set(self._raw[first])
        return np.array([found in known for found in self._raw[second]], dtype=bool)

    def near(self, first: str, second: str) -> NDArray[np.bool_]:
        """Return which rows of ``second`` nearly stand in ``first``; of one split: nearly stood earlier.

        Records never do: two rows that differ in a digit are two measurements.
        """
        if self.is_record:
            return np.zeros(len(self._keys[second]), dtype=bool)
        return near_rows(self._made[first], self._made[second], self._keys[first], self._keys[second])

    @cached_property
    def conflicting(self) -> set[int]:
        """Inputs, by key, with more than one label anywhere."""
        labels: dict[int, set[str]] = defaultdict(set)
        for split, table in self.tables.items():
            for found, label in zip(self._keys[split], table.column("label").to_pylist(), strict=True):
                labels[found].add(str(label))
        return {found for found, values in labels.items() if len(values) > 1}

    def report(self) -> DataReport:
        """Count what was found."""
        prepared, kind = self._prepared, self._prepared.facts.kind
        classes = self._classes() if prepared.classes else {split: {} for split in SPLITS}
        train = [count for count in classes["train"].values() if count]
        total = {name: sum(classes[split].get(name, 0) for split in SPLITS) for name in prepared.classes}
        sizes = np.concatenate(list(self._sizes.values()))
        outliers = _far_out(sizes)
        bounds = np.cumsum([0, *(len(self._sizes[split]) for split in SPLITS)])
        return DataReport(
            rows={split: len(table) for split, table in self.tables.items()},
            exact_duplicates=_repeats(self._raw),
            trivial_duplicates=_repeats(self._keys),
            near_duplicates={split: int(self.near(split, split).sum()) for split in SPLITS},
            leaks={f"{a}-{b}": int(self._literally(a, b).sum()) for a, b in PAIRS},
            near_leaks={
                f"{a}-{b}": int(((self.standing(a, b) & ~self._literally(a, b)) | self.near(a, b)).sum())
                for a, b in PAIRS
            },
            group_leaks=self._group_leaks(),
            conflicting_labels=len(self.conflicting) if kind in ("class", "labels") else 0,
            missing=sum(prepared.missing.values()),
            classes=total,
            imbalance_ratio=max(train) / min(train) if train else 1.0,
            over_long=0 if self.is_image else int((sizes > _LONG_FACTOR * np.median(sizes)).sum()),
            outliers={s: int(outliers[bounds[i] : bounds[i + 1]].sum()) for i, s in enumerate(SPLITS)},
            suspect_inputs=tuple(self._suspects()),
            notes=(*prepared.notes, *([_OF_RECORDS] if self.is_record else []), *self._box_notes()),
        )

    def removals(self) -> dict[str, dict[str, str]]:
        """Return by split the ids of rows to drop, each with the reason.

        Every split loses repeated and nearly repeated inputs, the first stays. Train loses what stands or nearly
        stands in validation or test, validation what does in test; both lose inputs with conflicting labels. What is
        test stays as it is otherwise.
        """
        found: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
        with_conflicts = self.conflicting if self._prepared.facts.kind in ("class", "labels") else set()
        for at, split in enumerate(SPLITS):
            ids = self.tables[split].column("example_id").to_pylist()
            reasons = found[split]
            seen: set[int] = set()
            later = {other: set(self._keys[other]) for other in SPLITS[at + 1 :]}
            near = {other: self.near(other, split) for other in SPLITS[at:]}
            for row, (name, value) in enumerate(zip(ids, self._keys[split], strict=True)):
                if value in with_conflicts and split != "test":
                    reasons[name] = "its input stands elsewhere with another label"
                elif value in seen:
                    reasons[name] = "its input stood earlier in the same split"
                elif any(value in keys for keys in later.values()):
                    reasons[name] = f"its input stands in {next(o for o, keys in later.items() if value in keys)}"
                elif any(rows[row] for rows in near.values()):
                    other = next(o for o, rows in near.items() if rows[row])
                    reasons[name] = f"it is a near duplicate of a row of {other}"
                seen.add(value)
        return found

    def _classes(self) -> dict[str, dict[str, int]]:
        names = self._prepared.classes
        found = {}
        for split, table in self.tables.items():
            labels = table.column("label").to_pylist()
            values = [item for value in labels for item in (value if isinstance(value, list) else [value])]
            flat = Counter(item["label"] if isinstance(item, dict) else item for item in values)
            found[split] = {name: flat[index] for index, name in enumerate(names)}
        return found

    @property
    def has_boxes(self) -> bool:
        """Whether the targets are labelled boxes."""
        return self._prepared.facts.kind == "boxes"

    def _box_notes(self) -> Iterator[str]:
        """Tell of images without boxes, and of boxes that stand twice in an image."""
        for split, table in self.tables.items() if self.has_boxes else ():
            images = table.column("label").to_pylist()
            bare = sum(not found for found in images)
            twice = sum(len(found) - len({(item["label"], *item["box"]) for item in found}) for found in images)
            if bare:
                yield f"{split}: {bare} images without any box"
            if twice:
                yield f"{split}: {twice} boxes stand twice in their image"

    def _group_leaks(self) -> dict[str, int]:
        if "group" not in self.tables["train"].column_names:
            return {}
        groups = {split: table.column("group").to_pylist() for split, table in self.tables.items()}
        return {f"{a}-{b}": sum(g in known for g in groups[b]) for a, b in PAIRS if (known := set(groups[a]))}

    def _suspects(self) -> Iterator[str]:
        """Name columns that give the target or an identity away, and texts that name their own label."""
        table, kind = self.tables["train"], self._prepared.facts.kind
        labels = table.column("label").to_pylist()
        for name in table.column_names:
            if name.startswith(FIELD):
                values = table.column(name).to_pylist()
                if len(set(map(str, values))) == len(values) > 1 and _looks_like_identity(name, values):
                    yield f"column {name.removeprefix(FIELD)} looks like an identity: every value is different"
                if kind in ("class", "number") and _determines(values, labels, kind):
                    yield f"column {name.removeprefix(FIELD)} alone gives the target away"
        if kind == "class" and not self.is_image:
            named = _names_label(_texts(table), labels, self._prepared.classes)
            if named is not None:
                yield f"{named:.0%} of the training inputs contain the name of their own label"


def check(prepared: PreparedData) -> DataReport:
    """Check prepared data; reads all splits, changes nothing."""
    return Scan(prepared).report()


def _texts(table: pa.Table) -> list[str]:
    texts = table.column("text").to_pylist()
    if "text_pair" in table.column_names:
        return [f"{a}\x1f{b}" for a, b in zip(texts, table.column("text_pair").to_pylist(), strict=True)]
    return list(texts)


def _repeats(keys: dict[str, list[int]]) -> dict[str, int]:
    everything = [found for split in SPLITS for found in keys[split]]
    return {split: len(keys[split]) - len(set(keys[split])) for split in SPLITS} | {
        "all": len(everything) - len(set(everything))
    }


def _far_out(sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which sizes lie far out on a logarithmic scale, (N,)."""
    logs = np.log1p(sizes)
    low, high = np.quantile(logs, [0.25, 0.75])
    reach = _FAR * max(high - low, 0.05)  # a spread of 5%: inputs of one length leave no room for outliers
    return (logs < low - reach) | (logs > high + reach)  # type: ignore[no-any-return]


def _looks_like_identity(name: str, values: Sequence[Any]) -> bool:
    """Whether a column of different values is text or counts up, or is called an id."""
    if re.search(r"(^|[._\W])(id|uuid|guid|key)$", name, re.IGNORECASE):
        return True
    if all(isinstance(v, str) for v in values):
        return all(len(v.split()) == 1 for v in values)
    return all(isinstance(v, int) for v in values) and bool(np.ptp(values) < 2 * len(values))


def _determines(values: Sequence[Any], labels: Sequence[Any], kind: str) -> bool:
    """Whether one column nearly fixes the target: by rank for numbers, by repeated values or a cut for classes."""
    numeric = all(isinstance(v, int | float) and v == v for v in values)
    if kind == "number":
        if not numeric or len(set(values)) < 2:
            return False
        return abs(float(np.corrcoef(rankdata(values), rankdata(labels))[0, 1])) >= _DETERMINED
    if len(set(labels)) < 2:
        return False
    if numeric and len(set(values)) > 1:  # sorted by value, the classes stand in whole runs
        order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
        ordered = np.asarray(labels)[order]
        runs = 1 + int((ordered[1:] != ordered[:-1]).sum())
        return runs <= len(set(labels)) + (1 - _DETERMINED) * len(labels)
    by_value: dict[Any, Counter[Any]] = defaultdict(Counter)
    for value, label in zip(values, labels, strict=True):
        by_value[value][label] += 1
    repeated = [counts for counts in by_value.values() if sum(counts.values()) > 1]
    rows = sum(sum(counts.values()) for counts in repeated)
    right = sum(max(counts.values()) for counts in repeated)
    return rows > len(labels) / 2 and right >= _DETERMINED * rows


def _names_label(texts: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> float | None:
    """Return the share of texts that contain their own label as words, where it is suspiciously large."""
    words = [f" {normal(name.replace('_', ' '))} " for name in classes]
    if any(len(word) < 4 for word in words):  # single characters and digits stand in any text
        return None
    padded = [f" {normal(text)} " for text in texts]
    own = float(np.mean([words[label] in text for text, label in zip(padded, labels, strict=True)]))
    others = float(
        np.mean([words[(label + 1) % len(words)] in text for text, label in zip(padded, labels, strict=True)])
    )
    return own if own >= _TELLTALE and own > 2 * others else None

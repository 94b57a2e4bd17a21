"""What the test predictions tell: confusions, differences between models by test example, and where models disagree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.report.source import Source
from sweeper.stats import example_bootstrap, holm, mcnemar
from sweeper.store.tables import read_table

MOST_CLASSES = 20  # beyond, a matrix is no picture any more: the most frequent confusions are listed
_DISAGREEMENTS = 25
_COLUMNS = ("model", "config", "seed", "example_id", "target", "prediction")


@dataclass(frozen=True)
class Answers:
    """The test predictions of one model's tuned runs.

    ``predictions`` is (seeds, N) class indices, numbers or (as text) anything else, in the order of ``example_ids``;
    ``right`` is (seeds, N) of 0 and 1, or None for numbers.
    """

    targets: NDArray[Any]
    predictions: NDArray[Any]
    right: NDArray[np.float64] | None


@dataclass(frozen=True)
class Examples:
    """Answers by model to the same N test examples; empty where the study has no predictions.

    ``kind`` is ``class``, ``number`` or ``other`` (texts, lists of labels); ``classes`` names class indices.
    """

    kind: str = "other"
    example_ids: list[str] = field(default_factory=list)
    answers: dict[str, Answers] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def name(self, value: Any) -> str:
        """Return an answer as a reader knows it."""
        if self.kind == "class" and 0 <= int(value) < len(self.classes):
            return self.classes[int(value)]
        return f"{value:.4g}" if self.kind == "number" else str(value)


def read_examples(source: Source) -> Examples:
    """Read the tuned models' predictions; runs that lack an example of the others are left out."""
    if source.imported or not source.paths.predictions.exists():
        return Examples()
    table = read_table(source.paths.predictions, _COLUMNS)
    configs = table.column("config").to_numpy(zero_copy_only=False)
    table = table.filter(pa.array(configs == "tuned", pa.bool_()))
    if not table.num_rows:
        return Examples()
    kind = {"i": "class", "f": "number"}.get(_kind(table), "other")
    models, seeds = (table.column(name).to_numpy(zero_copy_only=False) for name in ("model", "seed"))
    ids = np.array(table.column("example_id").to_pylist(), dtype=object)
    targets, predictions = (_values(table.column(name), kind) for name in ("target", "prediction"))
    if kind == "other" and pa.types.is_integer(table.schema.field("prediction").type):  # whether the answer was given
        predictions = np.where(predictions == "1", targets, "another text")
    order: list[str] = []
    runs: dict[str, list[NDArray[Any]]] = {}
    truth: NDArray[Any] | None = None
    for model in source.models:
        mine = models == model
        for seed in source.manifest.seeds["confirmation"]:
            rows = np.flatnonzero(mine & (seeds == seed))
            rows = rows[np.argsort(ids[rows], kind="stable")]
            if len(rows) and truth is None:
                order, truth = ids[rows].tolist(), targets[rows]
            if len(rows) and len(rows) == len(order) and ids[rows].tolist() == order:
                runs.setdefault(model, []).append(predictions[rows])
    answers = {}
    for model, found in runs.items():
        assert truth is not None
        matrix = np.stack(found)
        right = None if kind == "number" else (matrix == truth).astype(np.float64)
        answers[model] = Answers(truth, matrix, right)
    return Examples(kind, order, answers, [str(name) for name in source.manifest.data.get("classes", ())])


def comparisons(found: Examples) -> list[dict[str, Any]]:
    """Compare every pair of models on the share of right answers, with the test example as the unit.

    The interval is a percentile bootstrap over examples of each example's mean over the seeds; McNemar's exact test
    compares the answers that most seeds give, Holm-adjusted over the pairs.
    """
    right = {model: answers.right for model, answers in found.answers.items() if answers.right is not None}
    rows: list[dict[str, Any]] = []
    for a, b in combinations(right, 2):
        if right[a].mean() < right[b].mean():
            a, b = b, a
        difference = example_bootstrap(right[a], right[b])
        paired = mcnemar(right[a].mean(axis=0) > 0.5, right[b].mean(axis=0) > 0.5)
        rows.append(
            {
                "model": a,
                "other": b,
                "difference": difference.difference,
                "ci_low": difference.ci_low,
                "ci_high": difference.ci_high,
                "only_model": paired.only_a,
                "only_other": paired.only_b,
                "p_value": paired.p_value,
                "num_examples": len(found.example_ids),
                "unit": "test examples",
            }
        )
    for row, p_value in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value"] = float(p_value)
    return rows


def confusions(found: Examples) -> dict[str, NDArray[np.int64]]:
    """Return by model the (K, K) counts of target (row) and answer (column), summed over the seeds."""
    if found.kind != "class" or not found.classes:
        return {}
    size = len(found.classes)
    matrices = {}
    for model, answers in found.answers.items():
        cells = (answers.targets[None, :] * size + answers.predictions).ravel()
        matrices[model] = np.bincount(cells, minlength=size * size).reshape(size, size)
    return matrices


def frequent_confusions(found: Examples, matrix: NDArray[np.int64], count: int = 12) -> list[dict[str, Any]]:
    """Return the most frequent wrong answers: ``target``, ``answer`` and their ``share`` of the target's answers."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    rows = []
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column]:
            share = wrong[row, column] / max(1, matrix[row].sum())
            rows.append(
                {"target": found.name(row), "answer": found.name(column), "count": int(wrong[row, column])}
                | {"share": float(share)}
            )
    return rows


def disagreements(found: Examples) -> list[dict[str, Any]]:
    """Return the test examples on which the models differ most, by the share of seeds that are right.

    For numbers: by the spread of the models' mean answers.
    """
    if len(found.answers) < 2:
        return []
    if found.kind == "number":
        marks = {m: answers.predictions.mean(axis=0) for m, answers in found.answers.items()}
    else:
        marks = {m: answers.right.mean(axis=0) for m, answers in found.answers.items() if answers.right is not None}
    values = np.stack(list(marks.values()))
    spread = values.max(axis=0) - values.min(axis=0)
    rows = []
    for index in np.argsort(-spread, kind="stable")[:_DISAGREEMENTS]:
        if spread[index] <= 0:
            break
        said = {model: _usual(answers.predictions[:, index], found) for model, answers in found.answers.items()}
        first = next(iter(found.answers.values()))
        rows.append(
            {
                "example_id": found.example_ids[index],
                "target": found.name(first.targets[index]),
                "answers": {m: {"said": said[m], "mark": float(marks[m][index])} for m in said},
                "spread": float(spread[index]),
            }
        )
    return rows


def agreement(found: Examples) -> dict[str, float] | None:
    """Return the shares of test examples that all models, some and none get right (the answer of most seeds)."""
    right = [answers.right.mean(axis=0) > 0.5 for answers in found.answers.values() if answers.right is not None]
    if len(right) < 2:
        return None
    count = np.sum(right, axis=0)
    every, none = float(np.mean(count == len(right))), float(np.mean(count == 0))
    return {"all": every, "some": 1 - every - none, "none": none}


def _usual(answers: NDArray[Any], found: Examples) -> str:
    if found.kind == "number":
        return found.name(float(np.mean(answers)))
    return found.name(Counter(answers.tolist()).most_common(1)[0][0])


def _kind(table: pa.Table) -> str:
    kind = table.schema.field("target").type
    return "i" if pa.types.is_integer(kind) else "f" if pa.types.is_floating(kind) else "o"


def _values(column: pa.ChunkedArray, kind: str) -> NDArray[Any]:
    if kind == "other":
        return np.array([str(value) for value in column.to_pylist()], dtype=object)
    return np.asarray(column.to_numpy(zero_copy_only=False))

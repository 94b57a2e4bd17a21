"""Turning tables of other shapes into one row a trial: a row a split, a metric or a seed, a column a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sweeper.core.errors import InputError, Problem

Row = dict[str, Any]

VALIDATION = {"val", "valid", "validation", "eval", "dev", "development"}
TEST = {"test", "holdout", "heldout"}
TRAIN = {"train", "training"}
PLAIN = ("value", "score", "objective", "objective_value", "metric", "result", "performance")
LESS = {"loss", "error", "err", "rmse", "mse", "mae", "nll", "perplexity", "ppl", "wer", "cer", "regret", "logloss"}
MORE = {
    *("accuracy", "acc", "f1", "auc", "auroc", "ap", "map", "bleu", "rouge", "mcc", "r2", "precision", "recall", "iou"),
    *("em", "exact", "kappa", "spearman", "pearson", "spearmanr", "ndcg", "mrr", "chrf", "comet", "rougel", "f1_macro"),
}
NEGATED = {"neg", "negative", "negated", "minus"}
"""Words that turn a score's direction round, as in scikit-learn's ``neg_log_loss``."""
_SPLIT_NAMES = ("split", "set", "subset", "partition", "data_split", "dataset_split", "eval_split", "fold")
_METRIC_NAMES = ("metric", "metric_name", "measure", "variable", "name")


def words(name: str) -> list[str]:
    """Return a column's name as words: ``valAcc``, ``val/acc``, ``valacc`` and ``Val. Acc (%)`` are val and acc."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})|(?<=[a-z])(?=F1)", "_", name)
    found = []
    for word in re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_").split("_"):
        found += _apart(word)
    return found


def plain(name: str) -> str:
    """Return a column's name in the spelling that names are compared in."""
    return "_".join(words(name))


def keep(rows: list[Row], where: Sequence[str], place: str) -> list[Row]:
    """Return the rows in which every ``COLUMN=VALUE`` of ``where`` holds.

    Raises
    ------
    InputError
        When there is no such column, or no row is left.
    """
    for item in where:
        column, separator, value = item.partition("=")
        values = {str(row.get(column)) for row in rows if column in row}
        if not separator or not any(_same(row.get(column), value) for row in rows if column in row):
            seen = (
                ", ".join(sorted(values))
                if values
                else f"columns {', '.join(dict.fromkeys(n for r in rows for n in r))}"
            )
            raise InputError(
                Problem(f"{place} --where {item}", "must be COLUMN=VALUE of the table", seen, "correct it")
            )
        rows = [row for row in rows if _same(row.get(column), value)]
    return rows


def _same(value: Any, said: str) -> bool:
    """Whether a value is what was said: as text, or as a number (``1`` is 1.0)."""
    if str(value) == said:
        return True
    try:
        return isinstance(value, int | float) and float(said) == value
    except ValueError:
        return False


def reshaped(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Return rows of one trial each out of a row a split, a row a metric or scikit-learn's folds, with notes."""
    notes: list[str] = []
    for reshape in (_cross_validated, _by_metric, _by_split):
        rows, note = reshape(rows)
        notes += [note] if note else []
    return rows, notes


def is_cross_validated(columns: Sequence[str]) -> bool:
    """Whether the columns are those of scikit-learn's ``cv_results_``, whose scores are always maximised."""
    return any(f"mean_test_{name.removeprefix('rank_test_')}" in columns for name in columns if "rank_test_" in name)


def without_ranks(rows: list[Row], but: Sequence[str]) -> list[Row]:
    """Drop scikit-learn's ranks, which hold the word test, but for those that are asked for."""
    return [{n: value for n, value in row.items() if not n.startswith("rank_test_") or n in but} for row in rows]


def _cross_validated(rows: list[Row]) -> tuple[list[Row], str]:
    """Rename what scikit-learn's ``cv_results_`` calls a test score: the mean over its validation folds."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    scores = {name.removeprefix("mean_test_") for name in columns if name.startswith("mean_test_")}
    scores = {score for score in scores if f"rank_test_{score}" in columns}
    if not scores:
        return rows, ""
    names = {f"mean_test_{score}": f"validation_{score}" for score in scores} | {"mean_fit_time": "elapsed_seconds"}
    dropped = re.compile(r"(split\d+|std|rank|mean)_((test|train)_.+|score_time|fit_time)|params")
    kept = [name for name in columns if name in names or not dropped.fullmatch(name)]
    note = "scikit-learn's cv_results_: mean_test_… is the mean over the validation folds; there are no test scores."
    return [{names.get(name, name): row.get(name) for name in kept} for row in rows], note


def _by_metric(rows: list[Row]) -> tuple[list[Row], str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    by_name = {plain(name): name for name in columns}
    for name in (by_name[word] for word in _METRIC_NAMES if word in by_name):
        value = next((by_name[word] for word in ("value", "score", "result") if word in by_name), None)
        names = {str(row.get(name)) for row in rows}
        if value is not None and len(names) <= 50 and all(_is_score(text) for text in names):
            spread = _spread(rows, name, [value], lambda label, _: label)
            return spread, f"One row a metric: the values of {name!r} became columns."
    return rows, ""


def _by_split(rows: list[Row]) -> tuple[list[Row], str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    by_name = {plain(name): name for name in columns}
    for name in (by_name[word] for word in _SPLIT_NAMES if word in by_name):
        labels = {str(row.get(name)).lower() for row in rows}
        if labels & VALIDATION and labels <= VALIDATION | TEST | TRAIN:
            scores = [c for c in columns if c != name and set(words(c)) & (LESS | MORE | set(PLAIN))]
            if scores:
                spread = _spread(rows, name, scores, lambda label, column: f"{label.lower()}_{column}")
                return spread, f"One row a split: the values of {name!r} became columns."
    return rows, ""


def tall(rows: list[Row], groups: dict[str, dict[str, str]], model: str = "model") -> list[Row]:
    """Return a row a model out of rows with a column a model.

    Parameters
    ----------
    groups:
        By model: the field that each of its columns becomes, by column.
    """
    own = {column for columns in groups.values() for column in columns}
    found = []
    for row in rows:
        common = {name: value for name, value in row.items() if name not in own}
        for name, columns in groups.items():
            mine = {field: row.get(column) for column, field in columns.items()}
            if any(value is not None for value in mine.values()):  # models may have tried different numbers of trials
                found.append({**common, model: name, **mine})
    return found


def models_in_names(columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return by model the columns whose names hold it beside a split and a metric: ``bert_val_acc``; empty if none.

    Only where at least two models have the same scores.
    """
    groups: dict[str, dict[str, str]] = {}
    for column in columns:
        parts = words(column)
        split = [word for word in parts if word in VALIDATION | TEST]
        if len(split) != 1:
            continue
        rest = [word for word in parts if word not in VALIDATION | TEST | LESS | MORE and word not in PLAIN]
        scores = [word for word in parts if word in LESS | MORE or word in PLAIN]
        if rest:
            kind = "validation" if split[0] in VALIDATION else "test"
            groups.setdefault(_as_written(column, rest), {})[column] = "_".join([kind, *scores])
    fields = {frozenset(found.values()) for found in groups.values()}
    same = len(groups) > 1 and len(fields) == 1 and all(len(set(f.values())) == len(f) for f in groups.values())
    has_validation = all(any(field.startswith("validation") for field in f.values()) for f in groups.values())
    if not same or not has_validation or set(groups) & {"best", "final", "mean", "max", "last", "std", "min"}:
        return {}
    return groups


def _as_written(column: str, rest: list[str]) -> str:
    """Return the model's part of a column's name in its own letters, as far as separators set it apart."""
    known = VALIDATION | TEST | LESS | MORE | set(PLAIN)
    parts = [part for part in re.split(r"[^A-Za-z0-9.+]+", column) if part and part.lower() not in known]
    return "-".join(parts) if words("_".join(parts)) == rest else "-".join(rest)


def _spread(rows: list[Row], name: str, scores: list[str], rename: Any) -> list[Row]:
    """Merge rows that differ in ``name`` and ``scores`` alone; each score gets a column for each value of ``name``."""
    merged: dict[tuple[Any, ...], Row] = {}
    times: dict[tuple[Any, ...], int] = {}
    for row in rows:
        rest = {column: value for column, value in row.items() if column != name and column not in scores}
        key = tuple((column, str(value)) for column, value in rest.items())
        mine = {rename(str(row.get(name)), column): row.get(column) for column in scores}
        at = times.get((key, *mine), 0)  # repeated configurations: the first row of one split goes with that of another
        times[key, *mine] = at + 1
        merged.setdefault((key, at), dict(rest)).update(mine)
    return list(merged.values())


def _is_score(text: str) -> bool:
    found = set(words(text))
    return bool(found & (VALIDATION | TEST | TRAIN)) or bool(found & (LESS | MORE))


def _apart(word: str) -> list[str]:
    """Split ``valacc`` and ``devf1``."""
    known = LESS | MORE | set(PLAIN)
    for prefix in sorted(VALIDATION | TEST | TRAIN, key=len, reverse=True):
        if word.startswith(prefix) and word[len(prefix) :] in known:
            return [prefix, word[len(prefix) :]]
    for suffix in sorted(VALIDATION | TEST | TRAIN, key=len, reverse=True):
        if word.endswith(suffix) and word[: -len(suffix)] in known:
            return [word[: -len(suffix)], suffix]
    return [word]

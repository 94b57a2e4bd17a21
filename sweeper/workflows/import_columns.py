"""Which column of an imported table is what: the user's mapping first, then common names, else an error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Goal
from sweeper.workflows.import_sources import PARAMS, RawTable

_NAMES: dict[str, tuple[str, ...]] = {
    "model": (
        *("model", "model_name", "architecture", "arch", "backbone", "network", "algorithm", "algo", "estimator"),
        *("classifier", "checkpoint", "pretrained_model", "model_name_or_path"),
    ),
    "trial_id": ("trial_id", "trial", "run_id", "run", "config_id", "trial_number", "number", "id"),
    "epoch": ("epoch", "epochs", "num_epochs", "training_iteration"),
    "state": ("state", "status", "trial_state"),
    "seed": ("seed", "random_seed", "random_state"),
    "config": ("config", "configuration", "kind"),
    "elapsed_seconds": (
        *("elapsed_seconds", "duration", "duration_seconds", "elapsed", "seconds", "runtime", "training_time"),
        *("train_time", "time_total_s", "time", "wall_time", "fit_time"),
    ),
    "train_loss": ("train_loss", "training_loss"),
    "validation_loss": ("validation_loss", "val_loss", "valid_loss", "eval_loss", "dev_loss"),
    "curve": ("curve", "learning_curve"),
    "reason": ("reason", "error_message"),
}
FIELDS = ("model", "value", "test", "metric", "params", *(name for name in _NAMES if name != "model"))
_ALIASES = {
    **dict.fromkeys(("validation", "val", "score", "validation_score"), "value"),
    **dict.fromkeys(("test_score", "test_value"), "test"),
    **dict.fromkeys(("trial", "id"), "trial_id"),
    **dict.fromkeys(("duration", "seconds"), "elapsed_seconds"),
    "learning_curve": "curve",
}
_VALIDATION = {"val", "valid", "validation", "eval", "dev"}
_TEST = {"test", "holdout", "heldout"}
_PLAIN = ("value", "score", "objective", "objective_value", "metric")
_LESS = {"loss", "error", "err", "rmse", "mse", "mae", "nll", "perplexity", "ppl", "wer", "cer", "regret"}
_MORE = {
    "accuracy",
    "acc",
    "f1",
    "auc",
    "auroc",
    "ap",
    "map",
    "bleu",
    "rouge",
    "mcc",
    "r2",
    "precision",
    "recall",
    "iou",
}
_PREFIXES = (PARAMS, "params_", "param.", "param_", "config.", "config/", "hparams.", "hyperparameters.", "hp_")
_OWN = {
    *("created", "user", "tags", "sweep", "notes", "hostname", "timestamp", "date", "datetime", "datetime_start"),
    *("datetime_complete", "name", "commit", "gpu", "node", "study_name", "experiment", "index", "number"),
    *("intermediate_values", "device_seconds", "started_at", "finished_at", "updated", "end_time", "start_time"),
}


@dataclass(frozen=True)
class Columns:
    """By field: its column. ``params``: by hyperparameter, its column. ``metric`` and ``goal``: what ``value`` is."""

    fields: dict[str, str]
    params: dict[str, str]
    metric: str
    goal: Goal
    notes: tuple[str, ...]


def find_columns(raw: RawTable, mapping: Sequence[str], goal: Goal | None, place: str) -> Columns:
    """Return which column is what.

    Parameters
    ----------
    mapping:
        ``FIELD=COLUMN`` each; ``FIELD=`` says that there is none; ``metric=NAME`` names the metric;
        ``params=COLUMN,COLUMN`` names the hyperparameters.

    Raises
    ------
    InputError
        When a mapping names no field or column, or the model's or the score's column is unclear.
    """
    asked, problems = _asked(mapping, raw.columns)
    if problems:
        raise InputError(problems)
    finder = _Finder(raw, asked, place)
    fields = finder.find()
    if finder.problems:
        raise InputError(finder.problems)
    metric = asked.get("metric") or _metric(fields["value"])
    notes = list(raw.notes)
    direction = goal or raw.goal or _direction(metric) or _direction(fields["value"])
    if direction is None:
        notes.append(f"Whether more or less {metric} is better was not said: more was taken; --goal minimize for less.")
    return Columns(fields, finder.params(fields), metric, direction or "maximize", tuple(notes))


def _asked(mapping: Sequence[str], columns: list[str]) -> tuple[dict[str, str], list[Problem]]:
    asked: dict[str, str] = {}
    problems = []
    for item in mapping:
        name, separator, column = item.partition("=")
        name = _ALIASES.get(name, name)
        if not separator or name not in FIELDS:
            rule = f"must be FIELD=COLUMN with a field of {', '.join(FIELDS)}"
            problems.append(Problem(f"--map {item}", rule, item, "correct the field"))
            continue
        wanted = column.split(",") if name == "params" and column else [column] if column and name != "metric" else []
        missing = [part for part in wanted if part not in columns]
        if missing:
            rule = f"must name one of the columns {', '.join(columns)}"
            problems.append(Problem(f"--map {item}", rule, ", ".join(missing), "correct the column"))
        asked[name] = column
    return asked, problems


class _Finder:
    """Guesses the fields that the user did not map; collects what is unclear."""

    def __init__(self, raw: RawTable, asked: dict[str, str], place: str) -> None:
        self._raw, self._asked, self._place = raw, asked, place
        self._plain: dict[str, str] = {}
        for name in raw.columns:
            if _parameter(name) is None:
                self._plain.setdefault(_plain(name), name)
        self.problems: list[Problem] = []

    def find(self) -> dict[str, str]:
        fields: dict[str, str | None] = {}
        fields["model"] = self._given("model") if "model" in self._asked else self._model()
        fields["value"] = self._given("value") if "value" in self._asked else self._value()
        if fields["value"] is not None:
            fields["test"] = self._given("test") if "test" in self._asked else self._test(fields["value"])
        used = {column for column in fields.values() if column}
        for name, common in _NAMES.items():
            if name in self._asked:
                fields[name] = self._given(name)
            elif name not in fields:
                present = [self._plain[word] for word in common if word in self._plain]
                free = [column for column in present if column not in used]
                fields[name] = free[0] if free else self._raw.fallback.get(name)
            if name == "config" and name not in self._asked and not self._is_config(fields[name]):
                fields[name] = None
            used |= {column for column in (fields[name],) if column}
        for name in ("model", "value"):
            if fields.get(name) is None and not self.problems:
                self._unclear(name, [], "must have a column")
        return {name: column for name, column in fields.items() if column}

    def params(self, fields: dict[str, str]) -> dict[str, str]:
        """Return the hyperparameters' columns: those with a prefix, else all that are left and tell trials apart."""
        if "params" in self._asked:
            return {_parameter(name) or name: name for name in self._asked["params"].split(",") if name}
        used = set(fields.values())
        named = {_parameter(name): name for name in self._raw.columns if _parameter(name) and name not in used}
        if named:
            return {str(name): column for name, column in named.items()}
        return {name: name for name in self._raw.columns if name not in used and self._may_be_param(name)}

    def _may_be_param(self, name: str) -> bool:
        words = set(_plain(name).split("_"))
        scored = words & (_VALIDATION | _TEST | {"train", "training"}) and words & (_LESS | _MORE | set(_PLAIN))
        values = [row.get(name) for row in self._raw.rows]
        scalar = all(value is None or isinstance(value, str | int | float | bool) for value in values)
        return scalar and not scored and not name.startswith("_") and _plain(name) not in _OWN

    def _given(self, name: str) -> str | None:
        return self._asked[name] or None

    def _model(self) -> str | None:
        fallback = self._raw.fallback.get("model")
        if fallback and len({row.get(fallback) for row in self._raw.rows}) > 1:
            return fallback
        present = [self._plain[word] for word in _NAMES["model"] if word in self._plain]
        params = {_plain(_parameter(name) or ""): name for name in self._raw.columns if _parameter(name)}
        present = present or [params[word] for word in _NAMES["model"] if word in params]
        if not present and fallback:
            return fallback
        if len(present) == 1 or (present and _plain(_parameter(present[0]) or present[0]) == "model"):
            return present[0]
        self._unclear("model", present, "must be one column" if present else "must have a column")
        return None

    def _value(self) -> str | None:
        numeric = [name for name in self._plain.values() if self._is_number(name)]
        words = {name: set(_plain(name).split("_")) for name in numeric}
        found = [name for name in numeric if words[name] & _VALIDATION and not words[name] & _TEST]
        if len(found) > 1:
            found = [name for name in found if not words[name] & _LESS] or found
        if not found and "value" in self._raw.fallback:
            found = [self._raw.fallback["value"]]
        if not found:
            found = [self._plain[word] for word in _PLAIN if self._plain.get(word) in numeric][:1]
        if not found:
            apart = _TEST | {"train", "training"}
            found = [name for name in numeric if words[name] & (_LESS | _MORE) and not words[name] & apart]
        if len(found) == 1:
            return found[0]
        self._unclear("value", found, "must be one column of validation scores")
        return None

    def _test(self, value: str) -> str | None:
        words = {name: set(_plain(name).split("_")) for name in self._plain.values() if self._is_number(name)}
        found = [name for name in words if words[name] & _TEST and name != value]
        rest = set(_plain(value).split("_")) - _VALIDATION
        same = [name for name in found if words[name] - _TEST == rest]
        if len(found) > 1 and len(same) != 1:
            self._unclear("test", found, "must be one column of test scores")
            return None
        return same[0] if same else found[0] if found else None

    def _is_number(self, column: str) -> bool:
        values = [row.get(column) for row in self._raw.rows]
        kinds = {type(value) for value in values if value is not None}
        return bool(kinds) and kinds <= {int, float}

    def _is_config(self, column: str | None) -> bool:
        values = {row.get(column) for row in self._raw.rows} if column else set()
        return bool(values & {"tuned", "default"}) and values <= {"tuned", "default", "search", "", None}

    def _unclear(self, name: str, candidates: list[str], rule: str) -> None:
        seen = ", ".join(candidates) if candidates else f"columns {', '.join(self._raw.columns)}"
        remedy = f"say which with --map {name}=COLUMN" + (f", or --map {name}= for none" if name == "test" else "")
        self.problems.append(Problem(self._place, f"{name} {rule}", seen, remedy))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _parameter(name: str) -> str | None:
    """Return the hyperparameter that a column's prefix says it is, else None."""
    for prefix in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return None


def _metric(column: str) -> str:
    words = [word for word in _plain(column).split("_") if word not in _VALIDATION]
    name = "_".join("accuracy" if word == "acc" else word for word in words)
    return name if name and name not in (*_PLAIN, "best") else "score"


def _direction(name: str) -> Goal | None:
    words: set[Any] = set(_plain(name).split("_"))
    if words & _LESS:
        return "minimize"
    return "maximize" if words & _MORE else None

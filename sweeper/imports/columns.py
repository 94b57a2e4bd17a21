"""Which column of an imported table is what: the user's mapping first, then common names, else an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Goal
from sweeper.imports.shapes import (
    LESS,
    MORE,
    NEGATED,
    PLAIN,
    TEST,
    TRAIN,
    VALIDATION,
    is_cross_validated,
    models_in_names,
    plain,
    reshaped,
    tall,
    without_ranks,
    words,
)
from sweeper.imports.sources import FILE, PARAMS, RawTable
from sweeper.imports.tables import FAILED

_NAMES: dict[str, tuple[str, ...]] = {
    "model": (
        *("model", "model_name", "architecture", "arch", "backbone", "network", "algorithm", "algo", "estimator"),
        *("classifier", "checkpoint", "pretrained_model", "model_name_or_path", "encoder", "system", "base_model"),
        *("model_id", "model_type", "pretrained", "language_model", "learner", "net", "method", "approach"),
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
_UNSAID = {"metrics", "results", "best", "final", "mean", "avg", "average", "max", "min", "last", "summary"}
_CURVE = {"curve", "curves", "history", "trajectory", "epochs", "by", "per", "epoch", "list"}
_DATA = ("dataset", "dataset_name", "data_set", "task", "task_name", "corpus", "benchmark")
_MOST_MODELS = 20
_PREFIXES = (PARAMS, "params_", "param.", "param_", "config.", "config/", "hparams.", "hyperparameters.", "hp_")
_OWN = {
    *("created", "user", "tags", "sweep", "notes", "hostname", "timestamp", "date", "datetime", "datetime_start"),
    *("datetime_complete", "name", "commit", "gpu", "node", "study_name", "experiment", "index", "number"),
    *("source_file", "intermediate_values", "device_seconds", "started_at", "finished_at", "updated", "end_time"),
    *("start_time", "best_epoch", "best_step", "training_epochs", "git_sha", "git_hash", "sha", "directory", "host"),
    *("num_params", "num_parameters", "n_params", "params", "trial_index", "trial_id", "run_id", "rank"),
}


@dataclass(frozen=True)
class Columns:
    """By field: its column. ``params``: by hyperparameter, its column. ``metric`` and ``goal``: what ``value`` is.

    ``rows_are_trials``: the user said that there is no trial's column.
    """

    fields: dict[str, str]
    params: dict[str, str]
    metric: str
    goal: Goal
    notes: tuple[str, ...]
    rows_are_trials: bool = False


def find_columns(raw: RawTable, mapping: Sequence[str], goal: Goal | None, place: str) -> Columns:
    """Return which column is what.

    Parameters
    ----------
    mapping:
        ``FIELD=COLUMN`` each; ``FIELD=`` says that there is none (``model=``: the file is one model's);
        ``metric=NAME`` names the metric; ``params=COLUMN,COLUMN`` names the hyperparameters.

    Raises
    ------
    InputError
        When a mapping names no field or column, or the model's or the score's column is unclear.
    """
    asked, problems = _asked(mapping, raw.columns)
    if problems:
        raise InputError(problems)
    if asked.get("model") == "" and "model" not in raw.fallback:
        raw.rows = [{**row, FILE: Path(place).name.removesuffix(".gz").rsplit(".", 1)[0]} for row in raw.rows]
        asked["model"] = FILE
    finder = _Finder(raw, asked, place)
    fields = finder.find()
    if finder.problems:
        raise InputError(finder.problems)
    scored = fields.get("value") or fields["curve"]
    metric = asked.get("metric") or _metric(scored)
    notes = [*raw.notes, *finder.notes]
    own = raw.fallback.get("value", scored) in (scored, fields.get("value"))  # what the source says is of its own value
    direction = goal or (raw.goal if own else None) or _direction(metric) or _direction(scored)
    if direction is None:
        notes.append(f"Whether more or less {metric} is better was not said: more was taken; --goal minimize for less.")
    rows_are_trials = asked.get("trial_id") == ""
    return Columns(fields, finder.params(fields), metric, direction or "maximize", tuple(notes), rows_are_trials)


def one_row_a_trial(raw: RawTable, mapping: Sequence[str]) -> list[str]:
    """Bring ``raw`` into one row a trial where it has a row a split, a row a metric or a column a model.

    Returns
    -------
    list of str
        The mapping, renamed where columns were.
    """
    asked = dict(item.split("=", 1) for item in mapping if "=" in item)
    named = [name for field, names in asked.items() if field != "metric" for name in names.split(",") if name]
    said = asked.keys() & {"value", "validation", "val", "score", "curve"}
    if cross_validated := is_cross_validated(raw.columns):
        raw.goal = raw.goal or "maximize"
    if not said or not set(named) <= set(raw.columns):  # the mapping may name columns as they are once reshaped
        raw.rows, notes = reshaped(raw.rows)
        raw.notes += notes
    elif cross_validated:
        raw.rows = without_ranks(raw.rows, named)
    several = {
        field: asked[name].split(",")
        for name, field in (("value", "value"), ("validation", "value"), ("val", "value"), ("test", "test"))
        if "," in asked.get(name, "") and set(asked[name].split(",")) <= set(raw.columns)
    }
    columns = raw.columns
    if "value" in several:
        tests = several.get("test", [""] * len(several["value"]))
        groups = {
            value: {value: "validation score", **({test: "test score"} if test else {})}
            for value, test in zip(several["value"], tests, strict=False)
        }
        left = [item for item in mapping if item.split("=")[0] not in ("value", "validation", "val", "test", "model")]
        mapping = [*left, "model=model", "value=validation score", f"test={'test score' if any(tests) else ''}"]
    else:
        has_model = any(
            plain(name) in _NAMES["model"] or plain(_parameter(name) or "") in _NAMES["model"] for name in columns
        )
        groups = {} if has_model or "model" in asked or "model" in raw.fallback else models_in_names(columns)
    if groups:
        raw.rows = tall(raw.rows, groups)
        raw.notes.append(f"One column a model: {', '.join(groups)}.")
    return list(mapping)


def same_seeds(rows: Sequence[dict[str, Any]], columns: Columns) -> bool:
    """Whether rows without a trial's column are configurations, each run once with each of the same seeds.

    Random draws that meet by chance do not have the same seeds all.
    """
    fields = columns.fields
    if "trial_id" in fields or "epoch" in fields or "config" in fields or "seed" not in fields or not columns.params:
        return False
    seeds: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key = (row.get(fields["model"]), *(str(row.get(column)) for column in columns.params.values()))
        seeds.setdefault(key, []).append(row.get(fields["seed"]))
    found = {tuple(sorted(map(str, values))) for values in seeds.values()}
    return len(seeds) > 1 and len(found) == 1 and len(set(next(iter(found)))) == len(next(iter(found))) > 1


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
                self._plain.setdefault(plain(name), name)
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def find(self) -> dict[str, str]:
        fields: dict[str, str | None] = {}
        fields["model"] = self._given("model") if "model" in self._asked else self._model()
        fields["curve"] = self._given("curve") if "curve" in self._asked else None
        fields["value"] = self._given("value") if "value" in self._asked else self._value(fields["curve"])
        if fields["value"] is None and fields["curve"] is None:
            fields["curve"] = self._curve()
        scored = fields["value"] or fields["curve"]
        if scored is not None:
            fields["test"] = self._given("test") if "test" in self._asked else self._test(scored)
        used = {column for column in fields.values() if column}
        for name, common in _NAMES.items():
            if name in self._asked:
                fields[name] = self._given(name)
            elif fields.get(name) is None:
                present = [self._plain[word] for word in common if word in self._plain]
                free = [column for column in present if column not in used]
                fields[name] = free[0] if free else self._raw.fallback.get(name)
            if name == "config" and name not in self._asked and not self._is_config(fields[name]):
                fields[name] = None
            used |= {column for column in (fields[name],) if column}
        self._one_data_set({column for column in fields.values() if column})
        if fields.get("model") is None and not self.problems:
            self._unclear("model", [], "must have a column")
        if fields.get("value") is None and fields.get("curve") is None and not self.problems:
            self._unclear("value", [], "must be one column of validation scores")
        return {name: column for name, column in fields.items() if column}

    def _one_data_set(self, used: set[str]) -> None:
        """Scores of several data sets are no trials of one study."""
        asked = self._asked.get("params", "").split(",")
        for name in (self._plain[word] for word in _DATA if word in self._plain):
            values = sorted({str(row.get(name)) for row in self._raw.rows if row.get(name) is not None})
            if name not in used and name not in asked and len(values) > 1:
                remedy = f"take one with --where {name}={values[0]}, or name it in --map params= if it was tuned"
                self.problems.append(Problem(self._place, f"{name!r} must be one data set", ", ".join(values), remedy))

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
        own = set(words(name))
        scored = own & (VALIDATION | TEST | TRAIN) and own & (LESS | MORE | set(PLAIN))
        values = [row.get(name) for row in self._raw.rows]
        scalar = all(value is None or isinstance(value, str | int | float | bool) for value in values)
        return scalar and not scored and not name.startswith("_") and plain(name) not in (*_OWN, *_DATA)

    def _given(self, name: str) -> str | None:
        return self._asked[name] or None

    def _model(self) -> str | None:
        fallback = self._raw.fallback.get("model")
        if fallback and len({row.get(fallback) for row in self._raw.rows}) > 1:
            return fallback
        present = [self._plain[word] for word in _NAMES["model"] if word in self._plain]
        params = {plain(_parameter(name) or ""): name for name in self._raw.columns if _parameter(name)}
        present = present or [params[word] for word in _NAMES["model"] if word in params]
        if not present and fallback:
            return fallback
        if not present:
            present = self._groups_of_rows()
        if len(present) == 1 or (present and plain(_parameter(present[0]) or present[0]) == "model"):
            return present[0]
        self._unclear("model", present, "must be one column" if present else "must have a column")
        return None

    def _groups_of_rows(self) -> list[str]:
        """Return the text columns whose few values each stand in several rows: one of them may be the model."""
        found = []
        for name in self._plain.values():
            values = [row.get(name) for row in self._raw.rows]
            counts = Counter(value for value in values if isinstance(value, str))
            is_text = sum(counts.values()) == len(values) and plain(name) not in _OWN | set(_NAMES["state"])
            if is_text and 2 <= len(counts) <= _MOST_MODELS and min(counts.values()) > 1:
                found.append(name)
        if len(found) == 1:
            self.notes.append(f"No column is called model: {found[0]!r} was taken, because its values repeat.")
        return found

    def _value(self, curve: str | None) -> str | None:
        own = self._raw.fallback.get("value")
        if own is not None and self._is_number(own):  # what the source's search was about
            return own
        numeric = [name for name in self._plain.values() if self._is_number(name)]
        parts = {name: set(words(name)) for name in numeric}
        found = [name for name in numeric if parts[name] & VALIDATION and not parts[name] & TEST]
        if len(found) > 1:
            found = [name for name in found if not parts[name] & LESS] or found
        if len(found) > 1:  # beside the last epoch's score there may be the best epoch's
            found = [name for name in found if "best" in parts[name]] or found
        if not found:
            found = [self._plain[word] for word in PLAIN if self._plain.get(word) in numeric][:1]
        if not found:
            apart = TEST | TRAIN
            found = [name for name in numeric if parts[name] & (LESS | MORE) and not parts[name] & apart]
        if len(found) == 1:
            return found[0]
        if found and curve is None:
            self._unclear("value", found, "must be one column of validation scores")
        return None

    def _curve(self) -> str | None:
        """Return the column of lists of validation scores, one an epoch."""
        lists = [name for name in self._plain.values() if self._is_list(name)]
        found = [name for name in lists if set(words(name)) & VALIDATION]
        if len(found) > 1:
            found = [name for name in found if not set(words(name)) & LESS] or found
        if len(found) > 1:
            self._unclear("curve", found, "must be one column of validation scores by epoch")
        return found[0] if len(found) == 1 else None

    def _test(self, value: str) -> str | None:
        kind = self._is_list if self._is_list(value) else self._is_number
        parts = {name: set(words(name)) for name in self._plain.values() if kind(name) or self._is_number(name)}
        found = [name for name in parts if parts[name] & TEST and name != value]
        if len(found) > 1:
            found = [name for name in found if kind(name)] or found
        if len(found) > 1:
            rest = set(words(value)) - VALIDATION
            same = [name for name in found if parts[name] - TEST == rest]
            if len(same) != 1:
                same = [name for name in found if parts[name] - TEST == rest - {"best"}]
            if len(same) != 1:
                self._unclear("test", found, "must be one column of test scores")
                return None
            found = same
        return found[0] if found else None

    def _is_number(self, column: str) -> bool:
        values = [row.get(column) for row in self._raw.rows]
        present = [v for v in values if v is not None and not (isinstance(v, str) and v.lower() in FAILED)]
        return bool(present) and {type(value) for value in present} <= {int, float}

    def _is_list(self, column: str) -> bool:
        present = [value for row in self._raw.rows if (value := row.get(column)) is not None]
        return bool(present) and all(isinstance(value, list) and _are_numbers(value) for value in present)

    def _is_config(self, column: str | None) -> bool:
        values = {row.get(column) for row in self._raw.rows} if column else set()
        return bool(values & {"tuned", "default"}) and values <= {"tuned", "default", "search", "", None}

    def _unclear(self, name: str, candidates: list[str], rule: str) -> None:
        seen = ", ".join(candidates) if candidates else f"columns {', '.join(self._raw.columns)}"
        remedy = f"say which with --map {name}=COLUMN"
        if name == "test":
            remedy += ", or --map test= for none"
        if name == "model" and not candidates:
            numeric = [column for column in self._plain.values() if self._is_number(column)]
            scores = VALIDATION | TEST | TRAIN | LESS | MORE
            numeric = [] if any(set(words(column)) & scores for column in numeric) else numeric
            remedy += ", give a file a model (--map model= if this one is a single model's)"
            if len(numeric) > 1:
                remedy += f", or name a column a model, such as --map value={','.join(numeric[:2])}"
        self.problems.append(Problem(self._place, f"{name} {rule}", seen, remedy))


def _are_numbers(values: list[Any]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def _parameter(name: str) -> str | None:
    """Return the hyperparameter that a column's prefix says it is, else None."""
    for prefix in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return None


def _metric(column: str) -> str:
    parts = [word for word in words(column) if word not in VALIDATION | _UNSAID | _CURVE]
    parts = [word for word in parts if word not in PLAIN] or parts
    name = "_".join("accuracy" if word == "acc" else word for word in parts)
    return name if name and name not in (*PLAIN, "best") else "score"


def _direction(name: str) -> Goal | None:
    parts = set(words(name))
    if not parts & (LESS | MORE):
        return None
    return "minimize" if bool(parts & LESS) != bool(parts & NEGATED) else "maximize"
